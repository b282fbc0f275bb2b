"""What only a card can show: graphs, streams, devices, launches, memory. ``pytest -m gpu`` on a machine with one."""

from __future__ import annotations

import os

import pytest
import torch
from oracle import gradients, project_dense, relative_error

import projkern as pk
from projkern.kernels import dispatch as backends

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA card")]


BFLOAT16_OUTPUTS = 4e-5  # 2^-15 of the largest: what the tensor cores promise for gradients (docs/kernels.md)


def need(name):
    """Skip where a backend cannot run, unless the environment says that it has to."""
    reason = backends.why_unavailable(name)
    if reason is not None:
        required = os.environ.get("PROJKERN_REQUIRE_NATIVE") == "1"
        (pytest.fail if required else pytest.skip)(f"{name} cannot run here: {reason}")


@pytest.fixture(params=["triton", "cuda"])
def backend(request):
    need(request.param)
    with pk.use_backend(request.param):
        yield request.param


def layers(device="cuda", batch=40, dtype=torch.float32):
    """Two stacks at several scales, with every path of the kernels in one plan."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=generator).to(device)

    stacks = [normal(2, 192, 320).to(dtype).requires_grad_(), normal(3, 24, 40).to(dtype).requires_grad_()]
    weights, groups = [stacks[0], stacks[1], stacks[0], stacks[0], stacks[1]], [2, (3, 5), 4, 8, 4]
    rows = sum(w.shape[0] * w.shape[1] for w in weights)
    cols = sum(w.shape[0] * w.shape[2] for w in weights)
    return stacks, weights, groups, normal(batch, rows).requires_grad_(), normal(batch, cols).requires_grad_()


def outputs_and_gradients(stacks, weights, groups, p, q, dtype=None):
    outputs = pk.project_layers(weights, p, q, groups, dtype=dtype)
    grads = [torch.sin(torch.arange(out.numel(), device=out.device)).view(out.shape).to(out.dtype) for out in outputs]
    return [*outputs, *torch.autograd.grad(outputs, [*stacks, p, q], grads)]


def as_reference(*arguments, **keywords):
    with pk.use_backend("reference"):
        return outputs_and_gradients(*arguments, **keywords)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_agrees_with_the_reference(backend, weight_dtype, dtype):
    case = layers(dtype=weight_dtype)
    for found, truth in zip(outputs_and_gradients(*case, dtype=dtype), as_reference(*case, dtype=dtype)):
        sixteen_bits = found.dtype != torch.float32
        assert relative_error(found.float(), truth.double()) <= (1e-2 if sixteen_bits else BFLOAT16_OUTPUTS)


@pytest.mark.parametrize("cols", [320, 328])  # with tensor cores, and without
@pytest.mark.parametrize("batch", [1, 15, 16, 33, 128])
@pytest.mark.parametrize("group", [2, 4, 8])
def test_agrees_with_the_definition(backend, group, batch, cols):
    W, p, q = (torch.randn(shape, device="cuda") for shape in ((200, cols), (batch, 200), (batch, cols)))
    leaves = [x.requires_grad_() for x in (W, p, q)]
    for dtype in (torch.float32, torch.bfloat16):
        out = pk.project(*leaves, group, dtype=dtype)
        grad = torch.randn_like(out)
        assert relative_error(out, project_dense(W, p, q, group, group)) <= (1e-2 if dtype == torch.bfloat16 else 1e-5)
        found = torch.autograd.grad(out, leaves, grad)
        for f, t in zip(found, gradients(W, p, q, group, group, grad)):
            assert relative_error(f, t) <= (BFLOAT16_OUTPUTS if dtype == torch.bfloat16 else 1e-5)


DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


def close(found, truth):
    """As near as two results of one type that sum in another order."""
    sixteen_bits = found.dtype == torch.bfloat16
    return relative_error(found.float(), truth.double()) <= (1e-2 if sixteen_bits else BFLOAT16_OUTPUTS)


@DTYPES
def test_cuda_graph(backend, dtype):
    case = layers()
    stacks, _, _, p, q = case
    warm_up = torch.cuda.Stream()
    warm_up.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(warm_up):
        outputs_and_gradients(*case, dtype=dtype)
    torch.cuda.current_stream().wait_stream(warm_up)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = outputs_and_gradients(*case, dtype=dtype)
    for seed in (1, 2):
        torch.manual_seed(seed)
        with torch.no_grad():
            for x in (*stacks, p, q):
                x.copy_(torch.randn_like(x))
        graph.replay()
        assert all(map(close, captured, as_reference(*case, dtype=dtype)))


@DTYPES
def test_side_stream(backend, dtype):
    case = layers()
    p = case[3]
    truth = as_reference(*case, dtype=dtype)
    outputs_and_gradients(*case, dtype=dtype)
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        good = p.detach().clone()
        with torch.no_grad():
            p.fill_(float("nan"))
        torch.cuda._sleep(50_000_000)  # a launch on another stream would see the NaN
        with torch.no_grad():
            p.copy_(good)
        found = outputs_and_gradients(*case, dtype=dtype)
    side.synchronize()
    assert all(map(close, found, truth))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is no second card")
def test_second_device(backend):
    case = layers(device="cuda:1")
    assert torch.cuda.current_device() == 0
    for found, truth in zip(outputs_and_gradients(*case), as_reference(*case)):
        assert found.device.index == 1
        assert relative_error(found, truth.double()) <= 2e-5


@DTYPES
def test_bit_equal_where_determinism_is_asked_for(backend, dtype, poisoned_memory):
    case = layers(batch=50)
    first = outputs_and_gradients(*case, dtype=dtype)
    for _ in range(5):
        assert all(torch.equal(a, b) for a, b in zip(first, outputs_and_gradients(*case, dtype=dtype)))


@pytest.mark.parametrize(("groups", "launches"), [([2, 2], 1), ([8, 8], 1), ([2, (3, 5)], 2)])
def test_launches(groups, launches):
    """One each way; in the backward one for each kind of group."""
    need("cuda")
    weights = [torch.randn(2, 192, 320, device="cuda"), torch.randn(3, 24, 40, device="cuda")]
    p, q = (torch.randn(64, size, device="cuda", requires_grad=True) for size in (456, 760))
    with pk.use_backend("cuda"):
        outputs = pk.project_layers(weights, p, q, groups)
        grads = [torch.randn_like(out) for out in outputs]
        torch.autograd.grad(outputs, [p, q], grads)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            outputs = pk.project_layers(weights, p, q, groups)
            torch.autograd.grad(outputs, [p, q], grads)
            torch.cuda.synchronize()
    kernels = [event.name for event in profile.events() if "project" in event.name]
    assert [("forward" in k, "backward" in k) for k in kernels] == [(True, False)] + [(False, True)] * launches


def test_extra_memory_is_small():
    weights = [torch.randn(8, 512, 512, device="cuda")]
    p, q = torch.randn(32, 4096, device="cuda"), torch.randn(32, 4096, device="cuda")
    pk.project_layers(weights, p, q, 2)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    outputs = pk.project_layers(weights, p, q, 2)
    size = sum(out.numel() * out.element_size() for out in outputs)
    assert torch.cuda.max_memory_allocated() - before <= 1.05 * size


def test_more_than_two_to_the_31_outputs(backend):
    batch, rows, cols = 2100, 1024, 1024  # 2100 * 2**20 outputs in bfloat16: 4.4 GB
    W, p, q = (torch.randn(shape, device="cuda") for shape in ((rows, cols), (batch, rows), (batch, cols)))
    for group, scale in ((1, 1), (2, 4)):
        repeat = (scale, 1) if group == 2 else (1, 1)
        p_wide, q_wide = p.repeat(repeat), q.repeat(repeat)  # the same 2^31 outputs at g = 2
        out = pk.project(W, p_wide, q_wide, group, dtype=torch.bfloat16)
        assert out.numel() > 2**31
        for b in (0, len(out) // 2, len(out) - 1):
            truth = project_dense(W, p_wide[b : b + 1], q_wide[b : b + 1], group, group)
            assert relative_error(out[b : b + 1], truth) <= 1e-2
        del out


def test_out_of_memory_is_an_error_and_nothing_is_broken(backend):
    W, p = torch.randn(64, 64, device="cuda"), torch.randn(1, 64, device="cuda")
    many = p.expand(2**36, 64)
    with pytest.raises(torch.OutOfMemoryError):
        pk.project(W, many, many, 2)
    assert relative_error(pk.project(W, p, p, 2), project_dense(W, p, p, 2, 2)) <= 1e-5


def test_other_device_is_refused(backend):
    W, p = torch.randn(8, 8, device="cuda"), torch.randn(2, 8)
    with pytest.raises(ValueError, match="p must be on the device of the weights, cuda:0; it was on cpu"):
        pk.project(W, p, p, 2)


def test_backend_of_another_device_is_refused(backend):
    W, p = torch.randn(8, 8), torch.randn(2, 8)
    with pytest.raises(TypeError, match=f"backend '{backend}' serves .* on a CUDA device; they were .* on cpu"):
        pk.project(W, p, p, 2)


def test_compiles_with_cuda_graphs(backend):
    stacks, _, groups, p, q = layers()

    def loss(first, second, p, q):
        outputs = pk.project_layers([first, second, first, first, second], p, q, groups)
        return sum((out * out.sin()).sum() for out in outputs)

    leaves = [*stacks, p, q]
    truth = torch.autograd.grad(loss(*leaves), leaves)
    compiled = torch.compile(loss, fullgraph=True, mode="reduce-overhead")
    for _ in range(3):
        found = [g.clone() for g in torch.autograd.grad(compiled(*leaves), leaves)]
    for f, t in zip(found, truth):
        assert relative_error(f, t.double()) <= 1e-4


def test_training_step_on_the_card():
    config = pk.GPTConfig(vocab_size=32, n_positions=17, n_embd=64, n_layer=2, n_head=4)
    source = pk.GPT(config).cuda()
    operator = pk.ProjectionOperator(source, scale=1 / 4, task_dim=6).cuda()
    tokens, t = torch.randint(32, (20, 16), device="cuda"), torch.rand(20, 6, device="cuda")
    with torch.autocast("cuda", dtype=torch.bfloat16):
        loss = torch.nn.functional.cross_entropy(operator(tokens, t).flatten(0, 1).float(), tokens.flatten())
    loss.backward()
    trained = [*operator.parameters(), *source.weights.parameters()]
    assert all(x.grad is not None and x.grad.isfinite().all() for x in trained)
