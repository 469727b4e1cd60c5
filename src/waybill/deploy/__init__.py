"""Services, environments, grants, builds and rollouts."""
