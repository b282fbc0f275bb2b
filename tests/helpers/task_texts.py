"""Texts of a few made-up languages, as a folder of tasks, and tiny runs on them."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np

from projkern.language.presets import TINY

NAMES = ("blue", "green", "red", "white")
SETTINGS = TINY.replace(source_steps=6, steps=4, log_every=2, checkpoint_every=2, eval_windows=2, length=16, sample=24)


def text_of(name: str, letters: int = 3000) -> str:
    """Words of the few letters of a task's name."""
    random = np.random.default_rng(sum(name.encode()))
    words = ("".join(random.choice(list(name), random.integers(2, 6))) for _ in range(letters // 4))
    return " ".join(words)


def write_folder(folder: Path) -> Path:
    """A task in each of the ways that a folder may hold it."""
    folder.mkdir()
    (folder / "blue.txt").write_text(text_of("blue"))
    (folder / "green.txt.gz").write_bytes(gzip.compress(text_of("green").encode()))
    (folder / "red").mkdir()
    half = len(text_of("red")) // 2
    (folder / "red" / "1.txt").write_text(text_of("red")[:half])
    (folder / "red" / "2.txt").write_text(text_of("red")[half:])
    (folder / "white").write_text(text_of("white"))
    return folder


def write_lines(path: Path) -> Path:
    """The same tasks as JSON lines."""
    lines = [{"task": name, "text": text_of(name)} for name in reversed(NAMES)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path
