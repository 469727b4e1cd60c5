"""One file for each reaction: an event becomes actions."""
