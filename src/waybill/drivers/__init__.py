"""A driver turns a step into commands; one file each, no input or output."""
