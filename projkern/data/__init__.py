"""Data of the paper's experiments, as sequences of tokens."""

from .digits import Digits, Split, load_digits
from .images import LabelledImages, open_images
from .palette import Palette, cache_dir, fit_palette
from .stream import Images
from .synthmnist import TASK_DIM, TASK_NAMES, SynthMNIST, overlay, synthmnist_palette, texture
from .tasks import random_tasks, read_tasks, warn_outside
from .tokens import TokenImages, subset
from .vqvae import VQVAE
