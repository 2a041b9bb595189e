"""Kernels and products that replace those of torch on CPU.

`linear` replaces linear layers. `kernels` calls operators in C++, which `build`
compiles once (docs/adr/0013).
"""
