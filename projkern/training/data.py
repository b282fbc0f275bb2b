"""A run's data: the stream that it trains on, and the held-out one."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from ..data import Digits, Palette, Split, SynthMNIST, load_digits, synthmnist_palette
from ..data.stream import Images
from ..data.tokens import TokenImages
from .config import TrainConfig

SPLITS: tuple[Split, Split] = ("train", "validation")
BROUGHT = {"image_size": "size", "colors": "vocabulary", "task_dim": "task_dim"}
"""Settings that a folder of tokenised images brings with it, and what they are called there."""


def open_data(config: TrainConfig, split: Split, device: torch.device, palette: Palette | None = None) -> Images:
    """The training stream, in the run's batches, or the held-out one, in batches fit for evaluation.

    Args:
        palette: the colours of SynthMNIST's tokens; fitted (or read from the cache) where none is given.

    Raises:
        ValueError: data that cannot be had, or do not fit the settings.
    """
    if config.data is not None:
        return _tokenised(config, split, device)
    if palette is None:
        palette = synthmnist_palette(config.image_size, config.colors, run_digits(config, "train"))
    return make_data(config, palette.to(device), run_digits(config, split), split, device)


def check_data(config: TrainConfig) -> None:
    """Raises ValueError where a run's data cannot be had."""
    for split in SPLITS:
        if config.data is not None:
            _tokenised(config, split, torch.device("cpu"))
        else:
            run_digits(config, split)


def make_data(config: TrainConfig, palette: Palette, digits: Digits, split: Split, device: torch.device) -> SynthMNIST:
    """SynthMNIST as a run's settings ask for it."""
    return SynthMNIST(
        config.image_size,
        palette,
        digits,
        seed=config.seed,
        split=split,
        batch=_batch(config, split),
        examples_per_task=config.examples_per_task if split == "train" else 1,
        device=device,
    )


def run_digits(config: TrainConfig, split: Split) -> Digits:
    """The digits of a run; raises ValueError where they cannot be had."""
    try:
        return _digits(config.mnist, split)
    except (OSError, ValueError) as error:
        wanted = "a folder with MNIST's four idx files, or 'openml'"
        raise ValueError(f"mnist must be {wanted}; it was {config.mnist}: {error}") from error


def with_shape_of_data(given: dict[str, Any]) -> dict[str, Any]:
    """Settings that name a folder of tokenised images, with its shape; raises ValueError where they ask for another."""
    images = TokenImages(Path(given["data"]), "train")
    brought = {name: getattr(images, theirs) for name, theirs in BROUGHT.items()}
    for name, value in brought.items():
        if given.get(name, value) != value:
            raise ValueError(f"{name} must be left out, or be {value} as in {given['data']}; it was {given[name]}")
    return given | brought


@lru_cache(maxsize=2)
def _digits(source: str | None, split: Split) -> Digits:
    return load_digits(source, split)


def _tokenised(config: TrainConfig, split: Split, device: torch.device) -> TokenImages:
    images = TokenImages(Path(str(config.data)), split, config.seed, _batch(config, split), device=device)
    for name, theirs in BROUGHT.items():
        if getattr(images, theirs) != getattr(config, name):
            raise ValueError(
                f"{name} must be {getattr(images, theirs)}, as in {config.data}; it was {getattr(config, name)}"
            )
    return images


def _batch(config: TrainConfig, split: Split) -> int:
    return config.batch_size if split == "train" else min(64, config.eval_images)
