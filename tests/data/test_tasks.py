"""Task identifiers: files of every kind, and what is said of bad ones."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
import torch

from projkern.data import TASK_NAMES, random_tasks, read_tasks, warn_outside
from projkern.utils.errors import InputError

T = [round(0.05 * k, 2) for k in range(18)]
NAMED = dict(zip(TASK_NAMES, T))


def write(folder, name, content):
    path = folder / name
    if isinstance(content, np.ndarray):
        np.save(path, content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


LINE = ",".join(map(str, T))


@pytest.mark.parametrize(
    ("name", "content", "shape"),
    [
        ("t.json", T, (18,)),
        ("t.json", NAMED, (18,)),
        ("t.json", dict(reversed(NAMED.items())), (18,)),
        ("t.json", [T, T], (2, 18)),
        ("t.json", [T], (1, 18)),
        ("t.json", [NAMED, NAMED], (2, 18)),
        ("t.npy", np.array(T), (18,)),
        ("t.npy", np.array([T, T, T], dtype=np.float32), (3, 18)),
        ("t.csv", f"{LINE}\n{LINE}\n", (2, 18)),
        ("t.csv", f"{','.join(TASK_NAMES)}\n{LINE}\n", (1, 18)),
        ("t.csv", f"\ufeff{','.join(TASK_NAMES)}\r\n{LINE}\r\n", (1, 18)),  # as spreadsheets write it
        ("t.csv", f"{';'.join(TASK_NAMES)}\r\n{LINE.replace(',', ';').replace('.', ',')}\r\n", (1, 18)),
        ("t.CSV", LINE.replace(",", "\t"), (1, 18)),
        ("t.JSON", T, (18,)),
        ("t.json", f"\ufeff[{LINE}]", (18,)),
    ],
)
def test_read_tasks(tmp_path, name, content, shape):
    t = read_tasks(write(tmp_path, name, content))
    assert t.dtype == torch.float32 and t.shape == shape
    assert torch.equal(t, torch.tensor(T).expand(shape))
    assert torch.equal(t.view(-1, 18), torch.tensor(T).expand(t.view(-1, 18).shape))


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("t.txt", LINE, "must be a .json, .npy or .csv file"),
        ("t.json", T[:-1], r"must be \(18,\) or \(n, 18\).*\(17,\)"),
        ("t.json", [T, T[:-1]], "task identifiers of 18 numbers"),
        ("t.json", [], r"\(0,\)"),
        ("t.json", [[[1.0] * 18]], r"\(1, 1, 18\)"),
        ("t.json", "[1, 2", "does not: "),
        ("t.json", "[NaN" + ", 0" * 17 + "]", "must be finite; angle of task 0 .* was nan"),
        ("t.json", [T, [*T[:-1], 1e999]], "must be finite; color_b of task 1 .* was inf"),
        ("t.json", {**NAMED, "angel": 1.0}, r"unknown: \['angel'\]"),
        ("t.json", {k: v for k, v in NAMED.items() if k != "angle"}, r"missing: \['angle'\]"),
        ("t.json", [NAMED, T], "mixes lists and objects"),
        ("t.npy", np.array(["a"] * 18), "numbers are of type"),
        ("t.json", [10**400, *T[1:]], "does not: int too large"),
        ("t.json", "[" * 100_000, "does not: maximum recursion depth"),
        ("t.npy", np.zeros((2, 19)), r"\(2, 19\)"),
        ("t.npy", np.zeros((0, 18)), "t must"),
        ("t.csv", f"{LINE},1\n", r"\(1, 19\)"),
        ("t.csv", "", r"\(0,\)"),
        ("t.csv", "1" * 200_000, "does not: field larger than"),
        ("t.csv", f"a,b\n{LINE}\n", "first line must be numbers or angle,"),
    ],
)
def test_bad_tasks(tmp_path, name, content, says):
    with pytest.raises(InputError, match=says) as caught:
        read_tasks(write(tmp_path, name, content))
    assert name in str(caught.value)


def test_pickled_array_is_refused(tmp_path):
    np.save(tmp_path / "t.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match=r"t\.npy does not: .*Python objects"):
        read_tasks(tmp_path / "t.npy")


def test_archive_of_arrays_is_refused(tmp_path):
    np.savez(tmp_path / "t.npz", np.array(T))
    (tmp_path / "t.npz").rename(tmp_path / "t.npy")
    with pytest.raises(InputError, match=r"t\.npy does not: it is an archive"):
        read_tasks(tmp_path / "t.npy")


def test_array_shorter_than_it_says_is_refused(tmp_path):
    """Before memory for all of it is asked for."""
    path = write(tmp_path, "t.npy", np.zeros((2, 18)))
    path.write_bytes(path.read_bytes().replace(b"(2, 18), }          ", b"(2000000000000, 18)}"))
    with pytest.raises(InputError, match=r"t\.npy does not: "):
        read_tasks(path)


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_tasks(tmp_path / "t.json")


def test_random_tasks():
    t = random_tasks(1000, seed=3)
    assert t.shape == (1000, 18) and t.min() >= 0 and t.max() < 1
    assert torch.equal(t, random_tasks(1000, seed=3)) and not torch.equal(t, random_tasks(1000, seed=4))
    with pytest.raises(InputError, match="count must be at least 1; it was 0"):
        random_tasks(0)


def test_tasks_outside_the_training_range_are_named():
    inside = random_tasks(3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_outside(inside)
        warn_outside(torch.ones(18))
    inside[1, 2], inside[2, 4] = -0.25, 3.5
    with pytest.warns(UserWarning, match=r"2 of 3 .*warp_x of task 2, 3\.5, which is 2\.5 outside"):
        warn_outside(inside)
