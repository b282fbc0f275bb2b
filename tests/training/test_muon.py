"""Muon for stacks, beside torch's for single matrices."""

import pytest
import torch

from projkern.training.muon import Muon, orthogonalise


@pytest.mark.parametrize("shape", [(8, 8), (12, 5), (5, 12)])
def test_singular_values_end_near_one(shape):
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalise(torch.randn(3, *shape)))
    assert values.min() > 0.6 and values.max() < 1.25


def test_a_stack_is_its_matrices():
    torch.manual_seed(0)
    stack = torch.randn(2, 3, 6, 4)
    whole = orthogonalise(stack)
    assert torch.allclose(whole[1, 2], orthogonalise(stack[1, 2]), atol=1e-6)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
def test_steps_are_those_of_torch():
    """Up to its bfloat16: both directions are within a few percent, weight decay and length are equal."""
    torch.manual_seed(0)
    start = torch.randn(3, 16, 8)
    stack = torch.nn.Parameter(start.clone())
    matrices = [torch.nn.Parameter(w.clone()) for w in start]
    stacked = Muon([stack], lr=0.02, weight_decay=0.1)
    single = torch.optim.Muon(matrices, lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(5):
        gradient = torch.randn(3, 16, 8)
        stack.grad = gradient
        for matrix, g in zip(matrices, gradient):
            matrix.grad = g
        stacked.step()
        single.step()
    moved = (stack - start).norm()
    assert (stack - torch.stack(matrices)).norm() < 0.03 * moved


def test_what_has_no_gradient_stays():
    p = torch.nn.Parameter(torch.ones(2, 3))
    Muon([p], lr=0.1).step()
    assert torch.equal(p, torch.ones(2, 3))
