"""A run's folder: opened for writing, and its settings, and what its tokens mean, read back."""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from ..data import VQVAE, Palette
from ..data.tokens import TOKENIZER
from ..utils.errors import InputError
from ..utils.files import SETTINGS, Format, open_output
from .config import TrainConfig

FORMAT = Format("projkern run", 2, "the settings of a run", oldest=1)
PALETTE = "palette.npy"


def open_run(
    out: Path, config: TrainConfig, *, resume: bool = False, overwrite: bool = False
) -> AbstractContextManager[None]:
    """Hold the lock of a run's folder, with its settings stored; raises as ``utils.files.open_output``."""
    has_moved = resume and (out / SETTINGS).exists() and read_config(out) != config
    return open_output(out, FORMAT, config.to_json(), resume=resume, overwrite=overwrite, has_moved=has_moved)


def read_config(run: Path) -> TrainConfig:
    """The settings of a run; raises InputError where the folder holds none, or one of another version."""
    return TrainConfig.read(run / SETTINGS, FORMAT)


def resumed_config(run: Path, changes: dict[str, Any]) -> TrainConfig:
    """The settings of a run to be continued; raises InputError where ``changes`` asks for others."""
    return TrainConfig.resumed(run / SETTINGS, FORMAT, changes)


def read_coder(run: Path, config: TrainConfig) -> Palette | VQVAE:
    """What decodes a run's tokens to images, on the CPU: its palette, or the tokenizer of its tokenised images.

    Raises:
        FileNotFoundError: the run has none yet.
        InputError: the file is damaged, or of another number of tokens.
    """
    vocab_size = config.data.vocab_size
    if config.data.folder is None:
        palette = Palette.load(run / PALETTE)
        if len(palette) != vocab_size:
            raise InputError(f"{run / PALETTE} must hold the run's {vocab_size} colours; it held {len(palette)}")
        return palette
    path = run / TOKENIZER
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there")
    tokenizer = VQVAE.load(path)
    codes = len(tokenizer.codebook.vectors)
    if codes != vocab_size:
        raise InputError(f"{path} must hold the run's {vocab_size} codes; it held {codes}")
    return tokenizer
