"""Outside systems that deploying talks to."""
