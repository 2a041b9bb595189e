"""Kernels for one token and for compactions on CPU, compiled once (docs/adr/0013)."""
