"""The three forms of the projected linear layer against dense P @ W @ Q, and the cost model that chooses."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from oracle import project_dense, relative_error
from torch._subclasses.fake_tensor import FakeTensorMode

import projkern as pk
from projkern.kernels import linear, linear_ops, machine

F32, BF16, F16, F64 = torch.float32, torch.bfloat16, torch.float16, torch.float64
FORMS = ("materialised", "projected", "factored")

pytestmark = pytest.mark.usefixtures("one_thread")


def skip_without_triton():
    """The projected form's tests need a card or Triton's interpreter."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("Triton is not installed")
    reason = linear_ops.why_not_here(torch.device(DEVICE))
    if reason is not None:
        pytest.skip(f"{reason}; TRITON_INTERPRET=1 runs the kernels on the CPU")


DEVICE = "cuda" if torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1" else "cpu"


@pytest.fixture(params=FORMS)
def form(request):
    if request.param == "projected":
        skip_without_triton()
    return request.param


def case(seed: int, weight_dtype=F32, dtype=F32, *, sizes=None):
    """x, W, p, q, dy of awkward random sizes, and the groups."""
    r = torch.Generator().manual_seed(seed)

    def pick(*choices):
        return choices[int(torch.randint(len(choices), (1,), generator=r))]

    if sizes is None:
        groups = pick(1, 2, 3, 4, 5, 8, 11, 16), pick(1, 2, 3, 4, 7, 8, 13, 16)
        sizes = pick(1, 2, 3), pick(1, 2, 15, 17, 65), pick(1, 5, 16, 33), pick(1, 7, 16, 35), *groups
    B, S, n, m, row_group, col_group = sizes

    def normal(*shape, dtype=F32):
        layout = pick("plain", "sliced", "transposed", "expanded")
        if layout == "sliced":
            tensor = torch.randn(*shape[:-1], shape[-1] + 3, generator=r)[..., 2:-1]
        elif layout == "transposed":
            tensor = torch.randn(*shape[:-2], shape[-1], shape[-2], generator=r).mT
        elif layout == "expanded":
            tensor = torch.randn(1, *shape[1:], generator=r).expand(shape)
        else:
            tensor = torch.randn(shape, generator=r)
        return tensor.to(dtype).to(DEVICE)

    N, M, factor = n * row_group, m * col_group, F64 if weight_dtype == F64 else F32
    inputs = normal(B, S, m, dtype=dtype), normal(N, M, dtype=weight_dtype), normal(B, N, dtype=factor)
    return [*inputs, normal(B, M, dtype=factor)], normal(B, S, n, dtype=dtype), (row_group, col_group)


def truth(inputs, dy, group):
    leaves = [t.detach().cpu().double().requires_grad_() for t in inputs]
    y = leaves[0] @ project_dense(*leaves[1:], *group).mT
    return [y, *torch.autograd.grad(y, leaves, dy.cpu().double())]


def run(inputs, dy, group, form):
    leaves = [t.detach().requires_grad_() for t in inputs]
    y = pk.project_linear(*leaves, group, form=form)
    return [y, *torch.autograd.grad(y, leaves, dy)]


def check(found, expected, inputs, dy, tolerance):
    for name, f, t, like in zip(("y", "x", "weight", "p", "q"), found, expected, [dy, *inputs]):
        assert f.dtype == like.dtype, name
        assert relative_error(f.cpu(), t) <= tolerance, name


@pytest.mark.parametrize("seed", range(24))
def test_random_sweep_against_dense(form, seed, poisoned_memory):
    inputs, dy, group = case(seed)
    check(run(inputs, dy, group, form), truth(inputs, dy, group), inputs, dy, 1e-5)


@pytest.mark.parametrize(
    ("weight_dtype", "dtype", "tolerance"),
    [(BF16, BF16, 2e-2), (F32, BF16, 2e-2), (BF16, F32, 1e-2), (F16, F16, 4e-3), (F32, F16, 4e-3), (F16, BF16, 2e-2)],
)
@pytest.mark.parametrize("sizes", [(2, 65, 5, 18, 3, 8), (1, 2, 33, 18, 16, 8)])
def test_types(form, sizes, weight_dtype, dtype, tolerance, poisoned_memory):
    inputs, dy, group = case(sum(sizes), weight_dtype, dtype, sizes=sizes)
    check(run(inputs, dy, group, form), truth(inputs, dy, group), inputs, dy, tolerance)


@pytest.mark.parametrize("group", range(1, 17))
def test_each_group(form, group, poisoned_memory):
    inputs, dy, groups = case(group, sizes=(2, 3, 17, 18, group, 17 - group))
    check(run(inputs, dy, groups, form), truth(inputs, dy, groups), inputs, dy, 1e-5)


@pytest.mark.parametrize("sizes", [(0, 3, 4, 5, 2, 2), (2, 0, 4, 5, 2, 2), (2, 3, 0, 5, 2, 2), (2, 3, 4, 0, 2, 2)])
def test_empty(form, sizes, poisoned_memory):
    inputs, dy, group = case(0, sizes=sizes)
    check(run(inputs, dy, group, form), truth(inputs, dy, group), inputs, dy, 0)


@pytest.mark.parametrize("needs", [(x, w, p, q) for x in (0, 1) for w in (0, 1) for p in (0, 1) for q in (0, 1)][1:])
def test_each_subset_of_gradients(form, needs, poisoned_memory):
    inputs, dy, group = case(0, sizes=(2, 3, 5, 6, 4, 2))
    leaves = [t.detach().clone().requires_grad_(bool(need)) for t, need in zip(inputs, needs)]
    pk.project_linear(*leaves, group, form=form).backward(dy)
    for leaf, need, t in zip(leaves, needs, truth(inputs, dy, group)[1:]):
        assert (leaf.grad is not None) == bool(need)
        assert not need or relative_error(leaf.grad.cpu(), t) <= 1e-5


@pytest.mark.parametrize("layout", ["stride 0", "sliced", "transposed"])
def test_layout_of_the_incoming_gradient(form, layout):
    inputs, _, group = case(0, sizes=(2, 3, 5, 6, 4, 2))
    dy = {
        "stride 0": torch.ones(1, 1, 1, device=DEVICE).expand(2, 3, 5),
        "sliced": torch.randn(2, 3, 9, device=DEVICE)[..., 3:8],
        "transposed": torch.randn(2, 5, 3, device=DEVICE).mT,
    }[layout]
    check(run(inputs, dy, group, form), truth(inputs, dy, group), inputs, dy, 1e-5)


def test_gradients_not_needed_are_not_computed(monkeypatch):
    skip_without_triton()
    needed = []
    kernels = linear_ops._kernels()
    original = kernels.linear_backward

    def spy(*args):
        needed.append(tuple(out is not None for out in args[7:]))
        original(*args)

    monkeypatch.setattr(kernels, "linear_backward", spy)
    (x, weight, p, q), dy, group = case(0, sizes=(2, 3, 5, 6, 4, 2))
    pk.project_linear(x, weight, p.clone().requires_grad_(), q, group, form="projected").backward(dy)
    assert needed == [(False, False, True, False)]


@pytest.mark.parametrize("form", ["materialised", "factored"])
def test_gradcheck(form):
    inputs, _, group = case(0, F64, F64, sizes=(2, 2, 2, 3, 3, 2))
    leaves = [t.detach().requires_grad_() for t in inputs]
    assert torch.autograd.gradcheck(lambda *t: pk.project_linear(*t, group, form=form), leaves)
    assert torch.autograd.gradgradcheck(lambda *t: pk.project_linear(*t, group, form=form), leaves)


def test_second_derivative(form):
    inputs, _, group = case(0, sizes=(2, 2, 2, 3, 3, 2))

    def second(x, operator):
        leaves = [t.detach().clone().requires_grad_() for t in x]
        first = torch.autograd.grad(operator(*leaves).pow(2).sum(), leaves, create_graph=True)
        return torch.autograd.grad(sum(g.pow(2).sum() for g in first), leaves)

    found = second(inputs, lambda *t: pk.project_linear(*t, group, form=form))
    expected = second([t.cpu().double() for t in inputs], lambda x, *rest: x @ project_dense(*rest, *group).mT)
    for f, t in zip(found, expected):
        assert relative_error(f.cpu(), t) <= 1e-5


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of NumPy, in Triton's interpreter
def test_nan_stays_in_its_task_and_row(form):
    (x, weight, p, q), _, _ = case(0, sizes=(2, 3, 17, 18, 2, 2))
    weight = weight.clone()
    weight[4, 5] = float("nan")
    y = pk.project_linear(x, weight, p, q, 2, form=form)
    assert y[:, :, 2].isnan().all() and y.isnan().sum() == 6
    p = p.clone()
    p[1] = float("inf")
    assert pk.project_linear(x, weight, p, q, 2, form=form)[0].isnan().sum() == 3


def test_hard_pruning_is_a_smaller_linear_layer(form):
    x, weight = torch.randn(1, 3, 6, device=DEVICE), torch.randn(16, 24, device=DEVICE)
    rows, cols = torch.tensor([1, 6, 10, 15]), torch.tensor([0, 7, 9, 12, 18, 23])
    p, q = torch.zeros(1, 16), torch.zeros(1, 24)
    p[:, rows] = q[:, cols] = 1
    y = pk.project_linear(x, weight, p.to(DEVICE), q.to(DEVICE), 4, form=form)
    assert torch.allclose(y, x @ weight[rows][:, cols].mT, rtol=1e-5, atol=1e-6)


def test_bit_equal_over_repeats(form):
    inputs, dy, group = case(0, sizes=(3, 20, 35, 33, 4, 4))
    first = run(inputs, dy, group, form)
    assert all(torch.equal(a, b) for a, b in zip(first, run(inputs, dy, group, form)))


def test_autocast_casts_x_as_for_any_linear_layer(form):
    inputs, _, group = case(0, sizes=(2, 3, 5, 6, 4, 2))
    plain = pk.project_linear(inputs[0].bfloat16(), *inputs[1:], group, form=form)
    with torch.autocast(DEVICE, dtype=BF16):
        assert torch.equal(pk.project_linear(*inputs, group, form=form), plain)
        assert pk.project_linear(*inputs, group).dtype == BF16


def test_opcheck():
    skip_without_triton()
    inputs, dy, group = case(0, sizes=(2, 3, 5, 6, 4, 2))
    torch.library.opcheck(linear_ops._forward, (*inputs, *group))
    for needs in ([True] * 4, [False, True, False, False]):
        torch.library.opcheck(linear_ops._backward, (dy, *inputs, *group, needs))


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("form", [*FORMS, "auto"])
def test_compiles_without_graph_breaks(form, dynamic):
    if form == "projected":
        skip_without_triton()
    inputs, _, group = case(0, sizes=(2, 3, 5, 6, 4, 2))
    leaves = [t.detach().clone().requires_grad_() for t in inputs]

    def loss(*tensors):
        return pk.project_linear(*tensors, group, form=form).sin().sum()

    torch._dynamo.reset()
    backend = "inductor" if form == "auto" else "aot_eager"
    compiled = torch.compile(loss, fullgraph=True, dynamic=dynamic, backend=backend)
    plain = torch.autograd.grad(loss(*leaves), leaves)
    for a, b in zip(plain, torch.autograd.grad(compiled(*leaves), leaves)):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-5)


# The kernels compiled for real cards, without one.

COMPILE = Path(__file__).parents[1] / "helpers" / "compile_linear.py"


@pytest.mark.parametrize("capability", [80, 90, 120])
def test_compiles_for_cards(capability):
    if importlib.util.find_spec("triton") is None:
        pytest.skip("Triton is not installed")
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    finished = subprocess.run([sys.executable, str(COMPILE), str(capability)], env=env, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    for line in finished.stdout.splitlines():
        kernel = json.loads(line)
        assert kernel["stack"] <= 32, kernel
        assert kernel["shared"] <= 99 * 1024, kernel
        assert kernel["tensor cores"] == (kernel["x"] == "bf16"), kernel
        if "weight_gradient" not in kernel["name"]:
            assert kernel["16-byte loads"], kernel


# The cost model, on a card with round numbers and on one that only memory slows down.

CARD = machine.Constants(
    bandwidth=4e12, cache_bandwidth=8e12, rates={F32: 30e12, BF16: 400e12, F64: 30e12}, launch=3e-6, free=100e9
)
MEMORY_ONLY = machine.Constants(bandwidth=4e12, cache_bandwidth=8e12, rates={F32: 1e30, BF16: 1e30}, launch=0)


def explained(constants=CARD, **sizes):
    defaults = {"rows": 4096, "cols": 4096, "group": 4, "tasks": 32, "tokens": 1, "weight_dtype": BF16}
    return pk.explain(**{**defaults, **sizes}, constants=constants)


@pytest.mark.parametrize("group", [2, 4, 8])
def test_decoding_with_kept_weights_crosses_over_at_group_squared(group):
    """One read of W against B reads of W_s, once generation is spread over many steps."""
    kept = {"rows": 16384, "cols": 16384, "group": group, "reuse": 10**6, "constants": MEMORY_ONLY}
    assert explained(tasks=int(0.8 * group**2), **kept).choice == "materialised"
    assert explained(tasks=int(1.2 * group**2) + 1, **kept).choice == "factored"


@pytest.mark.parametrize("dtype", [F32, BF16])
def test_many_tokens_of_each_task_are_worth_a_generation(dtype):
    for backward in (False, True):
        assert explained(tokens=4096, weight_dtype=dtype, backward=backward).choice == "materialised"


def test_one_token_of_many_tasks_is_factored():
    for backward in (False, True):
        assert explained(tasks=256, backward=backward).choice == "factored"


def test_weights_that_are_large_and_little_used_are_projected():
    assert explained(group=1, tasks=64, tokens=64).choice == "projected"
    assert explained(group=2, tasks=64, tokens=16, weight_dtype=F32).choice == "projected"


def test_what_does_not_fit_is_not_chosen():
    plenty = explained(tasks=1024, tokens=512)
    assert plenty.choice == "materialised"
    tight = explained(dataclasses.replace(CARD, free=1e9), tasks=1024, tokens=512)
    assert tight.choice == "projected"
    assert "materialised would be faster, but needs 2.15 GB of memory, and 1 GB are free" in str(tight)
    without = explained(dataclasses.replace(CARD, free=1e9), tasks=1024, tokens=512, group=(32, 4))
    assert without.choice == "materialised" and "projected is out: its groups are at most 16" in str(without)
    none = explained(dataclasses.replace(CARD, free=1e6), tasks=1024, tokens=512, group=(32, 4))
    assert none.choice == "materialised" and "is more than the 1 MB that are free" in str(none)


def test_costs_by_hand():
    """W (8, 12) in float32, groups (4, 2), x in bfloat16: n = 2, m = 6, E = 12, |W| = 96, 3 tasks of 5 tokens."""
    forms = explained(rows=8, cols=12, group=(4, 2), tasks=3, tokens=5, weight_dtype=F32, dtype=BF16).forms
    factors, io = 4 * 3 * (8 + 12), 2 * 15 * (2 + 6)
    assert [f.name for f in forms] == list(FORMS)
    assert forms[0].bytes == (4 * 96 + 2 * 3 * 12 + factors) + (2 * 3 * 12 + io)
    assert forms[0].multiply_adds == 3 * 96 * 1.25 + 15 * 12
    assert forms[0].memory == 2 * 3 * 12
    assert forms[1].bytes == 4 * 96 + factors + io
    assert forms[1].cached_bytes == 4 * 3 * 96
    assert forms[1].multiply_adds == forms[0].multiply_adds and forms[1].memory == 0
    assert forms[2].bytes == (15 * (2 * 6 + 4 * 12)) + (4 * 96 + 4 * 15 * 20) + (15 * (12 * 8 + 2 * 2)) + factors
    assert forms[2].multiply_adds == 15 * 12 + 15 * 96 + 15 * 8
    seconds = sum(max(b / 4e12, a / 30e12) for b, a in ((696, 360),)) + max(312 / 4e12, 180 / 400e12) + 2 * 3e-6
    assert forms[0].seconds == pytest.approx(seconds)
    assert {f.bound for f in forms} == {"launches"}


def test_kept_weights_are_charged_in_shares():
    once, kept = explained(tokens=16).forms[0], explained(tokens=16, reuse=4).forms[0]
    product = explained(tokens=16, reuse=10**9).forms[0]
    assert kept.bytes - product.bytes == pytest.approx((once.bytes - product.bytes) / 4, rel=1e-6)
    assert explained(tokens=16).forms[1:] == explained(tokens=16, reuse=4).forms[1:]


def test_explanation_prints_a_table():
    shown = str(explained(tasks=256))
    lines = shown.splitlines()
    assert lines[0] == (
        "W (4096, 4096) in bfloat16, groups 4 and 4; tasks: 256, tokens of each: 1, in bfloat16; forward"
    )
    assert lines[1].split("  ")[0] == "form" and lines[1].endswith("bound by")
    assert [line.split()[0] for line in lines[2:5]] == list(FORMS)
    assert lines[-1].startswith("chosen: factored; W is read once for all tasks and no W_s is made; predicted to take")
    assert "of the time of materialised" in lines[-1]
    assert "projected is out: its weight is float32, bfloat16 or float16; it was torch.float64" in str(
        explained(weight_dtype=F64)
    )


def test_measured_constants(monkeypatch):
    for cached in (machine._copy_speed, machine._rate, machine._launch):
        cached.cache_clear()
    with FakeTensorMode(), torch.autocast("cpu"):  # as while exporting: not to time what never runs
        constants = machine.measure("cpu")
    assert 1e8 < constants.bandwidth <= constants.cache_bandwidth < 1e13
    assert set(constants.rates) == {F32, BF16} and all(1e7 < rate < 1e13 for rate in constants.rates.values())
    assert 1e-8 < constants.launch < 1e-2 and constants.free > 0
    monkeypatch.setattr(machine, "_seconds", None)  # a second call measures nothing
    assert machine.measure("cpu").rates == constants.rates


def test_auto_takes_what_explain_says(monkeypatch):
    called = []
    monkeypatch.setattr(linear, "_FORMS", {name: lambda *_, name=name: called.append(name) for name in FORMS})
    (x, weight, p, q), _, group = case(0, sizes=(2, 3, 5, 6, 4, 2))
    for leaf in (weight.clone(), weight.clone().requires_grad_()):
        pk.project_linear(x, leaf, p, q, group)
        sizes = {"tasks": 2, "tokens": 3, "device": DEVICE, "backward": leaf.requires_grad}
        assert called.pop() == pk.explain(20, 12, group, **sizes).choice


def test_triton_is_optional():
    program = (
        "import sys; sys.modules['triton'] = None; import torch, projkern as pk;"
        "print(pk.explain(64, 64, 4, tasks=2, tokens=2, device='cpu'));"
        "arguments = torch.ones(1, 1, 1), torch.ones(2, 2), torch.ones(1, 2), torch.ones(1, 2), 2;"
        "pk.project_linear(*arguments); pk.project_linear(*arguments, form='projected')"
    )
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "projected is out: Triton cannot be imported" in finished.stdout
    assert "RuntimeError: form 'projected' cannot run here: Triton cannot be imported" in finished.stderr


X, W, P, Q = torch.randn(2, 5, 3), torch.randn(8, 12), torch.randn(2, 8), torch.randn(2, 12)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: pk.project_linear(X[0], W, P, Q, 4), ValueError, r"x must be \(B, S, 3\).* it was .*\(5, 3\)"),
        (lambda: pk.project_linear(X[..., :2], W, P, Q, 4), ValueError, r"x must be \(B, S, 3\).*\(2, 5, 2\)"),
        (lambda: pk.project_linear(X.tolist(), W, P, Q, 4), TypeError, "x must be a tensor; it was list"),
        (lambda: pk.project_linear(X.int(), W, P, Q, 4), TypeError, "x must be of a floating type.*torch.int32"),
        (lambda: pk.project_linear(X.double(), W, P, Q, 4), TypeError, "x must be .* float64 with float64 weight only"),
        (lambda: pk.project_linear(X.to("meta"), W, P, Q, 4), ValueError, "x must be on the device of .*meta"),
        (lambda: pk.project_linear(X.to_sparse(), W, P, Q, 4), TypeError, "x must be dense; it was torch.sparse_coo"),
        (lambda: pk.project_linear(X, W.to(torch.float8_e4m3fn), P, Q, 4), TypeError, "weight must be .*float8"),
        (lambda: pk.project_linear(X, W[0], P, Q, 4), ValueError, r"weight must be a tensor \(N, M\)"),
        (lambda: pk.project_linear(X, W, P.double(), Q, 4), TypeError, "p must be torch.float32"),
        (lambda: pk.project_linear(X, W, P[:, 1:], Q, 4), ValueError, "p must have a last axis of 8"),
        (lambda: pk.project_linear(X, W, P, Q[:, 1:], 4), ValueError, "q must have a last axis of 12"),
        (lambda: pk.project_linear(X, W, P[:1], Q, 4), ValueError, r"one row for each of the 2 tasks of x; .*\(1, 8\)"),
        (lambda: pk.project_linear(X, W, P[0], Q[0], 4), ValueError, "one row for each of the 2 tasks of x"),
        (lambda: pk.project_linear(X, W, P, Q, 5), ValueError, "5 does not divide 8"),
        (lambda: pk.project_linear(X, W, P, Q, [4]), ValueError, "group must be an int"),
        (lambda: pk.project_linear(X, W, P, Q, 4, form="fused"), ValueError, "form must be one of auto.* 'fused'"),
        (lambda: pk.explain(8, 12, 5, tasks=1, tokens=1), ValueError, "group must divide rows; 5 does not divide 8"),
        (lambda: pk.explain(8, 12, 0, tasks=1, tokens=1), ValueError, "row_group must be an int >= 1; it was 0"),
        (lambda: pk.explain(8, 12, (4,), tasks=1, tokens=1), ValueError, r"group must be an int >= 1 .* it was \(4,\)"),
        (lambda: pk.explain(8, 12, 4, tasks=1, tokens=1, dtype=torch.int8), TypeError, "dtype must be a floating"),
        (lambda: pk.explain(8, 12, 4, tasks=-1, tokens=1), ValueError, "tasks must be an int >= 0; it was -1"),
        (lambda: pk.explain(8, 12, 4, tasks=1, tokens=1, reuse=0), ValueError, "reuse must be an int >= 1"),
        (lambda: pk.explain(8, 12, 4, tasks=1, tokens=1, device="meta"), ValueError, "must be a CPU or CUDA.*meta"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_form_asked_for_does_not_fall_back():
    skip_without_triton()
    x, weight, p, q = (torch.ones(shape) for shape in ((1, 1, 1), (1, 17), (1, 1), (1, 17)))
    with pytest.raises(RuntimeError, match="'projected' cannot run here: its groups are at most 16; .* 1 and 17"):
        pk.project_linear(x, weight, p, q, (1, 17), form="projected")
