"""The base of a job's settings by section, which its folder stores and a later process reads back."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar, TypeVar, get_args, get_origin

from . import settings
from .errors import InputError
from .files import Format

Self = TypeVar("Self", bound="Config")


class Config:
    """What a frozen dataclass of settings, or of sections of them, inherits."""

    PATHS: ClassVar[Mapping[str, Collection[str]]] = {}
    """Settings that are paths, or words in place of one: these words."""
    ADDED: ClassVar[Collection[str]] = ()
    """Settings without a value in files that were written before there were such."""

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
            if differing := (stored ^ owners.keys()) - set(cls.ADDED):
                raise KeyError(", ".join(sorted(differing)))
            by_name = {
                name: _value(values[name] if section is None else values[section][name], hints[name])
                for name, section in owners.items()
                if name in stored
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
        """The settings of a job to be continued, with the paths of ``changes`` for what is recognised in any place.

        Raises InputError where ``changes`` asks for other settings.
        """
        config, changes = cls.read(path, format).absolute(), cls._absolute(changes)
        settings.require_unchanged(config, changes, str(path))
        return config.replace(**{name: changes[name] for name in settings.digests_of(config) if name in changes})

    def absolute(self: Self) -> Self:
        """A copy with absolute paths, so that a job goes on from any folder."""
        return self.replace(**self._absolute(self.flat()))

    @classmethod
    def _absolute(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        def resolved(value: Any, words: Collection[str]) -> Any:
            if isinstance(value, tuple):
                return tuple(resolved(inner, words) for inner in value)
            return str(Path(value).resolve()) if value and value not in words else value

        return dict(values) | {
            name: resolved(values[name], words) for name, words in cls.PATHS.items() if name in values
        }


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
