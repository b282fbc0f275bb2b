"""The kernels by backend: plain torch, C++ for the CPU, CUDA and Triton."""
