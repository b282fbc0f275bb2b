"""A run's folder: opened for writing, and its settings, and what its tokens mean, read back."""

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from ..data import VQVAE, Palette
from ..data.tokens import TOKENIZER
from ..utils.errors import InputError
from ..utils.files import FolderInUse, Format, is_nonempty, locked
from ..utils.settings import require_unchanged
from .config import TrainConfig

FORMAT = Format("projkern run", 2, "the settings of a run", oldest=1)
SETTINGS, PALETTE = "config.json", "palette.npy"


@contextmanager
def open_run(out: Path, config: TrainConfig, *, resume: bool = False, overwrite: bool = False) -> Iterator[None]:
    """Hold the lock of a run's folder, with its settings stored.

    Raises:
        FileExistsError: the folder already holds a run, and neither flag was given.
        FolderInUse: another process is writing to it.
        InputError: the folder holds something other than a run, whatever the flags, or cannot be written.
    """
    settings = out / SETTINGS
    if is_nonempty(out) and not FORMAT.is_in(settings):
        try:
            FORMAT.read(settings)
        except InputError as error:
            raise InputError(f"out must be a new folder or one that holds a run; it was {out}: {error}") from error
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(out))
            if settings.exists() and overwrite:
                _delete(out.resolve())  # and the lock with it
                stack.enter_context(locked(out))
            elif settings.exists() and not resume:
                raise FileExistsError(
                    f"{out} already holds a run; give --resume to continue it or --overwrite to redo it"
                )
            if not settings.exists():
                FORMAT.write(settings, config.to_json())
        except (FileExistsError, FolderInUse):
            raise
        except OSError as error:
            raise InputError(f"out must be a folder that can be written; it was {out}: {error}") from error
        yield


def _delete(run: Path) -> None:
    """Delete a run, in such a way that no half-deleted one is ever left under its name."""
    if run == Path.cwd():
        raise InputError(f"out must not be the working directory if it is to be overwritten; it was {run}")
    renamed = run.with_name(f".{run.name}.overwritten")
    shutil.rmtree(renamed, ignore_errors=True)
    run.rename(renamed)
    shutil.rmtree(renamed)


def read_config(run: Path) -> TrainConfig:
    """The settings of a run; raises InputError where the folder holds none, or one of another version."""
    values = FORMAT.read(run / SETTINGS)
    del values["version"]
    try:
        return TrainConfig.from_json(values)
    except InputError as error:
        raise InputError(f"{run / SETTINGS} cannot be used: {error}") from error


def resumed_config(run: Path, changes: dict[str, Any]) -> TrainConfig:
    """The settings of a run to be continued; raises InputError where ``changes`` asks for others."""
    config = read_config(run)
    require_unchanged(config, changes, str(run / SETTINGS))
    return config


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
