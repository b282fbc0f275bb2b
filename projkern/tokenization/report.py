"""The report of a folder of tokenised images: a page, and pictures of what its tokens keep."""

import math
from pathlib import Path
from typing import Any

import torch

from ..data.images import LabelledImages
from ..data.vqvae import VQVAE
from ..utils.markdown import table
from ..utils.pictures import in_rows
from .config import TokenizeConfig
from .training import to_model

_SHOWN = 8  # images of reconstructions.png


def report(contents: dict[str, Any], notes: list[str]) -> str:
    """The page, as Markdown.

    Args:
        contents: what ``config.json`` holds.
        notes: sentences on images that could not be read.
    """
    error = contents["tokenizer"]["validation"]["mean_squared_error"]
    counts, skipped = contents["counts"], contents["skipped"]
    splits = [
        (split, f"{counts[split]:,}", f"{skipped[split]:,}", f"{row['usage']:.1%}", f"{row['perplexity']:.0f}")
        for split, row in contents["tokenizer"].items()
    ]
    settings = [(name, str(value)) for name, value in contents["settings"].items() if value is not None]
    paragraphs = [
        "# Tokenised images",
        f"{contents['image_size']}×{contents['image_size']} pixels as {contents['grid']}×{contents['grid']} tokens of "
        f"{contents['vocabulary']}; t has {contents['task_dim']} numbers.",
        table(("split", "images", "skipped", "codes used", "perplexity"), splits),
        f"Mean squared error of the validation images' reconstruction, pixels in [-1, 1]: {error:.5f} "
        f"(PSNR {10 * math.log10(4 / error):.1f} dB).",
        *(["\n".join(f"{note}." for note in notes)] if notes else []),
        "![Validation images, and what their tokens decode to](reconstructions.png)",
        table(("setting", "value"), settings, left=2),
    ]
    return "\n\n".join(paragraphs) + "\n"


def draw_reconstructions(path: Path, model: VQVAE, images: LabelledImages, config: TokenizeConfig) -> None:
    """A picture of a few images, and of what their tokens decode to."""
    readable = [index for index in range(len(images)) if index not in images.skipped]
    examples = [readable[i * len(readable) // _SHOWN] for i in range(min(_SHOWN, len(readable)))]
    _, pixels = next(images.batches(config.size, indices=examples))
    x = to_model(torch.from_numpy(pixels), model.codebook.vectors.device)
    rows = [("image", x), ("of its\ntokens", model.decode(model.encode(x)))]
    in_rows(path, rows, f"{config.size}×{config.size} pixels as {(config.size // 2) ** 2} tokens of {config.codes}")
