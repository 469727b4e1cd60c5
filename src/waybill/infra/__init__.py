"""Everything that touches the world for others: database, HTTP, logs, settings."""
