"""Bounded transformers caches: the ladder, a sink window, and everything."""
