"""Projected Compression (arXiv 2506.22255): W_C = P_out W P_in + A, one smaller model from a pretrained one."""
