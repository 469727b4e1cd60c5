"""One file for each forge; a new file that defines ``FORGE`` is a new forge."""
