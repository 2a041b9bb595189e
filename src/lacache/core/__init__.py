"""Which tokens each layer keeps: integers only, no torch."""
