"""Packages whose names are imported at their first use (PEP 562): what needs no torch does not wait for it."""

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def attach(package: str, homes: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` of a package; its ``if TYPE_CHECKING`` has the same imports for type checkers.

    Args:
        package: its name.
        homes: of each name that it offers, the module inside it, and after a colon the name there, where that differs.
    """

    def load(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}", name=name, obj=sys.modules[package])
        module, _, original = homes[name].partition(":")
        value = getattr(import_module(f"{package}.{module}"), original or name)
        setattr(sys.modules[package], name, value)
        return value

    return load, lambda: sorted({*vars(sys.modules[package]), *homes})
