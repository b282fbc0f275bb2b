"""Attention at narrow heads: layouts of the cache for one query, and padding for whole sequences.

one query    K, V of n positions are kept for 1024; 8 heads
sequence     causal, forward and backward; 8 heads
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from projkern.models import blocks

HEADS, POSITIONS, WIDTHS = 8, 1024, (8, 16, 32, 64)
CASES = ((1, 64), (1, 1024), (8, 64), (8, 1024), (32, 64), (32, 1024))
SEQUENCES = ((16, 256), (2, 1024))


def one_query(batch: int, count: int, width: int, layers: int) -> dict[str, Callable[[int], Tensor]]:
    """Attention of one query to the cache of a layer, by layout; all have the same result (B·head, head width)."""
    query = torch.randn(batch * HEADS, 1, width)
    keys, values = torch.randn(2, layers, batch * HEADS, POSITIONS, width)
    four = (batch, HEADS, -1, width)
    # The same numbers with positions last, and with the heads of a position side by side.
    keys_t, values_t = (x.mT.contiguous() for x in (keys, values))
    keys_d, values_d = (
        x.view(layers, *four).transpose(2, 3).reshape(layers, batch, POSITIONS, -1) for x in (keys, values)
    )
    own_head = torch.eye(HEADS)[:, :, None]
    unused, scale = query.new_empty(()), width**-0.5

    def weights(query: Tensor, keys: Tensor) -> Tensor:
        return torch.baddbmm(unused, query, keys, beta=0, alpha=scale).softmax(-1)

    def sdpa(i: int) -> Tensor:
        k, v = (x[i].view(four)[:, :, :count] for x in (keys, values))
        return F.scaled_dot_product_attention(query.view(four), k, v).view(-1, width)

    def products(i: int) -> Tensor:
        return torch.bmm(weights(query, keys[i, :, :count].mT), values[i, :, :count])[:, 0]

    def positions_last(i: int) -> Tensor:
        return torch.bmm(weights(query, keys_t[i, :, :, :count]), values_t[i, :, :, :count].mT)[:, 0]

    def all_heads(i: int) -> Tensor:
        wide = (query.view(batch, 1, HEADS, width) * own_head).view(batch, HEADS, -1)
        h = torch.bmm(weights(wide, keys_d[i, :, :count].mT), values_d[i, :, :count])
        return h.view(batch, HEADS, HEADS, width).diagonal(dim1=1, dim2=2).mT.reshape(-1, width)

    return {"products": products, "sdpa": sdpa, "positions last": positions_last, "all heads": all_heads}


def sequence(width: int) -> dict[str, Callable[[Tensor], Tensor]]:
    """Attention of whole sequences, (batch, T, 3, head, width) -> (batch, T, head, width)."""

    def sdpa(qkv: Tensor) -> Tensor:
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        return F.scaled_dot_product_attention(query, key, value, is_causal=True).transpose(1, 2)

    return {"sdpa": sdpa, "ours": lambda qkv: blocks._attention(qkv, 0.0)}


def _interleaved(runs: dict[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """Median seconds of each, in turns."""
    samples: dict[str, list[float]] = {name: [] for name in runs}
    for k in range(rounds + 1):
        for name, run in runs.items():
            seconds = run()
            if k:
                samples[name].append(seconds)
    return {name: statistics.median(values) for name, values in samples.items()}


@torch.inference_mode()
def measure_one_query(rounds: int = 15) -> list[dict[str, Any]]:
    rows = []
    for width in WIDTHS:
        for batch, count in CASES:
            size = 2 * 4 * batch * HEADS * POSITIONS * width
            layers = max(2, min(24, (192 << 20) // size))  # more than the caches hold, where that is not too much
            forms = one_query(batch, count, width, layers)
            expected = forms["sdpa"](0)
            for name, form in forms.items():
                if not torch.allclose(form(0), expected, atol=1e-5):
                    raise AssertionError(f"{name} differs at width {width}, batch {batch}, {count} positions")

            def run(form: Callable[[int], Tensor], layers: int = layers) -> float:
                start = time.thread_time()
                for i in range(layers):
                    form(i)
                return (time.thread_time() - start) / layers

            seconds = _interleaved({n: lambda f=f, run=run: run(f) for n, f in forms.items()}, rounds)
            rows.append({"width": width, "batch": batch, "positions": count, "seconds": seconds})
    return rows


def measure_sequence(rounds: int = 9) -> list[dict[str, Any]]:
    rows = []
    for batch, length in SEQUENCES:
        for width in WIDTHS:
            forms = sequence(width)
            qkv = torch.randn(batch, length, 3, HEADS, width)
            results, runs = {}, {}
            for name, form in forms.items():
                leaf = qkv.clone().requires_grad_()
                output = form(leaf)
                results[name] = (output, *torch.autograd.grad(output, leaf, output.detach()))

                def run(form: Callable[[Tensor], Tensor] = form, leaf: Tensor = leaf) -> float:
                    start = time.thread_time()
                    result = form(leaf)
                    torch.autograd.grad(result, leaf, result.detach())
                    return time.thread_time() - start

                runs[name] = run
            for actual, expected in zip(results["ours"], results["sdpa"]):
                if not torch.allclose(actual, expected, atol=1e-4):
                    raise AssertionError(f"padded attention differs at width {width}, length {length}")
            rows.append({"width": width, "batch": batch, "length": length, "seconds": _interleaved(runs, rounds)})
    return rows
