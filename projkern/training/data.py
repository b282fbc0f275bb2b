"""A run's data: the stream that it trains on, the held-out one, and task identifiers as they occur there."""

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data import TASK_DIM, Digits, Palette, Split, SynthMNIST, load_digits, synthmnist_palette
from ..data.stream import Images
from ..data.tasks import random_tasks, read_tasks, warn_outside
from ..data.tokens import TokenImages, split_file
from ..utils.digests import contents, digest
from ..utils.errors import InputError
from .config import DataConfig, TrainConfig

SPLITS: tuple[Split, Split] = ("train", "validation")
SETTINGS_FROM_DATA = {"side": "size", "vocab_size": "vocabulary", "task_dim": "task_dim"}
"""Settings that a folder of tokenised images brings with it, and the attributes of ``TokenImages`` that hold them."""


def open_data(config: TrainConfig, split: Split, device: torch.device, palette: Palette | None = None) -> Images:
    """The training stream, in the run's batches, or the held-out one, in batches fit for evaluation.

    Args:
        palette: the colours of SynthMNIST's tokens; fitted (or read from the cache) where it is None.

    Raises:
        InputError: data that are not there, or do not fit the settings.
    """
    if config.data.folder is not None:
        return _tokenised(config.data, split, device, _batch(config, split), config.run.seed)
    if palette is None:
        palette = run_palette(config.data)
    return make_data(config, palette.to(device), run_digits(config.data, split), split, device)


def check_data(config: TrainConfig) -> None:
    """Raises InputError where a run's data are not there, or do not fit its settings."""
    data = config.data
    if data.folder is None:
        if data.task_dim != TASK_DIM:
            raise InputError(f"task_dim must be {TASK_DIM}, the length of SynthMNIST's t; it was {data.task_dim}")
        for split in SPLITS:
            run_digits(data, split)
        return
    if data.mnist is not None:
        raise InputError(f"mnist must be left out with data, whose images have no digits put in; it was {data.mnist}")
    for split in SPLITS:
        images = _tokenised(data, split, torch.device("cpu"), _batch(config, split))
    require_images(images, "eval_images", config.run.eval_images)


def with_digests(config: TrainConfig) -> TrainConfig:
    """The settings of a new run with the digests of its images, by which these are recognised from then on.

    scikit-learn's digits, which are enlarged here, have none.
    """
    digests = {f"{split}_digest": _digest_of(config.data, split) for split in SPLITS}
    return config.replace(**digests)


def _digest_of(data: DataConfig, split: Split) -> str | None:
    if data.folder is not None:
        path = split_file(Path(data.folder), split)
        status = path.stat()
        return _file_digest(path, status.st_size, status.st_mtime_ns)
    return None if data.mnist is None else _digits(data.mnist, split)[1]


def _require_same(data: DataConfig, split: Split) -> None:
    """Raises InputError where the images are not those that a run began with; those of older runs are not known."""
    expected = getattr(data, f"{split}_digest")
    if expected is None or _digest_of(data, split) == expected:
        return
    name, place = ("mnist", data.mnist) if data.folder is None else ("data", data.folder)
    raise InputError(
        f"{name} must be the images that the run began with; the {split} images of {place} are others. "
        f"Where they lie elsewhere now, --{name} says so, to train --resume and to evaluate"
    )


def require_images(images: TokenImages, name: str, count: int) -> None:
    """Raises InputError where more images are asked for than there are: the stream would repeat them."""
    if count > images.count:
        raise InputError(f"{name} must be at most {images.count}, the held-out images; it was {count}")


def make_data(config: TrainConfig, palette: Palette, digits: Digits, split: Split, device: torch.device) -> SynthMNIST:
    """SynthMNIST as a run's settings ask for it."""
    return SynthMNIST(
        config.data.side,
        palette,
        digits,
        seed=config.run.seed,
        split=split,
        batch=_batch(config, split),
        examples_per_task=config.data.examples_per_task if split == "train" else 1,
        device=device,
    )


def run_palette(data: DataConfig) -> Palette:
    """The colours of SynthMNIST's tokens, fitted to the training images or read from the cache."""
    return synthmnist_palette(data.side, data.vocab_size, run_digits(data, "train"))


def run_digits(data: DataConfig, split: Split) -> Digits:
    """The digits of a run; raises InputError where they cannot be read."""
    try:
        digits, _ = _digits(data.mnist, split)
    except (OSError, ValueError) as error:
        raise InputError(
            f"mnist must be a folder with MNIST's four idx files, or 'openml'; it was {data.mnist}: {error}"
        ) from error
    _require_same(data, split)
    return digits


def with_settings_of_data(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings that name a folder of tokenised images, with its shape and, unless they say otherwise, its t normalised.

    Raises:
        InputError: they ask for another shape.
    """
    folder = settings["folder"]
    images = TokenImages(Path(folder), "train")
    from_data = {name: getattr(images, attribute) for name, attribute in SETTINGS_FROM_DATA.items()}
    for name, value in from_data.items():
        if settings.get(name, value) != value:
            raise InputError(f"{name} must be left out, or be {value} as in {folder}; it was {settings[name]}")
    mean, std = images.task_moments()
    return {"t_mean": mean, "t_std": std or 1.0} | settings | from_data


def read_run_tasks(data: DataConfig, path: Path) -> Tensor:
    """Task identifiers of a run's length from a file, as ``read_tasks``; SynthMNIST's are warned of beyond [0, 1]."""
    t = read_tasks(path, data.task_dim)
    if data.folder is None:
        warn_outside(t)
    return t


def draw_run_tasks(data: DataConfig, count: int, seed: int) -> tuple[Tensor, Tensor | None]:
    """Task identifiers as they occur in a run's data.

    Returns:
        t (count, task_dim) float32, for SynthMNIST uniform in [0, 1] and else those of held-out images, drawn without
        repetition; and the tokens (count, T) int64 of these images, None for SynthMNIST.

    Raises:
        InputError: a count below 1 or above the number of held-out images, or data that cannot be read.
    """
    if data.folder is None:
        return random_tasks(count, seed), None
    images = _tokenised(data, "validation", torch.device("cpu"), batch=1)
    if not 1 <= count <= images.count:
        raise InputError(f"count must be from 1 to {images.count}, the held-out images; it was {count}")
    index = torch.randperm(images.count, generator=torch.Generator().manual_seed(seed))[:count]
    tokens, t = zip(*map(images.batch, index.tolist()))
    return torch.cat(t), torch.cat(tokens)


@lru_cache(maxsize=2)
def _digits(source: str | None, split: Split) -> tuple[Digits, str]:
    digits = load_digits(source, split)
    return digits, digest([digits.images.numpy().data, digits.labels.numpy().data])


@lru_cache(maxsize=2)
def _file_digest(path: Path, size: int, time: int) -> str:
    """The digest of a file as it was, with this size, at this time."""
    return digest(contents([path]))


def _tokenised(data: DataConfig, split: Split, device: torch.device, batch: int, seed: int = 0) -> TokenImages:
    images = TokenImages(Path(str(data.folder)), split, seed, batch, data.examples_per_task, device)
    for name, attribute in SETTINGS_FROM_DATA.items():
        stored, required = getattr(images, attribute), getattr(data, name)
        if stored != required:
            raise InputError(f"{name} must be {stored}, as in {data.folder}; it was {required}")
    _require_same(data, split)
    return images


def _batch(config: TrainConfig, split: Split) -> int:
    return config.schedule.batch_size if split == "train" else min(64, config.run.eval_images)
