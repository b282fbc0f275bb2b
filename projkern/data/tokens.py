"""A folder of tokenised images with their task identifiers, and the stream of batches over it.

    DIR/config.json             what it holds, and the settings of its tokenizer
    DIR/tokenizer.safetensors   the VQ-VAE
    DIR/train.safetensors       tokens (n, T) uint16 or int32, t (n, dim) float32, labels (n,) int64
    DIR/validation.safetensors

A folder whose config.json has no counts is half-written.
"""

import shutil
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..utils.errors import InputError
from ..utils.files import Format, is_nonempty, locked, write_atomically
from ..utils.seeds import seed_of
from ..utils.tensors import read_tensors, write_tensors
from .digits import Split, check_split
from .vqvae import VQVAE

FORMAT = Format("projkern tokens", 1, "tokenised images")
TOKENIZER = "tokenizer.safetensors"
HELD_OUT_SEED = 0
_SAMPLE = 4096  # images whose t the moments are computed from


class TokenImages:
    """Batches of tokenised images, each with its own t; a batch is a function of (seed, split, step) alone.

    "train" goes through the images in a new random order each epoch; "validation" in one random
    order that is always the same, from step 0 over and over. The files are mapped into memory, not read as a whole.

    Args:
        folder: written by ``python -m projkern.tokenize``, or by ``subset``.
        split: "train" or "validation".
        seed: of the training images' order.
        batch: B >= 1, images per step.
        examples_per_task: must be 1, as no two images share a t.
        device: where tensors are returned.

    Raises:
        InputError: an argument out of its range, or a folder that holds something else or is half-written.
    """

    def __init__(
        self,
        folder: str | Path,
        split: Split = "train",
        seed: int = 0,
        batch: int = 16,
        examples_per_task: int = 1,
        device: torch.device | str = "cpu",
    ) -> None:
        check_split(split)
        if batch < 1:
            raise InputError(f"batch must be at least 1; it was {batch}")
        if examples_per_task != 1:
            raise InputError(f"examples_per_task must be 1: each image has its own t; it was {examples_per_task}")
        self.folder, self.split, self.seed, self.batch_size = Path(folder), split, seed, batch
        self.examples_per_task, self.device = examples_per_task, torch.device(device)
        self.config = read_config(self.folder)
        self.size: int = self.config["grid"]
        self.task_dim: int = self.config["task_dim"]
        self.vocabulary: int = self.config["vocabulary"]
        self.count: int = self.config["counts"][split]
        self._tokens, self._t, self._labels = _read_split(self.folder, split, self.config)
        self._tokenizer = VQVAE.load(self.folder / TOKENIZER).to(self.device)

    def batch(self, step: int, t: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Tokens and task identifiers of one step.

        Args:
            step: any integer >= 0.
            t: (B, task_dim) task identifiers to return in place of the images' own.

        Returns:
            tokens (B, T) int64 with T = size^2, and t (B, task_dim) float32.
        """
        index = self._index(step)
        own = self._t[index]
        t = (own if t is None else t).to(self.device, torch.float32)
        if t.shape != own.shape:
            raise InputError(f"t must be {tuple(own.shape)}; it was {tuple(t.shape)}")
        return self._tokens[index].long().to(self.device), t

    @property
    def positions(self) -> int:
        """T, tokens of an image."""
        return self.size**2

    def tasks(self, step: int) -> Tensor:
        """The task identifiers of ``batch``: (B, task_dim) float32."""
        return self._t[self._index(step)].to(self.device)

    def labels(self, step: int) -> Tensor:
        """The labels of ``batch``: (B,) int64."""
        return self._labels[self._index(step)].to(self.device)

    @property
    def all_labels(self) -> Tensor:
        """The labels of the split's images in their own order: (n,) int64."""
        return self._labels

    def task_moments(self) -> tuple[float, float]:
        """Mean and standard deviation over the components of t, of up to 4096 of the split's images, to 4 digits."""
        t = self._t[:: -(-len(self._t) // _SAMPLE)].double()
        return float(f"{t.mean():.4g}"), float(f"{t.std():.4g}")

    def decode(self, tokens: Tensor) -> Tensor:
        """Images of tokens (B, T): (B, 3, S, S) float32 in [-1, 1], on the tokens' device."""
        return self._tokenizer.to(tokens.device).decode(tokens)

    def _index(self, step: int) -> Tensor:
        if step < 0:
            raise InputError(f"step must be at least 0; it was {step}")
        position = torch.arange(step * self.batch_size, (step + 1) * self.batch_size)
        if self.split == "validation":  # collections are sorted by class; the first images are to be of all
            return _permutation(HELD_OUT_SEED, 0, self.count)[position % self.count]
        epoch = position // self.count
        return torch.cat(
            [
                _permutation(self.seed, number, self.count)[position[epoch == number] % self.count]
                for number in epoch.unique().tolist()
            ]
        )


@lru_cache(maxsize=2)  # a batch may take the end of one epoch and the start of the next
def _permutation(seed: int, epoch: int, count: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed_of(seed, epoch, bits=32)))


def subset(folder: str | Path, out: str | Path, keep: Callable[[Tensor], Tensor] | Sequence[int] | Tensor) -> None:
    """Write a folder with some of the training images of another, and its tokenizer and validation images.

    Args:
        folder: tokenised images.
        out: a new folder.
        keep: indices of the training images to keep, in that order; or a function from their labels (n,) int64 to a
            mask (n,) bool, or to indices.

    Raises:
        FileExistsError: ``out`` holds something.
        InputError: no image is kept, or an index is out of range; or as ``TokenImages``.
    """
    folder, out = Path(folder), Path(out)
    config = read_config(folder)
    tokens, t, labels = _read_split(folder, "train", config)
    index = torch.as_tensor(keep(labels) if callable(keep) else keep)
    if index.dtype == torch.bool and index.shape == labels.shape:
        index = index.nonzero()[:, 0]
    index = index.long()
    if index.ndim != 1 or len(index) == 0 or int(index.min()) < 0 or int(index.max()) >= len(labels):
        raise InputError(f"keep must leave at least one of the {len(labels)} training images, by index in [0, n)")
    if is_nonempty(out):
        raise FileExistsError(f"out must be a new folder; it was {out}")
    with locked(out):
        write_split(out, "train", tokens[index], t[index], labels[index])
        for name in ("validation.safetensors", TOKENIZER):
            write_atomically(out / name, lambda p, name=name: shutil.copyfile(folder / name, p))  # type: ignore[misc]
        FORMAT.write(out / "config.json", config | {"counts": config["counts"] | {"train": len(index)}})


def read_config(folder: Path) -> dict[str, Any]:
    """The description of a finished folder.

    Returns:
        ``image_size`` S and ``grid`` S/2, ``vocabulary``, ``task_dim``, ``counts`` and ``skipped`` of the splits, and
        ``settings``.

    Raises:
        InputError: a folder that holds something else, is of another version, or is half-written.
    """
    config = read_settings(folder)
    if "counts" not in config:
        raise InputError(
            f"{folder} must hold tokenised images; these have only begun. "
            f"To go on: python -m projkern.tokenize --out {folder} --resume"
        )
    return config


def read_settings(folder: Path) -> dict[str, Any]:
    """As ``read_config``, of a folder that may be half-written: then ``settings`` is all there is."""
    return FORMAT.read(folder / "config.json")


def split_file(folder: Path, split: Split) -> Path:
    """Where a split's tokens, t and labels lie."""
    return folder / f"{split}.safetensors"


def write_split(folder: Path, split: Split, tokens: Tensor, t: Tensor, labels: Tensor) -> None:
    """Write a split's file, atomically: tokens (n, T) uint16 or int32, t (n, dim) float32, labels (n,) int64."""
    write_tensors(split_file(folder, split), {"tokens": tokens, "t": t, "labels": labels})


def _read_split(folder: Path, split: Split, config: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    path = split_file(folder, split)
    stored = read_tensors(path)
    n = config["counts"][split]
    expected = {"tokens": (n, config["grid"] ** 2), "t": (n, config["task_dim"]), "labels": (n,)}
    shapes = {name: tuple(tensor.shape) for name, tensor in stored.items()}
    if shapes != expected:
        raise InputError(f"{path} must hold {expected} as its folder's config.json says; it holds {shapes}")
    return stored["tokens"], stored["t"], stored["labels"]
