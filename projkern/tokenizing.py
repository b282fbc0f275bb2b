"""Making a folder of tokenised images: a tokenizer is trained, then applied to both splits (paper, appendix C.2)."""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from .data.digits import Split
from .data.embeddings import load_encoder, read_embeddings
from .data.images import LabelledImages, open_images
from .data.tokens import FORMAT, TOKENIZER, read_settings, write_split
from .data.vqvae import VQVAE, usage
from .files import locked, occupied, write_atomically, write_json
from .pictures import in_rows
from .training.tokenizer import to_model, train_tokenizer

POOL = 50_000
"""The tokenizer is trained on at most so many of the training images, which are kept in memory."""
_PART = 64  # images tokenised at a time
_SHOWN = 8  # of reconstructions.png

Sources = dict[Split, LabelledImages]
TaskOf = Callable[[Split, np.ndarray, Tensor], Tensor]
"""Indices (b,) in a split and images (b, 3, S, S) in [0, 1] -> t (b, dim) float32."""


def _setting(default: Any, help: str) -> Any:
    return dataclasses.field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class TokenizeConfig:
    """All that determines a folder's content. Every field is also an option of ``python -m projkern.tokenize``."""

    train: str | None = _setting(None, "training images: a folder of class folders, or .npz")
    validation: str | None = _setting(None, "validation images, likewise")
    embeddings: str | None = _setting(None, "t of each image: .npy (n, dim), or .npz with train and val")
    validation_embeddings: str | None = _setting(None, "the same for the validation images; without it --embeddings")
    encoder: str | None = _setting(None, "in place of --embeddings: timm:NAME, or a program FILE.pt, FILE.pt2")
    size: int = _setting(64, "S: images are S x S pixels and (S/2)^2 tokens")
    codes: int = _setting(512, "the vocabulary")
    steps: int = _setting(4000, "training steps of the tokenizer")
    batch: int = _setting(16, "images a step")
    lr: float = _setting(3e-3, "peak learning rate; a cosine to zero")
    seed: int = _setting(0, "of the initial weights, and of the images that are drawn")

    def __post_init__(self) -> None:
        for name in ("train", "validation"):
            if getattr(self, name) is None:
                raise ValueError(f"{name} must be given: where the {name} images are")
        if (self.embeddings is None) == (self.encoder is None):
            raise ValueError("embeddings or encoder must be given, and not both: t of each image comes from there")
        if self.validation_embeddings is not None and self.embeddings is None:
            raise ValueError("validation_embeddings must be left out without embeddings")
        for name, least in (("codes", 2), ("steps", 1), ("batch", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}; it was {getattr(self, name)}")
        if self.size < 4 or self.size % 2:
            raise ValueError(f"size must be even and at least 4; it was {self.size}")
        if not 0 < self.lr < math.inf:
            raise ValueError(f"lr must be above 0; it was {self.lr}")

    @classmethod
    def read(cls, folder: Path) -> TokenizeConfig:
        """The settings of a folder, finished or not; raises ValueError where it holds none."""
        try:
            return cls(**read_settings(folder)["settings"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"{folder}/config.json cannot be used: {error!r}") from error


def run(out: Path, config: TokenizeConfig, *, resume: bool = False, overwrite: bool = False) -> dict[str, Any]:
    """Train the tokenizer, from its last checkpoint if there is one, and tokenise both collections.

    Finished work that is to be resumed stays as it is. The folder is touched only once the images and their
    embeddings are found to be there and to fit.

    Returns:
        What ``config.json`` holds.

    Raises:
        FileExistsError: the folder already holds tokenised images, and neither flag was given.
        ValueError, OSError: settings that cannot be met, or a folder that cannot be used.
        Diverged, CheckpointError: of the training.
    """
    if occupied(out):
        stored = read_settings(out)
        if not resume and not overwrite:
            raise FileExistsError(
                f"{out} already holds tokenised images; give --resume to continue them or --overwrite to redo them"
            )
        if resume and "counts" in stored:
            return stored
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    sources: Sources = {"train": open_images(str(config.train)), "validation": open_images(str(config.validation))}
    task_of = _from_encoder(config.encoder, device) if config.encoder else _from_files(config, sources)
    with locked(out):
        if overwrite:
            for made in ("checkpoint", "tensorboard"):
                shutil.rmtree(out / made, ignore_errors=True)
        write_json(out / "config.json", FORMAT | {"settings": dataclasses.asdict(config)})
        return _make(out, config, sources, task_of, device)


def _from_files(config: TokenizeConfig, sources: Sources) -> TaskOf:
    paths = {"train": config.embeddings, "validation": config.validation_embeddings or config.embeddings}
    t = {split: read_embeddings(str(paths[split]), split, images) for split, images in sources.items()}
    train, validation = (each.shape[1] for each in t.values())
    if train != validation:
        raise ValueError(f"embeddings must be of one length; it was {train} in train and {validation} in validation")
    return lambda split, indices, images: torch.from_numpy(t[split][indices])


def _from_encoder(name: str, device: torch.device) -> TaskOf:
    encoder = load_encoder(name, device)

    @torch.no_grad()
    def encode(split: Split, indices: np.ndarray, images: Tensor) -> Tensor:
        return encoder(images).float().cpu()

    return encode


def _make(
    out: Path,
    config: TokenizeConfig,
    sources: Sources,
    task_of: TaskOf,
    device: torch.device,
) -> dict[str, Any]:
    pool = _pool(sources["train"], config)
    model = train_tokenizer(pool, out, config.codes, config.steps, config.batch, config.lr, config.seed, device)
    model.save(out / TOKENIZER)
    found = {split: _tokenise(out, split, model, images, task_of, config) for split, images in sources.items()}
    _picture(out / "reconstructions.png", model, sources["validation"], config)
    made = FORMAT | {
        "image_size": config.size,
        "grid": config.size // 2,
        "vocabulary": config.codes,
        "task_dim": int(found["train"]["task_dim"]),
        "counts": {split: int(row["images"]) for split, row in found.items()},
        "skipped": {split: len(images.skipped) for split, images in sources.items()},
        "tokenizer": found,
        "settings": dataclasses.asdict(config),
    }
    notes = [note for images in sources.values() if (note := images.describe_skipped())]
    write_atomically(out / "report.md", lambda p: p.write_text(report(made, notes)))
    write_json(out / "config.json", made)
    shutil.rmtree(out / "checkpoint")
    for note in notes:
        print(note)
    return made


def _pool(images: LabelledImages, config: TokenizeConfig) -> Tensor:
    """The images that the tokenizer is trained on: (n, S, S, 3) uint8."""
    drawn = np.sort(np.random.default_rng(config.seed).permutation(len(images))[:POOL])
    with tqdm(total=len(drawn), desc="reading", unit=" images") as progress:
        parts = []
        for kept, part in images.batches(config.size, indices=drawn):
            parts.append(part)
            progress.update(len(kept))
    if not parts:
        raise ValueError(f"train must hold images that can be read; {images.describe_skipped()}")
    return torch.from_numpy(np.concatenate(parts))


def _tokenise(
    out: Path, split: Split, model: VQVAE, images: LabelledImages, task_of: TaskOf, config: TokenizeConfig
) -> dict[str, float]:
    """Write a split's file; returns what is to be said of it. The loss is measured in validation only."""
    device = model.codebook.vectors.device
    kind = torch.uint16 if config.codes <= 2**16 else torch.int32
    tokens, t, labels, errors = [], [], [], []
    with tqdm(total=len(images), desc=split, unit=" images") as progress:
        for kept, part in images.batches(config.size, _PART):
            x = to_model(torch.from_numpy(part), device)
            coded = model.encode(x)
            if split == "validation":
                errors.append(F.mse_loss(model.decode(coded), x, reduction="none").mean((1, 2, 3)).cpu())
            tokens.append(coded.cpu().to(kind))
            t.append(task_of(split, kept, (x + 1) / 2))
            labels.append(torch.from_numpy(images.labels[kept]))
            progress.update(len(kept))
    if not tokens:
        raise ValueError(f"{split} must hold images that can be read; {images.describe_skipped()}")
    tasks = torch.cat(t)
    if tasks.ndim != 2 or not tasks.isfinite().all():
        raise ValueError(f"encoder must give finite embeddings (B, dim); for {split} it gave {tuple(tasks.shape)}")
    write_split(out, split, torch.cat(tokens), tasks, torch.cat(labels))
    histogram = torch.zeros(config.codes, dtype=torch.int64)
    for each in tokens:
        histogram += torch.bincount(each.flatten().long(), minlength=config.codes)
    used, perplexity = usage(histogram)
    row = {"images": len(tasks), "task_dim": tasks.shape[1], "usage": used, "perplexity": perplexity}
    return row | ({"mean_squared_error": float(torch.cat(errors).mean())} if errors else {})


def _picture(path: Path, model: VQVAE, images: LabelledImages, config: TokenizeConfig) -> None:
    readable = [index for index in range(len(images)) if index not in images.skipped]
    shown = [readable[i * len(readable) // _SHOWN] for i in range(min(_SHOWN, len(readable)))]
    _, pixels = next(images.batches(config.size, indices=shown))
    device = model.codebook.vectors.device
    x = to_model(torch.from_numpy(pixels), device)
    rows = [("image", x), ("of its\ntokens", model.decode(model.encode(x)))]
    in_rows(path, rows, f"{config.size}×{config.size} pixels as {(config.size // 2) ** 2} tokens of {config.codes}")


def report(made: dict[str, Any], notes: list[str]) -> str:
    """What ``config.json`` holds, for reading (Markdown).

    Args:
        made: its content.
        notes: sentences on images that could not be read.
    """
    error = made["tokenizer"]["validation"]["mean_squared_error"]
    lines = [
        "# Tokenised images",
        "",
        f"{made['image_size']}×{made['image_size']} pixels as {made['grid']}×{made['grid']} tokens of "
        f"{made['vocabulary']}; t has {made['task_dim']} numbers.",
        "",
        "| split | images | skipped | codes used | perplexity |",
        "|---|---:|---:|---:|---:|",
    ]
    for split, row in made["tokenizer"].items():
        images = f"{made['counts'][split]:,} | {made['skipped'][split]:,}"
        lines.append(f"| {split} | {images} | {row['usage']:.1%} | {row['perplexity']:.0f} |")
    lines += [
        "",
        f"Mean squared error of the validation images' reconstruction, pixels in [-1, 1]: {error:.5f} "
        f"(PSNR {10 * math.log10(4 / error):.1f} dB).",
        "",
        *(f"{note}." for note in notes),
        *([""] if notes else []),
        "![Validation images, and what their tokens decode to](reconstructions.png)",
        "",
        "| setting | value |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in made["settings"].items() if value is not None),
    ]
    return "\n".join(lines) + "\n"
