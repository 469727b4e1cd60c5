"""Events, the outbox with leases, and the one place where actions are performed."""
