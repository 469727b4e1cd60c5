"""Waybill: what a team pushes, builds and receives runs on its own hosts, with a receipt."""

__version__ = "0.1.0"
