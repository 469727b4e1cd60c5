"""What may run and who said so: manifests and proofs, decided purely."""
