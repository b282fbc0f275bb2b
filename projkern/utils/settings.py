"""Settings as frozen dataclasses: each has its default, its help and its option on the command line in one entry.

    n_layer: int = setting(4, "layers of every model")

A dataclass may hold others, its sections; names are unique over all of them, so that the command line and ``replace``
need no more than a setting's own name.
"""

import argparse
import dataclasses
import re
import typing
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from typing import Any, TypeVar

from .errors import InputError

Settings = TypeVar("Settings")


def setting(
    default: Any,
    help: str,
    *,
    option: str | None = "",
    former: str | None = None,
    parse: Callable[[str], Any] | None = None,
    metavar: str | None = None,
    digest: str | None = None,
) -> Any:
    """A field of a dataclass of settings.

    Args:
        default: its value where the user names none.
        help: for ``--help``; the default is appended.
        option: its name on the command line, by default that of the field; None for no option.
        former: an earlier name, still understood on the command line and in files.
        parse: reads its value on the command line, where its type alone does not say how.
        metavar: what ``--help`` shows for a value, where the type's own word does not say it.
        digest: of a path, the setting that holds the digest of what lies there, which may be moved then.
    """
    metadata = {"help": help, "option": option, "former": former, "parse": parse, "metavar": metavar, "digest": digest}
    return dataclasses.field(default=default, metadata=metadata)


def fields_of(settings: Any) -> Iterator[tuple[str | None, dataclasses.Field[Any]]]:
    """(section, field) of every setting of a dataclass or of an instance; the section is None at the top."""
    hints = typing.get_type_hints(settings if isinstance(settings, type) else type(settings))
    for field in dataclasses.fields(settings):
        if dataclasses.is_dataclass(hints[field.name]):
            yield from ((field.name, inner) for inner in dataclasses.fields(hints[field.name]))
        else:
            yield None, field


def hints_of(settings: Any) -> dict[str, Any]:
    """The type of every setting of a dataclass or of an instance, by its own name."""
    hints = typing.get_type_hints(settings if isinstance(settings, type) else type(settings))
    for section in filter(dataclasses.is_dataclass, list(hints.values())):
        hints |= typing.get_type_hints(section)
    return hints


def flat(settings: Any) -> dict[str, Any]:
    """Every setting by its own name, whatever section holds it."""
    values = {}
    for section, field in fields_of(settings):
        values[field.name] = getattr(settings if section is None else getattr(settings, section), field.name)
    return values


def replace(settings: Settings, **changes: Any) -> Settings:
    """A copy with other values, by the settings' own names, in whatever section.

    Raises:
        InputError: a name that no setting has, or a value that it does not take.
    """
    by_section: dict[str | None, dict[str, Any]] = {}
    owners = {field.name: section for section, field in fields_of(settings)}
    for name, value in changes.items():
        if name not in owners:
            raise InputError(f"settings must be among {', '.join(owners)}; one was {name}")
        by_section.setdefault(owners[name], {})[name] = value
    top = by_section.pop(None, {})
    for section, values in by_section.items():
        assert section is not None
        top[section] = dataclasses.replace(getattr(settings, section), **values)
    return dataclasses.replace(settings, **top)  # type: ignore[type-var]


def require(settings: Any, name: str, is_valid: bool, requirement: str) -> None:
    """Raise InputError, which names the setting, its value and what it must be, unless it is valid."""
    if is_valid:
        return
    value = getattr(settings, name)
    text = " ".join(map(str, value)) if isinstance(value, tuple) else value
    raise InputError(f"{name} must be {requirement}; it was {text}")


def require_types(settings: Any) -> None:
    """Raise InputError where a value is not of its field's type; an int serves as a float."""
    for name, hint in typing.get_type_hints(type(settings)).items():
        kind = tuple if typing.get_origin(hint) is tuple else hint
        if float in (hint, *typing.get_args(hint)):
            kind = hint | int
        require(settings, name, isinstance(getattr(settings, name), kind), f"of type {getattr(hint, '__name__', hint)}")


def add_options(parser: argparse.ArgumentParser, settings: Any, where: str = "") -> None:
    """Add an option for each setting, a group for each section; ``--help`` shows the values of ``settings``.

    Args:
        parser: of the command.
        settings: a dataclass of settings, or an instance whose values are shown.
        where: of an option that is there already, of other settings with one of the same name, the help then says after
            this what its default is with these.

    What the user gives is read with ``given_options``; there are no defaults on the command line itself.
    """
    values, hints = flat(settings), hints_of(settings)
    groups: dict[str | None, argparse._ArgumentGroup] = {}
    for section, field in fields_of(settings):
        if field.metadata["option"] is None:
            continue
        if (action := parser._option_string_actions.get(_option(field))) is not None:
            shown = _shown(values[field.name])
            if shown and f"default: {shown})" not in str(action.help):
                action.help = f"{action.help} ({where}: {shown})"
            continue
        if section not in groups:
            owner = settings if section is None else getattr(settings, section)
            summary = (owner.__doc__ or "").partition(".")[0]
            groups[section] = parser.add_argument_group(section or "settings", summary)
        kind: dict[str, Any] = {"dest": field.name, "default": argparse.SUPPRESS, **_kind(hints[field.name])}
        if (parse := field.metadata["parse"]) is not None:
            kind["type"] = parse
        if field.metadata["metavar"] is not None:
            kind["metavar"] = field.metadata["metavar"]
        default = values[field.name]
        shown = _shown(default)
        text = field.metadata["help"] + (f" (default: {shown})" if shown else "")
        groups[section].add_argument(_option(field), help=text, **kind)
        former = field.metadata["former"]
        if former is not None and _dashed(former) != _option(field):
            groups[section].add_argument(_dashed(former), help=argparse.SUPPRESS, **kind)


def given_options(options: argparse.Namespace, settings: Any) -> dict[str, Any]:
    """The settings that the user gave on the command line, by their own names."""
    values = {f.name: getattr(options, f.name) for _, f in fields_of(settings) if hasattr(options, f.name)}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def require_unchanged(settings: Any, changes: Mapping[str, Any], where: str) -> None:
    """Raise InputError where an option beside --resume differs from the one stored in the file ``where``.

    The path of what is recognised by its digest may be another one.
    """
    stored, digests = flat(settings), digests_of(settings)
    for _, field in fields_of(settings):
        name = field.name
        may_differ = name in digests.values() or stored.get(digests.get(name, "")) is not None
        if name in changes and stored[name] != changes[name] and not may_differ:
            raise InputError(
                f"{_option(field)} must be left out with --resume, or be {stored[name]} as in {where}; "
                f"it was {changes[name]}"
            )


def digests_of(settings: Any) -> dict[str, str]:
    """The settings that name what is recognised by its digest, and those that hold the digests."""
    return {field.name: field.metadata["digest"] for _, field in fields_of(settings) if field.metadata["digest"]}


def scale(text: str) -> Fraction:
    """A scale on the command line: 1/4 or 0.25."""
    try:
        return Fraction(text)
    except (ValueError, ZeroDivisionError):
        raise argparse.ArgumentTypeError(f"must be a fraction such as 1/4; it was {text!r}") from None


def count(text: str) -> int:
    """A number on the command line: 2000000, 2M, 500k or 1.5B."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kKmMbB]?)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"must be a number such as 2000000 or 2M; it was {text!r}")
    return round(float(match[1]) * {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}[match[2].lower()])


def _option(field: dataclasses.Field[Any]) -> str:
    return _dashed(field.metadata["option"] or field.name)


def _shown(value: Any) -> str:
    """A default as ``--help`` shows it; empty for none."""
    if value is None:
        return ""
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _dashed(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _kind(hint: Any) -> dict[str, Any]:
    """How argparse reads a value of this type."""
    if hint is bool:
        return {"action": argparse.BooleanOptionalAction}
    if typing.get_origin(hint) is tuple:
        is_text = typing.get_args(hint)[0] is str
        return {"type": str if is_text else scale, "nargs": "+", "metavar": "FILE" if is_text else "1/G"}
    plain = next(iter(typing.get_args(hint)), hint)  # float for "float | None"
    words = {"int": "N", "float": "X", "str": "NAME" if hint is str else "PATH"}
    return {"type": plain, "metavar": words[plain.__name__]}
