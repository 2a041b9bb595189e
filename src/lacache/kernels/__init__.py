"""The kernels in C++ for CPUs, and how they are compiled (docs/adr/0013, 0029)."""
