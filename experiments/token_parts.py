"""The tokenised images of Tables 2 and 4, and the parts of them that Table 4 trains on (paper, appendix D.2)."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from pathlib import Path

import torch
from torch import Tensor

from projkern.data.tokens import TokenImages, read_settings, subset
from projkern.tokenization.config import TokenizeConfig
from projkern.tokenization.run import run
from projkern.utils.errors import InputError
from projkern.utils.files import is_nonempty

from .jobs import require_same
from .measures import first_parts

PARTS = {
    "all, halves; all, mod 2": "all",
    "1/8, halves; 1/8, mod 2": "an eighth",
    "1/8 and 1, halves": "an eighth of the first half",
    "1/8 and 1, mod 2": "an eighth of the even classes",
}
"""Rows of Table 4, and the part of the training images behind them."""


def tokenised(folder: Path, config: TokenizeConfig | None, device: str = "auto") -> None:
    """Have tokenised images in a folder: made by ``config``, unless they are there; continued where they have begun.

    Raises:
        InputError: the folder holds others, or it holds none and nothing says what to make them of.
    """
    if not is_nonempty(folder):
        if config is None:
            raise InputError("collections and embeddings must be given: images, and t of each (docs/tokenizing.md)")
        run(folder, config, device=device)
        return
    if config is not None:
        require_same(str(folder), dataclasses.asdict(TokenizeConfig.read(folder)), dataclasses.asdict(config))
    if "counts" not in read_settings(folder):
        run(folder, TokenizeConfig.read(folder), resume=True, device=device)


def fingerprint(folder: Path) -> str:
    """Eight digits that tell the held-out images, their tokens and their t from others."""
    return hashlib.blake2b((folder / "validation.safetensors").read_bytes(), digest_size=4).hexdigest()


def parts(whole: Path) -> dict[str, Path]:
    """Folders with the parts of the training images that the rows of Table 4 are trained on, made if need be.

    Raises:
        SetUpDiffers: a part that is there was made of other images.
    """
    keep = masks(TokenImages(whole, "train").all_labels)
    folders = {}
    for rows, part in PARTS.items():
        folders[rows] = whole if part == "all" else whole.with_name(f"{whole.name}, {part}")
        if not (folders[rows] / "config.json").exists():  # it is written last
            shutil.rmtree(folders[rows], ignore_errors=True)
            subset(whole, folders[rows], keep[part].nonzero()[:, 0])
        part_images, whole_images = ({"images": fingerprint(folder)} for folder in (folders[rows], whole))
        require_same(str(folders[rows]), part_images, whole_images)
    return folders


def masks(labels: Tensor) -> dict[str, Tensor]:
    """Which training images (n,) belong to each part, by their labels: of a class, an eighth is its first images."""
    eighth = torch.zeros_like(labels, dtype=torch.bool)
    for label in labels.unique():
        of_class = (labels == label).nonzero()[:, 0]
        eighth[of_class[: -(-len(of_class) // 8)]] = True
    in_c1 = first_parts(labels, int(labels.max()))
    return {
        "an eighth": eighth,
        "an eighth of the first half": eighth | ~in_c1["halves"],
        "an eighth of the even classes": eighth | ~in_c1["mod 2"],
    }
