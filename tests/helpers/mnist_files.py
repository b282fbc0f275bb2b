"""Small files in MNIST's format."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def idx(array):
    """The bytes of an idx file."""
    header = np.array([0x0800 + array.ndim, *array.shape], ">u4").tobytes()
    return header + array.astype(np.uint8).tobytes()


def random_digits(seed=0):
    """Images and labels of 7 training digits and of 3 held-out ones, by the prefix of their files."""
    rng = np.random.default_rng(seed)
    return {
        prefix: (rng.integers(0, 256, (n, 28, 28)), rng.integers(0, 10, n)) for prefix, n in (("train", 7), ("t10k", 3))
    }


def write_mnist(folder, seed=0):
    """The four files of ``random_digits``."""
    folder.mkdir(parents=True)
    for prefix, arrays in random_digits(seed).items():
        for name, array in zip(("images-idx3", "labels-idx1"), arrays):
            Path(folder, f"{prefix}-{name}-ubyte").write_bytes(idx(array))
    return folder
