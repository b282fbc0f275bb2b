"""What each form of ``projkern.project_linear`` moves and computes, and which one is fastest.

Sizes: B tasks of S tokens, T = B S; W of |W| = N M elements, of w bytes; x and y of o bytes; E = |W| / (g_r g_c)
elements of one W_s; c bytes of the wider of W's and x's types; s bytes of the type of sums, float32 (float64 for
float64 W); k = ceil(S / 64) tiles of tokens.

A form is a sequence of kernels. Each takes the longest of three: its bytes at the speed of a large copy, those
that it finds in the cache at the speed of a copy inside the cache, and its multiply-adds at the speed of a
matrix product (generation and scaling: in the type of sums). To the total comes the cost of a launch for each kernel.

    form           kernel             bytes                  from cache    multiply-adds
    materialised   generation         w|W| + oBE                           B|W|(1 + 1/g_r)
                   product            oBE + oT(n + m)                      TE
    projected      product            w|W| + oT(n + m)       wBk|W|        Bk|W|(1 + 1/g_r) + TE
    factored       scale x            oTm + sTM (+ (s + c)TM)              TM
                   product            c|W| + cT(N + M)                     T|W|
                   scale z, sum       (c + 2s)TN + oTn                     TN

p and q add sB(N + M) to generation, and to the scalings. The bracket is for c other than s. Where c differs from w,
the factored form first casts W: (w + c)|W|. The backward pass (all four gradients) adds

    materialised   dx, G              2oBE + 2oT(n + m)                    2TE
                   gradients of W_s   2w|W| + oBE                          B|W|(3 + 2/g_r)
    projected      dx                 w|W| + oT(n + m)       wBk|W|        Bk|W|(1 + 1/g_r) + TE
                   dp, dq             2w|W| + 2oT(n + m)     2wB|W|        2B|W|(1 + 1/g_r) + 2TE
                   dW                 w|W| + oT(n + m)                     B|W|(1 + 1/g_r) + TE
    factored       dx, dW             2c|W| + 2cT(N + M)                   2T|W|
                   scalings           6sT(N + M)                           2T(N + M)

Generation, and the gradients of W_s, are needed once for all tokens that meet the same p and q. Those of one call are
S; where W_s is kept over several calls, as in decoding, each call is charged its share (``reuse``). So when one token
of each task is decoded with kept weights, a machine bound by memory reads oB|W|/g² for the materialised form and
c|W| for the factored one, which wins from B = g² up.

Beside arguments and results, the materialised form needs oBE bytes, twice that with a backward pass; the factored
one (s + c)T(N + M); the projected one nothing. A form that needs more than what is free is not chosen.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch

from ..utils.device import free_memory
from ..utils.errors import InputError
from ..utils.numbers import whole_number
from . import limits, linear_ops
from .arguments import Group
from .machine import Constants, measure

SMALL = 64 << 20
"""Bytes that are taken to be free without asking the device."""


@dataclass(frozen=True)
class FormCost:
    """What one form costs; sizes in bytes, time in seconds."""

    name: str
    bytes: float
    """Read from and written to memory."""
    cached_bytes: float
    """Read through the cache: W, by each program that makes tiles of W_s."""
    multiply_adds: float
    launches: float
    seconds: float
    bound: str
    """What most of the time is spent on: memory, cache, arithmetic or launches."""
    memory: float
    """Needed beside arguments and results."""
    unavailable: str | None = None
    """Why the form cannot run; None if it can."""


@dataclass(frozen=True)
class Explanation:
    """The cost of each form, and the choice. ``print`` it."""

    case: str
    forms: tuple[FormCost, ...]
    choice: str
    reason: str

    def __str__(self) -> str:
        head = ("form", "memory traffic", "from cache", "multiply-adds", "launches", "extra memory", "time", "bound by")
        rows = [head] + [
            (
                f.name,
                _quantity(f.bytes, "B"),
                _quantity(f.cached_bytes, "B"),
                _quantity(f.multiply_adds, ""),
                f"{f.launches:.3g}",
                _quantity(f.memory, "B"),
                _quantity(f.seconds, "s"),
                f.bound,
            )
            for f in self.forms
        ]
        widths = [max(len(row[k]) for row in rows) for k in range(len(head))]
        lines = [
            "  ".join(cell.ljust(w) if k in (0, 7) else cell.rjust(w) for k, (cell, w) in enumerate(zip(row, widths)))
            for row in rows
        ]
        missing = [f"{f.name} is out: {f.unavailable}" for f in self.forms if f.unavailable is not None]
        return "\n".join(line.rstrip() for line in (self.case, *lines, *missing, self.reason))


def explain(
    rows: int,
    cols: int,
    group: Group,
    *,
    tasks: int,
    tokens: int,
    weight_dtype: torch.dtype = torch.float32,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    backward: bool = False,
    reuse: int = 1,
    constants: Constants | None = None,
) -> Explanation:
    """Say what each form of ``project_linear`` costs for a source matrix (rows, cols), and which one is chosen.

    Args:
        rows: N of the source matrix W.
        cols: its M.
        group: how many neighbours make one: an int, or (row_group, col_group).
        tasks: B, how many projected matrices there are.
        tokens: S, the tokens of each task that one call multiplies.
        weight_dtype: of W.
        dtype: of x and y; that of W unless given.
        device: where; torch's default device unless given.
        backward: whether all four gradients are counted too.
        reuse: how many such calls one generation serves. ``project_linear`` generates in each call; more than 1 is
            ``project`` once, its result kept, and a matrix product in each call.
        constants: what the machine can do, measured on ``device`` unless given. With them the answer is about the
            machine that they describe, and depends on nothing else.

    Returns:
        An ``Explanation``, which prints as a table.
    """
    pair = group if isinstance(group, tuple) else (group, group)
    if len(pair) != 2:
        raise InputError(f"group must be an int >= 1 or two of them (row_group, col_group); it was {group!r}")
    numbers = {"rows": rows, "cols": cols, "row_group": pair[0], "col_group": pair[1], "tasks": tasks, "tokens": tokens}
    numbers["reuse"] = reuse
    for name, value in numbers.items():
        least, number = 0 if name in ("tasks", "tokens") else 1, whole_number(value)
        if number is None or number < least:
            raise InputError(f"{name} must be an int >= {least}; it was {value!r}")
        numbers[name] = number
    rows, cols, row_group, col_group, tasks, tokens, reuse = numbers.values()
    for name, kind in (("weight_dtype", weight_dtype), ("dtype", dtype or weight_dtype)):
        if not isinstance(kind, torch.dtype) or not kind.is_floating_point:
            raise TypeError(f"{name} must be a floating torch.dtype; it was {kind!r}")
    for name, size, g in (("rows", rows, row_group), ("cols", cols, col_group)):
        if size % g:
            raise InputError(f"group must divide {name}; {g} does not divide {size}")
    target = torch.device(device) if device is not None else torch.get_default_device()
    call = Call(rows, cols, row_group, col_group, tasks, tokens, weight_dtype, dtype or weight_dtype, backward, reuse)
    if constants is None:
        constants = measure(target, call.dtypes)
        unavailable = _why_no_projected(call, target)
    else:
        unavailable = limits.why_not_served(weight_dtype, call.dtype, row_group, col_group)
    return _decide(call, _costs(call, constants, unavailable), constants.free)


@linear_ops.constant_in_graphs
def choose(
    rows: int,
    cols: int,
    row_group: int,
    col_group: int,
    tasks: int,
    tokens: int,
    weight_dtype: torch.dtype,
    dtype: torch.dtype,
    device: torch.device,
    backward: bool,
) -> str:
    """The name of the form that ``explain`` chooses, from costs that are computed once for each case."""
    if device.type not in ("cpu", "cuda"):
        return "materialised"  # nothing is measured there
    call = Call(rows, cols, row_group, col_group, tasks, tokens, weight_dtype, dtype, backward)
    forms = _known_costs(call, device)
    largest = max(form.memory for form in forms)
    return _decide(call, forms, free_memory(device) if largest > SMALL else math.inf).choice


@dataclass(frozen=True)
class Call:
    """Sizes and types of one call of ``project_linear``."""

    rows: int
    cols: int
    row_group: int
    col_group: int
    tasks: int
    tokens: int
    weight_dtype: torch.dtype
    dtype: torch.dtype
    backward: bool
    reuse: int = 1

    @property
    def wide_dtype(self) -> torch.dtype:
        """In which the factored form multiplies."""
        return torch.promote_types(self.weight_dtype, self.dtype)

    @property
    def sum_dtype(self) -> torch.dtype:
        """In which W_s is generated."""
        return torch.float64 if self.weight_dtype == torch.float64 else torch.float32

    @property
    def dtypes(self) -> tuple[torch.dtype, ...]:
        return tuple(dict.fromkeys((self.sum_dtype, self.dtype, self.wide_dtype)))

    def __str__(self) -> str:
        types = [str(dtype).removeprefix("torch.") for dtype in (self.weight_dtype, self.dtype)]
        kept = f", W_s kept for {self.reuse} calls" if self.reuse > 1 else ""
        return (
            f"W ({self.rows}, {self.cols}) in {types[0]}, groups {self.row_group} and {self.col_group}; "
            f"tasks: {self.tasks}, tokens of each: {self.tokens}, in {types[1]}; "
            f"{'forward and backward' if self.backward else 'forward'}{kept}"
        )


@dataclass(frozen=True)
class _Kernel:
    bytes: float
    multiply_adds: Mapping[torch.dtype, float]
    cached: float = 0
    launches: int = 1
    share: float = 1
    """Of its cost, how much one call bears."""

    def seconds(self, constants: Constants) -> tuple[float, str]:
        """How long it takes, and what bounds it."""
        return max(
            (self.bytes / constants.bandwidth, "memory"),
            (self.cached / constants.cache_bandwidth, "cache"),
            (sum(count / constants.rates[dtype] for dtype, count in self.multiply_adds.items()), "arithmetic"),
        )


def _costs(call: Call, constants: Constants, why_no_projected: str | None) -> tuple[FormCost, ...]:
    """The three forms, by the formulas at the top of this file."""
    B, N, M = call.tasks, call.rows, call.cols
    n, m, T, W = N // call.row_group, M // call.col_group, B * call.tokens, N * M
    E = n * m
    k = -(-call.tokens // limits.TOKEN_TILE)
    w, o, c = (dtype.itemsize for dtype in (call.weight_dtype, call.dtype, call.wide_dtype))
    sums, low, wide = call.sum_dtype, call.dtype, call.wide_dtype
    s = sums.itemsize
    factors = s * B * (N + M)
    make = 1 + 1 / call.row_group  # multiply-adds of generation, for each element of W and task
    io = o * T * (n + m)

    def arithmetic(*terms: tuple[torch.dtype, float]) -> dict[torch.dtype, float]:
        return {dtype: sum(count for d, count in terms if d == dtype) for dtype, _ in terms}

    share = 1 / call.reuse
    materialised = [
        _Kernel(w * W + o * B * E + factors, {sums: B * W * make}, share=share),
        _Kernel(o * B * E + io, {low: T * E}),
    ]
    tiles = _Kernel(w * W + io + factors, arithmetic((sums, B * k * W * make), (low, T * E)), cached=w * B * k * W)
    projected = [tiles]
    factored = [
        _Kernel(o * T * m + (s if c == s else 2 * s + c) * T * M + factors / 2, {sums: T * M}, launches=1 + (c != s)),
        _Kernel(c * W + c * T * (N + M), {wide: T * W}),
        _Kernel((c + 2 * s) * T * N + o * T * n + factors / 2, {sums: T * N}, launches=2 + (o != s)),
    ]
    if c != w:
        factored.append(_Kernel((w + c) * W, {}))
    if call.backward:
        materialised += [
            _Kernel(2 * o * B * E + 2 * io, {low: 2 * T * E}, launches=2),
            _Kernel(2 * w * W + o * B * E + 2 * factors, {sums: B * W * (3 + 2 / call.row_group)}, share=share),
        ]
        projected += [
            tiles,
            _Kernel(
                2 * w * W + 2 * io + 2 * factors,
                arithmetic((sums, 2 * B * W * make), (low, 2 * T * E)),
                cached=2 * w * B * W,
                launches=2,
            ),
            _Kernel(w * W + io + factors, arithmetic((sums, B * W * make), (low, T * E))),
        ]
        factored += [
            _Kernel(2 * c * W + 2 * c * T * (N + M), {wide: 2 * T * W}, launches=2),
            _Kernel(6 * s * T * (N + M) + 2 * factors, {sums: 2 * T * (N + M)}, launches=8),
        ]
    memory = {
        "materialised": (1 + call.backward) * o * B * E,
        "projected": 0,
        "factored": (s + c) * T * (N + M) + (c * W if c != w else 0),
    }
    forms = []
    for name, kernels in (("materialised", materialised), ("projected", projected), ("factored", factored)):
        spent = {"launches": sum(kernel.share * kernel.launches for kernel in kernels) * constants.launch}
        for kernel in kernels:
            seconds, bound = kernel.seconds(constants)
            spent[bound] = spent.get(bound, 0.0) + kernel.share * seconds
        forms.append(
            FormCost(
                name,
                bytes=sum(kernel.share * kernel.bytes for kernel in kernels),
                cached_bytes=sum(kernel.share * kernel.cached for kernel in kernels),
                multiply_adds=sum(kernel.share * sum(kernel.multiply_adds.values()) for kernel in kernels),
                launches=sum(kernel.share * kernel.launches for kernel in kernels),
                seconds=sum(spent.values()),
                bound=max(spent, key=spent.__getitem__),
                memory=memory[name],
                unavailable=why_no_projected if name == "projected" else None,
            )
        )
    return tuple(forms)


def _why_no_projected(call: Call, device: torch.device) -> str | None:
    reason = limits.why_not_served(call.weight_dtype, call.dtype, call.row_group, call.col_group)
    reason = reason or linear_ops.why_not_here(device)
    if reason is None and linear_ops.is_interpreted():
        return "Triton runs in its interpreter here (TRITON_INTERPRET=1), which is for tests"
    return reason


@lru_cache(maxsize=1024)
def _known_costs(call: Call, device: torch.device) -> tuple[FormCost, ...]:
    return _costs(call, measure(device, call.dtypes), _why_no_projected(call, device))


_WHY = {
    "materialised": "one generation of W_s serves all tokens of its task",
    "projected": "W_s is neither written nor read back",
    "factored": "W is read once for all tasks and no W_s is made",
}


def _decide(call: Call, forms: tuple[FormCost, ...], free: float) -> Explanation:
    """The fastest form that runs and fits; where none fits, the one that needs least."""
    runs = sorted((form for form in forms if form.unavailable is None), key=lambda form: form.seconds)
    fits = [form for form in runs if form.memory <= free]
    best = fits[0] if fits else min(runs, key=lambda form: form.memory)
    others = [form for form in fits if form is not best]
    reason = f"chosen: {best.name}; {_WHY[best.name]}"
    if others:
        reason += f"; predicted to take {best.seconds / others[0].seconds:.0%} of the time of {others[0].name}"
    if not fits:
        reason = (
            f"chosen: {best.name}; it needs least memory, but {_quantity(best.memory, 'B')} beside arguments and "
            f"results is more than the {_quantity(free, 'B')} that are free"
        )
    elif runs[0] is not best:
        reason += (
            f"; {runs[0].name} would be faster, but needs {_quantity(runs[0].memory, 'B')} of memory, and "
            f"{_quantity(free, 'B')} are free"
        )
    return Explanation(str(call), forms, best.name, reason)


def _quantity(value: float, unit: str) -> str:
    """Three digits and a prefix: 12.3 MB."""
    if value == 0 or math.isinf(value):
        return f"{value:g} {unit}".rstrip()
    value = float(f"{value:.3g}")
    step = min(max(math.floor(math.log10(value) / 3), -3), 5)
    return f"{value / 1000**step:.3g} {['n', 'u', 'm', '', 'k', 'M', 'G', 'T', 'P'][step + 3]}{unit}".rstrip()
