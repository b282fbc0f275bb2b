"""Settings to start from in a run on tasks of text."""

from fractions import Fraction
from typing import Any

from ..utils.errors import InputError
from .config import LanguageConfig

LANGUAGES = LanguageConfig()

TINY = LANGUAGES.replace(
    n_layer=2,
    n_head=2,
    n_embd=32,
    rank=4,
    scales=(Fraction(1, 2),),
    batch_size=8,
    length=32,
    sample=64,
    source_steps=20,
    steps=20,
    warmup=2,
    log_every=5,
    checkpoint_every=10,
    eval_windows=4,
)

PRESETS: dict[str, tuple[str, LanguageConfig]] = {
    "languages": ("--tasks: a Llama of 4 layers, d = 128, s = 1/4: half an hour on two CPU cores", LANGUAGES),
    "tiny": ("--tasks: 2 layers, d = 32: every model in seconds, to see that all works", TINY),
}
"""Name -> what it is, and its settings."""


def new_config(preset: str, changes: dict[str, Any]) -> LanguageConfig:
    """The settings of a new run: a preset's, with changes. A source that is given is not trained before, unless asked.

    Raises:
        InputError: a value that is not taken.
    """
    if changes.get("source") is None:
        return PRESETS[preset][1].replace(**changes)
    for name in ("n_layer", "n_head", "n_embd"):
        if name in changes:
            raise InputError(f"{name} must be left out with source, which has its own; it was {changes[name]}")
    return PRESETS[preset][1].replace(**{"source_steps": 0} | changes)
