"""What M_1 may start from: the source of another run, or a GPT-2 or ImageGPT in Hugging Face's format."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data import VQVAE, Palette
from ..data.tokens import TOKENIZER
from ..models import GPT
from ..utils.digests import digest
from ..utils.errors import InputError
from ..utils.files import read_object
from .config import DataConfig, TrainConfig
from .folder import FORMAT, SETTINGS
from .trained import TrainedRun

SHAPE = ("n_layer", "n_head", "n_embd")
"""The settings that a source brings with it."""


@dataclass(frozen=True)
class Source:
    """A model to start M_1 from.

    Args:
        model: the model.
        coder: decodes its tokens to images; the run then uses a palette. None where it has none.
        notes: what could not be converted, a sentence each.
    """

    model: GPT
    coder: Palette | VQVAE | None
    notes: list[str]

    @property
    def digest(self) -> str:
        """Of the weights."""
        return digest(tensor.contiguous().view(torch.uint8).numpy().data for tensor in self.model.state_dict().values())

    def weights(self, positions: int) -> dict[str, Tensor]:
        """The state of a GPT of the same shape with the first ``positions`` positions."""
        state = self.model.state_dict()
        name = "tables.position_embedding"
        return state | {name: state[name][:positions]}


def read_source(folder: Path) -> Source:
    """Read a source from its folder.

    Args:
        folder: a trained run's, which gives its pretrained M_1; or one of GPT-2 or ImageGPT (``models/huggingface``).

    Raises:
        InputError: a folder without such a model, or a run that is incomplete or of another version.
    """
    try:
        read_object(folder / SETTINGS, "the settings of a run, a GPT-2 or an ImageGPT")
    except InputError as error:
        raise InputError(
            f"source must be a folder of a run, a GPT-2 or an ImageGPT; it was {folder}: {error}"
        ) from error
    if FORMAT.is_in(folder / SETTINGS):
        run = TrainedRun.open(folder)
        return Source(run.source(), run.coder, [])
    from ..models.huggingface import gpt2  # needs transformers, which takes seconds to import

    loaded = gpt2.load(folder)
    return Source(loaded.model, loaded.palette, loaded.notes)


def with_shape_of_source(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings that name a source, with its shape; raises InputError where they name another one."""
    shape = read_source(Path(settings["source"])).model.config
    for name in SHAPE:
        if settings.get(name, getattr(shape, name)) != getattr(shape, name):
            raise InputError(
                f"{name} must be left out, or be {getattr(shape, name)} as in the source {settings['source']}; "
                f"it was {settings[name]}"
            )
    return settings | {name: getattr(shape, name) for name in SHAPE}


def source_of(config: TrainConfig) -> Source:
    """The source that a run's settings name, which fits them; raises InputError where it does not."""
    folder, data = config.model.source, config.data
    source = read_source(Path(str(folder)))
    shape = source.model.config
    required = {name: getattr(config.model, name) for name in SHAPE}
    if required != {name: getattr(shape, name) for name in SHAPE}:
        text = " ".join(f"{name}={value}" for name, value in required.items())
        raise InputError(f"source must have the run's shape, {text}; in {folder} it was {shape}")
    if config.model.source_digest not in (None, source.digest):
        raise InputError(f"source must be the model that the run began with; in {folder} it is another")
    as_in_data = f", as in {data.folder}" if data.folder is not None else ""
    if shape.vocab_size != data.vocab_size:
        raise InputError(
            f"vocab_size must be the source's, {shape.vocab_size} in {folder}; it was {data.vocab_size}{as_in_data}"
        )
    if shape.n_positions < data.positions:
        raise InputError(
            f"side must leave no more tokens than the source has positions, {shape.n_positions} in {folder}; "
            f"it was {data.side}{as_in_data}"
        )
    if source.coder is not None and not _same_tokens(data, source.coder):
        source.notes.append("Its tokens meant something else: M_1 has to learn what those of this run mean.")
    return source


def _same_tokens(data: DataConfig, coder: Palette | VQVAE) -> bool:
    """Whether a run's tokens mean what a source's do; a run on SynthMNIST takes the source's palette."""
    if data.folder is None or isinstance(coder, Palette):
        return data.folder is None and isinstance(coder, Palette)
    tokenizer = VQVAE.load(Path(data.folder) / TOKENIZER)
    return torch.equal(tokenizer.codebook.vectors, coder.codebook.vectors)
