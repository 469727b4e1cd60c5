"""The demonstration: the whole story of a push, on this machine."""
