"""A finished run, read back from its folder: its settings, what its tokens mean, and its models."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import torch
from torch import Tensor

from ..data import VQVAE, Palette
from ..models import GPT, ProjectionOperator
from . import checkpoint
from .config import SOURCE_NAME, TrainConfig
from .folder import read_coder, read_config
from .stages import Model, Stage, gpt_config, make_stage, stage_names


class IncompleteRun(ValueError):
    """A run whose training has not come to its end."""


@dataclass(frozen=True)
class TrainedRun:
    """A run whose models are read when they are asked for.

    Args:
        path: its folder.
        config: its settings.
        coder: what makes images of its tokens: a palette, or the tokenizer of tokenised images.
        device: where its models are put.
    """

    path: Path
    config: TrainConfig
    coder: Palette | VQVAE
    device: torch.device

    @classmethod
    def open(cls, path: Path, device: torch.device | str = "cpu") -> TrainedRun:
        """Read a run's settings, and its palette or tokenizer.

        Raises:
            ValueError: a folder without a run, or one of another version, or a damaged one.
            IncompleteRun: a run that has only begun.
        """
        config = read_config(path)
        try:
            coder = read_coder(path, config)
        except FileNotFoundError:
            raise IncompleteRun(f"{path} must hold a trained run; this one has only begun. {_continue(path)}") from None
        return cls(path, config, coder.to(device), torch.device(device))

    @property
    def palette(self) -> Palette | None:
        """The colours of its tokens; None where they are codes of a tokenizer."""
        return self.coder if isinstance(self.coder, Palette) else None

    def decode(self, tokens: Tensor) -> Tensor:
        """Images of tokens (B, T) on the run's device: (B, 3, S, S) float32 in [-1, 1].

        Raises:
            IndexError: a token beyond the run's vocabulary.
        """
        return self.coder.decode(tokens)

    def operator(self, scale: Fraction) -> ProjectionOperator:
        """The trained operator of one scale, in evaluation mode, with its own tuned source.

        Raises:
            ValueError: a scale that the run does not have.
            IncompleteRun: its training has not ended.
            CheckpointError: its checkpoint is damaged.
        """
        if scale not in self.config.scales:
            known = ", ".join(map(str, self.config.scales))
            raise ValueError(f"scale must be one that {self.path} was trained for ({known}); it was {scale}")
        if self.config.joint:
            return self._operators("P~")[self.config.scales.index(scale)]
        return self._operators(f"P_{scale}")[0]

    def operators(self) -> dict[str, ProjectionOperator]:
        """The operators of all scales by the names of their models, P_s, or P~_s where they share one source.

        Raises as ``operator`` does.
        """
        scales = self.config.scales
        if self.config.joint:
            return {f"P~_{s}": operator for s, operator in zip(scales, self._operators("P~"))}
        return {f"P_{s}": self.operator(s) for s in scales}

    def source(self) -> GPT:
        """The pretrained source M_1, in evaluation mode. Raises as ``operator`` does."""
        module = self._stage(SOURCE_NAME).module
        assert isinstance(module, GPT)
        return module

    def models(self) -> list[Model]:
        """Every model of the run, as the paper's tables name them. Raises as ``operator`` does."""
        return [model for name in stage_names(self.config) for model in self._stage(name).models]

    def _operators(self, stage: str) -> list[ProjectionOperator]:
        operators = self._stage(stage).module.get_submodule("operators").children()
        return [operator for operator in operators if isinstance(operator, ProjectionOperator)]

    def _stage(self, name: str) -> Stage:
        # What a projected stage starts from is overwritten by its checkpoint, so any source of the shape will do.
        stage = make_stage(name, self.config, self.device, GPT(gpt_config(self.config, Fraction(1))))
        last = checkpoint.latest(checkpoint.stage_folder(self.path, name))
        step = checkpoint.load(last, stage.module)[0] if last else 0
        if step != stage.steps:
            raise IncompleteRun(
                f"{self.path} must hold a trained {name}; it stands at step {step} of {stage.steps}. "
                + _continue(self.path)
            )
        stage.module.eval()
        return stage


def _continue(path: Path) -> str:
    return f"To go on training: python -m projkern.train --out {path} --resume"
