"""The settings of a compression, by what they decide. Each is written once here: default, help, option."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

from ..training.config import ComputeConfig
from ..utils.config import Config
from ..utils.settings import count, require, require_types, setting

METHODS = ("project", "prune", "group")
IMPORTANCES = ("activation", "magnitude", "index")
STARTS = ("compensated", "pruned")
OPTIMIZERS = ("muon", "adamw")
RATES = {
    ("project", "adamw"): 0.25,
    ("prune", "adamw"): 0.5,
    ("group", "adamw"): 0.5,
    ("project", "muon"): 0.5,
    ("prune", "muon"): 1.0,
    ("group", "muon"): 1.0,
}
"""Peak learning rates times the source's hidden size, for 5 layers (docs/compression.md, "Learning rates")."""
TUNED_LAYERS = 5


@dataclass(frozen=True)
class SizeConfig:
    """How small the model becomes."""

    keep: float | None = setting(None, "share of the parameters to keep (default: 0.5, unless sizes are given)")
    hidden_size: int | None = setting(None, "hidden size of the small model")
    intermediate_size: int | None = setting(None, "intermediate size of its feed-forward")
    layers: int | None = setting(None, "its layers: those that change their input least are dropped")

    def __post_init__(self) -> None:
        require_types(self)
        require(self, "keep", self.keep is None or 0 < self.keep <= 1, "above 0 and at most 1")
        for name in ("hidden_size", "intermediate_size", "layers"):
            value = getattr(self, name)
            require(self, name, value is None or value >= 1, "at least 1")


@dataclass(frozen=True)
class MethodConfig:
    """How the small model is made of the source."""

    method: str = setting("project", "project (P_out W P_in + A), prune (hard pruning), group (grouped diagonals + A)")
    importance: str = setting("activation", f"what is kept: by {', '.join(IMPORTANCES)}")
    start: str = setting("compensated", "compensated (what is dropped is predicted from what is kept) or pruned")
    block: int | None = setting(None, "block-diagonal P, of so many kept coordinates a block: less memory, for project")
    calibration: int = setting(64, "windows of text that activations are measured on", option=None)

    def __post_init__(self) -> None:
        require_types(self)
        require(self, "method", self.method in METHODS, f"one of {', '.join(METHODS)}")
        require(self, "importance", self.importance in IMPORTANCES, f"one of {', '.join(IMPORTANCES)}")
        require(self, "start", self.start in STARTS, f"one of {', '.join(STARTS)}")
        allowed = self.block is None or (self.block >= 1 and self.method == "project")
        require(self, "block", allowed, "at least 1, and left out with another method than project")
        require(self, "calibration", self.calibration >= 1, "at least 1")


@dataclass(frozen=True)
class TextConfig:
    """What it is trained on."""

    text: tuple[str, ...] = setting(
        (),
        "text files, UTF-8, plain or .gz; or one .npy of token ids, such as the tokens.npy of another run",
        digest="text_digest",
    )
    split_at_blank_lines: bool = setting(False, "a blank line ends a document (without it the end of a file does)")
    generate: int | None = setting(
        None, "in place of text: so many tokens that the source writes itself, such as 2M", parse=count
    )
    length: int = setting(512, "tokens of a window")
    held_out: int | None = setting(
        None, "windows at the end of the text that losses are measured on (default: a tenth, at most 256)"
    )
    text_digest: str | None = setting(None, "digest of a file of token ids", option=None)

    @property
    def is_tokenised(self) -> bool:
        """Whether the text is a file of token ids."""
        return len(self.text) == 1 and self.text[0].endswith(".npy")

    def __post_init__(self) -> None:
        require_types(self)
        require(self, "length", self.length >= 2, "at least 2")
        require(self, "held_out", self.held_out is None or self.held_out >= 2, "at least 2")
        require(self, "generate", self.generate is None or self.generate >= 1, "at least 1")
        require(self, "generate", self.generate is None or not self.text, "left out with text")


@dataclass(frozen=True)
class TuningConfig:
    """For how long and how fast it is trained."""

    tokens: int = setting(2_000_000, "tokens of training, in whole steps", parse=count)
    batch_size: int = setting(16, "windows a step")
    micro_batch: int | None = setting(None, "windows at once (default: up to 8192 tokens, of large vocabularies fewer)")
    optimizer: str = setting("muon", "of the matrices: muon or adamw; tables, norms and biases have AdamW")
    lr: float | None = setting(None, "peak learning rate of the matrices (default: the method's own, by hidden size)")
    distill: float = setting(0.5, "weight of the divergence from the source; 1 - distill is that of the text's loss")

    def __post_init__(self) -> None:
        require_types(self)
        require(self, "tokens", self.tokens >= 0, "at least 0")
        require(self, "batch_size", self.batch_size >= 1, "at least 1")
        require(
            self,
            "micro_batch",
            self.micro_batch is None or 1 <= self.micro_batch <= self.batch_size,
            f"from 1 to batch_size = {self.batch_size}",
        )
        require(self, "optimizer", self.optimizer in OPTIMIZERS, f"one of {', '.join(OPTIMIZERS)}")
        require(self, "lr", self.lr is None or 0 < self.lr < math.inf, "finite and above 0")
        require(self, "distill", 0 <= self.distill <= 1, "from 0 to 1")


@dataclass(frozen=True)
class CompressConfig(Config):
    """All that determines a compression's result, beside the source and the text."""

    PATHS: ClassVar = {"model": (), "text": ()}
    ADDED: ClassVar = ("model_digest", "text_digest")

    model: str = setting("", "folder of the source", option=None, digest="model_digest")
    model_digest: str | None = setting(None, "digest of its weights", option=None)
    sizes: SizeConfig = field(default_factory=SizeConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    text: TextConfig = field(default_factory=TextConfig)
    tuning: TuningConfig = field(default_factory=TuningConfig)
    run: ComputeConfig = field(default_factory=ComputeConfig)

    def __post_init__(self) -> None:
        step, generate = self.tuning.batch_size * self.text.length, self.text.generate
        is_whole = self.tuning.tokens == 0 or self.tuning.tokens >= step
        require(self.tuning, "tokens", is_whole, f"0, or at least the {step} of a step")
        least = step + 2 * self.text.length
        is_enough = generate is None or generate >= least
        require(self.text, "generate", is_enough, f"at least {least}, a batch and two held-out windows")

    @property
    def steps(self) -> int:
        """Optimizer steps: whole batches of the tokens that are to be trained on."""
        return self.tuning.tokens // (self.tuning.batch_size * self.text.length)

    def micro_batch(self, vocab_size: int) -> int:
        """Windows that run through the model at once: of at most 8192 tokens, and of 2^27 logits."""
        most = min(8192, (1 << 27) // vocab_size)
        return self.tuning.micro_batch or min(self.tuning.batch_size, max(1, most // self.text.length))

    def rate(self, hidden: int, layers: int) -> float:
        """Peak learning rate of the matrices, for a source of this hidden size and so many layers."""
        method = self.method.method
        # Steps of P move all of a product, in all layers at once: with 30 layers the rate of 5 diverges.
        deeper = math.sqrt(TUNED_LAYERS / layers) if method == "project" and layers > TUNED_LAYERS else 1.0
        return self.tuning.lr or RATES[method, self.tuning.optimizer] / hidden * deeper
