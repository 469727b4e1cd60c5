"""Git forges: what they send and how it is authenticated."""
