"""The settings of a run on tasks of text, by section. Each is written once here: default, help, option."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from fractions import Fraction
from typing import ClassVar

from ..models.layout import CONDITIONINGS
from ..training.config import ComputeConfig, ScheduleConfig
from ..utils.config import Config
from ..utils.settings import require, require_types, setting

NAME, FROM_SOURCE = "name", "source"
"""Values of ``t`` that are no file."""


@dataclass(frozen=True)
class TasksConfig:
    """The tasks: their texts, and what t is."""

    tasks: str = setting(
        "",
        "a text file, plain or .gz, or a folder of them for each task in the folder PATH; or a file of JSON lines with "
        "task and text",
        option=None,
    )
    t: str = setting(
        NAME,
        "name: t has a number for each task; source: what the source makes of a sample of a task's text; or a .npy or "
        ".csv file with a vector for each task, in the order of their names",
        metavar="name|source|FILE",
    )
    task_dim: int | None = setting(None, "length of t where it comes from the source (default: 16)")
    sample: int = setting(1024, "tokens of the sample of text that t is made from, where it comes from the source")
    held_out_tasks: tuple[str, ...] = setting(
        (), "tasks that training leaves out; they are judged with a t from a sample of their text", metavar="NAME"
    )
    length: int = setting(128, "tokens of a window")
    examples_per_task: int = setting(2, "windows of a batch that share a task, hence their weights")

    def __post_init__(self) -> None:
        require_types(self)
        require(self, "length", self.length >= 2, "at least 2")
        require(self, "sample", self.sample >= 1, "at least 1")
        require(self, "examples_per_task", self.examples_per_task >= 1, "at least 1")
        names = self.held_out_tasks
        require(self, "held_out_tasks", len(set(names)) == len(names), "named once each")
        if self.t == FROM_SOURCE:
            require(self, "task_dim", self.task_dim is None or self.task_dim >= 1, "at least 1")
        else:
            require(self, "task_dim", self.task_dim is None, "left out where t is not from the source")
            require(self, "held_out_tasks", not self.held_out_tasks, "left out where t is not from the source")


@dataclass(frozen=True)
class LanguageModelConfig:
    """The source, and how a conditional model takes t."""

    source: str | None = setting(
        None,
        "folder of a dense decoder in Hugging Face's format; without it a Llama of the shape here is trained",
        digest="source_digest",
    )
    n_layer: int = setting(4, "layers of every model")
    n_head: int = setting(4, "attention heads of every model")
    n_embd: int = setting(128, "hidden size of the source")
    conditioning: str = setting("every", f"where M~_s takes t: {', '.join(CONDITIONINGS)} (docs/tasks.md)")
    source_digest: str | None = setting(None, "digest of the source's weights", option=None)

    def __post_init__(self) -> None:
        require_types(self)
        for name in ("n_layer", "n_head", "n_embd"):
            require(self, name, getattr(self, name) >= 1, "at least 1")
        require(self, "n_embd", self.n_embd % self.n_head == 0, f"a multiple of n_head = {self.n_head}")
        require(self, "conditioning", self.conditioning in CONDITIONINGS, f"one of {', '.join(CONDITIONINGS)}")


@dataclass(frozen=True)
class LanguageOperatorConfig:
    """What generates the small models."""

    scales: tuple[Fraction, ...] = setting((Fraction(1, 4),), "scales s of the small models")
    rank: int = setting(32, "inner width r of the weight generators")
    shrink_heads: bool = setting(True, "the width of a head shrinks with the scale too, as in the paper")
    vectors_of_t: bool = setting(True, "the small models' own norms and biases depend on t too")

    def __post_init__(self) -> None:
        require_types(self)
        require(self, "rank", self.rank >= 1, "at least 1")
        require(self, "scales", len(set(self.scales)) == len(self.scales) >= 1, "at least one, each once")
        for s in self.scales:
            require(self, "scales", s.numerator == 1 and s.denominator > 1, "fractions 1/g with g >= 2")


@dataclass(frozen=True)
class LanguageScheduleConfig(ScheduleConfig):
    """Which models are trained, on which losses, for how long and how fast."""

    joint: bool = setting(False, "co-train all scales on one source", option=None)
    batch_size: int = setting(16, "windows a step")
    steps: int = setting(3000, "steps of every small model, baseline and projected")
    source_steps: int = setting(1000, "steps that train the source before; with --source 0 unless given")
    source_lr: float = setting(3e-3, "peak learning rate of these steps")
    small_lr: float = setting(1e-2, "peak learning rate of M_s and M~_s")
    source_batch: int | None = setting(None, "windows of a batch that the source's own loss sees", option=None)
    match: float = setting(1.0, "weight of the difference of P_s's hidden states from the source's, projected")
    operator_lr: float = setting(8e-3, "peak learning rate of the projection operator")
    freeze_source: bool = setting(False, "leave the source as it is while P_s is trained")

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "match", self.match >= 0, "at least 0")
        require(self, "joint", not self.joint, "False for tasks of text")


@dataclass(frozen=True)
class LanguageRunConfig(ComputeConfig):
    """Where and how a run is computed, logged and judged."""

    eval_windows: int = setting(16, "held-out windows of each task that each model is evaluated on")

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "eval_windows", self.eval_windows >= 2, "at least 2")


@dataclass(frozen=True)
class LanguageConfig(Config):
    """All that determines the result of a run on tasks of text."""

    PATHS: ClassVar = {"tasks": (), "source": (), "t": (NAME, FROM_SOURCE)}
    ADDED: ClassVar = ("source_digest",)

    tasks: TasksConfig = field(default_factory=TasksConfig)
    model: LanguageModelConfig = field(default_factory=LanguageModelConfig)
    operator: LanguageOperatorConfig = field(default_factory=LanguageOperatorConfig)
    schedule: LanguageScheduleConfig = field(default_factory=LanguageScheduleConfig)
    run: LanguageRunConfig = field(default_factory=LanguageRunConfig)

    def __post_init__(self) -> None:
        shared, batch = self.tasks.examples_per_task, self.schedule.batch_size
        require(self.tasks, "examples_per_task", batch % shared == 0, f"a divisor of batch_size = {batch}")

    @property
    def intermediate_size(self) -> int:
        """The feed-forward's width of a Llama that is trained here: 8/3 of the hidden size, in whole groups."""
        multiple = 8 * math.lcm(*(s.denominator for s in self.operator.scales))
        return -(-self.model.n_embd * 8 // 3 // multiple) * multiple
