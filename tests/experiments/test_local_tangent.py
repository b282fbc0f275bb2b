"""The local tangent (Eq. 3): exact where the loss is quadratic, and of use on a small GPT."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F

import projkern as pk
from experiments.local_tangent import Tangent, solve, tangent
from projkern.utils.errors import InputError

pytestmark = pytest.mark.usefixtures("one_thread")


def quadratic(size=6):
    """L(theta; x) = (theta - x)' A (theta - x) / 2, whose minimum over a distribution is its mean."""
    torch.manual_seed(0)
    root = torch.randn(size, size, dtype=torch.float64)
    A = root @ root.T + torch.eye(size, dtype=torch.float64)
    everyday, of_task = torch.randn(3, 40, size, dtype=torch.float64), torch.randn(2, 30, size, dtype=torch.float64) + 1
    minimum = everyday.flatten(0, 1).mean(0)
    parameters = [torch.nn.Parameter(part.clone()) for part in minimum.split((2, 4))]

    def loss(batch):
        off = torch.cat(parameters) - batch
        return ((off @ A) * off).sum(1).mean() / 2

    return A, loss, parameters, list(everyday), list(of_task)


def test_tangent_of_a_quadratic_loss_is_exact():
    """The minimum of the mixture's loss lies on the line between the two means."""
    _, loss, parameters, everyday, of_task = quadratic()
    direction, residuals = solve(loss, parameters, everyday, of_task, damping=0.0, iterations=20)
    means = [torch.cat(batches).mean(0) for batches in (everyday, of_task)]
    assert torch.allclose(direction, means[1] - means[0], atol=1e-9)
    assert len(residuals) <= 10 and residuals[-1] < 1e-9 * residuals[0]


def test_damping_is_added_to_the_hessian():
    A, loss, parameters, everyday, of_task = quadratic()
    direction, _ = solve(loss, parameters, everyday, of_task, damping=3.0, iterations=20)
    means = [torch.cat(batches).mean(0) for batches in (everyday, of_task)]
    wanted = torch.linalg.solve(A + 3 * torch.eye(6, dtype=torch.float64), A @ (means[1] - means[0]))
    assert torch.allclose(direction, wanted, atol=1e-9)


def test_residuals_are_those_of_what_is_returned():
    A, loss, parameters, everyday, of_task = quadratic()
    means = [torch.cat(batches).mean(0) for batches in (everyday, of_task)]
    for iterations in (1, 2, 4):
        direction, residuals = solve(loss, parameters, everyday, of_task, damping=0.0, iterations=iterations)
        left = A @ (means[1] - means[0]) - A @ direction
        assert len(residuals) == iterations + 1 and residuals[-1] == pytest.approx(float(left.norm()), rel=1e-6)


def test_negative_curvature_asks_for_damping():
    theta = torch.nn.Parameter(torch.zeros(2))

    def loss(x):
        return (x * theta).sum() - theta.square().sum()

    x = torch.ones(2)
    with pytest.raises(ValueError, match=r"damping must be above 2, for H has .* it was 1$"):
        solve(loss, [theta], [x], [2 * x], damping=1.0, iterations=3)
    direction, _ = solve(loss, [theta], [x], [2 * x], damping=3.0, iterations=3)
    assert torch.allclose(direction, -x)


def counting(count, starts, generator):
    """Sequences that count in ones or twos, modulo 8, from one of the first ``starts`` numbers."""
    first, stride = (torch.randint(*of, (count, 1), generator=generator) for of in ((0, starts), (1, 3)))
    return (first + stride * torch.arange(8)) % 8


def loss_of(model, tokens):
    return F.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())


@pytest.fixture(scope="module")
def trained():
    """A small GPT that counts."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    model = pk.GPT(pk.GPTConfig(vocab_size=8, n_positions=8, n_embd=16, n_layer=2, n_head=2, dropout=0.0))
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(300):
        optimizer.zero_grad()
        loss_of(model, counting(32, 8, generator)).backward()
        optimizer.step()
    everyday = [counting(64, 8, generator) for _ in range(2)]
    of_task = [counting(64, 2, generator) for _ in range(2)]
    return model, everyday, of_task, counting(256, 2, generator)


@torch.no_grad()
def test_a_small_step_along_the_tangent_specialises(trained):
    model, everyday, of_task, held_out = trained
    before = {name: value.clone() for name, value in model.state_dict().items()}
    towards = tangent(model, everyday, of_task, damping=5.0, iterations=10)
    assert towards.residuals[-1] < 1e-3 * towards.residuals[0]
    losses = [loss_of(towards.at(radius), held_out).item() for radius in (0.0, 0.1, 0.3)]
    assert losses[0] == loss_of(model, held_out).item()
    assert losses[1] < losses[0] - 0.005 and losses[2] < losses[1] - 0.005
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not towards.at(0.3).training


MODEL = pk.GPT(pk.GPTConfig(8, 8, 16, 1, 2))
BATCH = [torch.zeros(1, 8, dtype=torch.int64)]


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: tangent(MODEL, [], BATCH, 1.0, 5), "everyday must hold at least one batch; it was empty"),
        (lambda: tangent(MODEL, BATCH, [], 1.0, 5), "of_task must hold at least one batch; it was empty"),
        (lambda: tangent(MODEL, BATCH, BATCH, -1.0, 5), "damping must be at least 0; it was -1.0"),
        (lambda: tangent(MODEL, BATCH, BATCH, 1.0, 0), "iterations must be at least 1; it was 0"),
        (lambda: Tangent(MODEL, torch.zeros(()), []).at(1.5), r"radius must be in \[0, 1\]; it was 1.5"),
        (
            lambda: tangent(pk.GPT(dataclasses.replace(MODEL.config, task_dim=3)), BATCH, BATCH, 1.0, 5),
            "model must be unconditional; it took a t of 3 numbers",
        ),
    ],
)
def test_bad_input(call, says):
    with pytest.raises(InputError, match=says):
        call()
