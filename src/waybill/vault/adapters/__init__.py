"""What the vault reaches others by."""
