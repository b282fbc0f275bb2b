"""Settings to start from: the recipes, and the presets of ``python -m projkern.train``."""

from fractions import Fraction
from typing import Any

from .config import TrainConfig

PLAIN: dict[str, Any] = {
    "generator": "diagonal",
    "start": "constant",
    "shared_inner": False,
    "tied": False,
    "bias_of_t": False,
    "t_mean": 0.0,
    "t_std": 1.0,
    "w_src": 1.0,
    "source_batch": None,
    "distill": 0.0,
    "tables_lr": None,
}
"""The paper's plain recipe, whichever the default is; what the paper leaves open is as simple as can be."""

QUICK = TrainConfig()

DEBUG = QUICK.replace(
    side=4,
    vocab_size=8,
    n_layer=2,
    n_embd=32,
    rank=2,
    scales=(Fraction(1, 2), Fraction(1, 4)),
    batch_size=4,
    source_steps=20,
    steps=20,
    warmup=2,
    log_every=5,
    checkpoint_every=10,
    eval_images=16,
)

SMALL = QUICK.replace(
    n_layer=6,
    n_head=4,
    n_embd=256,
    scales=(Fraction(1, 2), Fraction(1, 4), Fraction(1, 8)),
    batch_size=32,
    source_steps=10_000,
    steps=10_000,
    source_lr=1e-3,
    small_lr=3e-3,
    tuning_lr=5e-4,
    operator_lr=5e-3,
    warmup=500,
    checkpoint_every=500,
    eval_images=2048,
)

PAPER = QUICK.replace(
    **PLAIN,
    side=32,
    vocab_size=512,
    n_layer=24,
    n_head=8,
    n_embd=512,
    dropout=0.1,
    scales=(Fraction(1, 2), Fraction(1, 4), Fraction(1, 8)),
    batch_size=64,
    source_steps=400_000,
    steps=400_000,
    source_lr=1e-3,
    small_lr=1e-3,
    tuning_lr=1e-3,
    operator_lr=1e-3,
    warmup=10_000,
    log_every=100,
    checkpoint_every=2000,
    eval_images=8192,
)

PRESETS: dict[str, tuple[str, TrainConfig]] = {
    "quick": ("16x16, 64 colours, 4 layers, d = 128: minutes on two CPU cores", QUICK),
    "debug": ("4x4, 8 colours, 2 layers, d = 32: every model and picture in seconds, to see that all works", DEBUG),
    "small": ("16x16, 64 colours, 6 layers, d = 256, s = 1/2, 1/4, 1/8: hours on a CPU, minutes on a GPU", SMALL),
    "paper": ("32x32, 512 colours, 24 layers, d = 512, s = 1/2, 1/4, 1/8: the paper's set-up, for a large GPU", PAPER),
}
"""Name -> what it is, and its settings. Only ``quick``'s learning rates are tuned (docs/training.md)."""


def new_config(preset: str, changes: dict[str, Any]) -> TrainConfig:
    """The settings of a new run: a preset's, with changes, and those that the named source and data bring.

    Raises:
        InputError: changes that disagree with the source or the data, or with each other.
    """
    from .data import with_settings_of_data
    from .source import with_shape_of_source

    if "source" in changes:
        changes = with_shape_of_source(changes)
    if "folder" in changes:
        changes = with_settings_of_data(changes)
    return PRESETS[preset][1].replace(**changes)
