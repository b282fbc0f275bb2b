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
from .tasks import random_tasks, read_tasks, warn_outside

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
    "random_tasks",
    "read_tasks",
    "synthmnist_palette",
    "texture",
    "warn_outside",
]
