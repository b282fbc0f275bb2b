"""Task identifiers: read from files, drawn at random, and checked against the training range."""

import csv
import io
import json
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..utils.errors import InputError
from .names import TASK_DIM, TASK_NAMES


def read_tasks(path: Path, task_dim: int = TASK_DIM) -> Tensor:
    """Read task identifiers.

    Args:
        path: one of

            - .json: a list of task_dim numbers; or a list of such;
            - .npy: an array (task_dim,) or (n, task_dim);
            - .csv: task_dim numbers a line, as ``read_csv`` reads them.

            Where task_dim is 18 the numbers have names (``TASK_NAMES``): an object of a .json file may map all of them
            to numbers, and the first line of a .csv file may hold them.
        task_dim: the length of one.

    Returns:
        (task_dim,) float32 for a single one, (n, task_dim) for a list of them.

    Raises:
        InputError: another format, a wrong length, or a number that is not finite; the message says where.
        OSError: the file cannot be read.
    """
    readers = {".json": _from_json, ".npy": _from_npy, ".csv": _from_csv}
    if path.suffix.lower() not in readers:
        raise InputError(f"t must be a .json, .npy or .csv file; it was {path}")
    try:
        t = torch.from_numpy(np.array(readers[path.suffix.lower()](path, task_dim), dtype=np.float32))
    except (ValueError, TypeError, EOFError, OverflowError, RecursionError, csv.Error) as error:
        raise InputError(f"t must hold task identifiers of {task_dim} numbers; {path} does not: {error}") from error
    if t.ndim not in (1, 2) or t.shape[-1] != task_dim or not t.numel():
        raise InputError(f"t must be ({task_dim},) or (n, {task_dim}); in {path} it was {tuple(t.shape)}")
    finite = t.view(-1, task_dim).isfinite()
    if not finite.all():
        row, column = (~finite).nonzero()[0].tolist()
        value = t.view(-1, task_dim)[row, column].item()
        name = TASK_NAMES[column] if task_dim == TASK_DIM else f"number {column}"
        raise InputError(f"t must be finite; {name} of task {row} in {path} was {value}")
    return t


def read_csv(path: Path) -> list[list[str]]:
    """The cells of each line of a .csv file as any spreadsheet writes it.

    Cells are separated by commas; or by semicolons or tabs, where numbers may have a decimal comma.
    """
    text = path.read_bytes().decode("utf-8-sig")  # spreadsheets begin with a mark of their own
    first = text.partition("\n")[0]
    separator = next((mark for mark in ";\t" if mark in first), ",")
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    return [[cell if separator == "," else cell.replace(",", ".") for cell in row] for row in rows if row]


def random_tasks(count: int, seed: int = 0) -> Tensor:
    """Task identifiers as they are drawn in training, uniform in [0, 1]: (count, 18) float32."""
    if count < 1:
        raise InputError(f"count must be at least 1; it was {count}")
    return torch.rand(count, TASK_DIM, generator=torch.Generator().manual_seed(seed))


def warn_outside(t: Tensor) -> None:
    """Warn of task identifiers (..., 18) that leave [0, 1], in which all of the training's were drawn, and how far."""
    rows = t.reshape(-1, TASK_DIM)
    excess = torch.maximum(-rows, rows - 1)
    largest = excess.max().item()
    if largest <= 0:
        return
    row, column = divmod(int(excess.argmax()), TASK_DIM)
    count = int((excess > 0).any(1).sum())
    name, value = TASK_NAMES[column], rows[row, column].item()
    warnings.warn(
        f"{count} of {len(rows)} task identifiers leave the training range [0, 1]; farthest is {name} of task {row}, "
        f"{value:g}, which is {largest:g} outside. Models are generated all the same, but none like them was trained.",
        stacklevel=2,
    )


def _from_json(path: Path, task_dim: int) -> list[object]:
    content = json.loads(path.read_text("utf-8-sig"))
    if isinstance(content, list) and any(isinstance(row, dict) for row in content):
        return [_in_order(row, task_dim) for row in content]
    return _in_order(content, task_dim) if isinstance(content, dict) else content


def _in_order(values: object, task_dim: int) -> list[object]:
    if not isinstance(values, dict):
        raise InputError("it mixes lists and objects")
    if task_dim != TASK_DIM:
        raise InputError("it names its numbers, which have no names")
    if values.keys() != set(TASK_NAMES):
        missing, unknown = sorted(set(TASK_NAMES) - values.keys()), sorted(values.keys() - set(TASK_NAMES))
        raise InputError(f"names that are missing: {missing or 'none'}; unknown: {unknown or 'none'}")
    return [values[name] for name in TASK_NAMES]


def _from_npy(path: Path, task_dim: int) -> np.ndarray:
    array = np.load(path, mmap_mode="r", allow_pickle=False)  # of what claims to be huge nothing is read
    if not isinstance(array, np.ndarray):
        raise InputError("it is an archive of arrays")
    if array.dtype.kind not in "fiu":
        raise InputError(f"its numbers are of type {array.dtype}")
    return array


def _from_csv(path: Path, task_dim: int) -> list[list[float]]:
    rows = read_csv(path)
    if rows and any(not _is_number(cell) for cell in rows[0]):
        names = tuple(cell.strip() for cell in rows.pop(0))
        if task_dim != TASK_DIM:
            raise InputError("its first line must be numbers")
        if names != TASK_NAMES:
            raise InputError(f"its first line must be numbers or {','.join(TASK_NAMES)}")
    return [[float(cell) for cell in row] for row in rows]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
