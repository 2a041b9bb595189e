"""What the engine computes in another way on CPU.

`linear` replaces linear layers. `kernels` calls the operators of kernels.cpp, which `build`
compiles once (docs/adr/0013).
"""
