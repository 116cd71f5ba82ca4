"""CUDA kernels on the CPU: compiles a `.cu` source with the host's C++ compiler and runs it with its memory checked."""
