"""The projection against its definition: values, all three gradients, layouts, derivatives, compilation."""

from __future__ import annotations

import contextvars
import mmap
import os
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from oracle import gradients, project_by_loops, project_dense, relative_error

import projkern as pk
from projkern.kernels import dispatch, ops
from projkern.kernels.backends import cpu, cuda, extension, reference

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}


def skip_without_compiled_kernels():
    if cpu.why_unavailable() is not None:
        pytest.skip(f"the compiled kernels are not here: {cpu.why_unavailable()}")


def random_case(seed: int, dtype: torch.dtype):
    """One matrix with random shape, groups, batch and layouts; the weight and the gradient in ``dtype``."""
    r = torch.Generator().manual_seed(seed)

    def pick(*choices):
        return choices[int(torch.randint(len(choices), (1,), generator=r))]

    row_group, col_group = pick(1, 2, 3, 4, 5, 7, 8, 16), pick(1, 2, 3, 4, 6, 8, 11, 16)
    if pick(True, False):
        col_group = row_group
    rows = row_group * pick(1, 2, 3, 5, 9, 16, 33, 70)
    cols = col_group * pick(1, 2, 3, 7, 8, 15, 16, 17, 31, 40, 67)
    batch = pick(0, 1, 2, 3, 4, 5, 8, 9, 13, 33)

    def tensor(*shape, dtype=torch.float32):
        def normal(*size):
            return torch.randn(size, generator=r, device="cpu").to(torch.get_default_device(), dtype)

        layout = pick("plain", "sliced", "offset", "transposed", "expanded")
        if layout == "transposed" and len(shape) == 2:
            return normal(*shape[::-1]).mT
        if layout == "sliced":
            return normal(*shape[:-1], 2 * shape[-1] + 3)[..., 2 : 2 + 2 * shape[-1] : 2]
        if layout == "offset":
            size = torch.Size(shape).numel()
            start = int(torch.randint(41, (1,), generator=r))
            return normal(size + 41)[start : start + size].view(shape)
        if layout == "expanded" and shape[0] > 1:
            return normal(1, *shape[1:]).expand(shape)
        return normal(*shape)

    weight, p, q = tensor(rows, cols, dtype=dtype), tensor(batch, rows), tensor(batch, cols)
    return row_group, col_group, weight, p, q, tensor(batch, rows // row_group, cols // col_group, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("seed", range(60))
def test_random_sweep_against_dense(fast_backend, dtype, seed, poisoned_memory):
    row_group, col_group, weight, p, q, grad = random_case(seed, dtype)
    leaves = [x.detach().requires_grad_() for x in (weight, p, q)]
    out = pk.project(*leaves, (row_group, col_group))
    assert out.dtype == dtype
    assert relative_error(out, project_dense(weight, p, q, row_group, col_group)) <= TOLERANCE[dtype]
    found = torch.autograd.grad(out, leaves, grad)
    truth = gradients(weight, p, q, row_group, col_group, grad)
    for name, f, t in zip(("weight", "p", "q"), found, truth):
        assert relative_error(f, t) <= TOLERANCE[dtype], name


def test_dense_oracle_is_the_definition():
    torch.manual_seed(0)
    weight, p, q = torch.randn(12, 6), torch.randn(1, 12), torch.randn(1, 6)
    loops = project_by_loops(weight, p[0], q[0], 4, 3)
    assert torch.allclose(project_dense(weight, p, q, 4, 3)[0], loops, rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("out_dtype", [torch.float32, torch.bfloat16])
def test_output_type_is_apart_from_storage(backend, dtype, out_dtype):
    torch.manual_seed(0)
    weight, p, q = torch.randn(24, 40).to(dtype).requires_grad_(), torch.randn(3, 24), torch.randn(3, 40)
    out = pk.project(weight, p, q, 4, dtype=out_dtype)
    assert out.dtype == out_dtype
    assert relative_error(out, project_dense(weight, p, q, 4, 4)) <= TOLERANCE[out_dtype]
    out.sum().backward()
    truth = gradients(weight, p, q, 4, 4, torch.ones_like(out))[0]
    assert weight.grad.dtype == dtype
    assert relative_error(weight.grad, truth) <= TOLERANCE[dtype]


def layers_case():
    torch.manual_seed(1)
    stack, single = torch.randn(3, 24, 16, requires_grad=True), torch.randn(8, 48, requires_grad=True)
    weights, groups = [stack, single, stack, stack], [2, (4, 3), 4, (8, 2)]
    rows, cols = 3 * (3 * 24) + 8, 3 * (3 * 16) + 48
    return weights, groups, torch.randn(5, rows, requires_grad=True), torch.randn(5, cols, requires_grad=True)


def test_layers_at_several_scales_in_one_call(backend, poisoned_memory):
    weights, groups, p, q = layers_case()
    outputs = pk.project_layers(weights, p, q, groups)
    grads = [torch.randn_like(out) for out in outputs]
    found = torch.autograd.grad(outputs, [weights[0], weights[1], p, q], grads)
    d_stack, d_single = torch.zeros(3, 24, 16, dtype=torch.float64), torch.zeros(8, 48, dtype=torch.float64)
    dp, dq = [], []
    k = row = col = 0
    for weight, group in zip(weights, groups):
        pair = group if isinstance(group, tuple) else (group, group)
        for layer in range(weight.shape[0] if weight.dim() == 3 else 1):
            W = weight[layer] if weight.dim() == 3 else weight
            p_k, q_k = p[:, row : row + W.shape[0]], q[:, col : col + W.shape[1]]
            assert relative_error(outputs[k], project_dense(W, p_k, q_k, *pair)) <= 1e-5
            dW, *rest = gradients(W, p_k, q_k, *pair, grads[k])
            (d_stack[layer] if weight.dim() == 3 else d_single).add_(dW)
            dp.append(rest[0])
            dq.append(rest[1])
            k, row, col = k + 1, row + W.shape[0], col + W.shape[1]
    truth = [d_stack, d_single, torch.cat(dp, 1), torch.cat(dq, 1)]
    assert k == len(outputs)
    for f, t in zip(found, truth):
        assert relative_error(f, t) <= 1e-5


def test_results_are_views_of_one_buffer():
    weights, groups, p, q = layers_case()
    outputs = pk.project_layers(weights, p, q, groups)
    assert len({out.untyped_storage().data_ptr() for out in outputs}) == 1
    assert all(out.data_ptr() % 128 == outputs[0].data_ptr() % 128 for out in outputs)


@pytest.mark.parametrize("needs", [(w, p, q) for w in (0, 1) for p in (0, 1) for q in (0, 1) if w + p + q])
def test_each_subset_of_gradients(backend, needs, poisoned_memory):
    torch.manual_seed(0)
    inputs = [torch.randn(24, 40), torch.randn(3, 24), torch.randn(3, 40)]
    grad = torch.randn(3, 6, 10)
    truth = gradients(*inputs, 4, 4, grad)
    for x, need in zip(inputs, needs):
        x.requires_grad_(bool(need))
    pk.project(*inputs, 4).backward(grad)
    for x, need, t in zip(inputs, needs, truth):
        assert (x.grad is not None) == bool(need)
        assert not need or relative_error(x.grad, t) <= 1e-5


def test_gradients_not_needed_are_not_computed(monkeypatch):
    skip_without_compiled_kernels()
    needed: list[tuple[bool, ...]] = []
    original = cpu.project_backward

    def spy(plan, call):
        needed.append(tuple(x is not None for x in (*call.d_weights, call.dp, call.dq)))
        original(plan, call)

    monkeypatch.setattr(cpu, "project_backward", spy)
    q = torch.randn(2, 16, requires_grad=True)
    frozen, free = torch.randn(8, 8), torch.randn(8, 8, requires_grad=True)
    sum(out.sum() for out in pk.project_layers([frozen, frozen], torch.randn(2, 16), q, [2, 4])).backward()
    sum(out.sum() for out in pk.project_layers([frozen, free], torch.randn(2, 16), q.detach(), 2)).backward()
    assert needed == [(False, False, True), (False, True, False, False)]


@pytest.mark.parametrize("learnt", [(0,), (1,), (0, 1)])
def test_only_some_weights_learn(backend, learnt, poisoned_memory):
    weights, groups, p, q = layers_case()
    for i in (0, 1):
        weights[i].requires_grad_(i in learnt)
    outputs = pk.project_layers(weights, p, q, groups)
    grads = [torch.randn_like(out) for out in outputs]
    found = torch.autograd.grad(outputs, [weights[i] for i in learnt] + [p, q], grads)
    for i in (0, 1):
        weights[i].requires_grad_()
    full = torch.autograd.grad(pk.project_layers(weights, p, q, groups), [weights[0], weights[1], p, q], grads)
    for f, t in zip(found, [full[i] for i in learnt] + list(full[2:])):
        assert torch.equal(f, t)


def test_only_one_output_used(backend, poisoned_memory):
    weights, groups, p, q = layers_case()
    pk.project_layers(weights, p, q, groups)[3].sum().backward()
    W = weights[1]
    truth = gradients(W, p[:, 72:80], q[:, 48:96], 4, 3, torch.ones(5, 2, 16))
    assert relative_error(W.grad, truth[0]) <= 1e-5
    assert weights[0].grad.abs().max() == 0
    assert relative_error(p.grad[:, 72:80], truth[1]) <= 1e-5
    assert p.grad[:, :72].abs().max() == p.grad[:, 80:].abs().max() == 0


@pytest.mark.parametrize("layout", ["stride 0", "sliced from a concatenation", "transposed"])
def test_layout_of_the_incoming_gradient(backend, layout):
    torch.manual_seed(0)
    inputs = [torch.randn(24, 40), torch.randn(3, 24), torch.randn(3, 40)]
    leaves = [x.requires_grad_() for x in inputs]
    out = pk.project(*leaves, 4)
    if layout == "stride 0":
        out.sum().backward()
        grad = torch.ones_like(out)
    elif layout == "transposed":
        mix = torch.randn(3, 10, 6)
        (out.mT * mix).sum().backward()
        grad = mix.mT
    else:
        mix = torch.randn(3, 6, 14)
        (torch.cat([out, torch.randn(3, 6, 4)], dim=2) * mix).sum().backward()
        grad = mix[:, :, :10]
    for x, t in zip(leaves, gradients(*inputs, 4, 4, grad)):
        assert relative_error(x.grad, t) <= 1e-5


def test_gradients_in_the_same_memory(backend, poisoned_memory):
    """Of two results of one source, in other shapes."""
    torch.manual_seed(0)
    inputs = [torch.randn(8, 64), torch.randn(9, 16), torch.randn(9, 128)]
    weight, p, q = (x.requires_grad_() for x in inputs)
    groups = [(8, 4), (8, 2)]
    memory = torch.randn(9 * 32)
    grads = [memory[: 9 * 16].view(9, 1, 16), memory.view(9, 1, 32)]
    results = torch.autograd.grad(pk.project_layers([weight] * 2, p, q, groups), (weight, p, q), grads)
    one, two = (
        gradients(weight, p[:, 8 * i : 8 * i + 8], q[:, 64 * i : 64 * i + 64], *group, grads[i])
        for i, group in enumerate(groups)
    )
    truth = [one[0] + two[0], torch.cat((one[1], two[1]), 1), torch.cat((one[2], two[2]), 1)]
    for f, t in zip(results, truth):
        assert relative_error(f, t) <= 1e-5


def test_leading_axes_of_p_and_q(backend):
    torch.manual_seed(0)
    weight, p, q = torch.randn(8, 12), torch.randn(5, 1, 8), torch.randn(3, 12)
    out = pk.project(weight, p, q, 4)
    assert out.shape == (5, 3, 2, 3)
    assert relative_error(out[4, 2], project_dense(weight, p[4, :1], q[2:], 4, 4)[0]) <= 1e-5
    assert pk.project(weight, p[0, 0], q[0], 4).shape == (2, 3)
    assert pk.project(weight, p[:0, 0], q[:0], 4).shape == (0, 2, 3)


@pytest.mark.parametrize("where", ["first", "middle", "last", "only"])
def test_empty_matrices(backend, where, poisoned_memory):
    full = [torch.randn(8, 8, requires_grad=True) for _ in range(2)]
    empty = torch.zeros(0, 8, requires_grad=True)
    weights = {"first": [empty, *full], "middle": [full[0], empty, full[1]], "last": [*full, empty]}.get(where, [empty])
    rows, cols = sum(w.shape[0] for w in weights), sum(w.shape[1] for w in weights)
    p, q = torch.randn(2, rows, requires_grad=True), torch.randn(2, cols, requires_grad=True)
    outputs = pk.project_layers(weights, p, q, 2)
    sum(out.sum() for out in outputs).backward()
    assert [out.shape[1] for out in outputs] == [w.shape[0] // 2 for w in weights]
    assert all(x.grad.isfinite().all() for x in (*weights, p, q))


def test_a_thousand_matrices(backend):
    weights = [torch.randn(4, 6) for _ in range(1000)]
    p, q = torch.randn(2, 4000), torch.randn(2, 6000)
    outputs = pk.project_layers(weights, p, q, 2)
    assert relative_error(outputs[777], project_dense(weights[777], p[:, 3108:3112], q[:, 4662:4668], 2, 2)) <= 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_results_larger_than_the_caches(fast_backend, dtype, poisoned_memory):
    """Beyond 16 MB the compiled kernels write past the caches, and beyond 32 MB on huge pages."""
    torch.manual_seed(0)
    weight, p, q = torch.randn(4096, 1024).to(dtype), torch.randn(5, 4096), torch.randn(5, 1024)
    leaves = [x.requires_grad_() for x in (weight, p, q)]
    out = pk.project(*leaves, 1)
    assert out.numel() * out.element_size() > 2**25 < weight.numel() * 16
    assert relative_error(out, p.double()[:, :, None] * weight.double() * q.double()[:, None]) <= TOLERANCE[dtype]
    grad = torch.randn_like(out)
    found = torch.autograd.grad(out, leaves, grad)
    W, a, b, G = weight.double(), p.double(), q.double(), grad.double()
    truth = [torch.einsum(s, *x) for s, x in (("bnm,bn,bm->nm", (G, a, b)), ("bnm,nm,bm->bn", (G, W, b)))]
    for f, t in zip(found, [*truth, torch.einsum("bnm,bn,nm->bm", G, a, W)]):
        assert relative_error(f, t) <= TOLERANCE[dtype]


@pytest.mark.parametrize("group", [np.int64(4), np.uint8(4), (np.int32(4), 4), torch.tensor(4)])
def test_groups_of_other_integer_types(group):
    assert torch.equal(pk.project(W, P, Q, group), pk.project(W, P, Q, 4))
    sizes = {"tasks": np.int64(2), "tokens": np.int16(3), "device": "cpu"}
    assert pk.explain(np.int64(8), 12, group, **sizes).choice == pk.explain(8, 12, 4, tasks=2, tokens=3).choice


def test_nan_and_inf_propagate(backend):
    for bad in (float("nan"), float("inf")):
        weight = torch.ones(8, 64)
        weight[2, 5] = bad
        out = pk.project(weight, torch.ones(2, 8), torch.ones(2, 64), 2, dtype=torch.bfloat16)
        assert not out[:, 1, 2].isfinite().any()
        assert out.isfinite().sum() == out.numel() - 2


def test_hard_pruning_is_a_submatrix(backend):
    weight = torch.randn(16, 24)
    rows, cols = torch.tensor([1, 6, 10, 15]), torch.tensor([0, 7, 9, 12, 18, 23])
    p, q = torch.zeros(16).index_fill(0, rows, 1), torch.zeros(24).index_fill(0, cols, 1)
    assert torch.equal(pk.project(weight, p, q, 4), weight[rows][:, cols])


def test_interleaved_cloning_is_undone_exactly(backend):
    small = torch.randn(5, 9)
    large = small.repeat_interleave(4, 0).repeat_interleave(4, 1)
    out = pk.project(large, torch.full((20,), 1 / 4), torch.ones(36), 4)
    assert torch.allclose(out, 4 * small)  # q = 1 sums four copies of each column
    assert torch.equal(pk.project(large, torch.full((20,), 1 / 4), torch.full((36,), 1 / 4), 4), small)


def test_bit_equal_over_repeats_and_thread_counts(fast_backend):
    torch.manual_seed(0)
    stack, single = torch.randn(2, 512, 256, requires_grad=True), torch.randn(1024, 256, requires_grad=True)
    weights = [stack, single, stack]
    p, q = torch.randn(9, 3072, requires_grad=True), torch.randn(9, 1280, requires_grad=True)
    # Enough work for seven threads, in several units: small calls stay on one (csrc/cpu/project.h).
    assert 9 * (stack.numel() + single.numel()) > 7 * 2**18

    def everything():
        outputs = pk.project_layers(weights, p, q, [2, 8, 4])
        return [*outputs, *torch.autograd.grad([o.sin().sum() for o in outputs], [stack, single, p, q])]

    threads = torch.get_num_threads()
    try:
        first = everything()
        for n in (1, 2, 3, 7):
            torch.set_num_threads(n)
            assert all(torch.equal(a, b) for a, b in zip(first, everything()))
    finally:
        torch.set_num_threads(threads)


def small_double_case():
    torch.manual_seed(0)
    shapes = (2, 4, 6), (2, 3), (2, 18), (2, 27)
    return tuple(torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes)


def small_double_layers(stack, single, p, q):
    return pk.project_layers([stack, single, stack], p, q, [2, (1, 3), (4, 2)])


def test_gradcheck():
    assert torch.autograd.gradcheck(small_double_layers, small_double_case())


def test_gradgradcheck():
    assert torch.autograd.gradgradcheck(small_double_layers, small_double_case())


def test_second_derivative_of_the_compiled_kernels(backend):
    torch.manual_seed(0)
    inputs = [torch.randn(8, 12), torch.randn(2, 8), torch.randn(2, 12)]

    def second(x, operator):
        leaves = [v.clone().requires_grad_() for v in x]
        first = torch.autograd.grad(operator(*leaves).pow(2).sum(), leaves, create_graph=True)
        return torch.autograd.grad(sum(g.pow(2).sum() for g in first), leaves)

    found = second(inputs, lambda W, p, q: pk.project(W, p, q, 4))
    truth = second([x.double() for x in inputs], lambda W, p, q: project_dense(W, p, q, 4, 4))
    for f, t in zip(found, truth):
        assert relative_error(f, t) <= 1e-5


def test_torch_func_grad(backend):
    torch.manual_seed(0)
    inputs = (torch.randn(8, 12), torch.randn(2, 8), torch.randn(2, 12))
    found = torch.func.grad(lambda W, p, q: pk.project(W, p, q, 4).sum(), argnums=(0, 1, 2))(*inputs)
    for f, t in zip(found, gradients(*inputs, 4, 4, torch.ones(2, 2, 3))):
        assert relative_error(f, t) <= 1e-5


def test_opcheck(backend):
    torch.manual_seed(0)
    weights, p, q = [torch.randn(2, 4, 6), torch.randn(1, 2, 3)], torch.randn(2, 18), torch.randn(2, 27)
    entries = [0, 2, 2, 1, 1, 3, 0, 4, 2]
    torch.library.opcheck(ops._forward, (weights, p, q, entries, torch.float32))
    grads = [torch.randn(2, *shape) for shape in ((2, 3), (2, 3), (2, 1), (1, 3), (1, 3))]
    for needs in (([True, True], True, True), ([False, False], True, False), ([True, False], False, False)):
        torch.library.opcheck(ops._backward, (weights, p, q, grads, entries, *needs))


def test_compiles_without_graph_breaks(backend):
    weights, groups, p, q = layers_case()

    def loss(stack, single, p, q):
        outputs = pk.project_layers([stack, single, stack, stack], p, q, groups)
        return sum((out * out.sin()).sum() for out in outputs)

    leaves = [weights[0], weights[1], p, q]
    compiled = torch.compile(loss, fullgraph=True)
    plain = torch.autograd.grad(loss(*leaves), leaves)
    for a, b in zip(plain, torch.autograd.grad(compiled(*leaves), leaves)):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-5)


def test_autocast_leaves_it_alone(backend):
    weight, p, q = torch.randn(8, 8), torch.randn(2, 8), torch.randn(2, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = pk.project(weight, p, q, 2)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, pk.project(weight, p, q, 2))


@pytest.mark.slow
def test_more_than_two_to_the_31_outputs():
    skip_without_compiled_kernels()
    batch, rows, cols = 2100, 1024, 1024  # 2100 * 2**20 outputs in bfloat16: 4.4 GB
    weight, p, q = torch.randn(rows, cols), torch.randn(batch, rows), torch.randn(batch, cols)
    out = pk.project(weight, p, q, 1, dtype=torch.bfloat16)
    assert out.numel() > 2**31
    for b in (0, 1024, 2047, 2048, batch - 1):
        assert relative_error(out[b], (p[b, :, None] * weight * q[b]).double()) <= 1e-2


W, P, Q = torch.randn(8, 12), torch.randn(2, 8), torch.randn(2, 12)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: pk.project(W[0], P, Q, 4), ValueError, r"weight must be a tensor \(N, M\); it was .*\(12,\)"),
        (lambda: pk.project(W.tolist(), P, Q, 4), ValueError, "weight must be a tensor .* it was list"),
        (lambda: pk.project(W.int(), P, Q, 4), TypeError, "weights must be of a floating type; .*torch.int32"),
        (lambda: pk.project(W, P.long(), Q, 4), TypeError, "p must be torch.float32 .* it was torch.int64"),
        (lambda: pk.project(W, P, Q.double(), 4), TypeError, "q must be torch.float32 .* it was torch.float64"),
        (lambda: pk.project(W, None, Q, 4), TypeError, "p must be a tensor; it was NoneType"),
        (lambda: pk.project(W, P[:, :7], Q, 4), ValueError, r"p must have a last axis of 8.* it was .*\(2, 7\)"),
        (lambda: pk.project(W, P, Q[:, :7], 4), ValueError, r"q must have a last axis of 12.* it was .*\(2, 7\)"),
        (lambda: pk.project(W, P, Q.repeat(2, 1)[:3], 4), ValueError, r"leading axes that broadcast.*\(3, 12\)"),
        (lambda: pk.project(W, P, Q, 5), ValueError, r"divide the rows of weights\[0\]; 5 does not divide 8"),
        (lambda: pk.project(W, P, Q, (4, 5)), ValueError, "must divide the columns .* 5 does not divide 12"),
        (lambda: pk.project(W, P, Q, 0), ValueError, "group must be an int >= 1 .* it was 0"),
        (lambda: pk.project(W, P, Q, 2.0), ValueError, "group must be an int >= 1 .* it was 2.0"),
        (lambda: pk.project(W, P, Q, (2, 2, 2)), ValueError, "group must be an int >= 1"),
        (lambda: pk.project(W, P, Q, 4, dtype=torch.int32), TypeError, "dtype must be a floating type.* torch.int32"),
        (lambda: pk.project(W, P.to("meta"), Q, 4), ValueError, "p must be on the device of the weights.* meta"),
        (lambda: pk.project(W.to_sparse(), P, Q, 4), TypeError, r"weights\[0\] must be dense; it was torch.sparse_coo"),
        (lambda: pk.project(W, P.to_sparse(), Q, 4), TypeError, "p must be dense"),
        (lambda: pk.project(W, P, Q, 4, dtype=float), TypeError, "dtype must be a torch.dtype; it was type"),
        (lambda: pk.project(W, P, Q, np.float64(4)), ValueError, "group must be an int >= 1 .* it was .*4.0"),
        (lambda: pk.project_layers(3.5, P, Q, 4), TypeError, "weights must be a list of tensors; it was float 3.5"),
        (lambda: pk.project_layers([], P, Q, 4), ValueError, "weights must hold at least one"),
        (lambda: pk.project_layers([W, W.double()], P, Q, 4), ValueError, r"share one dtype.*weights\[1\].*float64"),
        (lambda: pk.project_layers([W], P, Q, [4, 2]), ValueError, "group must have one entry .* 1 weights; it had 2"),
        (lambda: pk.project_layers([W], P, Q[:1], 4), ValueError, "p and q must have the same leading axes"),
        (lambda: pk.use_backend("gpu").__enter__(), ValueError, "backend must be one of .* it was 'gpu'"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
def test_missing_card_is_said_when_it_is_asked_for(monkeypatch):
    with pytest.raises(RuntimeError, match="'cuda' cannot run here: (torch sees no CUDA card|.*without CUDA kernels)"):
        pk.use_backend("cuda").__enter__()
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(RuntimeError, match="'triton' cannot run here: (triton is not installed|there is no CUDA card)"):
        pk.use_backend("triton").__enter__()


@pytest.mark.parametrize(
    ("built_for", "card", "runs"),
    [
        ("80-real 90 120", (8, 0), True),
        ("80-real 90 120", (8, 6), True),  # machine code of an older minor version
        ("80-real 90 120", (9, 0), True),
        ("80-real 90 120", (10, 0), True),  # PTX of 90
        ("80-real 90-real", (10, 0), False),
        ("80-real 90 120", (7, 5), False),
        ("90a-real", (9, 0), True),
        ("90a", (10, 0), False),
        ("89-virtual", (9, 0), True),
        ("100-real 120", (10, 3), True),
        ("100-real 120", (11, 0), False),
        ("native", (9, 0), True),
        ("all-major", (12, 0), True),
    ],
)
def test_which_cards_a_build_runs_on(built_for, card, runs):
    assert cuda.runs_on(built_for.split(), card) == runs


def in_a_thread(work):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


def test_a_choice_of_backend_is_of_one_thread():
    """Two blocks that overlap, the first to begin also the first to end."""
    begun, ended = threading.Event(), threading.Event()

    def other():
        with pk.use_backend("cpu" if "cpu" in pk.available_backends() else "reference"):
            begun.set()
            assert ended.wait(60)
        return dispatch.chosen()

    with ThreadPoolExecutor(1) as pool:
        with pk.use_backend("reference"):
            pending = pool.submit(other)
            assert begun.wait(60)
            assert dispatch.chosen() == "reference"
            assert in_a_thread(dispatch.chosen) == "auto"
            assert in_a_thread(partial(contextvars.copy_context().run, dispatch.chosen)) == "reference"
        ended.set()
        assert (dispatch.chosen(), pending.result()) == ("auto", "auto")


def test_a_backward_takes_the_choice_of_its_forward(monkeypatch):
    served = []
    for kind in ("forward", "backward"):
        original = getattr(reference, f"project_{kind}")
        spy = lambda plan, call, kind=kind, original=original: (served.append(kind), original(plan, call))  # noqa: E731
        monkeypatch.setattr(reference, f"project_{kind}", spy)
    inputs = [x.clone().requires_grad_() for x in (W, P, Q)]
    with pk.use_backend("reference"):
        out = pk.project(*inputs, 4).sum()
    first = in_a_thread(lambda: torch.autograd.grad(out, inputs, create_graph=True))
    assert served == ["forward", "backward"]
    in_a_thread(lambda: torch.autograd.grad(sum(g.sum() for g in first), inputs))
    assert len(served) > 4 and dispatch.chosen() == "auto"


def test_a_compiled_function_takes_the_choice_in_force(monkeypatch):
    served = []
    for module in (reference, cpu):
        original = module.project_forward
        spy = lambda plan, call, module=module, original=original: (served.append(module), original(plan, call))  # noqa: E731
        monkeypatch.setattr(module, "project_forward", spy)
    compiled = torch.compile(lambda W, p, q: pk.project(W, p, q, 4) + 1, fullgraph=True, backend="eager")
    for backend in ("reference", "cpu") if "cpu" in pk.available_backends() else ("reference",):
        with pk.use_backend(backend):
            compiled(W, P, Q)
        assert served.pop().__name__.endswith(backend)


@pytest.mark.parametrize("key", ["CPU", "CUDA", "MPS", "XPU", "HPU", "PrivateUse1"])
def test_every_device_has_the_operators(key):
    for name in ("project_forward", "project_backward"):
        assert torch._C._dispatch_has_computed_kernel_for_dispatch_key(f"projkern::{name}", key)
    for device in ("mps", "xpu", "privateuseone"):
        assert dispatch.select(torch.device(device), W.dtype, W.dtype) is reference


def test_shapes_without_memory():
    """On the meta device: of results, of gradients, and of whole models."""
    inputs = [x.to("meta").requires_grad_() for x in (W, P, Q)]
    out = pk.project(*inputs, 4)
    assert out.shape == (2, 2, 3) and out.device.type == "meta"
    assert [g.shape for g in torch.autograd.grad(out.sum(), inputs)] == [x.shape for x in inputs]
    for form in ("auto", "materialised", "factored"):
        assert pk.project_linear(torch.empty(2, 5, 3, device="meta"), *inputs, 4, form=form).shape == (2, 5, 2)
    with torch.device("meta"):
        operator = pk.ProjectionOperator(pk.GPT(pk.GPTConfig(11, 6, 16, 1, 2)), 1 / 2, task_dim=3)
        logits = operator(torch.zeros(4, 6, dtype=torch.int64), torch.empty(2, 3), distinct=True)
    assert logits.shape == (4, 6, 11)


def test_a_library_that_was_not_built():
    library, reason = extension.load("projkern._none", "this installation was built without it; do this")
    assert library is None and reason == "this installation was built without it; do this"
    assert "`PROJKERN_REQUIRE_NATIVE=1 pip install .`" in cpu._NOT_BUILT


def test_mapped_files_of_any_name(tmp_path):
    """Their names are not text in any encoding, and threads alone depend on them."""
    before = cpu._openmp_runtimes()
    path = os.fsencode(tmp_path) + b"/\xfc \xe9\r ab\n"
    with open(path, "w+b") as file:
        file.write(b"x")
        file.flush()
        with mmap.mmap(file.fileno(), 0):
            assert cpu._openmp_runtimes() == before


def test_no_list_of_mapped_files(monkeypatch):
    def refuse(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert all("torch" in path for path in cpu._openmp_runtimes())


def test_a_backend_asked_for_does_not_fall_back():
    skip_without_compiled_kernels()
    with pk.use_backend("cpu"), pytest.raises(TypeError, match="serves float32 and bfloat16.*float64"):
        pk.project(W.double(), P.double(), Q.double(), 4)


def test_missing_library_is_said_when_it_is_used(monkeypatch):
    monkeypatch.setattr(cpu, "_load", lambda: (None, "no such file"))
    dispatch._warn_of_slow.cache_clear()
    assert "cpu" not in pk.available_backends()
    with pytest.warns(UserWarning, match="plain torch, which is slow: no such file"):
        assert pk.project(W, P, Q, 4).shape == (2, 2, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pk.project(W, P, Q, 4)  # once is enough
    assert dispatch.describe(torch.device("cpu")) == "plain torch, which is slow: no such file"
    dispatch._warn_of_slow.cache_clear()
    with pytest.raises(RuntimeError, match="cannot run here: no such file"), pk.use_backend("cpu"):
        pass
