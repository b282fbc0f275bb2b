"""Fused kernels of the grouped projection W_s = P W Q, and their registration with torch."""
