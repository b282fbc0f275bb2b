"""The settings of a run, by the room that uses them. Each is written once here: default, help, option, former name."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, ClassVar

from ..data.names import OPENML, TASK_DIM
from ..models.kinds import KINDS, STARTS
from ..models.layout import CONDITIONINGS
from ..utils.config import Config
from ..utils.errors import InputError
from ..utils.settings import fields_of, require, require_types, setting

LEGACY_DEFAULTS: dict[str, Any] = {
    **{"source": None, "folder": None, "tables_lr": None, "source_batch": None, "task_dim": TASK_DIM},
    **{"generator": "diagonal", "start": "constant", "shared_inner": False, "tied": False, "bias_of_t": False},
    **{"conditioning": "first", "t_mean": 0.0, "t_std": 1.0, "distill": 0.0, "shard": False},
}
"""The values of settings that the config.json of earlier runs does not name."""


@dataclass(frozen=True)
class DataConfig:
    """What the models are trained on."""

    mnist: str | None = setting(
        None,
        "folder of the four MNIST idx files, or 'openml'; without it scikit-learn's digits",
        digest="validation_digest",
    )
    folder: str | None = setting(
        None,
        "folder of tokenised images (of projkern.tokenize), which brings their shape; without it SynthMNIST",
        option="data",
        former="data",
        digest="validation_digest",
    )
    side: int = setting(16, "height and width of an image in tokens (SynthMNIST: pixels)", former="image_size")
    vocab_size: int = setting(64, "number of tokens (SynthMNIST: colours of the palette)", former="colors")
    task_dim: int = setting(TASK_DIM, "length of the task identifier t")
    examples_per_task: int = setting(1, "images of a batch that share a task identifier")
    train_digest: str | None = setting(None, "digest of the training images of mnist or folder", option=None)
    validation_digest: str | None = setting(None, "digest of their held-out images", option=None)

    def __post_init__(self) -> None:
        require_types(self)
        require(self, "side", self.side >= 4, "at least 4")
        require(self, "vocab_size", self.vocab_size >= 2, "at least 2")
        require(self, "task_dim", self.task_dim >= 1, "at least 1")

    @property
    def positions(self) -> int:
        """T, the tokens of an image."""
        return self.side**2


@dataclass(frozen=True)
class ModelConfig:
    """The shape of the source, hence of all models, and how a conditional model takes t."""

    source: str | None = setting(
        None,
        "folder that M_1 starts from: of a run, or a GPT-2 or ImageGPT of Hugging Face's; it brings its shape",
        digest="source_digest",
    )
    n_layer: int = setting(4, "layers of every model")
    n_head: int = setting(2, "attention heads of every model")
    n_embd: int = setting(128, "width d of the source")
    dropout: float = setting(0.0, "dropout rate while training")
    conditioning: str = setting("first", f"where M~_s takes t: {', '.join(CONDITIONINGS)} (docs/method.md)")
    t_mean: float = setting(0.5, "t enters every model as (t - t_mean) / t_std; tokenised images bring theirs")
    t_std: float = setting(12**-0.5, "see t_mean")
    source_digest: str | None = setting(None, "digest of the source's weights", option=None)

    def __post_init__(self) -> None:
        require_types(self)
        for name in ("n_layer", "n_head", "n_embd"):
            require(self, name, getattr(self, name) >= 1, "at least 1")
        require(self, "n_embd", self.n_embd % self.n_head == 0, f"a multiple of n_head = {self.n_head}")
        require(self, "dropout", 0 <= self.dropout < 1, "in [0, 1)")
        require(self, "conditioning", self.conditioning in CONDITIONINGS, f"one of {', '.join(CONDITIONINGS)}")
        require(self, "t_mean", math.isfinite(self.t_mean), "finite")
        require(self, "t_std", 0 < self.t_std < math.inf, "finite and above 0")


@dataclass(frozen=True)
class OperatorConfig:
    """What generates the small models. Arguments of a generator's own are passed to it by their names."""

    scales: tuple[Fraction, ...] = setting((Fraction(1, 4),), "scales s of the small models")
    rank: int = setting(8, "inner width r of the weight generators")
    generator: str = setting("diagonal", f"what turns t into weights: {', '.join(KINDS)} (docs/generators.md)")
    bias_of_t: bool = setting(True, "the small models' own biases depend on t too")
    start: str = setting("constant", f"p and q of the diagonal generator at first: {', '.join(STARTS)}", option=None)
    shared_inner: bool = setting(False, "one first layer t -> r for all linear operators", option=None)
    tied: bool = setting(False, "p and q tied along the residual stream", option=None)

    def __post_init__(self) -> None:
        require_types(self)
        require(self, "rank", self.rank >= 1, "at least 1")
        require(self, "generator", self.generator in KINDS, f"one of {', '.join(KINDS)}")
        require(self, "start", self.start in STARTS, f"one of {', '.join(STARTS)}")
        require(self, "scales", len(set(self.scales)) == len(self.scales) >= 1, "at least one, each once")
        for s in self.scales:
            require(self, "scales", s.numerator == 1 and s.denominator > 1, "fractions 1/g with g >= 2")
        usual = {f.name: f.default for f in dataclasses.fields(self)}
        if changed := [name for name, value in self.generator_options().items() if value != usual[name]]:
            from ..models.generators import GENERATORS  # imports torch, for which --help does not wait

            own = GENERATORS[self.generator].options()
            for name in changed:
                require(self, name, name in own, f"{usual[name]} with generator {self.generator}")

    def generator_options(self) -> dict[str, Any]:
        """The settings that are arguments of a generator's own, whichever kind it is of."""
        of_every_kind = ("scales", "rank", "generator", "bias_of_t")
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in of_every_kind}


@dataclass(frozen=True)
class ScheduleConfig:
    """Which models are trained, on which losses, for how long and how fast."""

    joint: bool = setting(False, "co-train all scales on one source (the paper's P~) instead of one source each")
    unconditional: bool = setting(True, "also train the unconditional small models M_s")
    batch_size: int = setting(8, "images a step")
    source_steps: int = setting(1500, "steps that pretrain the source")
    steps: int = setting(1000, "steps of every small model, baseline and projected")
    source_lr: float = setting(1e-3, "peak learning rate of the source's pretraining")
    small_lr: float = setting(1.2e-2, "peak learning rate of M_s and M~_s")
    tuning_lr: float = setting(1e-3, "peak learning rate of the source while co-training")
    operator_lr: float = setting(6e-3, "peak learning rate of the projection operator")
    tables_lr: float | None = setting(None, "peak learning rate of its tables and biases", option=None)
    warmup: int = setting(50, "steps of linear warm-up; a cosine to zero follows")
    weight_decay: float = setting(1e-8, "AdamW's decoupled weight decay")
    clip: float = setting(1.0, "largest norm of the gradient")
    w_src: float = setting(1.0, "weight of the source's own loss while co-training (Eq. 2)")
    source_batch: int | None = setting(None, "images of a batch that the source's own loss sees", option=None)
    distill: float = setting(0.5, "weight of the divergence of P_s from the source's predictions")

    def __post_init__(self) -> None:
        require_types(self)
        require(self, "batch_size", self.batch_size >= 1, "at least 1")
        for name in ("source_steps", "steps", "warmup", "weight_decay", "w_src", "distill"):
            require(self, name, getattr(self, name) >= 0, "at least 0")
        for name in ("source_lr", "small_lr", "tuning_lr", "operator_lr", "clip"):
            require(self, name, 0 < getattr(self, name) < math.inf, "finite and above 0")
        require(self, "tables_lr", self.tables_lr is None or self.tables_lr > 0, "above 0")
        require(
            self,
            "source_batch",
            self.source_batch is None or 1 <= self.source_batch <= self.batch_size,
            f"from 1 to batch_size = {self.batch_size}",
        )


@dataclass(frozen=True)
class ComputeConfig:
    """Where and how a job of the training loop is computed and logged."""

    seed: int = setting(0, "of the initial weights, the data and dropout")
    device: str = setting("auto", "auto, cpu, cuda or cuda:N")
    dtype: str = setting("auto", "auto, float32 or bfloat16 (autocast)")
    log_every: int = setting(10, "steps between logged lines")
    checkpoint_every: int = setting(100, "steps between checkpoints")

    def __post_init__(self) -> None:
        require_types(self)
        require(self, "seed", 0 <= self.seed < 2**32, "at least 0 and below 2^32")
        require(self, "dtype", self.dtype in ("auto", "float32", "bfloat16"), "auto, float32 or bfloat16")
        require(self, "log_every", self.log_every >= 1, "at least 1")
        require(self, "checkpoint_every", self.checkpoint_every >= 1, "at least 1")


@dataclass(frozen=True)
class RunConfig(ComputeConfig):
    """Where and how a run is computed, logged and judged."""

    eval_images: int = setting(512, "held-out images that each model is evaluated on")
    shard: bool = setting(
        False, "share the source among torchrun's processes, for one that does not fit a card (docs/scale.md)"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "eval_images", self.eval_images >= 2, "at least 2")


@dataclass(frozen=True)
class TrainConfig(Config):
    """All that determines a run's result."""

    PATHS: ClassVar = {"mnist": (OPENML,), "folder": (), "source": ()}
    ADDED: ClassVar = ("train_digest", "validation_digest", "source_digest")

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    operator: OperatorConfig = field(default_factory=OperatorConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        d, heads, batch = self.model.n_embd, self.model.n_head, self.schedule.batch_size
        whole_heads = all(d % (s.denominator * heads) == 0 for s in self.operator.scales)
        require(
            self.operator,
            "scales",
            whole_heads,
            f"such that each of the {heads} heads of n_embd = {d} keeps a whole width",
        )
        generator = self.operator.generator
        require(
            self.run,
            "shard",
            not self.run.shard or generator == "diagonal",
            f"left out with generator {generator}: only the diagonal one projects a layer at a time",
        )
        shared = self.data.examples_per_task
        require(
            self.data, "examples_per_task", shared >= 1 and batch % shared == 0, f"a divisor of batch_size = {batch}"
        )

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> TrainConfig:
        """Read what ``to_json`` wrote, or the one flat object of earlier runs, with the names of that time.

        Raises:
            InputError: a setting is missing or unknown (a run of another version), or has no such value.
        """
        sections = {f.name for f in dataclasses.fields(cls)}
        if values.keys() == sections:
            if not all(isinstance(section, dict) for section in values.values()):
                raise InputError(f"settings must be an object for each of {', '.join(sections)}; they were {values}")
            settings = {name: value for section in values.values() for name, value in section.items()}
        else:
            former = {f.metadata["former"]: f.name for _, f in fields_of(cls) if f.metadata["former"] is not None}
            settings = {former.get(name, name): value for name, value in values.items()}
        settings = LEGACY_DEFAULTS | dict.fromkeys(cls.ADDED) | settings
        names = {f.name for _, f in fields_of(cls)}
        if settings.keys() != names:
            raise InputError(
                f"settings must be those of this version; {', '.join(sorted(settings.keys() ^ names))} are not"
            )
        try:
            scales = tuple(map(Fraction, settings["scales"]))
        except (TypeError, ValueError, ZeroDivisionError):
            raise InputError(f"scales must be a list of fractions 1/g; it was {settings['scales']}") from None
        return cls().replace(**settings | {"scales": scales})
