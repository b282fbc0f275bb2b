"""A finished run, read back from its folder: its settings, what its tokens mean, and its models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import torch
from torch import Tensor

from ..data import VQVAE, Palette
from ..models import GPT, ProjectionOperator
from ..models.names import SOURCE, Kind, ModelName
from ..utils.errors import InputError
from . import checkpoint
from .config import TrainConfig
from .folder import read_coder, read_config
from .stages import ImageModel, ImageStage, gpt_config, make_stage, stage_names


class IncompleteRun(InputError):
    """A run whose training has not come to its end."""


@dataclass(frozen=True)
class TrainedRun:
    """A run whose models are read on demand.

    Args:
        path: its folder.
        config: its settings.
        coder: decodes its tokens to images: a palette, or the tokenizer of tokenised images.
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
            InputError: a folder without a run, or one of another version, or a damaged one.
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

    def with_data_at(self, *, mnist: str | None = None, folder: str | None = None) -> TrainedRun:
        """The same run where its images have moved to another place; raises InputError for one on other images."""
        changes = {name: place for name, place in (("mnist", mnist), ("folder", folder)) if place is not None}
        for name, place in changes.items():
            if getattr(self.config.data, name) is None:
                raise InputError(f"{name} must be left out for {self.path}, which is on other images; it was {place}")
        return replace(self, config=self.config.replace(**changes))

    def decode(self, tokens: Tensor) -> Tensor:
        """Images of tokens (B, T) on the run's device: (B, 3, S, S) float32 in [-1, 1].

        Raises:
            IndexError: a token beyond the run's vocabulary.
        """
        return self.coder.decode(tokens)

    def operator(self, scale: Fraction | None) -> ProjectionOperator:
        """The trained operator of one scale, in evaluation mode, with its own tuned source; None is the run's only one.

        Raises:
            InputError: a scale that the run does not have.
            IncompleteRun: its training has not ended.
            CheckpointError: its checkpoint is damaged.
        """
        scales = self.config.operator.scales
        scale = choose_scale(scale, scales, self.path)
        if self.config.schedule.joint:
            return self._operators(ModelName(Kind.JOINT))[scales.index(scale)]
        return self._operators(ModelName(Kind.PROJECTED, scale))[0]

    def operators(self) -> dict[ModelName, ProjectionOperator]:
        """The operators of all scales by the names of their models, P_s, or P~_s where they share one source.

        Raises as ``operator`` does.
        """
        scales = self.config.operator.scales
        if self.config.schedule.joint:
            operators = self._operators(ModelName(Kind.JOINT))
            return {ModelName(Kind.JOINT, s): operator for s, operator in zip(scales, operators)}
        return {ModelName(Kind.PROJECTED, s): self.operator(s) for s in scales}

    def source(self) -> GPT:
        """The pretrained source M_1, in evaluation mode. Raises as ``operator`` does."""
        module = self._stage(SOURCE).module
        assert isinstance(module, GPT)
        return module

    def models(self) -> list[ImageModel]:
        """Every model of the run, as the paper's tables name them. Raises as ``operator`` does."""
        return [model for name in stage_names(self.config) for model in self._stage(name).models]

    def _operators(self, stage: ModelName) -> list[ProjectionOperator]:
        operators = self._stage(stage).module.get_submodule("operators").children()
        return [operator for operator in operators if isinstance(operator, ProjectionOperator)]

    def _stage(self, name: ModelName) -> ImageStage:
        # What a projected stage starts from is overwritten by its checkpoint, so any source of that shape serves.
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


def choose_scale(scale: Fraction | None, scales: Sequence[Fraction], run: Path) -> Fraction:
    """The scale that was asked for, or the only one that a run has.

    Raises:
        InputError: one that the run does not have, or none where it has several.
    """
    if scale is None and len(scales) == 1:
        return scales[0]
    if scale is None or scale not in scales:
        known = ", ".join(map(str, scales))
        raise InputError(f"scale must be one that {run} was trained for ({known}); it was {scale}")
    return scale


def _continue(path: Path) -> str:
    return f"To go on training: python -m projkern.train --out {path} --resume"
