"""Runs the CUDA kernels without a card; ``build`` says how."""

from .build import CSRC, HERE, Controls, build, compiler, kernels, load, make

__all__ = ["CSRC", "HERE", "Controls", "build", "compiler", "kernels", "load", "make"]
