"""The losses of a projected model: their gradient a task at a time is that of the whole batch."""

import copy

import pytest
import torch
from decoders import decoder

import projkern as pk
from projkern.language.config import LanguageScheduleConfig
from projkern.language.projected import ProjectedLosses, state_mismatch


def stage(family, **settings):
    torch.manual_seed(0)
    source = decoder(family).double()
    operator = pk.ProjectionOperator(source, 1 / 2, task_dim=2, rank=2, vectors_of_t=True).double()
    with torch.no_grad():
        for p in operator.parameters():
            p += 0.1 * torch.randn_like(p)
    operator.small.double()
    return ProjectedLosses(operator, source, LanguageScheduleConfig(**settings), "P", "source")


def gradients(losses):
    modules = (losses.operator, losses.source)
    return [p.grad.clone() if p.grad is not None else None for module in modules for p in module.parameters()]


@pytest.mark.parametrize("family", ["llama", "llama, tied", "qwen2", "gemma2"])
@pytest.mark.parametrize(
    "settings", [{}, {"distill": 0.0, "match": 0.0}, {"w_src": 0.0}, {"w_src": 0.0, "distill": 0.0, "match": 0.0}]
)
def test_a_task_at_a_time_the_gradient_is_that_of_the_batch(family, settings):
    whole = stage(family, **settings)
    one_by_one = copy.copy(whole)
    tokens = torch.randint(whole.source.config.vocab_size, (5, 4))
    t = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.5, 0.5]], dtype=torch.float64)
    losses = whole.losses(tokens, t)
    sum(whole.weights[name] * loss for name, loss in losses.items()).backward()
    expected = gradients(whole)
    for module in (whole.operator, whole.source):
        module.zero_grad(set_to_none=True)
    found = one_by_one.backward(tokens, t)
    assert losses.keys() == found.keys() == {name for name, weight in whole.weights.items() if weight > 0}
    for name, loss in losses.items():
        torch.testing.assert_close(found[name], loss.detach(), atol=1e-6, rtol=1e-6)  # losses are float32
    assert sum(g is not None for g in expected) > 10
    for gradient, reference in zip(gradients(one_by_one), expected):
        assert (gradient is None) == (reference is None)
        if reference is not None:
            torch.testing.assert_close(gradient, reference, atol=1e-6, rtol=1e-5)


def test_a_frozen_source_has_no_gradient():
    losses = stage("llama", freeze_source=True)
    losses.source.requires_grad_(False)
    losses.backward(torch.randint(9, (2, 4)), torch.eye(2, dtype=torch.float64))
    assert all(p.grad is None for p in losses.source.parameters())
    assert all(p.grad is not None for p in losses.operator.parameters())
    assert "source" not in losses.losses(torch.randint(9, (2, 4)), torch.eye(2, dtype=torch.float64))


def test_the_projected_source_has_no_mismatch():
    states = torch.randn(2, 3, 8)
    assert state_mismatch([states.unflatten(-1, (4, 2)).sum(-1) * 3 + 1], [states]) < 1e-10
    assert state_mismatch([torch.randn(2, 3, 4)], [states]) > 0.5
