"""Hooks, API, pages and the live stream."""
