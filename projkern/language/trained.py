"""A run on tasks of text, read back from its folder: its tasks, its tokenizer and its models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ..data.corpora import TaskTexts, read_token_files
from ..data.digits import Split
from ..data.tasks import read_tasks as read_tasks_file
from ..data.text import read_pieces
from ..models import TransformersOperator
from ..models.names import SOURCE, Kind, ModelName
from ..training import checkpoint
from ..training.stages import names_of
from ..training.trained import IncompleteRun, choose_scale
from ..utils.errors import InputError
from ..utils.tensors import StoredTensors
from .config import LanguageConfig
from .folder import TASKS_FILE, TOKENS, VECTORS, Tasks, read_config, read_source_config, read_tasks, read_tokenizer
from .stages import TaskSpace, TextModel, TextStage, make_operator, make_stage
from .stored import StoredOperator
from .vectors import TaskVectors, read

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

EVALUATED_AT_ONCE = 16
"""Windows."""


class Task(NamedTuple):
    """What a model is generated for."""

    name: str
    t: Tensor  # (task_dim,)


@dataclass(frozen=True)
class LanguageRun:
    """A finished run whose models are read on demand.

    Args:
        path: its folder.
        config: its settings.
        tasks: their names.
        vectors: their t.
        tokenizer: of its text.
        device: where its models are.
    """

    path: Path
    config: LanguageConfig
    tasks: Tasks
    vectors: TaskVectors
    tokenizer: PreTrainedTokenizerBase
    device: torch.device

    @classmethod
    def open(cls, path: Path, device: torch.device | str = "cpu") -> LanguageRun:
        """Read a run.

        Raises:
            InputError: a folder without one, or a damaged one.
            IncompleteRun: the training of its source has not ended.
        """
        config, device = read_config(path), torch.device(device)
        if not (path / TASKS_FILE).exists() or not (path / VECTORS).exists():
            raise IncompleteRun(f"{path} must hold a trained run; this one has only begun. {_continue(path)}")
        _finished(path, SOURCE, config.schedule.source_steps)
        return cls(path, config, read_tasks(path), TaskVectors.load(path / VECTORS), read_tokenizer(path), device)

    @cached_property
    def source(self) -> PreTrainedModel:
        """The trained M_1, in evaluation mode."""
        stage = make_stage(SOURCE, self.config, TaskSpace.of(self.vectors), empty_source(self.path), self.device)
        _load(self.path, stage)
        return stage.module  # type: ignore[return-value]

    def operator(self, scale: Fraction | None) -> TransformersOperator:
        """The trained operator of one scale, in evaluation mode; None is the run's only one.

        Raises:
            InputError: a scale that the run does not have.
            IncompleteRun: its training has not ended.
            CheckpointError: its checkpoint is damaged.
        """
        scale = choose_scale(scale, self.config.operator.scales, self.path)
        operator = self._stage(ModelName(Kind.PROJECTED, scale)).module.get_submodule("operator")
        assert isinstance(operator, TransformersOperator)
        return operator

    def stored_operator(self, scale: Fraction | None) -> StoredOperator:
        """The same operator, of which memory holds the functions of t alone. Raises as ``operator`` does."""
        scale, schedule = choose_scale(scale, self.config.operator.scales, self.path), self.config.schedule
        folder = _finished(self.path, ModelName(Kind.PROJECTED, scale), schedule.steps)
        with torch.device("meta"):
            operator = make_operator(empty_source(self.path), scale, self.config, TaskSpace.of(self.vectors))
        return StoredOperator.open(
            operator,
            StoredTensors.of_folder(folder),
            _finished(self.path, SOURCE, schedule.source_steps) if schedule.freeze_source else None,
            self.device,
        )

    def models(self) -> list[TextModel]:
        """Every model of the run, as the paper's tables name them. Raises as ``operator`` does."""
        names = names_of(self.config.operator.scales, self.config.schedule)
        return [model for name in names for model in self._stage(name).models]

    def t_of(self, task: str) -> Tensor:
        """The t of a task by its name: (task_dim,). Raises InputError for an unknown one; the known are listed."""
        if task in self.tasks.trained:
            return self.vectors.values[self.tasks.trained.index(task), 0].to(self.device)
        if task in self.tasks.held_out:
            return self.vectors.held_out[self.tasks.held_out.index(task)].to(self.device)
        raise InputError(f"task must be one of {', '.join(self.tasks.names)}; it was {task}")

    def t_like(self, text: str) -> Tensor:
        """The t (task_dim,) of a sample of text.

        Raises:
            InputError: a run whose t does not come from the source, or a sample that is too short.
        """
        if self.vectors.reader is None:
            raise InputError(
                f"like must be left out: in {self.path} t is {self.config.tasks.t}, which no sample of text gives. "
                "Train with --t source"
            )
        tokens = self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        if len(tokens) < 16:
            raise InputError(f"like must be a text of at least 16 tokens; it has {len(tokens)}")
        return self.vectors.reader(read(self.source, torch.tensor(tokens))).to(self.device)

    def chosen(self, names: Sequence[str] | None, like: Path | None, vectors: Path | None = None) -> list[Task]:
        """The tasks of these names, that of a sample of text in a file, or those of vectors in a file.

        Raises:
            InputError: an unknown name, a name twice, a file that cannot be read, or as ``t_like``.
        """
        if vectors is not None:
            rows = read_tasks_file(vectors, self.vectors.values.shape[2])
            rows = rows.view(-1, rows.shape[-1]).to(self.device)
            return [Task(f"task-{number:05}", t) for number, t in enumerate(rows)]
        if like is not None:
            text = "".join(piece for _, piece in read_pieces(like, at_blank_lines=False))
            return [Task(like.name, self.t_like(text))]
        names = names or []
        if len(set(names)) < len(names):
            raise InputError(f"task must name each task once; it was {' '.join(names)}")
        return [Task(name, self.t_of(name)) for name in names]

    def nearest(self, t: Tensor) -> str:
        """The trained task whose t is nearest to t (task_dim,)."""
        distances = (self.vectors.values.mean(1).to(t.device) - t).norm(dim=1)
        return self.tasks.trained[int(distances.argmin())]

    def texts(self, split: Split, windows: int | None = None) -> TaskTexts:
        """The stream of windows of the trained tasks; in validation so many of each, as in the run unless given."""
        return self._texts(self.tasks.trained, self.vectors.values, split, windows)

    def held_out_texts(self, windows: int | None = None) -> TaskTexts:
        """The validation stream of the tasks that training left out."""
        return self._texts(self.tasks.held_out, self.vectors.held_out[:, None], "validation", windows)

    def _texts(self, names: list[str], values: Tensor, split: Split, windows: int | None) -> TaskTexts:
        config = self.config if windows is None else self.config.replace(eval_windows=windows)
        return open_texts(self.path, config, self.tasks, names, values, split, self.device)

    def _stage(self, name: ModelName) -> TextStage:
        stage = make_stage(name, self.config, TaskSpace.of(self.vectors), self.source, self.device)
        _load(self.path, stage)
        return stage


def open_texts(
    run: Path,
    config: LanguageConfig,
    tasks: Tasks,
    names: list[str],
    values: Tensor,
    split: Split,
    device: torch.device,
) -> TaskTexts:
    """The stream of windows of some tasks of a run.

    Args:
        names: of the tasks.
        values: (n, S, task_dim), their t.
    """
    vocabulary = read_source_config(run).vocab_size
    tokens = read_token_files(run / TOKENS, len(tasks.names), vocabulary)
    return TaskTexts(
        [tokens[tasks.names.index(name)] for name in names],
        values,
        length=config.tasks.length,
        batch=config.schedule.batch_size if split == "train" else EVALUATED_AT_ONCE,
        examples_per_task=config.tasks.examples_per_task,
        split=split,
        seed=config.run.seed,
        windows=config.run.eval_windows,
        vocabulary=vocabulary,
        device=device,
        names=names,
    )


def empty_source(run: Path) -> PreTrainedModel:
    """A model of the source's configuration whose weights mean nothing yet."""
    from transformers import AutoModelForCausalLM

    model: PreTrainedModel = AutoModelForCausalLM.from_config(read_source_config(run))
    return model


def _load(run: Path, stage: TextStage) -> None:
    checkpoint.load(_finished(run, stage.name, stage.steps), stage.module)
    stage.module.eval()


def _finished(run: Path, name: ModelName, steps: int) -> Path:
    """The last checkpoint of a training; raises IncompleteRun where that has not ended."""
    last = checkpoint.latest(checkpoint.stage_folder(run, name))
    step = checkpoint.read_state(last)[0] if last else -1
    if last is None or step != steps:
        raise IncompleteRun(
            f"{run} must hold a trained {name}; it stands at step {max(0, step)} of {steps}. " + _continue(run)
        )
    return last


def _continue(path: Path) -> str:
    return f"To go on training: python -m projkern.train --out {path} --resume"
