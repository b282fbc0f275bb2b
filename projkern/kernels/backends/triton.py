"""The Triton kernels' launchers: a whole plan, all layers and scales, in one launch each way.

For one source matrix W, viewed as (n, a, m, c), with p (B, n, a), q (B, m, c) and G = dL/dW_s:

    W_s[b,n,m] = sum_{a,c} p[b,n,a] W[n,a,m,c] q[b,m,c]             (paper, Eq. 1 and Fig. 2)
    dW[n,a,i]  = sum_b p[b,n,a] U[b,n,i]                            U = G q, i = (m, c)
    dp[b,n,a]  = sum_i U[b,n,i] W[n,a,i]
    dq[b,i]    = sum_n G[b,n,m] T[b,n,i]                            T[b,n,i] = sum_a p[b,n,a] W[n,a,i]

**One launch.** A program finds its tile, with all its sizes and offsets, in tables that depend on the plan (those of
outputs also on the batch) and are uploaded once. Weights and gradients are separate tensors, so their addresses are a
table too, written at each call by a tiny kernel from its arguments. Nothing is copied from the host after the first
call with the same plan and batch, which therefore warms up for the capture of a CUDA graph.

**The backward** holds a few rows of W and of dW in registers while it runs over the tasks, and then dq while it runs
over rows. Tiles leave partial sums of dp and dq, which a second kernel adds in the order of the tiles. No atomics;
tiles depend on the plan and never on the card. So results are bit-equal over repeats.

Triton is optional. It is imported at the first use, and without a card only runs interpreted (TRITON_INTERPRET=1).
"""

import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ..plan import Plan
from .backend import Backward, Forward

WEIGHT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
OUTPUT_DTYPES = (torch.float32, torch.bfloat16)
SERVES = "float32, bfloat16 and float16 weights and float32 and bfloat16 outputs on a CUDA device"

OLDEST_TRITON = (3, 4)
"""The first that reads tuples of tuples among a kernel's constants."""

ADDRESSES_PER_LAUNCH = 128
"""1 KB of kernel arguments: every card takes 4."""

SUM_BLOCK = 256

FUSED = {"enable_fp_fusion": True}
"""Multiply-adds in one instruction: Triton's default up to 3.9, which warns that it will change."""


@dataclass(frozen=True)
class Configuration:
    """How a kernel cuts a plan, in powers of two. A choice changes results by rounding only; none looks at the card."""

    lane: int  # elements of a row that a thread holds
    tasks: int  # how many tasks are served by one read of W's rows, at most
    registers: int  # of a thread, at most
    rows: int = 4  # source rows that a thread holds
    cols: int = 512  # source columns of a tile, at most
    block: int = 32  # source rows that the backward passes over twice
    band: int = 128  # source rows of a tile in the backward: dq has a part for each


FORWARD = Configuration(lane=8, tasks=4, registers=168)
BACKWARD = Configuration(lane=4, tasks=2, registers=255)
"""For every card, dtype and group: the largest that compile without spilling. Not yet tuned by measurements."""


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")


@lru_cache(maxsize=1)
def _why_not_installed() -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed; `pip install triton` on Linux, or `pip install 'projkern[gpu]'`"
    try:
        installed = version("triton")
    except PackageNotFoundError:  # torch's nightly builds bring a recent one by another name
        installed = "{}.{}".format(*OLDEST_TRITON)
    if tuple(int(part) for part in installed.split(".")[:2]) < OLDEST_TRITON:
        return f"triton {installed} is too old: it must be {'.'.join(map(str, OLDEST_TRITON))} or later"
    return None


def why_unavailable() -> str | None:
    """Why these kernels cannot run here; None if they can."""
    reason = _why_not_installed()
    if reason is not None:
        return reason
    if not torch.cuda.is_available() and not _interpreted():
        return "there is no CUDA card (with TRITON_INTERPRET=1, set before the start, the kernels run interpreted)"
    return None


def serves(device: torch.device, weight_dtype: torch.dtype, output_dtype: torch.dtype) -> bool:
    """Whether tensors of these kinds can be projected here."""
    runs_on = "cpu" if _interpreted() else "cuda"
    return device.type == runs_on and weight_dtype in WEIGHT_DTYPES and output_dtype in OUTPUT_DTYPES


@lru_cache(maxsize=1)
def _kernels() -> ModuleType:
    return importlib.import_module("projkern.kernels.backends.triton_kernels")


def _type(dtype: torch.dtype) -> Any:
    """The Triton type of a torch type."""
    return getattr(importlib.import_module("triton.language"), str(dtype).removeprefix("torch."))


def _next_power_of_two(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()


def _together(group: int, rows: int) -> int:
    """How many rows of a group the kernels take at once: the largest power of two that divides it, up to ``rows``."""
    return min(group & -group, rows)


def _constants(plan: Plan, batch: int, chosen: Configuration, aligned: bool) -> dict[str, int]:
    """The sizes that a kernel is compiled for, beside its variants."""
    widest = max((m.cols for m in plan.matrices), default=0)
    # Elements that are read one at a time have an address each, in two registers: a thread then holds fewer.
    lane = chosen.lane if aligned else min(chosen.lane, 4)
    cols = min(max(_next_power_of_two(widest), 32 * lane), chosen.cols)
    # A task takes registers for each of a tile's output rows, and small groups have more of these.
    together = min((_together(m.row_group, chosen.rows) for m in plan.matrices), default=1)
    tasks = min(together, chosen.tasks, _next_power_of_two(batch))
    return {
        "ROWS": chosen.rows,
        "COLS": cols,
        "TASKS": tasks,
        "num_warps": max(1, cols // (32 * lane)),
        "maxnreg": chosen.registers,
        **FUSED,
    }


def _upload(rows: Sequence[tuple[int, ...]], device: torch.device) -> Tensor:
    return torch.tensor(rows, dtype=torch.int64, device=device)


def _tiles(counts: Sequence[tuple[int, int]]) -> Tensor:
    """(k, down, across) of every tile, for the numbers of tiles down and across each k."""
    with torch.device("cpu"):  # whatever the default
        tiles = [
            torch.cartesian_prod(torch.tensor([k]), torch.arange(down), torch.arange(across))
            for k, (down, across) in enumerate(counts)
        ]
        return torch.cat(tiles) if tiles else torch.empty(0, 3, dtype=torch.int64)


@dataclass(frozen=True)
class _ForwardTables:
    tiles: Tensor
    matrices: Tensor
    variants: tuple[tuple[int, int, bool], ...]


@lru_cache(maxsize=256)
def _forward_tables(plan: Plan, device: torch.device, rows: int, cols: int) -> _ForwardTables:
    variants: dict[tuple[int, int, bool], int] = {}
    matrices, counts, heights = [], [], []
    for m in plan.matrices:
        side = min(_next_power_of_two(m.col_group), cols)
        variant = (_together(m.row_group, rows), side, side == m.col_group)
        index = variants.setdefault(variant, len(variants))
        matrices.append(
            (m.weight, m.layer * m.rows * m.cols, m.out_rows, m.out_cols, m.row_group, m.col_group,
             m.p_offset, m.q_offset, index)
        )  # fmt: skip
        counts.append((-(-m.out_rows * variant[0] // rows), -(-m.out_cols * side // cols)))
        heights.append(rows // variant[0] * m.row_group)
    tiles = _tiles(counts)
    # The scales of one source read the same rows one after another: once from memory, then from the cache.
    sources = {key: s for s, key in enumerate(dict.fromkeys((m.weight, m.layer) for m in plan.matrices))}
    source = torch.tensor([sources[m.weight, m.layer] for m in plan.matrices], device="cpu")[tiles[:, 0]]
    row = torch.tensor(heights, device="cpu")[tiles[:, 0]] * tiles[:, 1]
    order = torch.argsort((source << 40) + row, stable=True)
    return _ForwardTables(tiles[order].to(device), _upload(matrices, device), tuple(variants))


@lru_cache(maxsize=256)
def _output_offsets(plan: Plan, device: torch.device, batch: int) -> Tensor:
    return torch.tensor(plan.output_offsets(batch), dtype=torch.int64, device=device)


@dataclass(frozen=True)
class _BackwardTables:
    tiles: Tensor
    sources: Tensor
    matrices: Tensor
    variants: tuple[tuple[int, int], ...]
    p_runs: Tensor
    p_parts: int  # elements for each task
    q_runs: Tensor
    q_parts: int
    layers: dict[int, int]  # how many layers of each weight some matrix reads


@lru_cache(maxsize=256)
def _backward_tables(plan: Plan, device: torch.device, rows: int, cols: int, band: int) -> _BackwardTables:
    by_source: dict[tuple[int, int], list[int]] = {}
    for k, m in enumerate(plan.matrices):
        by_source.setdefault((m.weight, m.layer), []).append(k)
    variants: dict[tuple[int, int], int] = {}
    counts: list[tuple[int, int]] = []
    sources: list[tuple[int, ...]] = []
    matrices: list[tuple[int, ...]] = []
    p_runs: list[tuple[int, ...]] = []
    q_runs: list[tuple[int, ...]] = []
    p_parts = q_parts = 0
    for members in by_source.values():
        m = plan.matrices[members[0]]
        first = len(matrices)
        sources.append((m.weight, m.layer * m.rows * m.cols, m.rows, m.cols, first, first + len(members)))
        bands, strips = -(-m.rows // band), -(-m.cols // cols)
        counts.append((bands, strips))
        for k in members:
            m = plan.matrices[k]
            variant = variants.setdefault((_together(m.row_group, rows), _together(m.col_group, cols)), len(variants))
            matrices.append((k, m.row_group, m.col_group, m.p_offset, m.q_offset, p_parts, q_parts, variant))
            p_runs += [(p_parts, strips, m.rows, m.p_offset, i) for i in range(0, m.rows, SUM_BLOCK)]
            q_runs += [(q_parts, bands, m.cols, m.q_offset, i) for i in range(0, m.cols, SUM_BLOCK)]
            p_parts += strips * m.rows
            q_parts += bands * m.cols
    layers: dict[int, int] = {}
    for weight, _ in by_source:
        layers[weight] = layers.get(weight, 0) + 1
    return _BackwardTables(
        _tiles(counts).to(device),
        _upload(sources, device),
        _upload(matrices, device),
        tuple(variants),
        _upload(p_runs, device),
        p_parts,
        _upload(q_runs, device),
        q_parts,
        layers,
    )


_read_by_graphs: list[Any] = []


def _capturing(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def _kept(tables: Any, device: torch.device) -> Any:
    """A CUDA graph reads its tables at every replay, long after a cache may have dropped them."""
    if _capturing(device):
        _read_by_graphs.append(tables)
    return tables


def _write_addresses(addresses: tuple[int, ...], device: torch.device) -> Tensor:
    table = torch.empty(len(addresses), dtype=torch.int64, device=device)
    for first in range(0, len(addresses), ADDRESSES_PER_LAUNCH):
        part = addresses[first : first + ADDRESSES_PER_LAUNCH]
        _kernels()._write_addresses_kernel[(1,)](table[first:], part, num_warps=1, **FUSED)
    return table


def _addresses(tensors: list[Tensor | None], device: torch.device) -> Tensor:
    """A table of the tensors' addresses on the device; 0 for None.

    Written at each call: a table that is kept could lie in a CUDA graph's own memory, which must not outlive it.
    """
    return _write_addresses(tuple(0 if t is None else t.data_ptr() for t in tensors), device)


@lru_cache(maxsize=256)
def _divides(plan: Plan) -> bool:
    """Whether every row and every part of p and q starts at a multiple of eight elements."""
    return all((m.rows | m.cols | m.out_cols) % 8 == 0 for m in plan.matrices)


def _aligned(plan: Plan, tensors: list[Tensor | None]) -> bool:
    """Whether 16 bytes may be read and written at once; a false promise would be undefined behaviour."""
    return _divides(plan) and all(t is None or t.data_ptr() % 16 == 0 for t in tensors)


def project_forward(plan: Plan, call: Forward, configuration: Configuration = FORWARD) -> None:
    weights, p, q, flat = call
    batch, device = p.shape[0], p.device
    if flat.numel() == 0:
        return
    aligned = _aligned(plan, [*weights])
    constants = _constants(plan, batch, configuration, aligned)
    tables = _kept(_forward_tables(plan, device, constants["ROWS"], constants["COLS"]), device)
    # Few tiles share out the batch, or most of the card would idle.
    splits = max(1, min(-(-batch // constants["TASKS"]), 1024 // len(tables.tiles)))
    with torch.cuda.device_of(p):
        _kernels()._project_forward_kernel[(len(tables.tiles), splits)](
            _addresses([*weights], device),
            tables.tiles,
            tables.matrices,
            _kept(_output_offsets(plan, device, batch), device),
            p,
            q,
            flat,
            batch,
            plan.p_width,
            plan.q_width,
            W_TYPE=_type(weights[0].dtype),
            VARIANTS=tables.variants,
            ALIGNED=aligned,
            **constants,
        )


def project_backward(plan: Plan, call: Backward, configuration: Configuration = BACKWARD) -> None:
    weights, p, q, grads, d_weights, dp, dq = call
    batch, device = p.shape[0], p.device
    if not weights:
        return
    aligned = _aligned(plan, [*weights, *d_weights])
    constants = _constants(plan, batch, configuration, aligned)
    tables = _kept(_backward_tables(plan, device, constants["ROWS"], constants["COLS"], configuration.band), device)
    for weight, d in enumerate(d_weights):
        if d is not None and tables.layers.get(weight, 0) < d.shape[0]:
            d.zero_()
    need_weights = any(d is not None for d in d_weights)
    p_parts = p.new_empty(batch * tables.p_parts if dp is not None else 0)
    q_parts = q.new_empty(batch * tables.q_parts if dq is not None else 0)
    with torch.cuda.device_of(p):
        if len(tables.tiles) and (need_weights or (batch and (dp is not None or dq is not None))):
            addresses = _addresses([*weights, *d_weights, *grads], device)
            _kernels()._project_backward_kernel[(len(tables.tiles),)](
                addresses,
                addresses[len(weights) :],
                addresses[2 * len(weights) :],
                tables.tiles,
                tables.sources,
                tables.matrices,
                p,
                q,
                p_parts,
                q_parts,
                batch,
                plan.p_width,
                plan.q_width,
                W_TYPE=_type(weights[0].dtype),
                G_TYPE=_type(grads[0].dtype),
                VARIANTS=tables.variants,
                ALIGNED=aligned,
                BAND=configuration.band,
                BLOCK=configuration.block,
                NEED_W=need_weights,
                NEED_P=dp is not None,
                NEED_Q=dq is not None,
                **constants,
            )
        for total, parts, runs in ((dp, p_parts, tables.p_runs), (dq, q_parts, tables.q_runs)):
            if total is not None and batch and len(runs):
                _kernels()._sum_parts_kernel[(len(runs) * batch,)](
                    parts, runs, total, batch, total.shape[1], BLOCK=SUM_BLOCK, num_warps=4, **FUSED
                )
