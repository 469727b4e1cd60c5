"""The forges whose issues can be written: one file each, found by the name that it gives itself."""
