"""The base of a job's settings by section, which its folder stores and a later process reads back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

from . import settings
from .errors import InputError
from .files import Format

Self = TypeVar("Self", bound="Config")


class Config:
    """What a frozen dataclass of settings, or of sections of them, inherits."""

    def replace(self: Self, **changes: Any) -> Self:
        """A copy with other values, by the settings' own names; raises InputError for a value that is not taken."""
        return settings.replace(self, **changes)

    def flat(self) -> dict[str, Any]:
        """Every setting by its own name."""
        return settings.flat(self)

    def to_json(self) -> dict[str, Any]:
        """The settings by section; fractions are strings."""
        assert dataclasses.is_dataclass(self)
        values: dict[str, Any] = _plain(dataclasses.asdict(self))
        return values

    @classmethod
    def from_json(cls: type[Self], values: dict[str, Any]) -> Self:
        """Read what ``to_json`` wrote; raises InputError where a setting is missing, unknown or has no such value."""
        owners = {field.name: section for section, field in settings.fields_of(cls)}
        hints = settings.hints_of(cls)
        try:
            top = {name for name, section in owners.items() if section is None}
            stored = {name for key, value in values.items() for name in ((key,) if key in top else value)}
            if differing := stored ^ owners.keys():
                raise KeyError(", ".join(sorted(differing)))
            by_name = {
                name: _value(values[name] if section is None else values[section][name], hints[name])
                for name, section in owners.items()
            }
        except (AttributeError, KeyError, TypeError, ValueError, ZeroDivisionError) as error:
            raise InputError(f"settings must be those of this version; {error} is missing or of another kind") from None
        return cls().replace(**by_name)

    @classmethod
    def read(cls: type[Self], path: Path, format: Format) -> Self:
        """The settings in a file; raises InputError where it holds none, or those of another version."""
        values = format.read(path)
        values.pop("version", None)
        try:
            return cls.from_json(values)
        except InputError as error:
            raise InputError(f"{path} cannot be used: {error}") from error

    @classmethod
    def resumed(cls: type[Self], path: Path, format: Format, changes: Mapping[str, Any]) -> Self:
        """The settings of a job to be continued; raises InputError where ``changes`` asks for others."""
        config = cls.read(path, format)
        settings.require_unchanged(config, changes, str(path))
        return config


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, tuple):
        return [_plain(inner) for inner in value]
    return str(value) if isinstance(value, Fraction) else value


def _value(value: Any, hint: Any) -> Any:
    """What ``_plain`` came from, by the type of the setting."""
    if get_origin(hint) is not tuple:
        return value
    return tuple(map(Fraction, value) if get_args(hint)[0] is Fraction else value)
