"""Numbers as arguments: those of NumPy and of torch are taken too, and anything else is refused by name."""

import math
from operator import index

from .errors import InputError


def whole_number(value: object) -> int | None:
    """An int, NumPy's and torch's included; None for anything else, a bool too."""
    if isinstance(value, int):
        return None if isinstance(value, bool) else value
    try:
        return index(value)  # type: ignore[arg-type]
    except (TypeError, RuntimeError):  # the latter of tensors
        return None


def require_whole(name: str, value: object, least: int = 1) -> None:
    """Raise InputError unless a value is a whole number of at least ``least``."""
    number = whole_number(value)
    if number is None:
        raise InputError(f"{name} must be an int; it was {value!r}")
    if number < least:
        raise InputError(f"{name} must be at least {least}; it was {value}")


def require_real(name: str, value: object) -> None:
    """Raise InputError unless a value is a finite number."""
    try:
        is_finite = not isinstance(value, (str, bytes)) and math.isfinite(float(value))  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError, OverflowError):
        is_finite = False
    if not is_finite:
        raise InputError(f"{name} must be finite, a number; it was {value!r}")
