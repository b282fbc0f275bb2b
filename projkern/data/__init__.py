"""Data of the paper's experiments, as sequences of tokens."""

from projkern.data.digits import Digits, Split, load_digits
from projkern.data.palette import Palette, cache_dir, fit_palette
from projkern.data.synthmnist import (
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
