"""The settings of a run, and the presets to start from."""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, get_type_hints

from ..data import TASK_DIM
from ..models.generators import GENERATORS, STARTS
from ..models.gpt import CONDITIONINGS

SOURCE_NAME = "M_1"
BEFORE: dict[str, Any] = {
    **dict.fromkeys(("source", "data", "tables_lr", "source_batch")),
    **{"task_dim": TASK_DIM, "generator": "diagonal", "start": "constant", "shared_inner": False, "tied": False},
    "bias_of_t": False,
    **{"conditioning": "first", "t_mean": 0.0, "t_std": 1.0, "distill": 0.0},
}
"""What earlier runs did where their settings name nothing."""

PLAIN: dict[str, Any] = {
    "generator": "diagonal",
    "start": "constant",
    "shared_inner": False,
    "tied": False,
    "bias_of_t": False,
    "t_mean": 0.0,
    "t_std": 1.0,
    "w_src": 1.0,
    "source_batch": None,
    "distill": 0.0,
    "tables_lr": None,
}
"""The paper's plain recipe, whichever the default is; what it leaves open as simple as can be."""


def _setting(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class TrainConfig:
    """All that determines a run's result. Every field is also an option of ``python -m projkern.train``."""

    # data
    mnist: str | None = _setting(
        None, "folder of the four MNIST idx files, or 'openml'; without it scikit-learn's digits"
    )
    data: str | None = _setting(
        None, "folder of tokenised images (of projkern.tokenize), which brings their shape; without it SynthMNIST"
    )
    image_size: int = _setting(16, "height and width of the images, tokens (SynthMNIST: pixels)")
    colors: int = _setting(64, "palette size: the number of tokens")
    task_dim: int = _setting(TASK_DIM, "length of the task identifier t")
    examples_per_task: int = _setting(1, "images of a batch that share a task identifier")
    # model
    source: str | None = _setting(
        None, "folder that M_1 starts from: of a run, or a GPT-2 or ImageGPT of Hugging Face's; it brings its shape"
    )
    n_layer: int = _setting(4, "layers of every model")
    n_head: int = _setting(2, "attention heads of every model")
    n_embd: int = _setting(128, "width d of the source")
    dropout: float = _setting(0.0, "dropout rate while training")
    scales: tuple[Fraction, ...] = _setting((Fraction(1, 4),), "scales s of the small models")
    rank: int = _setting(8, "inner width r of the weight generators")
    generator: str = _setting("diagonal", f"what makes weights of t: {', '.join(GENERATORS)} (docs/generators.md)")
    start: str = _setting("constant", f"p and q of the diagonal generator at the start: {', '.join(STARTS)}")
    shared_inner: bool = _setting(False, "one first layer t -> r for all linear operators")
    tied: bool = _setting(False, "p and q tied along the residual stream")
    bias_of_t: bool = _setting(True, "the small models' own biases depend on t too")
    conditioning: str = _setting("first", f"how M~_s is told t: {', '.join(CONDITIONINGS)} (docs/method.md)")
    t_mean: float = _setting(0.5, "t enters every model as (t - t_mean) / t_std; data bring theirs")
    t_std: float = _setting(12**-0.5, "see t_mean")
    joint: bool = _setting(False, "co-train all scales on one source (the paper's P~) instead of one source each")
    unconditional: bool = _setting(True, "also train the unconditional small models M_s")
    # training
    batch_size: int = _setting(8, "images a step")
    source_steps: int = _setting(1500, "steps that pretrain the source")
    steps: int = _setting(1000, "steps of every small model, baseline and projected")
    source_lr: float = _setting(1e-3, "peak learning rate of the source's pretraining")
    small_lr: float = _setting(1.2e-2, "peak learning rate of M_s and M~_s")
    tuning_lr: float = _setting(1e-3, "peak learning rate of the source while co-training")
    operator_lr: float = _setting(6e-3, "peak learning rate of the projection operator")
    tables_lr: float | None = _setting(None, "peak learning rate of its tables and biases; without it operator_lr")
    warmup: int = _setting(50, "steps of linear warm-up; a cosine to zero follows")
    weight_decay: float = _setting(1e-8, "AdamW's decoupled weight decay")
    clip: float = _setting(1.0, "largest norm of the gradient")
    w_src: float = _setting(1.0, "weight of the source's own loss while co-training (Eq. 2)")
    source_batch: int | None = _setting(None, "images of a batch that the source's own loss sees; without it all")
    distill: float = _setting(0.5, "weight of the divergence of P_s from the source's predictions")
    # run
    seed: int = _setting(0, "of the initial weights, the data and dropout")
    device: str = _setting("auto", "auto, cpu or cuda")
    dtype: str = _setting("auto", "auto, float32 or bfloat16 (autocast)")
    log_every: int = _setting(10, "steps between logged lines")
    checkpoint_every: int = _setting(100, "steps between checkpoints")
    eval_images: int = _setting(512, "held-out images that each model is evaluated on")

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(type(self)).items():
            accepted = {"scales": tuple}.get(name, float | int if kind is float else kind)
            self._check(name, isinstance(getattr(self, name), accepted), f"of type {getattr(kind, '__name__', kind)}")
        for name in ("n_layer", "n_head", "n_embd", "rank", "task_dim", "batch_size", "log_every", "checkpoint_every"):
            self._check(name, getattr(self, name) >= 1, "at least 1")
        for name in ("source_steps", "steps", "warmup", "seed", "weight_decay", "w_src", "distill"):
            self._check(name, getattr(self, name) >= 0, "at least 0")
        for name in ("source_lr", "small_lr", "tuning_lr", "operator_lr", "clip", "t_std"):
            self._check(name, 0 < getattr(self, name) < math.inf, "finite and above 0")
        self._check("t_mean", math.isfinite(self.t_mean), "finite")
        if self.generator != "diagonal":
            for name in ("start", "shared_inner", "tied"):
                usual = PLAIN[name]
                self._check(name, getattr(self, name) == usual, f"{usual} with generator {self.generator}")
        self._check("tables_lr", self.tables_lr is None or self.tables_lr > 0, "above 0")
        self._check(
            "source_batch",
            self.source_batch is None or 1 <= self.source_batch <= self.batch_size,
            f"from 1 to batch_size = {self.batch_size}",
        )
        for name, known in (("generator", GENERATORS), ("start", STARTS), ("conditioning", CONDITIONINGS)):
            self._check(name, getattr(self, name) in known, f"one of {', '.join(known)}")
        self._check("seed", self.seed < 2**32, "below 2^32")
        self._check("image_size", self.image_size >= 4, "at least 4")
        self._check("colors", self.colors >= 2, "at least 2")
        self._check("eval_images", self.eval_images >= 2, "at least 2")
        self._check("dropout", 0 <= self.dropout < 1, "in [0, 1)")
        self._check("device", bool(re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device)), "auto, cpu, cuda or cuda:N")
        self._check("dtype", self.dtype in ("auto", "float32", "bfloat16"), "auto, float32 or bfloat16")
        self._check("n_embd", self.n_embd % self.n_head == 0, f"a multiple of n_head = {self.n_head}")
        self._check(
            "examples_per_task",
            self.examples_per_task >= 1 and self.batch_size % self.examples_per_task == 0,
            f"a divisor of batch_size = {self.batch_size}",
        )
        self._check("scales", len(set(self.scales)) == len(self.scales) >= 1, "at least one, each once")
        for s in self.scales:
            self._check("scales", s.numerator == 1 and s.denominator > 1, "fractions 1/g with g >= 2")
            self._check(
                "scales",
                self.n_embd % (s.denominator * self.n_head) == 0,
                f"such that each of the {self.n_head} heads of n_embd = {self.n_embd} keeps a whole width",
            )

    def _check(self, name: str, ok: bool, wanted: str) -> None:
        if not ok:
            value = getattr(self, name)
            shown = " ".join(map(str, value)) if isinstance(value, tuple) else value
            raise ValueError(f"{name} must be {wanted}; it was {shown}")

    def to_json(self) -> dict[str, Any]:
        values = dataclasses.asdict(self)
        return values | {"scales": [str(s) for s in self.scales]}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> TrainConfig:
        """Raises ValueError where a field is missing or unknown (a run of another version), or has no such value."""
        names = {f.name for f in dataclasses.fields(cls)}
        values = BEFORE | values
        if values.keys() != names:
            raise ValueError(f"settings of another version: {sorted(values.keys() ^ names)} differ from this one's")
        try:
            scales = tuple(map(Fraction, values["scales"]))
        except (TypeError, ValueError, ZeroDivisionError):
            raise ValueError(f"scales must be a list of fractions 1/g; it was {values['scales']}") from None
        return cls(**values | {"scales": scales})


QUICK = TrainConfig()

PRESETS: dict[str, tuple[str, TrainConfig]] = {
    "quick": ("16x16, 64 colours, 4 layers, d = 128: minutes on two CPU cores", QUICK),
    "small": (
        "16x16, 64 colours, 6 layers, d = 256, s = 1/2, 1/4, 1/8: hours on a CPU, minutes on a GPU",
        dataclasses.replace(
            QUICK,
            n_layer=6,
            n_head=4,
            n_embd=256,
            scales=(Fraction(1, 2), Fraction(1, 4), Fraction(1, 8)),
            batch_size=32,
            source_steps=10_000,
            steps=10_000,
            source_lr=1e-3,
            small_lr=3e-3,
            tuning_lr=5e-4,
            operator_lr=5e-3,
            warmup=500,
            checkpoint_every=500,
            eval_images=2048,
        ),
    ),
    "paper": (
        "32x32, 512 colours, 24 layers, d = 512, s = 1/2, 1/4, 1/8: the paper's set-up, for a large GPU",
        dataclasses.replace(
            QUICK,
            **PLAIN,
            image_size=32,
            colors=512,
            n_layer=24,
            n_head=8,
            n_embd=512,
            dropout=0.1,
            scales=(Fraction(1, 2), Fraction(1, 4), Fraction(1, 8)),
            batch_size=64,
            source_steps=400_000,
            steps=400_000,
            source_lr=1e-3,
            small_lr=1e-3,
            tuning_lr=1e-3,
            operator_lr=1e-3,
            warmup=10_000,
            log_every=100,
            checkpoint_every=2000,
            eval_images=8192,
        ),
    ),
}
"""Name -> what it is, and its settings. Only ``quick``'s learning rates are tuned (docs/training.md)."""
