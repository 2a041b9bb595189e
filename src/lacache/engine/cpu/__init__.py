"""Products for one token on CPU, compiled once (docs/adr/0013)."""
