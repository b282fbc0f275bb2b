"""Memory and traffic of a rank for sources of 0.1 to 70 billion parameters, worked out on paper from their shapes.

No figure here is measured. Sizes are the published ones; all are taken as Llamas, and are halved in width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from transformers import LlamaConfig

from projkern.models.huggingface.axes import (
    Sizes,
    build_empty,
    count_parameters,
    find_axes,
    shapes_of,
    sizes_of,
    small_shape,
)
from projkern.utils import markdown

RANKS, BLOCK = 8, 64
SOURCES = {
    "SmolLM2-135M": (576, 1536, 30, 9, 3, 49152, True),
    "TinyLlama-1.1B": (2048, 5632, 22, 32, 4, 32000, False),
    "Llama-3.1-8B": (4096, 14336, 32, 32, 8, 128256, False),
    "Qwen2.5-32B": (5120, 27648, 64, 40, 8, 152064, False),
    "Llama-3.1-70B": (8192, 28672, 80, 64, 8, 128256, False),
}
"""Hidden and intermediate size, layers, heads, heads of keys and values, vocabulary, whether the head is tied."""


@dataclass(frozen=True)
class Numbers:
    """How many numbers a source W and its halves have: W_C, P as dense matrices and in blocks, the largest tensor."""

    w: int
    small: int
    dense: int
    blocks: int
    largest: int
    layer: int


def numbers_of(name: str) -> Numbers:
    hidden, intermediate, layers, heads, kv_heads, vocabulary, tied = SOURCES[name]
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=hidden // heads,
        vocab_size=vocabulary,
        tie_word_embeddings=tied,
    )
    source = sizes_of(config)
    half = Sizes(source.hidden // 2, source.intermediate // 2, source.layers)
    axes, shapes = find_axes(config, half), shapes_of(build_empty(config))
    dense = blocks = 0
    for parameter, shape in shapes.items():
        if len(shape) != 2:
            continue
        for size, small, axis in zip(shape, small_shape(shape, axes[parameter], half), axes[parameter]):
            if axis is not None:
                dense += size * small
                blocks += small * (BLOCK + math.ceil((size - small) / math.ceil(small / BLOCK)))
    sizes = [math.prod(shape) for shape in shapes.values()]
    tables = sum(math.prod(shape) for shape in shapes.values() if vocabulary in shape)
    return Numbers(
        w=count_parameters(shapes),
        small=count_parameters({n: small_shape(shape, axes[n], half) for n, shape in shapes.items()}),
        dense=dense,
        blocks=blocks,
        largest=max(sizes),
        layer=(sum(sizes) - tables) // layers,
    )


def table() -> str:
    """A row for each source: GB of memory of a rank, GB that it sends in a step, by the formulas of docs/scale.md."""
    head = ("source", "parameters", "train", "sent", "--shard", "compress", "in blocks", "sent", "largest tensor")
    part = (RANKS - 1) / RANKS
    rows = []
    for name in SOURCES:
        n = numbers_of(name)
        dense, blocks = (8 * n.small + (2 * n.w + 12 * (p + n.small)) / RANKS for p in (n.dense, n.blocks))
        figures = (
            *(18 * n.w, 8 * part * n.w, 16 * n.w / RANKS + 10 * n.layer),
            *(dense, blocks, 8 * part * n.small, 2 * n.largest),
        )
        rows.append((name, f"{n.w / 1e9:.2f} billion", *map(_gigabytes, figures)))
    return markdown.table(head, rows)


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:,.0f}" if size >= 1e10 else f"{size / 1e9:.2g}"
