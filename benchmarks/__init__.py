"""Benchmarks: the fused kernels beside the strongest forms that a user could write in torch."""
