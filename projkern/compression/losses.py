"""The loss of the small model: next-token cross-entropy, and the divergence from the source's predictions.

    L = (1 - w) CE + w KL(source || small)        at temperature 1

Logits of a large vocabulary are the largest tensors of a step. Their gradient, softmax(z) - (1 - w) onehot - w q, is
written during the forward pass, a few sequences at a time, so that nothing else of their size is kept.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_AT_ONCE = 1 << 22
"""Logits that are in float32 at a time."""


def next_token_losses(logits: Tensor, tokens: Tensor, teacher: Tensor | None, weight: float) -> tuple[Tensor, ...]:
    """Losses over a batch of windows, nats per predicted token.

    Args:
        logits: (B, T, vocabulary) of the small model; those of a window's last token predict nothing.
        tokens: (B, T).
        teacher: (B, T, vocabulary) of the source; None where ``weight`` is 0.
        weight: w, of the divergence.

    Returns:
        (1 - w) CE + w KL, differentiable in ``logits``; CE; KL (0 without a teacher).
    """
    losses: tuple[Tensor, ...] = _NextTokenLosses.apply(logits, tokens, teacher, weight)
    return losses


class _NextTokenLosses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, tokens: Tensor, teacher: Tensor | None, weight: float) -> tuple[Tensor, ...]:
        count = tokens[:, 1:].numel()
        gradient = torch.empty_like(logits)
        gradient[:, -1] = 0
        dtype = torch.promote_types(logits.dtype, torch.float32)
        entropy, divergence = logits.new_zeros(2, dtype=dtype)
        at_once = max(1, _AT_ONCE // logits[0].numel())
        for rows in range(0, len(logits), at_once):
            part = slice(rows, rows + at_once)
            targets = tokens[part, 1:, None]
            log_p = logits[part, :-1].log_softmax(-1, dtype=dtype)
            entropy -= log_p.gather(-1, targets).sum()
            g = log_p.exp()
            if teacher is not None:
                log_q = teacher[part, :-1].log_softmax(-1, dtype=dtype)
                q = log_q.exp()
                divergence += (q * (log_q - log_p)).sum()
                g.sub_(q, alpha=weight)
            g.scatter_add_(-1, targets, g.new_tensor(weight - 1).expand(targets.shape))
            gradient[part, :-1] = g.div_(count)
        ctx.save_for_backward(gradient)
        entropy, divergence = entropy / count, divergence / count
        ctx.mark_non_differentiable(entropy, divergence)
        return (1 - weight) * entropy + weight * divergence, entropy, divergence

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor, *unused: Any) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors  # scaled in place: it is the largest tensor of a step, and used once
        return gradient.mul_(scale), None, None, None
