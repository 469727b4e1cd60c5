"""Data race reports: read from logs of any form, named by both of their sides, and kept as one issue each."""
