"""Wiring and start of the server."""
