"""The projection under torch.compile with shared arguments, and under torch.func.vmap."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from torch.func import grad, jacrev, vmap

import projkern as pk

pytestmark = pytest.mark.usefixtures("one_thread")

V, B = 3, 2
"""Samples, and tasks of each."""


def close(a, b):
    return torch.allclose(a, b, rtol=1e-4, atol=1e-5)


def inputs():
    """Two stacks, p and q of V samples, with widths whose results need padding between matrices."""
    r = torch.Generator().manual_seed(0)
    shapes = (2, 8, 12), (4, 8), (V, B, 2 * 8 + 4 + 2 * 8), (V, B, 2 * 12 + 8 + 2 * 12)
    return [torch.randn(shape, generator=r) for shape in shapes]


def project(stack, single, p, q):
    return torch.cat([W_s.flatten(-2) for W_s in pk.project_layers([stack, single, stack], p, q, [4, (2, 1), 2])], -1)


def one_by_one(function, axes, *arguments):
    def sample(argument, axis, k):
        return argument if axis is None else argument.select(axis, k)

    results = [function(*(sample(x, axis, k) for x, axis in zip(arguments, axes))) for k in range(V)]
    return [torch.stack(parts) for parts in zip(*results)] if isinstance(results[0], tuple) else torch.stack(results)


@pytest.mark.parametrize("batched", [(2, 3), (2,), (3,), (0, 1, 2, 3), (0,)])
def test_vmap(fast_backend, batched):
    arguments = inputs()
    for k in (0, 1):
        if k in batched:
            arguments[k] = torch.stack([arguments[k] * (v + 1) for v in range(V)], 1)
    for k in (2, 3):
        arguments[k] = arguments[k] if k in batched else arguments[k][0]
    axes = tuple((1 if k < 2 else 0) if k in batched else None for k in range(4))
    assert close(vmap(project, in_dims=axes)(*arguments), one_by_one(project, axes, *arguments))


@pytest.mark.parametrize("argnums", [(0,), (2,), (0, 1, 2, 3)])
def test_gradients_of_each_sample(fast_backend, argnums):
    arguments, axes = inputs(), (None, None, 0, 0)
    gradient = grad(lambda *x: project(*x).sin().sum(), argnums=argnums)
    for a, b in zip(vmap(gradient, in_dims=axes)(*arguments), one_by_one(gradient, axes, *arguments)):
        assert close(a, b)


def test_vmap_inside_and_twice():
    stack, single, p, q = inputs()
    inside = grad(lambda *x: vmap(project, in_dims=(None, None, 0, 0))(*x).sin().sum(), argnums=(0, 1, 2, 3))
    plain = grad(lambda *x: project(*x).sin().sum(), argnums=(0, 1, 2, 3))
    for a, b in zip(inside(stack, single, p, q), plain(stack, single, p, q)):
        assert close(a, b)
    twice = vmap(vmap(project, in_dims=(None, None, 0, 0)), in_dims=(None, None, 0, 0))
    assert close(twice(stack, single, p, q), project(stack, single, p, q))


def test_second_derivatives_of_each_sample():
    stack, single, p, q = inputs()
    hessian = jacrev(grad(lambda p: project(stack, single, p, q[0]).sin().sum()))
    assert close(vmap(hessian)(p), torch.stack([hessian(sample) for sample in p]))


@pytest.mark.parametrize("form", ["materialised", "projected", "factored"])
def test_linear(form):
    if form == "projected" and (importlib.util.find_spec("triton") is None or torch.cuda.is_available()):
        pytest.skip("without a card, in Triton's interpreter")
    r = torch.Generator().manual_seed(0)
    shapes = (V, B, 5, 3), (8, 12), (V, B, 8), (V, B, 12)
    arguments, axes = [torch.randn(shape, generator=r) for shape in shapes], (0, None, 0, 0)

    def linear(x, W, p, q):
        return pk.project_linear(x, W, p, q, 4, form=form)

    assert close(vmap(linear, in_dims=axes)(*arguments), one_by_one(linear, axes, *arguments))
    gradient = grad(lambda *x: linear(*x).sin().sum(), argnums=(0, 1, 2, 3))
    for a, b in zip(vmap(gradient, in_dims=axes)(*arguments), one_by_one(gradient, axes, *arguments)):
        assert close(a, b)


def test_one_tensor_as_p_and_q_compiles():
    """In one graph, which leaves the batch open."""
    graphs = []

    def count(graph, example_inputs):
        graphs.append(graph)
        return graph.forward

    def loss(W, p):
        linear = pk.project_linear(p[:, None, :2], W, p, p, 4, form="materialised")
        return pk.project(W, p, p, 4).sin().sum() + linear.sum() + pk.project(W, W, W, 4).sum()

    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend=count)
    W = torch.randn(8, 8, requires_grad=True)
    for batch in (2, 3, 4, 5):
        p = torch.randn(batch, 8, requires_grad=True)
        plain = torch.autograd.grad(loss(W, p), [W, p])
        for a, b in zip(plain, torch.autograd.grad(compiled(W, p), [W, p])):
            assert close(a, b)
    assert len(graphs) <= 2
