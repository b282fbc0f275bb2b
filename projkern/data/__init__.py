"""Data of the paper's experiments, as sequences of tokens."""

from .digits import Digits, Split, load_digits
from .palette import Palette, cache_dir, fit_palette
from .synthmnist import (
    TASK_DIM,
    TASK_NAMES,
    SynthMNIST,
    overlay,
    synthmnist_palette,
    texture,
)

__all__ = [
    "TASK_DIM",
    "TASK_NAMES",
    "Digits",
    "Palette",
    "Split",
    "SynthMNIST",
    "cache_dir",
    "fit_palette",
    "load_digits",
    "overlay",
    "synthmnist_palette",
    "texture",
]
