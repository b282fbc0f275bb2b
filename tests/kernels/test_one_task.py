"""One task alone, for which the CPU kernels have functions of their own (csrc/cpu/one_task.h)."""

from __future__ import annotations

import pytest
import torch
from oracle import relative_error

import projkern as pk
from projkern.kernels.backends import cpu

pytestmark = [
    pytest.mark.usefixtures("one_thread", "poisoned_memory"),
    pytest.mark.skipif(not cpu.is_built(), reason=f"the compiled kernels are not here: {cpu.why_unavailable()}"),
]


def inputs(rows, cols, dtype, scales=1, batch=1):
    """A weight, and p and q of so many scales of it."""
    torch.manual_seed(0)
    return torch.randn(rows, cols).to(dtype), torch.randn(batch, scales * rows), torch.randn(batch, scales * cols)


@pytest.mark.parametrize("group", [1, 2, 4, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_has_the_bits_that_it_has_among_others(group, dtype):
    """Whole vectors and the end of a row; rows longer than what is asked for ahead."""
    for cols in (group, 40 * group, 67 * group, 4104):
        weight, p, q = inputs(16, cols, dtype, batch=3)
        among = pk.project(weight, p, q, group)
        for b in range(3):
            assert torch.equal(pk.project(weight, p[b], q[b], group), among[b])


@pytest.mark.parametrize("learnt", [(0, 1, 2), (1, 2), (0,), (0, 2)])
@pytest.mark.parametrize(("groups", "cols"), [((2,), 120), ((4, 2, 8), 536), ((4, (2, 4)), 88), (((4, 2), 1), 88)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients(dtype, groups, cols, learnt):
    """Of one scale and of several that share the source, some of them with other groups."""
    weight, p, q = leaves = inputs(48, cols, dtype, len(groups))
    truth = [x.double().requires_grad_() for x in leaves]
    leaves = [x.requires_grad_() for x in leaves]
    exact = pk.project_layers([truth[0]] * len(groups), *truth[1:], list(groups))
    outputs = pk.project_layers([weight] * len(groups), p, q, list(groups))
    grads = [torch.randn_like(out) for out in outputs]
    expected = torch.autograd.grad(exact, [truth[i] for i in learnt], [grad.double() for grad in grads])
    for i, gradient, right in zip(learnt, torch.autograd.grad(outputs, [leaves[i] for i in learnt], grads), expected):
        assert relative_error(gradient, right) <= (1e-2 if i == 0 and dtype == torch.bfloat16 else 1e-5)


def test_results_larger_than_the_caches():
    weight, p, q = torch.randn(4, (1 << 20) + 64), torch.randn(1, 4), torch.randn(1, (1 << 20) + 64)
    leaves = [x.requires_grad_() for x in (weight, p, q)]
    out = pk.project(*leaves, 1)
    grad = torch.randn_like(out)
    W, a, b, G = (x.double() for x in (weight, p[0], q[0], grad[0]))
    truth = [a[:, None] * W * b, a[:, None] * G * b, (G * W * b).sum(1), (G * W * a[:, None]).sum(0)]
    for result, right in zip((out, *torch.autograd.grad(out, leaves, grad)), truth):
        assert relative_error(result.squeeze(0), right) <= 1e-5
