"""Messages between server, agent and command line."""
