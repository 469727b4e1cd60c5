"""Locked configuration: SOPS files, age identities, key grants."""
