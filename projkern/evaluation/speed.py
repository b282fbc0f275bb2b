"""Speed and memory of inference: the source beside the small models that are generated from it."""

import time
from collections.abc import Callable, Mapping
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ..models import GPT
from ..models.decode import Decoder
from ..models.names import SOURCE
from ..utils.device import wait_for

ROUNDS = 5
BATCHES = (1, 16)
GENERATIONS = 10
"""A round; they are short."""


def measure_speed(
    source: GPT, generate: Mapping[str, Callable[[], GPT]], *, rounds: int = ROUNDS
) -> dict[str, dict[str, Any]]:
    """Decode whole sequences greedily with every model in turn, round after round, after one round that warms up.

    The models are unconditional and on one device. Other work of the machine slows all of them alike, and medians over
    rounds leave most of it out.

    Args:
        source: M_1.
        generate: by name, a function that generates a small model for one task.
        rounds: R >= 1.

    Returns:
        By name, the source's ("M_1") first: ``latency``, seconds a token of one sequence (median over positions);
        ``tokens_per_second``, of 1 and of 16 sequences at once, by their number; ``weight_bytes``; ``cache_bytes``,
        keys and values of one sequence; and ``generation``, seconds to generate the model (not of M_1).
    """
    device = next(source.parameters()).device
    models = {str(SOURCE): source} | {name: generate_model() for name, generate_model in generate.items()}
    generations: dict[str, list[float]] = {name: [] for name in generate}
    steps: dict[tuple[str, int], list[list[float]]] = {(name, batch): [] for name in models for batch in BATCHES}
    for i in tqdm(range(rounds + 1), desc="speed", unit=" rounds"):
        for batch in BATCHES:
            for name, model in models.items():
                seconds = _decode(model, batch, device)
                steps[name, batch] += [seconds] * (i > 0)
        for _ in range(GENERATIONS):
            for name, generate_model in generate.items():
                generations[name] += [_timed(generate_model, device)[1]] * (i > 0)
    rows: dict[str, dict[str, Any]] = {}
    for name, model in models.items():
        # The median over rounds of each position: one step that the system held up would spoil a whole pass.
        typical = {batch: [median(at) for at in zip(*steps[name, batch])] for batch in BATCHES}
        rows[name] = {
            "latency": median(typical[1]),
            "tokens_per_second": {str(b): b * len(seconds) / sum(seconds) for b, seconds in typical.items()},
            "weight_bytes": sum(p.nbytes for p in model.parameters()),
            "cache_bytes": model.decoder(1).cache_bytes,
        }
        if name in generations:
            rows[name]["generation"] = median(generations[name])
    return rows


def _decode(model: GPT, batch: int, device: torch.device) -> list[float]:
    """Seconds of each step of one pass over all positions."""
    decoder = model.decoder(batch)
    tokens = None
    seconds = []
    for _ in range(model.config.n_positions):
        tokens, second = _timed(partial(_next, decoder, tokens), device)
        seconds.append(second)
    return seconds


def _next(decoder: Decoder, tokens: Tensor | None) -> Tensor:
    return decoder.step(tokens).argmax(-1)


def _timed(work: Callable[[], Any], device: torch.device) -> tuple[Any, float]:
    """The result, and the seconds until it is there."""
    began = time.perf_counter()
    result = work()
    wait_for(device)
    return result, time.perf_counter() - began
