"""The task identifiers t of a run on tasks of text: one for each name, from a file, or from what the source reads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.tasks import read_csv
from ..models.huggingface.operator import positions_of
from ..utils.errors import InputError
from ..utils.tensors import read_tensors, write_tensors

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SAMPLES = 16
"""Samples of a task's text that training draws t from, where it comes from the source."""
_AT_ONCE = 4096  # tokens


@dataclass(frozen=True)
class Reader:
    """How t is made of what the source reads: its mean hidden state, of length 1, on principal axes.

    Args:
        mean: (d,).
        components: (task_dim, d).
        deviation: (), so that t has standard deviation 1 over the training tasks' samples.
    """

    mean: Tensor
    components: Tensor
    deviation: Tensor

    def __call__(self, states: Tensor) -> Tensor:
        """States (..., d) of ``read`` -> t (..., task_dim)."""
        return (states - self.mean) @ self.components.T / self.deviation


@dataclass(frozen=True)
class TaskVectors:
    """The t of every task of a run.

    Args:
        values: (n, S, task_dim) float32, of the tasks that are trained; S > 1 where each has several samples.
        held_out: (m, task_dim), of those that are not.
        reader: where t comes from the source.
    """

    values: Tensor
    held_out: Tensor
    reader: Reader | None

    @property
    def moments(self) -> tuple[float, float]:
        """Mean and standard deviation that t is normalised by: of a file's numbers, else none."""
        is_plain = self.reader is not None or bool(((self.values == 0) | (self.values == 1)).all())
        return (0.0, 1.0) if is_plain else (self.values.mean().item(), self.values.std().item() or 1.0)

    def save(self, path: Path) -> None:
        tensors = {"values": self.values, "held_out": self.held_out}
        if self.reader is not None:
            tensors |= {name: getattr(self.reader, name) for name in ("mean", "components", "deviation")}
        write_tensors(path, tensors)

    @classmethod
    def load(cls, path: Path) -> TaskVectors:
        """Read what ``save`` wrote; raises InputError where it is damaged."""
        tensors = read_tensors(path)
        try:
            reader = None
            if "mean" in tensors:
                reader = Reader(tensors["mean"], tensors["components"], tensors["deviation"])
            return cls(tensors["values"], tensors["held_out"], reader)
        except KeyError as error:
            raise InputError(f"{path} must hold the task identifiers of a run; it has no {error}") from None


def of_names(count: int) -> TaskVectors:
    """A number for each task: 1 for itself, 0 for all others."""
    return TaskVectors(torch.eye(count)[:, None], torch.empty(0, count), None)


def of_file(path: Path, names: list[str]) -> TaskVectors:
    """A vector for each task from a .npy or .csv file, a row each in the order of their names.

    Raises:
        InputError: another format, a number of rows that is not that of the tasks, or numbers that are not finite.
    """
    try:
        if path.suffix.lower() == ".npy":
            rows = np.load(path, allow_pickle=False)
        elif path.suffix.lower() == ".csv":
            rows = np.array([[float(cell) for cell in row] for row in read_csv(path)])
        else:
            raise InputError(f"t must be name, source, or a .npy or .csv file; it was {path}")
        values = torch.from_numpy(np.asarray(rows, dtype=np.float32))
    except (OSError, ValueError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"t must be a file with a vector for each task; {path} is not: {error}") from error
    if values.dim() != 2 or len(values) != len(names) or not values.shape[1]:
        raise InputError(
            f"t must have a row for each of the {len(names)} tasks ({', '.join(names)}); {path} is "
            f"{tuple(values.shape)}"
        )
    if not values.isfinite().all():
        task = names[int((~values.isfinite()).any(1).nonzero()[0])]
        raise InputError(f"t must be finite; the row of {task} in {path} is not")
    return TaskVectors(values[:, None], torch.empty(0, values.shape[1]), None)


def of_source(
    source: PreTrainedModel, tokens: list[np.ndarray], held_out: list[np.ndarray], task_dim: int, sample: int, seed: int
) -> TaskVectors:
    """t from samples of the training text of each task, as the source reads them.

    Args:
        source: it.
        tokens: (n_i,), of the tasks that are trained; the principal axes are fitted on these.
        held_out: of those that are not.
        task_dim: number of principal axes.
        sample: tokens of a sample.
        seed: of the samples' places.
    """
    from sklearn.decomposition import PCA

    random = np.random.default_rng(seed)
    states = torch.stack([_read_samples(source, ids, sample, random, SAMPLES) for ids in tokens])  # [n, S, d]
    flat = states.flatten(0, 1).double()
    pca = PCA(task_dim, random_state=0).fit(flat.numpy())
    mean, components = (torch.from_numpy(np.asarray(a)).float() for a in (pca.mean_, pca.components_))
    deviation = ((states - mean) @ components.T).std()
    reader = Reader(mean, components, deviation)
    others = [reader(_read_samples(source, ids, sample, random, 1)[0]) for ids in held_out]
    return TaskVectors(reader(states), torch.stack(others) if others else torch.empty(0, task_dim), reader)


def check_task_dim(task_dim: int, tasks: int, hidden_size: int) -> None:
    """Raises InputError where t from the source would have more numbers than there are principal axes."""
    most = min(tasks * SAMPLES - 1, hidden_size)
    if task_dim > most:
        raise InputError(f"task_dim must be at most {most}, for {tasks} tasks and this source; it was {task_dim}")


def _read_samples(
    source: PreTrainedModel, ids: np.ndarray, sample: int, random: np.random.Generator, count: int
) -> Tensor:
    starts = random.integers(max(1, len(ids) - sample + 1), size=count)
    return torch.stack([read(source, torch.from_numpy(ids[i : i + sample].astype(np.int64))) for i in starts])


@torch.no_grad()
def read(source: PreTrainedModel, tokens: Tensor) -> Tensor:
    """The mean last hidden state of a source over a text, of length 1.

    Args:
        source: it.
        tokens: (n,) int64, n >= 1; a text longer than the source's positions is read in parts.

    Returns:
        (d,) float32, on the CPU.
    """
    config: Any = source.config
    length = min(512, positions_of(source))
    whole = len(tokens) // length * length
    parts = [*tokens[:whole].view(-1, length).split(max(1, _AT_ONCE // length)), tokens[whole:][None]]
    total = torch.zeros(config.hidden_size)
    for part in parts:
        if part.numel():
            states = source(part.to(source.device), use_cache=False, output_hidden_states=True).hidden_states[-1]
            total += states.float().sum((0, 1)).cpu()
    return F.normalize(total, dim=0)
