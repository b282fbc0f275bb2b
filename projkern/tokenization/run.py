"""A folder of tokenised images: a tokenizer is trained, then applied to both splits (paper, appendix C.2)."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from ..data.digits import Split
from ..data.embeddings import load_encoder, read_embeddings
from ..data.images import LabelledImages, open_images
from ..data.tokens import FORMAT, TOKENIZER, read_settings, write_split
from ..data.vqvae import VQVAE, usage
from ..utils.device import pick_device
from ..utils.errors import InputError
from ..utils.files import is_nonempty, locked, write_text
from .config import TokenizeConfig
from .report import draw_reconstructions, report
from .training import to_model, train_tokenizer

POOL = 50_000
"""The tokenizer is trained on at most so many of the training images, which are kept in memory."""
_PART = 64  # images tokenised at a time

Sources = dict[Split, LabelledImages]
Embed = Callable[[Split, np.ndarray, Tensor], Tensor]
"""Indices (b,) in a split and images (b, 3, S, S) in [0, 1] -> t (b, dim) float32."""


def run(
    out: Path, config: TokenizeConfig, *, resume: bool = False, overwrite: bool = False, device: str = "auto"
) -> dict[str, Any]:
    """Train the tokenizer, from its last checkpoint if there is one, and tokenise both collections.

    A finished folder that is to be resumed stays as it is. The folder is touched only once the images and their
    embeddings are known to be there and to fit.

    Args:
        device: where to compute, as ``utils.device.pick_device`` takes it.

    Returns:
        What ``config.json`` holds.

    Raises:
        FileExistsError: the folder already holds tokenised images, and neither flag was given.
        InputError, OSError: settings that cannot be met, or a folder that cannot be used.
        Diverged, CheckpointError: of the training.
    """
    if is_nonempty(out):
        stored = read_settings(out)
        if not resume and not overwrite:
            raise FileExistsError(
                f"{out} already holds tokenised images; give --resume to continue them or --overwrite to redo them"
            )
        if resume and "counts" in stored:
            return stored
    config.require_inputs()
    chosen_device = pick_device(device)
    sources: Sources = {"train": open_images(str(config.train)), "validation": open_images(str(config.validation))}
    embed = _from_encoder(config.encoder, chosen_device) if config.encoder else _from_files(config, sources)
    with locked(out):
        if overwrite:
            for name in ("checkpoint", "tensorboard"):
                shutil.rmtree(out / name, ignore_errors=True)
        FORMAT.write(out / "config.json", {"settings": dataclasses.asdict(config)})
        return _tokenise_all(out, config, sources, embed, chosen_device)


def _from_files(config: TokenizeConfig, sources: Sources) -> Embed:
    paths = {"train": config.embeddings, "validation": config.validation_embeddings or config.embeddings}
    t = {split: read_embeddings(str(paths[split]), split, images) for split, images in sources.items()}
    train, validation = (rows.shape[1] for rows in t.values())
    if train != validation:
        raise InputError(f"embeddings must be of one length; it was {train} in train and {validation} in validation")
    return lambda split, indices, images: torch.from_numpy(t[split][indices])


def _from_encoder(name: str, device: torch.device) -> Embed:
    encoder = load_encoder(name, device)

    @torch.no_grad()
    def encode(split: Split, indices: np.ndarray, images: Tensor) -> Tensor:
        return encoder(images).float().cpu()

    return encode


def _tokenise_all(
    out: Path, config: TokenizeConfig, sources: Sources, embed: Embed, device: torch.device
) -> dict[str, Any]:
    pool = _pool(sources["train"], config)
    model = train_tokenizer(pool, out, config.codes, config.steps, config.batch, config.lr, config.seed, device)
    model.save(out / TOKENIZER)
    rows = {split: _tokenise(out, split, model, images, embed, config) for split, images in sources.items()}
    draw_reconstructions(out / "reconstructions.png", model, sources["validation"], config)
    contents = {
        "image_size": config.size,
        "grid": config.size // 2,
        "vocabulary": config.codes,
        "task_dim": int(rows["train"]["task_dim"]),
        "counts": {split: int(row["images"]) for split, row in rows.items()},
        "skipped": {split: len(images.skipped) for split, images in sources.items()},
        "tokenizer": rows,
        "settings": dataclasses.asdict(config),
    }
    notes = [note for images in sources.values() if (note := images.describe_skipped())]
    write_text(out / "report.md", report(contents, notes))
    FORMAT.write(out / "config.json", contents)
    shutil.rmtree(out / "checkpoint")
    for note in notes:
        print(note)
    return contents


def _pool(images: LabelledImages, config: TokenizeConfig) -> Tensor:
    """The images that the tokenizer is trained on: (n, S, S, 3) uint8."""
    indices = np.sort(np.random.default_rng(config.seed).permutation(len(images))[:POOL])
    with tqdm(total=len(indices), desc="reading", unit=" images") as progress:
        parts = []
        for _, part in images.batches(config.size, indices=indices):
            parts.append(part)
            progress.update(len(part))
    if not parts:
        raise InputError(f"train must hold images that can be read; {images.describe_skipped()}")
    return torch.from_numpy(np.concatenate(parts))


def _tokenise(
    out: Path, split: Split, model: VQVAE, images: LabelledImages, embed: Embed, config: TokenizeConfig
) -> dict[str, float]:
    """Write a split's file; returns its counts and statistics. The loss is measured in validation only."""
    device = model.codebook.vectors.device
    kind = torch.uint16 if config.codes <= 2**16 else torch.int32
    tokens, t, labels, errors = [], [], [], []
    with tqdm(total=len(images), desc=split, unit=" images") as progress:
        for indices, part in images.batches(config.size, _PART):
            x = to_model(torch.from_numpy(part), device)
            codes = model.encode(x)
            if split == "validation":
                errors.append(F.mse_loss(model.decode(codes), x, reduction="none").mean((1, 2, 3)).cpu())
            tokens.append(codes.cpu().to(kind))
            t.append(embed(split, indices, (x + 1) / 2))
            labels.append(torch.from_numpy(images.labels[indices]))
            progress.update(len(part))
    if not tokens:
        raise InputError(f"{split} must hold images that can be read; {images.describe_skipped()}")
    tasks = torch.cat(t)
    if tasks.ndim != 2 or not tasks.isfinite().all():
        raise InputError(f"encoder must give finite embeddings (B, dim); for {split} it gave {tuple(tasks.shape)}")
    write_split(out, split, torch.cat(tokens), tasks, torch.cat(labels))
    histogram = torch.zeros(config.codes, dtype=torch.int64)
    for part_tokens in tokens:
        histogram += torch.bincount(part_tokens.flatten().long(), minlength=config.codes)
    share, perplexity = usage(histogram)
    row = {"images": len(tasks), "task_dim": tasks.shape[1], "usage": share, "perplexity": perplexity}
    return row | ({"mean_squared_error": float(torch.cat(errors).mean())} if errors else {})
