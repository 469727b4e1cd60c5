"""Ids, clock, canonical JSON, errors and plug-in tables: pure values that everything stands on."""
