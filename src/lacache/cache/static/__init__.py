"""Buffers of fixed size for many sequences: what the engine decodes from."""
