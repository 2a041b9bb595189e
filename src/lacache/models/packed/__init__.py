"""Weights of 4 to 8 bits in groups, as GGUF files have them, and models that run on them.

`weight` is a matrix, `blocks` reads those of GGUF files, `layers` are the modules of a model,
`folder` keeps a packed model on disk (docs/adr/0029).
"""
