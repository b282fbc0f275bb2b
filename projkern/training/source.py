"""What M_1 may start from: the source of another run, or a GPT-2 or ImageGPT in Hugging Face's format."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data import VQVAE, Palette
from ..data.tokens import TOKENIZER
from ..models import GPT
from .config import TrainConfig
from .folder import FORMAT
from .trained import TrainedRun

SHAPE = ("n_layer", "n_head", "n_embd")
"""The settings that a source brings with it."""


@dataclass(frozen=True)
class Source:
    """A model to start M_1 from.

    Args:
        model: the model.
        coder: what makes images of its tokens; a palette is then used by the run. None where it has none.
        notes: what of it could not be kept, a sentence each.
    """

    model: GPT
    coder: Palette | VQVAE | None
    notes: list[str]

    def weights(self, positions: int) -> dict[str, Tensor]:
        """The state of a GPT of the same shape with so many positions: the first ones are taken."""
        state = self.model.state_dict()
        name = "tables.position_embedding"
        return state | {name: state[name][:positions]}


def read_source(folder: Path) -> Source:
    """Read a source from its folder.

    Args:
        folder: a trained run's, which gives its pretrained M_1; or one of GPT-2 or ImageGPT (``exchange/gpt2.py``).

    Raises:
        ValueError: a folder without such a model, or a run that is incomplete or of another version.
    """
    try:
        values = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        wanted = "a folder of a run, a GPT-2 or an ImageGPT"
        raise ValueError(f"source must be {wanted}; it was {folder}: {error}") from error
    if isinstance(values, dict) and values.get("format") == FORMAT["format"]:
        run = TrainedRun.open(folder)
        return Source(run.source(), run.coder, [])
    from ..exchange import gpt2  # needs transformers, which takes seconds to import

    read = gpt2.load(folder)
    return Source(read.model, read.palette, read.notes)


def with_shape_of_source(given: dict[str, Any]) -> dict[str, Any]:
    """Settings that name a source, with its shape; raises ValueError where they ask for another one."""
    shape = read_source(Path(given["source"])).model.config
    for name in SHAPE:
        if given.get(name, getattr(shape, name)) != getattr(shape, name):
            raise ValueError(
                f"{name} must be left out, or be {getattr(shape, name)} as in the source {given['source']}; "
                f"it was {given[name]}"
            )
    return given | {name: getattr(shape, name) for name in SHAPE}


def source_of(config: TrainConfig) -> Source:
    """The source that a run's settings name, found to fit them; raises ValueError where it does not."""
    source = read_source(Path(str(config.source)))
    found = source.model.config
    wanted = {name: getattr(config, name) for name in SHAPE}
    if wanted != {name: getattr(found, name) for name in SHAPE}:
        shown = " ".join(f"{name}={value}" for name, value in wanted.items())
        raise ValueError(f"source must have the run's shape, {shown}; in {config.source} it was {found}")
    brought = f", as in {config.data}" if config.data is not None else ""
    if found.vocab_size != config.colors:
        raise ValueError(
            f"colors must be the source's vocabulary, {found.vocab_size} in {config.source}; it was {config.colors}"
            + brought
        )
    if found.n_positions < config.image_size**2:
        raise ValueError(
            f"image_size must leave no more pixels than the source has positions, {found.n_positions} in "
            f"{config.source}; it was {config.image_size}{brought}"
        )
    if source.coder is not None and not _same_tokens(config, source.coder):
        source.notes.append("Its tokens meant something else: M_1 has to learn anew what those of this run mean.")
    return source


def _same_tokens(config: TrainConfig, coder: Palette | VQVAE) -> bool:
    """Whether a run's tokens mean what a source's do; SynthMNIST's are made with the source's palette."""
    if config.data is None or isinstance(coder, Palette):
        return config.data is None and isinstance(coder, Palette)
    own = VQVAE.load(Path(config.data) / TOKENIZER)
    return torch.equal(own.codebook.vectors, coder.codebook.vectors)
