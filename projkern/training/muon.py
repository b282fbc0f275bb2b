"""Muon for stacks of matrices: momentum, orthogonalised by a Newton-Schulz iteration (Jordan et al., 2024).

torch.optim.Muon takes matrices one by one; here the same layers' matrices lie in one tensor and are stepped together.
The step of a matrix (a, b) has the length 0.2 sqrt(max(a, b)), an AdamW step's, so that both take about the same rates.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

_QUINTIC, _ITERATIONS = (3.4445, -4.7750, 2.0315), 5
_MOMENTUM = 0.95


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum and decoupled weight decay.

    Args:
        params: tensors (..., a, b), each a stack of matrices.
        lr: learning rate, of AdamW's scale.
        weight_decay: decoupled.
    """

    def __init__(self, params: Iterable[Tensor], lr: float, weight_decay: float = 0.1) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                if not self.state[p]:
                    self.state[p]["momentum_buffer"] = torch.zeros_like(p)
                momentum = self.state[p]["momentum_buffer"].lerp_(p.grad, 1 - _MOMENTUM)
                direction = orthogonalise(p.grad.lerp(momentum, _MOMENTUM))
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(direction, alpha=-0.2 * group["lr"] * math.sqrt(max(p.shape[-2:])))


def orthogonalise(gradient: Tensor) -> Tensor:
    """The nearest orthogonal matrices to a stack (..., a, b), roughly: singular values end between 0.7 and 1.2.

    In bfloat16 on a card, in the gradient's own dtype on a CPU.
    """
    x = gradient.bfloat16() if gradient.is_cuda else gradient
    is_tall = x.shape[-2] > x.shape[-1]
    x = x.mT if is_tall else x
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    a, b, c = _QUINTIC
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if is_tall else x).to(gradient.dtype)
