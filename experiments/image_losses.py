"""The losses of each held-out image, as integers beside the JSON that names them.

    names_N        (n,) the names of n lists of N losses: a hash of their content, so that each is stored once
    losses_N       (4, n, N) uint8: the losses in 1e-4 nats, int32, the lowest byte first; like bytes compress together
    parts, masks   (k,) and (k, N): the names of parts of the held-out images, and which images belong to each

That is an eighth of their size in JSON.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from projkern.utils.errors import InputError
from projkern.utils.files import write_atomically

DECIMALS = 4
"""Of a stored loss."""

Masks = Mapping[str, np.ndarray]
"""Which held-out images (N,) belong to a part, by the name that ``by_part`` has for it."""


def take_out(results: dict[str, Any], masks: Masks) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Results with a name in place of each list of losses, and the arrays that these name.

    Args:
        results: as a document holds them.
        masks: of parts; the losses of a part are stored as the name of its mask where they are those of the whole.

    Raises:
        InputError: a loss of other than ``DECIMALS`` decimals, which would not come back as it is.
    """
    rows: dict[str, np.ndarray] = {}

    def name(losses: list[float], whole: list[float] | None, part: str) -> str:
        if whole is not None and part in masks and losses == _select(whole, masks[part]):
            return part
        units = np.rint(np.nan_to_num(losses) * 10**DECIMALS).astype("<i4")
        if _losses(units) != losses:
            raise InputError(f"by_image must have {DECIMALS} decimals; it was {losses[:3]} and so on")
        key = hashlib.blake2b(units.tobytes(), digest_size=8).hexdigest()
        rows[key] = units
        return key

    named = _replace(results, name)
    arrays: dict[str, np.ndarray] = {}
    for count in sorted({len(row) for row in rows.values()}):
        names = [key for key, row in rows.items() if len(row) == count]
        stacked = np.stack([rows[key] for key in names])
        arrays[f"names_{count}"] = np.array(names)
        arrays[f"losses_{count}"] = np.moveaxis(stacked.view(np.uint8).reshape(*stacked.shape, 4), -1, 0)
    if masks:
        arrays |= {"parts": np.array(list(masks)), "masks": np.stack(list(masks.values()))}
    return named, arrays


def put_back(results: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The inverse of ``take_out``; raises InputError where ``arrays`` lack what a result names."""
    rows: dict[str, np.ndarray] = {}
    for key in arrays:
        if key.startswith("losses_"):
            units = np.ascontiguousarray(np.moveaxis(arrays[key], 0, -1)).view("<i4")[..., 0]
            rows |= zip(arrays[key.replace("losses", "names")].tolist(), units)
    masks = masks_of(arrays)

    def losses(key: str, whole: str | None, part: str) -> list[float]:
        if key in rows:
            return _losses(rows[key])
        if key in masks and whole in rows:
            return _losses(rows[whole][masks[key][: len(rows[whole])]])
        raise InputError(f"by_image must be in the file of arrays; {key} is not there")

    return _replace(results, losses)


def masks_of(arrays: Mapping[str, np.ndarray]) -> Masks:
    """The masks that a file of arrays holds."""
    return dict(zip(arrays["parts"].tolist(), arrays["masks"])) if "parts" in arrays else {}


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write a .npz atomically."""

    def write(partial: Path) -> None:
        with partial.open("wb") as file:  # by its name NumPy would give it another ending
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]

    write_atomically(path, write)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """What ``write_arrays`` wrote, nothing where there is no file; raises InputError where it is damaged."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} must hold the losses of each image; it cannot be read: {error}") from error


def _losses(units: np.ndarray) -> list[float]:
    return (units / 10**DECIMALS).tolist()  # type: ignore[no-any-return]


def _select(losses: list[float], mask: np.ndarray) -> list[float]:
    return [loss for loss, is_in in zip(losses, mask) if is_in]


def _replace(value: Any, change: Callable[[Any, Any, str], Any], whole: Any = None, part: str = "") -> Any:
    """A copy in which each ``by_image`` is what ``change`` makes of it, of that of the whole model and its part."""
    if not isinstance(value, dict):
        return value
    copy = {}
    for key, inner in value.items():
        if key == "by_image":
            copy[key] = change(inner, whole, part)
        elif key == "by_part":
            copy[key] = {name: _replace(row, change, value.get("by_image"), name) for name, row in inner.items()}
        else:
            copy[key] = _replace(inner, change)
    return copy
