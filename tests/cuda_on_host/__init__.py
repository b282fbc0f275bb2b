"""Runs the CUDA kernels without a card; ``build`` says how."""

from .build import HERE, Controls, build, kernels, make

__all__ = ["HERE", "Controls", "build", "kernels", "make"]
