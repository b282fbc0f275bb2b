"""Data of the paper's experiments, as sequences of tokens."""

from typing import TYPE_CHECKING

from ..utils.lazy import attach
from .names import TASK_DIM, TASK_NAMES

if TYPE_CHECKING:
    from .digits import Digits, Split, load_digits
    from .images import LabelledImages, open_images
    from .palette import Palette, cache_dir, fit_palette
    from .stream import Images
    from .synthmnist import SynthMNIST, overlay, synthmnist_palette, texture
    from .tasks import random_tasks, read_tasks, warn_outside
    from .tokens import TokenImages, subset
    from .vqvae import VQVAE

__getattr__, __dir__ = attach(
    __name__,
    {
        **dict.fromkeys(("Digits", "Split", "load_digits"), "digits"),
        **dict.fromkeys(("LabelledImages", "open_images"), "images"),
        **dict.fromkeys(("Palette", "cache_dir", "fit_palette"), "palette"),
        "Images": "stream",
        **dict.fromkeys(("SynthMNIST", "overlay", "synthmnist_palette", "texture"), "synthmnist"),
        **dict.fromkeys(("random_tasks", "read_tasks", "warn_outside"), "tasks"),
        **dict.fromkeys(("TokenImages", "subset"), "tokens"),
        "VQVAE": "vqvae",
    },
)
