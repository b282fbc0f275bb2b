"""The losses of a projected model and its source on a batch, and their gradient, a task at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ..models import TransformersOperator
from ..models.gpt import check_task
from ..models.huggingface.operator import by_task, run
from ..training.losses import nats_from, nats_per_token
from ..training.stages import divergence
from ..utils.device import without_autocast
from .config import LanguageScheduleConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class ProjectedLosses:
    """L_P, w_src L_M1 (paper, Eq. 2), the divergence of predictions and the mismatch of hidden states.

    Args:
        operator: of P_s.
        source: its source, tuned unless the schedule freezes it.
        schedule: the weights of the losses.
        label: what the log calls L_P.
        source_label: what it calls L_M1.
    """

    def __init__(
        self,
        operator: TransformersOperator,
        source: PreTrainedModel,
        schedule: LanguageScheduleConfig,
        label: str,
        source_label: str,
    ) -> None:
        self.operator, self.source = operator, source
        self._label, self._source_label = label, source_label
        w_src = 0.0 if schedule.freeze_source else schedule.w_src
        self.weights = {
            label: 1.0,
            source_label: w_src,
            divergence(label): schedule.distill,
            mismatch(label): schedule.match,
        }
        """Of the losses by name; one whose weight is 0 is not computed."""

    def losses(self, tokens: Tensor, t: Tensor) -> dict[str, Tensor]:
        """The losses on a batch: tokens (B, T), t (B, task_dim)."""
        logits, states = self.operator.run_tasks(tokens, t, with_states=self._matches)
        return self._losses(tokens, logits, states)

    def backward(self, tokens: Tensor, t: Tensor) -> dict[str, Tensor]:
        """The losses on a batch, and the gradient of their weighted sum added to the parameters'.

        The weights of all tasks are made in one call, and are leaves: the activations of one task are freed before the
        next one runs. Their gradients then go back through one call too.
        """
        check_task(t, len(tokens), self.operator.task_dim)
        parts, distinct, _ = by_task(tokens, t)
        models = self.operator.weights(distinct)
        small = self.operator.small
        leaves = [{name: w.detach().requires_grad_() for name, w in model.items()} for model in models]
        total: dict[str, Tensor] = {}
        for part, weights in zip(parts, leaves):
            losses = self._losses(part, *run(small, part, weights, with_states=self._matches))
            share = len(part) / len(tokens)
            with without_autocast(tokens.device):
                torch.stack([self.weights[name] * share * loss for name, loss in losses.items()]).sum().backward()
            for name, loss in losses.items():
                total[name] = total.get(name, 0) + share * loss.detach()
        pairs = [(w, leaf[name].grad) for model, leaf in zip(models, leaves) for name, w in model.items()]
        with without_autocast(tokens.device):
            torch.autograd.backward([w for w, g in pairs if g is not None], [g for _, g in pairs if g is not None])
        return total

    @property
    def _matches(self) -> bool:
        return self.weights[mismatch(self._label)] > 0

    def _losses(self, tokens: Tensor, logits: Tensor, states: list[Tensor]) -> dict[str, Tensor]:
        label, weights = self._label, self.weights
        losses = {label: nats_per_token(logits, tokens)}
        w_src, distill = weights[self._source_label], weights[divergence(label)]
        if w_src > 0 or distill > 0 or self._matches:
            with torch.set_grad_enabled(w_src > 0 and torch.is_grad_enabled()):
                teacher, of_source = run(self.source, tokens, with_states=self._matches)
            if w_src > 0:
                losses[self._source_label] = nats_per_token(teacher, tokens)
            if distill > 0:
                losses[divergence(label)] = nats_from(teacher, logits)
            if self._matches:
                losses[mismatch(label)] = state_mismatch(states, of_source)
        return losses


def mismatch(name: str) -> str:
    """What a log calls the difference between the hidden states of a projected model and its source's."""
    return f"mismatch of {name} with the source"


def state_mismatch(states: list[Tensor], of_source: list[Tensor]) -> Tensor:
    """Mean squared difference of hidden states (B, T, d_s) from the source's (B, T, d), which it does not train.

    Of each layer, on the subspace that the width is projected to (``models/huggingface/operator.py``); both are
    normalised first, so that neither their scale nor their mean over coordinates counts.
    """
    layers = []
    for small, large in zip(states, of_source):
        width = small.shape[-1]
        target = large.detach().float().unflatten(-1, (width, -1)).sum(-1)
        layers.append(F.mse_loss(F.layer_norm(small.float(), (width,)), F.layer_norm(target, (width,))))
    return torch.stack(layers).mean()
