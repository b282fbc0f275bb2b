"""Runs the CUDA kernels without a card; ``build`` says how."""

from .build import HERE, Controls, build, compiler, kernels, make

__all__ = ["HERE", "Controls", "build", "compiler", "kernels", "make"]
