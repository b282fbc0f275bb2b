"""A run's folder: made, held while it is written to, and its settings, and what its tokens mean, read back."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from ..data import VQVAE, Palette
from ..data.tokens import TOKENIZER
from ..files import FolderInUse, locked, occupied, write_json
from .config import TrainConfig

FORMAT: dict[str, Any] = {"format": "projkern run", "version": 1}
PALETTE = "palette.npy"


@contextmanager
def open_run(out: Path, config: TrainConfig, *, resume: bool = False, overwrite: bool = False) -> Iterator[None]:
    """Hold a run's folder, made ready, with its settings stored.

    Raises:
        FileExistsError: the folder already holds a run, and neither flag was given.
        FolderInUse: another process is writing to it.
        ValueError: the folder holds something other than a run, whatever the flags, or cannot be written.
    """
    if occupied(out):
        try:
            _stored_settings(out)
        except ValueError as error:
            raise ValueError(f"out must be a new folder or one that holds a run: {error}") from error
    settings = out / "config.json"
    with ExitStack() as held:
        try:
            held.enter_context(locked(out))
            if settings.exists() and overwrite:
                _delete(out.resolve())  # and the lock with it
                held.enter_context(locked(out))
            elif settings.exists() and not resume:
                raise FileExistsError(
                    f"{out} already holds a run; give --resume to continue it or --overwrite to redo it"
                )
            if not settings.exists():
                write_json(settings, FORMAT | config.to_json())
        except (FileExistsError, FolderInUse):
            raise
        except OSError as error:
            raise ValueError(f"out must be a folder that can be written; it was {out}: {error}") from error
        yield


def _delete(run: Path) -> None:
    """Delete a run, in such a way that no half-deleted one is ever left under its name."""
    if run == Path.cwd():
        raise ValueError(f"out must not be the working directory if it is to be overwritten; it was {run}")
    doomed = run.with_name(f".{run.name}.overwritten")
    shutil.rmtree(doomed, ignore_errors=True)
    run.rename(doomed)
    shutil.rmtree(doomed)


def read_config(run: Path) -> TrainConfig:
    """The settings of a run; raises ValueError where the folder holds none, or one of another version."""
    values = _stored_settings(run)
    version, ours = values.pop("version", None), FORMAT["version"]
    if version != ours:
        age = "a newer" if isinstance(version, int) and version > ours else "another"
        raise ValueError(f"{run} holds a run of {age} version, {version}; this projkern reads version {ours}")
    try:
        return TrainConfig.from_json(values)
    except ValueError as error:
        raise ValueError(f"{run}/config.json cannot be used: {error}") from error


def read_coder(run: Path, config: TrainConfig) -> Palette | VQVAE:
    """What makes images of a run's tokens, on the CPU: its palette, or the tokenizer of its tokenised images.

    Raises:
        FileNotFoundError: the run has none yet.
        ValueError: the file is damaged, or of another number of tokens.
    """
    if config.data is None:
        palette = Palette.load(run / PALETTE)
        if len(palette) != config.colors:
            raise ValueError(f"{run / PALETTE} must hold the run's {config.colors} colours; it held {len(palette)}")
        return palette
    path = run / TOKENIZER
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there")
    tokenizer = VQVAE.load(path)
    codes = len(tokenizer.codebook.vectors)
    if codes != config.colors:
        raise ValueError(f"{path} must hold the run's {config.colors} codes; it held {codes}")
    return tokenizer


def _stored_settings(run: Path) -> dict[str, Any]:
    try:
        values = json.loads((run / "config.json").read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{run} holds no run: its config.json cannot be read ({error})") from error
    if not isinstance(values, dict) or values.pop("format", None) != FORMAT["format"]:
        raise ValueError(f"{run} holds something else: its config.json is not a projkern run's")
    return values
