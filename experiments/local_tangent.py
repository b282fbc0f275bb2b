"""The local tangent of the weight manifold: a specialised model without a generator (paper, appendix B, Eq. 3).

For the distribution p(x|t) = (1 - |t|) p(x) + |t| p(x | xi = t / |t|), |t| <= 1, along one task xi, the mixed
derivative of the loss is a difference of two gradients, and with the Hessian H of the everyday loss

    theta(|t| xi) = theta(0) + |t| delta,   (H + damping) delta = grad E_x L - grad E_{x|xi} L

which conjugate gradients solve with products of H and a vector.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from projkern.models import GPT
from projkern.utils.errors import InputError


class NegativeCurvature(InputError):
    """The Hessian has a direction whose negative curvature the damping does not make up for."""


class Tangent(NamedTuple):
    """A model's tangent towards one task. One of these serves every radius."""

    model: GPT  # theta(0); not changed
    direction: Tensor  # delta, in the order of the model's parameters
    residuals: list[float]  # |(H + damping) delta - right-hand side| before the first iteration and after each

    def at(self, radius: float) -> GPT:
        """The specialised copy theta(0) + radius · delta, in evaluation mode; radius in [0, 1] is |t|.

        Raises:
            InputError: another radius.
        """
        if not 0 <= radius <= 1:
            raise InputError(f"radius must be in [0, 1]; it was {radius}")
        small = copy.deepcopy(self.model).eval()
        moved = parameters_to_vector(small.parameters()).detach() + radius * self.direction
        vector_to_parameters(moved, small.parameters())
        return small


def tangent(
    model: GPT, everyday: Sequence[Tensor], of_task: Sequence[Tensor], damping: float, iterations: int
) -> Tangent:
    """The tangent of an unconditional trained model towards one task.

    An iteration costs about two steps of training on all everyday batches.

    Args:
        model: theta(0), such as a trained M_s. It is not changed; dropout is off.
        everyday: tokens (B, T) int64 of p(x), all batches of one size. They also give H.
        of_task: tokens (B, T) int64 of p(x | xi), all batches of one size.
        damping: added to the diagonal of H, in nats per squared weight; above -(the smallest eigenvalue of H).
        iterations: of conjugate gradients, at most.

    Raises:
        InputError: a conditional model, no batches, a negative damping, or no iterations.
        NegativeCurvature: a damping that is too small; an InputError too.
    """
    if model.config.task_dim is not None:
        raise InputError(f"model must be unconditional; it took a t of {model.config.task_dim} numbers")
    still = copy.deepcopy(model).eval().requires_grad_()

    def loss(tokens: Tensor) -> Tensor:
        return F.cross_entropy(still(tokens).flatten(0, 1), tokens.flatten())

    with sdpa_kernel(SDPBackend.MATH):  # the fused kernels of attention have no second derivative
        direction, residuals = solve(loss, list(still.parameters()), everyday, of_task, damping, iterations)
    return Tangent(model, direction, residuals)


@torch.enable_grad()
def solve(
    loss: Callable[[Tensor], Tensor],
    parameters: Sequence[nn.Parameter],
    everyday: Sequence[Tensor],
    of_task: Sequence[Tensor],
    damping: float,
    iterations: int,
) -> tuple[Tensor, list[float]]:
    """delta and the residual norms for any loss of a batch; see ``tangent``."""
    for name, batches in (("everyday", everyday), ("of_task", of_task)):
        if not len(batches):
            raise InputError(f"{name} must hold at least one batch; it was empty")
    if not damping >= 0:
        raise InputError(f"damping must be at least 0; it was {damping}")
    if iterations < 1:
        raise InputError(f"iterations must be at least 1; it was {iterations}")

    def gradient(batches: Sequence[Tensor]) -> Tensor:
        total = sum(_flat(torch.autograd.grad(loss(batch), parameters)) for batch in batches)
        assert isinstance(total, Tensor)
        return total / len(batches)

    def damped(vector: Tensor) -> Tensor:
        """(H + damping) v"""
        total = torch.zeros_like(vector)
        for batch in everyday:
            first = _flat(torch.autograd.grad(loss(batch), parameters, create_graph=True))
            total += _flat(torch.autograd.grad(first @ vector, parameters, materialize_grads=True))
        return total / len(everyday) + damping * vector

    return _conjugate_gradients(damped, gradient(everyday) - gradient(of_task), damping, iterations)


def _conjugate_gradients(
    apply: Callable[[Tensor], Tensor], target: Tensor, damping: float, iterations: int
) -> tuple[Tensor, list[float]]:
    solution, residual, along = torch.zeros_like(target), target, target
    norms = [float(target.norm())]
    for _ in range(iterations):
        if norms[-1] <= torch.finfo(target.dtype).eps * norms[0]:
            break
        image = apply(along)
        curvature = float(along @ image / (along @ along))
        if not curvature > 0:
            raise NegativeCurvature(
                f"damping must be above {damping - curvature:.3g}, for H has a direction of that negative curvature; "
                f"it was {damping:g}"
            )
        step = (residual @ residual) / (along @ image)
        solution, new = solution + step * along, residual - step * image
        along = new + (new @ new) / (residual @ residual) * along
        residual = new
        norms.append(float(residual.norm()))
    return solution, norms


def _flat(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])
