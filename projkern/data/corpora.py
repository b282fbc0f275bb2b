"""Tasks as texts: the files of each task, their tokens, and the stream of windows over them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..utils.errors import InputError
from ..utils.files import files_under, open_text
from ..utils.seeds import seed_of
from .digits import Split, check_split
from .text import open_tokens, tokenise

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SUFFIXES = (".txt", ".txt.gz", ".md", ".gz")
"""Endings of the names of text files that are no part of a task's name."""
HELD_OUT = 10
"""One part in so many of each task's text, its end, is held out."""


@dataclass(frozen=True)
class Corpus:
    """The text of one task: files, or texts from a file of JSON lines."""

    name: str
    files: list[Path]
    texts: list[str]


def find_corpora(path: Path) -> list[Corpus]:
    """The tasks in a folder, or in a file of JSON lines, sorted by name.

    Args:
        path: a folder with a text file, plain or .gz, or a folder of such files for each task; or a file .jsonl or
            .jsonl.gz whose lines are objects with "task" and "text".

    Raises:
        InputError: nothing is there, fewer than two tasks, or lines of another form.
    """
    if path.is_dir():
        corpora = [_corpus(entry) for entry in path.iterdir() if not entry.name.startswith(".")]
    elif path.is_file():
        corpora = _from_lines(path)
    else:
        raise InputError(f"tasks must be a folder, or a file of JSON lines; {path} is not there")
    if len(corpora) < 2:
        raise InputError(f"tasks must be at least two; {path} has {len(corpora)}")
    corpora.sort(key=lambda corpus: corpus.name)
    names = [corpus.name for corpus in corpora]
    for name in names:
        if not name or name != Path(name).name or name.startswith("."):  # folders of models are named so
            raise InputError(f"tasks must have names that a folder may have; {path} has {name!r}")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"tasks must have a name each; {path} has {twice} twice")
    return corpora


def _corpus(path: Path) -> Corpus:
    if path.is_dir():
        files = files_under(path)
        if not files:
            raise InputError(f"tasks must have text; {path} has no file")
        return Corpus(path.name, files, [])
    suffix = max((s for s in SUFFIXES if path.name.lower().endswith(s)), key=len, default="")
    return Corpus(path.name[: len(path.name) - len(suffix)], [path], [])


def _from_lines(path: Path) -> list[Corpus]:
    texts: dict[str, list[str]] = {}
    try:
        with open_text(path) as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                values = json.loads(line)
                is_object = isinstance(values, dict) and all(isinstance(values.get(k), str) for k in ("task", "text"))
                if not is_object:
                    raise InputError(
                        f'tasks must be lines {{"task": ..., "text": ...}}; line {number} of {path} is not'
                    )
                texts.setdefault(values["task"], []).append(values["text"])
    except (OSError, EOFError, UnicodeDecodeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"tasks must be a file of JSON lines; {path} is not: {error}") from error
    return [Corpus(name, [], parts) for name, parts in texts.items()]


def tokenise_corpus(corpus: Corpus, tokenizer: PreTrainedTokenizerBase, vocab_size: int, out: Path) -> None:
    """Write a task's tokens to ``out`` (.npy); raises as ``data.text.tokenise``."""
    tokenise(corpus.files or corpus.texts, tokenizer, vocab_size, out, at_blank_lines=False)


class TaskTexts:
    """Windows of the texts of n tasks, each with its task's t; a batch is a function of (seed, split, step) alone.

    "train" draws tasks, and windows of their texts but the last tenth, at random. "validation" has as many windows of
    each task, evenly spaced over that tenth, sorted by task.

    Args:
        tokens: (n_i,) ids of each task.
        vectors: (n, S, task_dim), S vectors for each task; training draws one of them for each task of a batch,
            validation takes the first.
        length: T.
        batch: B.
        examples_per_task: k, windows of a batch that share a task; divides B.
        split: "train" or "validation".
        seed: of what training draws.
        windows: of each task, in validation; fewer where the shortest held-out part has not as many side by side.
        vocabulary: K.
        device: where tensors are returned.
        names: of the tasks, for errors.

    Raises:
        InputError: a task whose text is too short.
    """

    def __init__(
        self,
        tokens: Sequence[np.ndarray],
        vectors: Tensor,
        *,
        length: int,
        batch: int,
        examples_per_task: int,
        split: Split,
        seed: int,
        windows: int,
        vocabulary: int,
        device: torch.device | str = "cpu",
        names: Sequence[str] | None = None,
    ) -> None:
        check_split(split)
        for number, ids in enumerate(tokens):
            if len(ids) // HELD_OUT < length:
                name = names[number] if names is not None else f"task {number}"
                raise InputError(
                    f"tasks must have at least {HELD_OUT * length} tokens each, ten windows of {length}; {name} has "
                    f"{len(ids)}"
                )
        self.split, self.seed, self.batch_size, self.examples_per_task = split, seed, batch, examples_per_task
        self.vocabulary, self.device = vocabulary, torch.device(device)
        self.task_dim = vectors.shape[2]
        self._length = length
        self._vectors = vectors.to(self.device)
        self._tokens = [part_of(ids, split) for ids in tokens]
        self.windows = min(windows, *(len(ids) // length for ids in self._tokens))

    @property
    def positions(self) -> int:
        """T, tokens of a window."""
        return self._length

    @property
    def count(self) -> int:
        """Windows of the validation split."""
        return len(self._tokens) * self.windows

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Tokens (B, T) int64 and task identifiers (B, task_dim) float32; equal ones lie side by side."""
        places = self._places(step)
        rows = [self._tokens[task][offset : offset + self._length] for task, offset, _ in places]
        tokens = torch.from_numpy(np.stack(rows).astype(np.int64)).to(self.device)
        return tokens, self.tasks(step)

    def tasks(self, step: int) -> Tensor:
        """The task identifiers of ``batch``."""
        places = torch.tensor([(task, sample) for task, _, sample in self._places(step)], device=self.device)
        return self._vectors[places[:, 0], places[:, 1]]

    def labels(self, step: int) -> Tensor:
        """The numbers of the tasks of ``batch``: (B,) int64."""
        return torch.tensor([task for task, _, _ in self._places(step)])

    def with_other_tasks(self, step: int) -> tuple[Tensor, Tensor]:
        """``batch`` with the t of the next task in place of each task's own, to see how much a model uses it."""
        others = (self.labels(step) + 1) % len(self._tokens)
        return self.batch(step)[0], self._vectors[others.to(self.device), 0]

    def _places(self, step: int) -> list[tuple[int, int, int]]:
        """Task, offset and vector of each window of a batch."""
        if self.split == "validation":
            indices = [i % self.count for i in range(step * self.batch_size, (step + 1) * self.batch_size)]
            return [(i // self.windows, self._spaced(i), 0) for i in indices]
        random = np.random.default_rng(seed_of(self.seed, "texts", step))
        groups, tasks = self.batch_size // self.examples_per_task, len(self._tokens)
        drawn = np.concatenate([random.permutation(tasks) for _ in range(-(-groups // tasks))])[:groups]
        places = []
        for task in drawn.tolist():
            sample = int(random.integers(self._vectors.shape[1]))
            offsets = random.integers(len(self._tokens[task]) - self._length + 1, size=self.examples_per_task)
            places += [(task, offset, sample) for offset in offsets.tolist()]
        return places

    def _spaced(self, index: int) -> int:
        task, window = divmod(index, self.windows)
        return window * (len(self._tokens[task]) - self._length) // max(1, self.windows - 1)


def part_of(ids: np.ndarray, split: Split) -> np.ndarray:
    """A task's tokens for training, or its last tenth."""
    cut = len(ids) - len(ids) // HELD_OUT
    return ids[:cut] if split == "train" else ids[cut:]


def read_token_files(folder: Path, count: int, vocab_size: int) -> list[np.ndarray]:
    """The tokens of each of a run's tasks, mapped into memory; raises InputError where a file is damaged."""
    return [open_tokens(token_file(folder, number), vocab_size) for number in range(count)]


def token_file(folder: Path, number: int) -> Path:
    """Where the tokens of a task lie."""
    return folder / f"{number:05d}.npy"
