"""Measure head profiles: which KV heads of a model are retrieval heads."""
