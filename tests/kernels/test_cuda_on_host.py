"""The CUDA kernels without a card (cuda_on_host/build.py): values, every way to call them, races, barriers, bounds."""

from __future__ import annotations

import ctypes
import re
import shutil
import sys
from dataclasses import dataclass, field
from itertools import product

import cuda_on_host
import pytest
import torch
from oracle import gradients, project_dense, relative_error
from torch import Tensor

from projkern.kernels.plan import make_plan

if not sys.platform.startswith("linux") or shutil.which(cuda_on_host.compiler()) is None:
    pytest.skip("running CUDA kernels on the host needs Linux and a C++ compiler", allow_module_level=True)

pytestmark = pytest.mark.usefixtures("one_thread")

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
SPLIT = 2**-15  # float32 results by way of tensor cores, which multiply two bfloat16 for each float32
NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
WEIGHTS, OUTPUTS = list(NAMES), [torch.float32, torch.bfloat16]
SCHEDULES = [("ascending", 0), ("descending", 0), ("random", 1), ("random", 2)]


@pytest.fixture(scope="module", params=["plain", "races"])
def library(request):
    return cuda_on_host.build(request.param)


@pytest.fixture(scope="module")
def plain():
    return cuda_on_host.build("plain")


@pytest.fixture(scope="module")
def races():
    return cuda_on_host.build("races")


class Memory:
    """Named tensors, each between margins that show what is written beside it."""

    MARGIN = 64

    def __init__(self, offset: int):
        self.offset = offset  # in elements: how far from the alignment of fresh memory
        self.tensors: dict[str, Tensor] = {}
        self.margins: list[tuple[str, Tensor, Tensor]] = []

    def put(self, name: str, value: Tensor) -> Tensor:
        start = self.MARGIN + self.offset
        whole = torch.full((start + value.numel() + self.MARGIN,), float("nan"), dtype=value.dtype)
        tensor = whole[start : start + value.numel()].view(value.shape)
        tensor.copy_(value)
        self.tensors[name] = tensor
        self.margins += [(name, whole, part) for part in (whole[:start], whole[start + value.numel() :])]
        return tensor

    def unwritten(self, name: str, shape: tuple[int, ...] | torch.Size, dtype: torch.dtype) -> Tensor:
        return self.put(name, torch.full(shape, float("nan"), dtype=dtype))

    def check(self) -> None:
        for name, _, margin in self.margins:
            assert margin.isnan().all(), f"something was written beside {name}"


@dataclass
class Call:
    """A plan and its operands, made from a seed, and what the kernels must make of them."""

    shapes: list[tuple[int, int, int]]
    entries: list[tuple[int, int, int]]  # weight, row group, column group
    batch: int
    weight_dtype: torch.dtype = torch.float32
    output_dtype: torch.dtype = torch.float32
    d_weight_dtype: torch.dtype | None = None
    offset: int = 0
    workspace: bool = True
    needs: tuple[bool, bool, bool] = (True, True, True)
    seed: int = 0
    truth: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self):
        self.plan = make_plan(tuple(self.shapes), tuple(self.entries))
        self.d_weight_dtype = self.d_weight_dtype or self.weight_dtype
        r = torch.Generator().manual_seed(self.seed)
        self.weights = [torch.randn(shape, generator=r).to(self.weight_dtype) for shape in self.shapes]
        self.p = torch.randn(self.batch, self.plan.p_width, generator=r)
        self.q = torch.randn(self.batch, self.plan.q_width, generator=r)
        shapes = [(self.batch, m.out_rows, m.out_cols) for m in self.plan.matrices]
        self.grads = [torch.randn(shape, generator=r).to(self.output_dtype) for shape in shapes]

    def native(self, library):
        rows = [tuple(getattr(m, name) for name in m.__dataclass_fields__) for m in self.plan.matrices]
        return library.Plan(weights=self.shapes, matrices=rows, p_width=self.plan.p_width, q_width=self.plan.q_width)

    def place(self, memory: Memory) -> tuple[list[int], str, int, int]:
        weights = [memory.put(f"W[{k}]", w).data_ptr() for k, w in enumerate(self.weights)]
        p, q = memory.put("p", self.p).data_ptr(), memory.put("q", self.q).data_ptr()
        return weights, NAMES[self.weight_dtype], p, q

    def forward(self, library) -> dict[str, Tensor]:
        memory = Memory(self.offset)
        operands = self.place(memory)
        flat = memory.unwritten("W_s", (sum(self.plan.output_sizes(self.batch)),), self.output_dtype)
        starts = [flat.data_ptr() + x * flat.element_size() for x in self.plan.output_offsets(self.batch)]
        library.set_memory(memory.tensors)
        self.native(library).project_forward(*operands, starts, NAMES[self.output_dtype], batch=self.batch, stream=0)
        memory.check()
        return {f"W_s[{k}]": out for k, out in enumerate(self.plan.output_views(flat, self.batch))}

    def backward(self, library) -> dict[str, Tensor]:
        memory, native = Memory(self.offset), self.native(library)
        operands = self.place(memory)
        grads = [memory.put(f"G[{k}]", g) for k, g in enumerate(self.grads)]
        found: dict[str, Tensor] = {}
        if self.needs[0]:
            for k, shape in enumerate(self.shapes):
                found[f"dW[{k}]"] = memory.unwritten(f"dW[{k}]", shape, self.d_weight_dtype)
        for name, like, need in (("dp", self.p, self.needs[1]), ("dq", self.q, self.needs[2])):
            if need:
                found[name] = memory.unwritten(name, like.shape, torch.float32)
        workspace = 0
        if self.workspace and self.needs[2]:
            size = native.partial_dq_size(self.batch)
            workspace = memory.unwritten("workspace", (size,), torch.float32).data_ptr()
        library.set_memory(memory.tensors)
        native.project_backward(
            *operands,
            [g.data_ptr() for g in grads],
            NAMES[self.output_dtype],
            [found[f"dW[{k}]"].data_ptr() for k in range(len(self.shapes))] if self.needs[0] else [],
            NAMES[self.d_weight_dtype],
            found["dp"].data_ptr() if self.needs[1] else 0,
            found["dq"].data_ptr() if self.needs[2] else 0,
            workspace,
            self.batch,
            0,
        )
        memory.check()
        return found

    def make_truth(self) -> dict[str, Tensor]:
        if self.truth:
            return self.truth
        dW = [torch.zeros(shape, dtype=torch.float64) for shape in self.shapes]
        dp, dq = torch.zeros_like(self.p).double(), torch.zeros_like(self.q).double()
        for k, (m, grad) in enumerate(zip(self.plan.matrices, self.grads)):
            rows, cols = slice(m.p_offset, m.p_offset + m.rows), slice(m.q_offset, m.q_offset + m.cols)
            operands = self.weights[m.weight][m.layer], self.p[:, rows], self.q[:, cols], m.row_group, m.col_group
            self.truth[f"W_s[{k}]"] = project_dense(*operands)
            d_weight, dp[:, rows], dq[:, cols] = gradients(*operands, grad)
            dW[m.weight][m.layer] += d_weight
        self.truth |= {f"dW[{k}]": x for k, x in enumerate(dW)} | {"dp": dp, "dq": dq}
        return self.truth

    def check(self, found: dict[str, Tensor]) -> None:
        truth = self.make_truth()
        for name, value in found.items():
            tolerance = TOLERANCE[value.dtype]
            if self.output_dtype == torch.bfloat16:
                tolerance = max(tolerance, SPLIT)
            assert relative_error(value, truth[name]) <= tolerance, name

    def check_both(self, library) -> None:
        self.check(self.forward(library))
        self.check(self.backward(library))


def bit_equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def random_call(seed: int) -> Call:
    """One or two weights at some scales, everything else at random; half of them shaped for the fast paths."""
    r = torch.Generator().manual_seed(seed)

    def pick(*choices):
        return choices[int(torch.randint(len(choices), (1,), generator=r))]

    shapes, entries = [], []
    for k in range(pick(1, 1, 2)):
        if pick(True, False):
            group = pick(2, 4, 8)
            scales = pick([(group, group)], [(2, 2), (4, 4), (8, 8)], [(group, group), (1, 2)])
            shapes.append((pick(1, 2), 8 * pick(1, 3, 8, 9, 17), 8 * pick(1, 5, 16, 31, 40)))
        else:
            group = pick(*range(1, 17)), pick(*range(1, 17))
            scales = [group]
            shapes.append((pick(1, 3), group[0] * pick(1, 2, 5, 9, 13), group[1] * pick(1, 3, 8, 17)))
        entries += [(k, *scale) for scale in scales]
    weight_dtype = pick(*WEIGHTS)
    return Call(
        shapes,
        entries,
        batch=pick(0, 1, 2, 7, 16, 17, 33),
        weight_dtype=weight_dtype,
        output_dtype=pick(*OUTPUTS),
        d_weight_dtype=pick(weight_dtype, torch.float32),
        offset=pick(0, 0, 0, 1),
        workspace=pick(True, False),
        seed=seed,
    )


@pytest.mark.parametrize("seed", range(60))
def test_random_sweep(plain, seed):
    random_call(seed).check_both(plain)


@pytest.mark.parametrize("seed", range(100, 112))
def test_nothing_races_nor_reaches_beyond_its_memory(races, seed):
    random_call(seed).check_both(races)


@pytest.mark.parametrize("output_dtype", OUTPUTS)
@pytest.mark.parametrize("weight_dtype", WEIGHTS)
@pytest.mark.parametrize("group", [2, 4, 8])
def test_fast_paths(library, group, weight_dtype, output_dtype):
    """Rows that end inside a strip, columns that end inside any tile, and batches around the tensor cores' tiles."""
    cases = (1, 72, 520), (16, 136, 264), (64, 64, 272), (35, 24, 320), (18, 68, 288), (33, 200, 128)
    for batch, rows, cols in cases if library.kind == "plain" else [(33, 72, 328), (34, 72, 320)]:
        rows = rows // group * group
        Call([(1, rows, cols)], [(0, group, group)], batch, weight_dtype, output_dtype).check_both(library)


@pytest.mark.parametrize("group", range(1, 17))
def test_every_group(plain, group):
    shapes = [(1, 5 * group, 3 * group), (1, 70 * group, 2 * (17 - group)), (2, 3 * (17 - group), 9 * group)]
    entries = [(0, group, group), (1, group, 17 - group), (2, 17 - group, group)]
    Call(shapes, entries, 3).check_both(plain)


@pytest.mark.parametrize(("weight_dtype", "output_dtype"), [(OUTPUTS[0], OUTPUTS[1]), (OUTPUTS[1], OUTPUTS[0])])
@pytest.mark.parametrize("batch", [3, 33])
def test_several_scales_of_one_source_are_summed(library, batch, weight_dtype, output_dtype):
    entries = [(0, 2, 2), (0, 4, 4), (1, 8, 2), (0, 8, 8), (0, 1, 16), (0, 4, 4)]
    shapes = [(2, 80, 192), (1, 24, 40)]
    Call(shapes, entries, batch, weight_dtype, output_dtype, d_weight_dtype=torch.float32).check_both(library)


@pytest.mark.parametrize("where", ["first", "middle", "last", "only"])
@pytest.mark.parametrize("workspace", [True, False])
@pytest.mark.parametrize("empty", [(1, 0, 16), (1, 16, 0), (0, 16, 16)])
def test_empty_matrices(plain, where, workspace, empty):
    full = (1, 16, 24)
    places = {"first": [empty, full, full], "middle": [full, empty, full], "last": [full, full, empty], "only": [empty]}
    shapes = places[where]
    Call(shapes, [(k, 2, 2) for k in range(len(shapes))], 2, workspace=workspace).check_both(plain)


@pytest.mark.parametrize("group", [2, 3, 8])
@pytest.mark.parametrize("needs", [(w, p, q) for w in (0, 1) for p in (0, 1) for q in (0, 1) if w + p + q])
def test_each_subset_of_gradients(library, needs, group):
    for workspace in (True, False):
        for batch, output_dtype in ((2, torch.float32), (18, torch.bfloat16)):
            options = {"needs": needs, "workspace": workspace}
            call = Call([(1, 72, 192)], [(0, group, group)], batch, torch.float32, output_dtype, **options)
            call.check(call.backward(library))


@pytest.mark.parametrize("weight_dtype", WEIGHTS)
@pytest.mark.parametrize("group", [2, 5, 8])
def test_unaligned_addresses(library, group, weight_dtype):
    Call([(1, 40, 80)], [(0, group, group)], 17, weight_dtype, torch.bfloat16, offset=1).check_both(library)
    # One matrix moves p and q of the next to where no vector starts.
    Call([(1, 3, 5), (1, 40, 80)], [(0, 1, 1), (1, group, group)], 17, weight_dtype).check_both(library)


@pytest.mark.parametrize("batch", [5, 20])
@pytest.mark.parametrize("output_dtype", OUTPUTS)
@pytest.mark.parametrize("group", [2, 3, 4, 8])
def test_bit_equal_over_schedules(plain, group, output_dtype, batch):
    """What threads do between two meetings may come in any order; copies may land at any time before they must."""
    shapes = [(1, 24 * group, 40 * group), (1, 72, 280)]
    call = Call(shapes, [(0, group, group), (1, 2, 2), (0, group, group)], batch, torch.bfloat16, output_dtype)
    results = []
    try:
        for schedule in SCHEDULES:
            for late in (True, False):
                plain.set_schedule(*schedule)
                plain.set_late_copies(late)
                results.append((call.forward(plain), call.backward(plain)))
    finally:
        plain.set_schedule("ascending")
        plain.set_late_copies(True)
    assert all(bit_equal(a, b) for result in results[1:] for a, b in zip(result, results[0]))


def test_atomic_sums_are_the_ordered_ones_but_for_rounding(plain):
    ordered, atomic = (Call([(2, 200, 264)], [(0, 4, 4)], 6, workspace=on).backward(plain) for on in (True, False))
    assert torch.equal(ordered["dW[0]"], atomic["dW[0]"]) and torch.equal(ordered["dp"], atomic["dp"])
    assert torch.allclose(ordered["dq"], atomic["dq"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layers", [319, 320, 321, 700])
def test_more_matrices_than_a_table_holds(plain, layers):
    Call([(1, 4, 6), (layers, 4, 6)], [(0, 1, 3), (1, 2, 2)], 2).check_both(plain)


def test_scales_fill_a_table(plain):
    """Two scales a source: the table's end comes where the second would not fit."""
    shapes = [(1, 4, 6), (161, 4, 6)]
    Call(shapes, [(0, 1, 3), (1, 2, 2), (1, 4, 1)], 2).check_both(plain)
    with pytest.raises(ValueError, match="at most 320 scales in one call; it was 321"):
        Call([(1, 4, 6)], [(0, 2, 2)] * 321, 1).forward(plain)


def test_a_wrong_number_of_addresses_is_an_error(plain):
    native = Call([(1, 4, 6)], [(0, 2, 2)], 1).native(plain)
    with pytest.raises(ValueError, match="0 weights for a plan of 1"):
        native.project_forward([], "float32", 0, 0, [0], "float32", 1, 0)
    with pytest.raises(ValueError, match="storage type int8"):
        native.project_forward([0], "int8", 0, 0, [0], "float32", 1, 0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(200, 800))
def test_long_random_sweep(library, seed):
    library.set_schedule("random", seed)
    library.set_late_copies(seed % 3 > 0)
    try:
        random_call(seed).check_both(library)
    finally:
        library.set_schedule("ascending")
        library.set_late_copies(True)


WAIT = re.compile(r"(if \([^()]*\) )?\b(barrier\(\)|warp_barrier\(\)|wait_copies<\d+>\(\));")
DRAINS = ("backward_lanes.cuh", "backward_matrix.cuh")  # end with a wait, which nothing in the block can miss
WAITS = [  # of the kernels: file, and which of its waits
    (path.name, k)
    for path in sorted((cuda_on_host.CSRC / "cuda").glob("*.cu*"))
    if path.name != "primitives.cuh"
    for k in range(len(WAIT.findall(path.read_text())) - (path.name in DRAINS))
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "which"), WAITS)
def test_each_wait_of_the_kernels_is_missed_when_it_is_gone(tmp_path, name, which):
    csrc = shutil.copytree(cuda_on_host.CSRC, tmp_path / "csrc")
    text = (csrc / "cuda" / name).read_text()
    wait = list(WAIT.finditer(text))[which]
    (csrc / "cuda" / name).write_text(text[: wait.start()] + ";" + text[wait.end() :])
    library = cuda_on_host.load("races", cuda_on_host.make("races", cuda_on_host.kernels(csrc), tmp_path / "build"))
    with pytest.raises(RuntimeError, match="shared memory|dW"):
        for group, weight_dtype, output_dtype in product([2, 4, 8], WEIGHTS, OUTPUTS):
            for batch in (3, 35):
                scales = [(0, group, group), (0, 2, 2), (0, 3, 3)]
                call = Call([(1, 72, 576)], scales, batch, weight_dtype, output_dtype, d_weight_dtype=torch.float32)
                call.forward(library), call.backward(library)


# ---- the machine itself: what it must find, and what it must not ----

TOYS = cuda_on_host.HERE / "toys.cu"

FOUND = {  # by what "races" says of the kernel when it is broken
    "missing barrier": r"writes byte 128 of shared memory \(toys.cu:\d+\) with nothing .* after a read by .*thread 0 ",
    "missing second barrier": "of shared memory .* with nothing that orders it",
    "missing warp barrier": r"thread 1: writes byte 4 of shared memory .* with nothing .* after a read by .*thread 0 ",
    "warp barrier for barrier": "of shared memory .* with nothing that orders it",
    "blocks write the same": "block 1, thread 0: writes byte 0 of out .* after a write by block 0, thread 0 ",
    "sum without atomics": "byte 0 of out .* after a write by block 0, thread 0 ",
    "read while others add": "adds to byte 0 of out .* after a read",
    "missing wait": "reads byte 0 of shared memory .* while a copy_async by block 0, thread 0",
    "wait for too few": "reads byte 4096 of shared memory .* while a copy_async",
    "missing barrier after wait": "reads byte 4 of shared memory .* after a write by block 0, thread 0 ",
    "constant is written": "writes byte 0 of out .* which is a constant for a read",
}
REFUSED = {  # by what both kinds say
    "some return early": r"stuck: threads 0 to 127 at barrier \(toys.cu:\d+\); threads 128 to 255 returned",
    "lane stays away": "stuck: .*threads 32 to 39 at shuffle_xor.*; thread 40 returned",
    "lanes at different places": "thread 1: is at shuffle_xor .* where lane 0 of its warp is at warp_barrier",
    "misaligned load": "loads from an address that is no multiple of 16",
    "misaligned copy": "copy_async to an address that is no multiple of 16",
    "write beside shared memory": "byte 8192 of a shared memory of 8192 bytes|nobody gave it this memory",
}


class Toys(cuda_on_host.Controls):
    def __init__(self, kind: str):
        super().__init__(cuda_on_host.make(kind, [TOYS]))
        self.kind = kind
        self.library.run_toy.restype = ctypes.c_char_p

    def run(self, name: str, intact: bool, inputs: Tensor, out: Tensor) -> str:
        self.set_memory({"given": inputs, "out": out})
        addresses = ctypes.c_void_p(inputs.data_ptr()), ctypes.c_void_p(out.data_ptr())
        return self.library.run_toy(name.encode(), *addresses, intact).decode()

    def convert(self, name: str, x: Tensor, dtype: torch.dtype) -> Tensor:
        result = torch.empty(x.shape, dtype=dtype)
        getattr(self.library, name)(ctypes.c_void_p(x.data_ptr()), ctypes.c_void_p(result.data_ptr()), x.numel())
        return result


@pytest.fixture(scope="module", params=["plain", "races"])
def toys(request):
    return Toys(request.param)


@pytest.mark.parametrize("name", [*FOUND, *REFUSED])
def test_intact_kernels_pass_and_broken_ones_are_found(toys, name):
    inputs, out = torch.randn(2048), torch.zeros(2048)
    for schedule in SCHEDULES:
        toys.set_schedule(*schedule)
        assert toys.run(name, True, inputs, out) == ""
    toys.set_schedule("ascending")
    message = toys.run(name, False, inputs, out)
    if name in REFUSED or toys.kind == "races":
        assert re.search((FOUND | REFUSED)[name], message), message
    assert toys.run(name, True, inputs, out) == ""  # a failed launch leaves nothing behind


@pytest.mark.parametrize("name", ["missing barrier", "missing wait", "wait for too few", "missing barrier after wait"])
def test_without_following_accesses_broken_kernels_differ_between_schedules(name):
    toys, inputs = Toys("plain"), torch.randn(2048)

    def outputs(intact):
        for schedule in SCHEDULES:
            toys.set_schedule(*schedule)
            out = torch.zeros(256)
            toys.run(name, intact, inputs, out)
            yield out

    first, *others = outputs(True)
    assert first.isfinite().all() and all(torch.equal(first, out) for out in others)
    first, *others = outputs(False)
    assert not all(torch.equal(first, out) and out.isfinite().all() for out in others)


def test_shared_memory_starts_as_nan(toys):
    out = torch.zeros(256)
    for _ in range(2):
        assert toys.run("read of what was not written", True, out, out) == ""
        assert (out == 0).all()
        assert toys.run("read of what was not written", False, out, out) == ""
        assert out.isnan().all()


@pytest.mark.parametrize("name", ["no blocks", "too many threads", "too much shared memory"])
def test_launches_that_a_card_would_refuse(toys, name):
    assert "a card would refuse this launch" in toys.run(name, True, torch.zeros(1), torch.zeros(1))


@pytest.mark.parametrize("steps", [1, 2])
def test_tensor_core_products(toys, steps):
    A, B, D = torch.randn(16, 16).bfloat16().float(), torch.randn(16, 8).bfloat16().float(), torch.randn(16, 8)
    out = D.clone()
    assert toys.run("multiply", steps == 1, torch.cat([A.flatten(), B.flatten()]), out) == ""
    assert relative_error(out, D.double() + A.double() @ B.double()) <= 1e-6


def test_transpose(toys):
    X, out = torch.arange(64.0).view(8, 8), torch.zeros(8, 8)
    assert toys.run("transpose", True, X, out) == ""
    assert torch.equal(out, X.T)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_conversions_are_torchs(toys, dtype):
    name = NAMES[dtype]
    bits = torch.arange(2**16, dtype=torch.int32).to(torch.int16)
    wide = toys.convert(f"of_{name}", bits, torch.float32)
    assert torch.equal(wide.nan_to_num(nan=7), bits.view(dtype).float().nan_to_num(nan=7))
    # Each value, the middles of neighbours, and a little to either side of them.
    middles = ((wide + wide.roll(-1)) / 2).nan_to_num(nan=1)
    x = torch.cat([wide, middles, middles.nextafter(torch.tensor(9e38)), middles.nextafter(torch.tensor(-9e38))])
    narrow = toys.convert(f"to_{name}", x, torch.int16).view(dtype)
    assert torch.equal(narrow.float().nan_to_num(nan=7), x.to(dtype).float().nan_to_num(nan=7))
    assert torch.equal(narrow.float().signbit()[~x.isnan()], x.signbit()[~x.isnan()])
