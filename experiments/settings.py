"""The settings of stored results under one set of names, whichever version of projkern wrote them.

Three sets of values must not be confused. ``LEGACY_DEFAULTS`` says what a training did whose stored settings lack a
name, for it is older than the setting. ``PLAIN`` is the paper's recipe, which the experiments ask for by name. The
defaults of ``TrainConfig`` are what a user gets today, "the default recipe". Where the first two have a value in
common, that is because the package began with the paper's recipe.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from projkern.training.config import LEGACY_DEFAULTS, TrainConfig
from projkern.utils.settings import fields_of

FORMER_NAMES: dict[str, str] = {
    field.metadata["former"]: field.name for _, field in fields_of(TrainConfig) if field.metadata["former"] is not None
}
"""Names of settings in results of before, and today's: "image_size" is "side"."""


def as_json(config: TrainConfig) -> dict[str, Any]:
    """Every setting by its own name, as results hold them, but for digests; scales are strings."""
    settings = config.flat() | {"scales": [str(s) for s in config.operator.scales]}
    return {name: value for name, value in settings.items() if name not in TrainConfig.ADDED}


def complete(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Stored settings, those of the source included, under today's names and without gaps.

    They are not read as a ``TrainConfig``: a result must stay comparable when a setting leaves the package.
    """
    renamed = {FORMER_NAMES.get(name, name): value for name, value in settings.items()}
    source = renamed.get("source")
    return LEGACY_DEFAULTS | renamed | {"source": complete(source) if isinstance(source, Mapping) else source}
