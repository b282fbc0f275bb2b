"""A run's data: the stream that it trains on, the held-out one, and task identifiers as they occur there."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data import TASK_DIM, Digits, Palette, Split, SynthMNIST, load_digits, synthmnist_palette
from ..data.stream import Images
from ..data.tasks import random_tasks, read_tasks, warn_outside
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
    """Raises ValueError where a run's data cannot be had, or its settings ask for what they do not have."""
    if config.data is None:
        if config.task_dim != TASK_DIM:
            raise ValueError(f"task_dim must be {TASK_DIM}, the length of SynthMNIST's t; it was {config.task_dim}")
        for split in SPLITS:
            run_digits(config, split)
        return
    if config.mnist is not None:
        raise ValueError(f"mnist must be left out with data, whose images have no digits put in; it was {config.mnist}")
    for split in SPLITS:
        images = _tokenised(config, split, torch.device("cpu"))
    require_images(images, "eval_images", config.eval_images)


def require_images(images: TokenImages, name: str, count: int) -> None:
    """Raises ValueError where more images are asked for than there are: the stream would repeat them."""
    if count > images.count:
        raise ValueError(f"{name} must be at most {images.count}, the held-out images; it was {count}")


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


def with_settings_of_data(given: dict[str, Any]) -> dict[str, Any]:
    """Settings that name a folder of tokenised images, with its shape and, unless they say otherwise, its t normalised.

    Raises:
        ValueError: they ask for another shape.
    """
    images = TokenImages(Path(given["data"]), "train")
    brought = {name: getattr(images, theirs) for name, theirs in BROUGHT.items()}
    for name, value in brought.items():
        if given.get(name, value) != value:
            raise ValueError(f"{name} must be left out, or be {value} as in {given['data']}; it was {given[name]}")
    mean, std = images.task_moments()
    return {"t_mean": mean, "t_std": std or 1.0} | given | brought


def read_run_tasks(config: TrainConfig, path: Path) -> Tensor:
    """Task identifiers of a run's length from a file, as ``read_tasks``; SynthMNIST's are warned of beyond [0, 1]."""
    t = read_tasks(path, config.task_dim)
    if config.data is None:
        warn_outside(t)
    return t


def draw_run_tasks(config: TrainConfig, count: int, seed: int) -> tuple[Tensor, Tensor | None]:
    """Task identifiers as they occur in a run's data.

    Returns:
        t (count, task_dim) float32, for SynthMNIST uniform in [0, 1] and else those of held-out images, drawn without
        repetition; and the tokens (count, T) int64 of these images, None for SynthMNIST.

    Raises:
        ValueError: a count below 1 or above the number of held-out images, or data that cannot be had.
    """
    if config.data is None:
        return random_tasks(count, seed), None
    images = _tokenised(config, "validation", torch.device("cpu"), batch=1)
    if not 1 <= count <= images.count:
        raise ValueError(f"count must be from 1 to {images.count}, the held-out images; it was {count}")
    drawn = torch.randperm(images.count, generator=torch.Generator().manual_seed(seed))[:count]
    tokens, t = zip(*map(images.batch, drawn.tolist()))
    return torch.cat(t), torch.cat(tokens)


@lru_cache(maxsize=2)
def _digits(source: str | None, split: Split) -> Digits:
    return load_digits(source, split)


def _tokenised(config: TrainConfig, split: Split, device: torch.device, batch: int | None = None) -> TokenImages:
    folder, batch = Path(str(config.data)), batch or _batch(config, split)
    images = TokenImages(folder, split, config.seed, batch, config.examples_per_task, device)
    for name, theirs in BROUGHT.items():
        if getattr(images, theirs) != getattr(config, name):
            raise ValueError(
                f"{name} must be {getattr(images, theirs)}, as in {config.data}; it was {getattr(config, name)}"
            )
    return images


def _batch(config: TrainConfig, split: Split) -> int:
    return config.batch_size if split == "train" else min(64, config.eval_images)
