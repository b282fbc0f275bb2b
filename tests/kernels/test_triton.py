"""The Triton kernels: interpreted, against the dense form in float64; and what is compiled of them for real cards.

Interpreted kernels are slow, so most cases cut small matrices into many tiles with a configuration of their own.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from oracle import gradients, project_dense, relative_error

from projkern.kernels.backends import triton
from projkern.kernels.backends.backend import Backward, Forward
from projkern.kernels.plan import Plan, make_plan

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
SMALL = replace(triton.BACKWARD, lane=1, cols=32, block=8, band=16)  # several tiles, blocks and bands in each matrix
DTYPES = [(w, out) for w in triton.WEIGHT_DTYPES for out in triton.OUTPUT_DTYPES]

needs_triton = pytest.mark.skipif(triton.why_unavailable() is not None, reason=str(triton.why_unavailable()))


@pytest.fixture(autouse=True)
def on_the_device(one_thread):
    """Random numbers and tensors of the tests are made where the kernels run."""
    torch.manual_seed(0)
    torch.set_default_device(DEVICE)
    yield
    torch.set_default_device(None)


def unaligned(x: torch.Tensor) -> torch.Tensor:
    """The same tensor, one element further: contiguous, but at no multiple of 16 bytes."""
    moved = torch.empty(x.numel() + 1, dtype=x.dtype)[1:].view(x.shape)
    return moved.copy_(x)


def forward(plan: Plan, weights, p, q, dtype=torch.float32, configuration=SMALL) -> list[torch.Tensor]:
    """W_s of each matrix; checks that padding is left alone."""
    flat = torch.full((sum(plan.output_sizes(len(p))),), float("nan"), dtype=dtype)
    triton.project_forward(plan, Forward(weights, p, q, flat), configuration)
    views = plan.output_views(flat, len(p))
    assert flat.isnan().sum() == flat.numel() - sum(v.numel() for v in views)
    return views


def backward(plan: Plan, weights, p, q, grads, needs=None, configuration=SMALL):
    """(dW of each weight, dp, dq); None where not needed."""
    places = [torch.full_like(x, float("nan")) for x in (*weights, p, q)]
    places = [x if need else None for x, need in zip(places, needs or [True] * len(places))]
    triton.project_backward(plan, Backward(weights, p, q, grads, places[:-2], *places[-2:]), configuration)
    return places


def truth(plan: Plan, weights, p, q, grads=None):
    """W_s of each matrix, or with ``grads`` (dW of each weight, dp, dq), by dense products in float64."""
    outputs, dW = [], [torch.zeros_like(w, dtype=torch.float64) for w in weights]
    dp, dq = torch.zeros_like(p, dtype=torch.float64), torch.zeros_like(q, dtype=torch.float64)
    with torch.device("cpu"):
        for k, m in enumerate(plan.matrices):
            rows, cols = slice(m.p_offset, m.p_offset + m.rows), slice(m.q_offset, m.q_offset + m.cols)
            inputs = (weights[m.weight][m.layer].cpu(), p[:, rows].cpu(), q[:, cols].cpu(), m.row_group, m.col_group)
            if grads is None:
                outputs.append(project_dense(*inputs).to(DEVICE))
            else:
                dW_m, dp_m, dq_m = gradients(*inputs, grads[k].cpu())
                dW[m.weight][m.layer] += dW_m.to(DEVICE)
                dp[:, rows], dq[:, cols] = dp_m.to(DEVICE), dq_m.to(DEVICE)
    return outputs if grads is None else [*dW, dp, dq]


def case(shapes, entries, batch, weight_dtype=torch.float32, dtype=torch.float32):
    plan = make_plan(tuple(shapes), tuple(entries))
    weights = [torch.randn(shape).to(weight_dtype) for shape in shapes]
    p, q = torch.randn(batch, plan.p_width), torch.randn(batch, plan.q_width)
    grads = [torch.randn(batch, m.out_rows, m.out_cols).to(dtype) for m in plan.matrices]
    return plan, weights, p, q, grads


def check(shapes, entries, batch, weight_dtype=torch.float32, dtype=torch.float32, configuration=SMALL):
    plan, weights, p, q, grads = case(shapes, entries, batch, weight_dtype, dtype)
    for found, right in zip(forward(plan, weights, p, q, dtype, configuration), truth(plan, weights, p, q)):
        assert found.dtype == dtype
        assert relative_error(found, right) <= TOLERANCE[dtype]
    found = backward(plan, weights, p, q, grads, configuration=configuration)
    for f, right in zip(found, truth(plan, weights, p, q, grads)):
        assert relative_error(f, right) <= TOLERANCE[f.dtype]


@needs_triton
@pytest.mark.parametrize("group", range(1, 17))
def test_every_group(group, poisoned_memory):
    weight_dtype, dtype = DTYPES[group % len(DTYPES)]
    check([(1, 3 * group, 5 * group)], [(0, group, group)], 3, weight_dtype, dtype)


@needs_triton
@pytest.mark.parametrize(("weight_dtype", "dtype"), DTYPES)
def test_every_type_in_the_configurations_in_use(weight_dtype, dtype, poisoned_memory):
    plan, weights, p, q, grads = case([(1, 40, 264)], [(0, 4, 4)], 5, weight_dtype, dtype)
    found = forward(plan, weights, p, q, dtype, triton.FORWARD)
    assert relative_error(found[0], truth(plan, weights, p, q)[0]) <= TOLERANCE[dtype]
    found = backward(plan, weights, p, q, grads, configuration=triton.BACKWARD)
    for f, right in zip(found, truth(plan, weights, p, q, grads)):
        assert relative_error(f, right) <= TOLERANCE[f.dtype]


@needs_triton
@pytest.mark.parametrize("seed", range(12))
def test_random_sweep(seed, poisoned_memory):
    r = torch.Generator().manual_seed(seed)

    def pick(*choices):
        return choices[int(torch.randint(len(choices), (1,), generator=r, device="cpu"))]

    row_group, col_group = pick(1, 2, 3, 4, 6, 7, 8, 16), pick(1, 2, 3, 4, 5, 8, 12, 16, 40)
    shape = (pick(1, 2), row_group * pick(1, 2, 3, 5), col_group * pick(1, 2, 3, 7))
    check([shape], [(0, row_group, col_group)], pick(1, 2, 3, 5, 8), *pick(*DTYPES))


@needs_triton
def test_layers_at_several_scales_share_their_weight(poisoned_memory):
    entries = [(0, 2, 2), (1, 4, 3), (0, 4, 4), (0, 8, 2), (0, 3, 1)]
    check([(2, 24, 16), (1, 8, 48)], entries, 3)


@needs_triton
def test_groups_as_long_as_the_matrix(poisoned_memory):
    check([(1, 21, 75), (1, 1, 70), (1, 36, 1)], [(0, 21, 75), (1, 1, 70), (2, 36, 1)], 2)


@needs_triton
@pytest.mark.parametrize("empty", [(1, 0, 8), (1, 8, 0), (0, 8, 8)])
@pytest.mark.parametrize("where", [0, 1, 2])
def test_empty_matrices(empty, where, poisoned_memory):
    shapes = [(1, 8, 8), (1, 8, 4)]
    shapes.insert(where, empty)
    check(shapes, [(0, 2, 2), (1, 2, 2), (2, 2, 2)], 2)
    check([empty], [(0, 2, 2)], 2)


@needs_triton
def test_no_tasks(poisoned_memory):
    plan, weights, p, q, grads = case([(2, 24, 16)], [(0, 2, 2), (0, 4, 4)], 0)
    assert all(out.numel() == 0 for out in forward(plan, weights, p, q))
    dW, dp, dq = backward(plan, weights, p, q, grads)
    assert dW.abs().max() == 0
    assert dp.shape == p.shape and dq.shape == q.shape


@needs_triton
def test_a_weight_that_nothing_reads_has_a_gradient_of_zero(poisoned_memory):
    check([(1, 8, 8), (2, 4, 4)], [(0, 2, 2)], 2)


@pytest.fixture(scope="module")
def all_gradients():
    """Two weights and three matrices, with every gradient, to be made once."""
    with torch.device(DEVICE):
        inputs = case([(1, 12, 40), (1, 6, 8)], [(0, 3, 4), (1, 2, 2), (0, 2, 8)], 3)
        return inputs, backward(*inputs)


@needs_triton
@pytest.mark.parametrize("needs", [(w, v, p, q) for w in (0, 1) for v in (0, 1) for p in (0, 1) for q in (0, 1)])
def test_each_subset_of_gradients(all_gradients, needs, poisoned_memory):
    inputs, full = all_gradients
    for f, need, same in zip(backward(*inputs, needs), needs, full):
        assert (f is not None) == bool(need)
        assert f is None or torch.equal(f, same)


@needs_triton
def test_tensors_at_any_address(poisoned_memory):
    plan, weights, p, q, grads = case([(2, 16, 64)], [(0, 2, 2)], 3)
    assert triton._aligned(plan, weights) and not triton._aligned(plan, [unaligned(weights[0])])
    moved = [unaligned(weights[0])], unaligned(p), unaligned(q)
    for a, b in zip(forward(plan, weights, p, q), forward(plan, *moved)):
        assert torch.equal(a, b)
    found = backward(plan, *moved, [unaligned(g) for g in grads])
    for a, b in zip(backward(plan, weights, p, q, grads), found):
        assert torch.equal(a, b)


@needs_triton
def test_bit_equal_over_repeats_and_independent_of_other_tasks(poisoned_memory):
    plan, weights, p, q, grads = case([(1, 24, 40)], [(0, 4, 4), (0, 8, 2)], 5)
    first = [*forward(plan, weights, p, q), *backward(plan, weights, p, q, grads)]
    again = [*forward(plan, weights, p, q), *backward(plan, weights, p, q, grads)]
    assert all(torch.equal(a, b) for a, b in zip(first, again))
    few = [*forward(plan, weights, p[:2], q[:2])]
    few += backward(plan, weights, p[:2], q[:2], [g[:2].contiguous() for g in grads])[1:]
    assert all(torch.equal(a[:2], b) for a, b in zip([*first[:2], *first[3:]], few))


@needs_triton
def test_more_matrices_than_one_write_of_addresses():
    count = triton.ADDRESSES_PER_LAUNCH + 9
    plan, weights, p, q, grads = case([(1, 2, 4)] * count, [(k, 2, 2) for k in range(count)], 2)
    for found, right in zip(forward(plan, weights, p, q), truth(plan, weights, p, q)):
        assert relative_error(found, right) <= 1e-5
    for found, right in zip(backward(plan, weights, p, q, grads), truth(plan, weights, p, q, grads)):
        assert relative_error(found, right) <= 1e-5


@needs_triton
def test_nan_stays_where_it_belongs():
    plan, weights, p, q, _ = case([(1, 8, 64)], [(0, 2, 2)], 3)
    weights[0][0, 2, 5] = float("nan")
    flat = torch.zeros(sum(plan.output_sizes(3)))
    triton.project_forward(plan, Forward(weights, p, q, flat), SMALL)
    (out,) = plan.output_views(flat, 3)
    assert out[:, 1, 2].isnan().all() and out.isnan().sum() == 3


def test_what_it_serves(monkeypatch):
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    assert triton.serves(cuda, torch.float16, torch.bfloat16) and not triton.serves(cpu, torch.float32, torch.float32)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert triton.serves(cpu, torch.float32, torch.float32) and not triton.serves(cuda, torch.float32, torch.float32)
    assert not triton.serves(cpu, torch.float64, torch.float64)
    assert not triton.serves(cpu, torch.float32, torch.float16)


def test_says_why_it_cannot_run(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    triton._why_not_installed.cache_clear()
    assert "pip install" in triton.why_unavailable()
    monkeypatch.setattr(triton, "version", lambda name: "3.3.1")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    triton._why_not_installed.cache_clear()
    assert "triton 3.3.1 is too old: it must be 3.4" in triton.why_unavailable()
    monkeypatch.setattr(triton, "version", lambda name: "3.10.0+git1")
    triton._why_not_installed.cache_clear()
    assert "no CUDA card" in triton.why_unavailable()
    triton._why_not_installed.cache_clear()


def test_the_package_needs_no_triton():
    code = "import sys; sys.modules['triton'] = None; import projkern; projkern.available_backends()"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


COMPILE = """
import json, pathlib, re, subprocess, sys, tempfile
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from projkern.kernels.backends import triton as launchers, triton_kernels as kernels
from projkern.kernels.plan import make_plan

POINTERS = {"p": "*fp32", "q": "*fp32", "parts": "*fp32", "p_parts": "*fp32", "q_parts": "*fp32"}
NUMBERS = {"batch": "i32", "p_width": "i32", "q_width": "i32", "width": "i32"}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
CUOBJDUMP = pathlib.Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


def compiled(kernel, capability, out, constants, registers=255, num_warps=4):
    types, aligned = {}, {}
    for n, name in enumerate(kernel.arg_names):
        if name in constants:
            types[name] = "constexpr"
        elif name in ("addresses", "d_addresses", "grads"):
            types[name] = "*i64"
        else:
            types[name] = {**POINTERS, **NUMBERS, "out": "*" + out}.get(name, "*i64")
            if name != "batch":
                aligned[(n,)] = [["tt.divisibility", 16]]
    values = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    options = {"num_warps": num_warps, "maxnreg": registers, **launchers.FUSED}
    result = triton.compile(
        ASTSource(kernel, types, values, aligned), target=GPUTarget("cuda", capability, 32), options=options
    )
    ptx = result.asm["ptx"]
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        pathlib.Path(file.name).write_bytes(result.asm["cubin"])
        usage = subprocess.run([CUOBJDUMP, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    return {
        "loads of 16 bytes": len(re.findall(r"ld\\.global\\S*\\.v4\\.b32", ptx)),
        "stores of 16 bytes": len(re.findall(r"st\\.global\\S*\\.v4\\.b32", ptx)),
        "multiply-adds": ptx.count("fma.rn.f32"),
        "stack": int(re.search(r"STACK:(\\d+)", usage)[1]),
        "registers": int(re.search(r"REG:(\\d+)", usage)[1]),
        "local": ".local" in ptx,
        "atomics": bool(re.search(r"\\b(atom|red)\\.", ptx)),
        "shuffles": ptx.count("shfl.sync"),
    }


def project(direction, capability, weight, out, groups, batch, aligned):
    plan = make_plan(((2, 512, 2048),), tuple((0, g, g) for g in groups))
    chosen = launchers.FORWARD if direction == "forward" else launchers.BACKWARD
    constants = launchers._constants(plan, batch, chosen, aligned)
    sizes = (torch.device("cpu"), constants["ROWS"], constants["COLS"])
    warps, registers = constants.pop("num_warps"), constants.pop("maxnreg")
    constants = {name: value for name, value in constants.items() if name not in launchers.FUSED}
    constants |= {"W_TYPE": launchers._type(DTYPES[weight]), "ALIGNED": aligned}
    if direction == "forward":
        kernel = kernels._project_forward_kernel
        constants["VARIANTS"] = launchers._forward_tables(plan, *sizes).variants
    else:
        kernel = kernels._project_backward_kernel
        constants["VARIANTS"] = launchers._backward_tables(plan, *sizes, chosen.band).variants
        constants |= {"G_TYPE": launchers._type(DTYPES[out]), "BAND": chosen.band, "BLOCK": chosen.block}
        constants |= {"NEED_W": True, "NEED_P": True, "NEED_Q": True}
    return compiled(kernel, capability, out, constants, registers, warps)


facts = [[spec, project(*spec)] for spec in json.loads(sys.argv[1])]
facts.append([["sum"], compiled(kernels._sum_parts_kernel, 90, "fp32", {"BLOCK": launchers.SUM_BLOCK})])
print(json.dumps(facts))
"""

SPECS = [
    (direction, 90, weight, "bf16", [group], 32, True)
    for direction in ("forward", "backward")
    for weight in ("fp32", "bf16")
    for group in (2, 4, 8)
]
SPECS += [(d, capability, "fp32", "bf16", [4], 1, True) for d in ("forward", "backward") for capability in (80, 120)]
SPECS += [(d, 90, "fp16", "fp32", [2, 4, 8], 8, True) for d in ("forward", "backward")]
SPECS += [(d, 90, "fp32", "fp32", [4], 8, False) for d in ("forward", "backward")]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """What the compiler makes of each of SPECS, for cards that need not be here."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed")
    env = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton"))}
    run = subprocess.run([sys.executable, "-c", COMPILE, json.dumps(SPECS)], env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-4000:]
    return json.loads(run.stdout)


def test_compiles_for_real_cards_without_spills_or_atomics(compiled):
    assert len(compiled) == len(SPECS) + 1
    for spec, fact in compiled:
        assert not fact["local"] and not fact["atomics"], (spec, fact)
        several_scales = spec[0] == "backward" and len(spec[4]) > 1  # the compiler's versions differ by a few bytes
        assert fact["stack"] <= (128 if several_scales else 0), (spec, fact)


def test_reads_16_bytes_at_a_time_where_addresses_allow_it(compiled):
    for spec, fact in compiled[:-1]:
        direction, *_, aligned = spec
        if not aligned:
            assert fact["loads of 16 bytes"] <= 2, (spec, fact)  # of q, whose address is known
        elif direction == "forward":
            assert fact["loads of 16 bytes"] >= 4, (spec, fact)
        else:
            assert fact["loads of 16 bytes"] >= 4 and fact["stores of 16 bytes"] >= 2, (spec, fact)


def test_sums_over_groups_of_the_forward_stay_in_a_thread(compiled):
    for spec, fact in compiled[:-1]:
        direction, _, _, _, groups, _, aligned = spec
        if direction == "forward" and aligned and max(groups) <= 4:
            assert fact["shuffles"] == 0, (spec, fact)


LAUNCH = """
import collections, json
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction
from projkern.kernels.backends import triton as launchers
from projkern.kernels.backends.backend import Backward, Forward
from projkern.kernels.plan import make_plan


class NoCard:
    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0


def compile_only(self, *args, grid, warmup, **options):
    made[self.__name__].append(run(self, *args, grid=grid, warmup=True, **options).hash)


triton.runtime.driver.set_active(NoCard())
run, JITFunction.run, made = JITFunction.run, compile_only, collections.defaultdict(list)
weights = [torch.randn(2, 512, 512), torch.randn(1, 64, 64)]
plan = make_plan(((2, 512, 512), (1, 64, 64)), ((0, 4, 4), (1, 2, 8)))
for batch in (31, 32):
    p, q = torch.randn(batch, plan.p_width), torch.randn(batch, plan.q_width)
    grads = [torch.randn(batch, m.out_rows, m.out_cols) for m in plan.matrices]
    launchers.project_forward(plan, Forward(weights, p, q, torch.empty(sum(plan.output_sizes(batch)))))
    d_weights = [torch.empty_like(w) for w in weights]
    launchers.project_backward(plan, Backward(weights, p, q, grads, d_weights, p.clone(), q.clone()))
print(json.dumps(made))
"""


def test_one_launch_each_way_and_no_new_compilation_for_a_new_batch(tmp_path):
    """The launchers run up to the launch itself, with Triton's own handling of arguments."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed")
    env = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    run = subprocess.run([sys.executable, "-c", LAUNCH], env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-4000:]
    compilations = json.loads(run.stdout)
    for name in ("_project_forward_kernel", "_project_backward_kernel"):
        assert len(compilations[name]) == 2 and len(set(compilations[name])) == 1, (name, compilations)
    assert len(compilations["_sum_parts_kernel"]) == 4 and len(set(compilations["_sum_parts_kernel"])) == 1
