"""Measure one cell: every provider verified, then all of them timed in turns.

Each round measures every provider, one after another, so that all see the same machine. A baseline more than five
times slower than the best one is measured in the first round only. A provider is timed only if all of its results
agree with the float64 definition, on the tensors that are timed; one that is wrong, runs out of memory or would take
too long is recorded as such.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from . import providers
from .case import Case, make_cases, needed_bytes, relative_error, tolerance, truth
from .machine import Card, Limits, Machine
from .providers import Provider
from .roofline import Cell

LONGEST_HEAD_START = 20e-3
"""Seconds. Whatever takes longer to launch is bound by its launches, and is to be seen so."""

FAR = 3
"""A baseline that takes so many times the best one's time for one layer is not measured on all."""


class WrongResult(AssertionError):
    """A provider that does not compute the projection."""


class Failed(Exception):
    """A provider that cannot be measured, and why."""


@dataclasses.dataclass
class Settings:
    """How thorough a measurement is.

    Args:
        rounds: how often all providers take turns.
        compiled: whether torch.compile'd baselines take part.
        slow: seconds; a baseline that would take longer than this is not measured.
        seconds: for a whole cell, None without bound. Past 60 % of them no further baseline is admitted, and past
            all of them no further round begins.
    """

    rounds: int = 3
    compiled: bool = True
    slow: float = math.inf
    seconds: float | None = None


def measure(cell: Cell, machine: Machine, settings: Settings, backends: list[str]) -> dict[str, Any]:
    """Raw seconds of every provider for one cell of the table.

    Args:
        backends: the names of our kernels that take part.

    Returns:
        What is stored: the cell; seconds by provider and part ("forward", "both" and, where it can be had alone,
        "backward"), each with all of its samples; the medians of the host's seconds; the most memory taken beside
        the inputs; relative errors; the machine's limits; why some providers were not measured; which of them are red:
        their results are wrong, or they are ours and raised.
    """
    needed, free = needed_bytes(cell), machine.free_bytes()
    if needed > free:
        why = f"needs {needed / 1e9:.0f} GB, of which {free / 1e9:.0f} GB are free"
        return cell.to_json() | {"skipped": why}
    torch._dynamo.reset()  # what was compiled for another cell must not make this one's graphs dynamic
    torch._dynamo.config.recompile_limit = 1000
    return _Measurement(cell, machine, settings).run(backends)


class _Measurement:
    def __init__(self, cell: Cell, machine: Machine, settings: Settings) -> None:
        self.cell, self.machine, self.settings = cell, machine, settings
        self.start = time.monotonic()
        self.cases = make_cases(cell, machine)
        self.one_layer = Case(dataclasses.replace(cell, layers=1), machine.device)
        first = self.cases[0]
        self.truths = {i: truth(first.matrices[i], cell.group) for i in first.checked()}
        self.admitted: dict[str, Provider] = {}
        self.head_starts: dict[str, float] = {}
        self.seconds: dict[str, dict[str, list[float]]] = {}
        self.host: dict[str, dict[str, list[float]]] = {}
        self.peak_bytes: dict[str, int | None] = {}
        self.errors: dict[str, float] = {}
        self.failed: dict[str, str] = {}
        self.red: list[str] = []
        self.turns = itertools.count()
        self.fastest_layer = math.inf

    def run(self, backends: list[str]) -> dict[str, Any]:
        pool = self.machine.graph_pool() if isinstance(self.machine, Card) else None
        kernels = [providers.fused(name) for name in backends]
        for provider in itertools.chain(kernels, providers.baselines(self.settings.compiled)):
            self.attempt(provider, lambda provider=provider: self.admit(provider))
            recorded = provider.fused or provider.name.endswith(", compiled")
            if pool is not None and recorded and provider.name in self.admitted:
                graph = dataclasses.replace(provider, name=f"{provider.name}, graph")
                self.attempt(graph, lambda provider=provider: self.admit_graph(provider, pool))
        self.truths.clear()
        speeds, limits = self.machine.limits(), {}
        for turn in range(self.settings.rounds):
            if turn < 2 or self.spent() < 1:
                self.round(turn, speeds, limits)
        host_seconds = {
            name: {part: statistics.median(values) for part, values in parts.items() if values}
            for name, parts in self.host.items()
        }
        return self.cell.to_json() | {
            "input_sets": len(self.cases),
            "fused": [name for name, provider in self.admitted.items() if provider.fused],
            "seconds": self.seconds,
            "host_seconds": host_seconds,
            "peak_bytes": self.peak_bytes,
            "relative_errors": self.errors,
            "failed": self.failed,
            "red": self.red,
            **limits,
        }

    def spent(self) -> float:
        """The part of the cell's time that is over."""
        return (time.monotonic() - self.start) / (self.settings.seconds or math.inf)

    def attempt(self, provider: Provider, step: Callable[[], None]) -> None:
        """Try something with a provider; whatever stops it is recorded, and ends its part in the measurement."""
        try:
            step()
            return
        except Failed as error:
            why, red = str(error), False
        except torch.OutOfMemoryError:
            why, red = "out of memory", False
        except WrongResult as error:
            why, red = str(error), True
        except Exception as error:  # torch.compile may raise anything; of our own kernels, nothing is excused
            first_line = next(iter(str(error).strip().splitlines()), "")
            why, red = f"{type(error).__name__}: {first_line[:200]}", provider.fused
        self.failed[provider.name] = why
        if red:
            self.red.append(provider.name)
        self.machine.clear()

    def admit(self, provider: Provider) -> None:
        if not provider.fused:
            if self.spent() > 0.6:
                raise Failed("not measured: the time for this cell was spent")
            single = provider.name.replace(", stacked", "")
            if single in self.failed:
                raise Failed(f"not measured: {single} was not")
            if single == provider.name:
                self.try_one_layer(provider)
        self.check(provider)

    def try_one_layer(self, provider: Provider) -> None:
        """Raise Failed where a baseline's time for one layer is too long, or far from the best one's."""
        provider.both(self.one_layer)  # compiles for each shape
        layer = min(self.machine.wall(lambda: provider.both(self.one_layer)) for _ in range(2))
        whole, best = layer * self.cell.layers, self.fastest_layer * self.cell.layers
        if whole > self.settings.slow:
            raise Failed(f"not measured: one layer suggests {whole:.1f} s")
        if whole > FAR * best:
            raise Failed(f"not measured: one layer suggests {whole:.1f} s, {whole / best:.0f} times the best")
        self.fastest_layer = min(self.fastest_layer, layer)

    def admit_graph(self, provider: Provider, pool: Any) -> None:
        assert isinstance(self.machine, Card)
        graphed = providers.in_graphs(provider, self.cases, self.machine, pool)
        self.check(graphed)
        graphed.verified()
        del self.peak_bytes[graphed.name]  # its memory was taken when it was recorded

    def check(self, provider: Provider) -> None:
        """Compare what a provider computes with the truth; memory it forgets to write holds NaN. Then admit it."""
        first = self.cases[0]
        with providers.serving() as served_by:
            results = provider.both(first)
        if served_by - {provider.name.removesuffix(", graph")}:
            raise WrongResult(f"WRONG: it was served by {', '.join(sorted(served_by))}")
        for matrix in provider.per_matrix(first, results):
            for tensor in matrix:
                tensor.detach().fill_(math.nan)
        del results, matrix, tensor
        peak, (_, host, results) = self.machine.peak_bytes(lambda: self.machine.time(lambda: provider.both(first)))
        matrices = provider.per_matrix(first, results)
        computed_in = torch.float32 if provider.fused else first.weights[0].dtype
        worst = 0.0
        for i, expected in self.truths.items():
            for what, actual, exact in zip(("W_s", "dW", "dp", "dq"), matrices[i], expected):
                error, most = relative_error(actual, exact), tolerance(actual.dtype, computed_in)
                if not error <= most:
                    raise WrongResult(f"WRONG: the relative error of {what} is {error:.1e}, not below {most:.0e}")
                worst = max(worst, error)
        name, parts = provider.name, ("forward", "backward", "both") if provider.backward else ("forward", "both")
        self.admitted[name] = provider
        self.errors[name], self.peak_bytes[name] = worst, peak
        self.head_starts[name] = min(1.5 * host, LONGEST_HEAD_START)
        self.seconds[name] = {part: [] for part in parts}
        self.host[name] = {part: [] for part in parts}

    def round(self, turn: int, speeds: Limits, limits: dict[str, list[float]]) -> None:
        medians = {
            name: statistics.median(self.seconds[name]["both"])
            for name, provider in self.admitted.items()
            if turn and not provider.fused and name not in self.failed
        }
        best = min(medians.values(), default=math.inf)
        active = [p for name, p in self.admitted.items() if name not in self.failed]
        for provider in active:
            if not provider.fused and medians.get(provider.name, 0.0) <= 5 * best:
                self.attempt(provider, lambda provider=provider: self.sample(provider))
        for _ in range(3):  # short against the baselines: more samples cost nothing
            for provider in active:
                if provider.fused:
                    self.attempt(provider, lambda provider=provider: self.sample(provider))
            for name, value in speeds.sample().items():
                limits.setdefault(name, []).append(value)

    def sample(self, provider: Provider) -> None:
        """A provider's samples at its turn: several, if they are short."""
        for part in self.seconds[provider.name]:
            for k in range(self.machine.repeats + 1):
                if k == 0 and not self.machine.warm_up:
                    continue
                elapsed, host = self.timed(provider, part)
                if k:
                    self.seconds[provider.name][part].append(elapsed)
                    self.host[provider.name][part].append(host)
                if k and elapsed > 0.1:
                    break

    def timed(self, provider: Provider, part: str) -> tuple[float, float]:
        case = self.cases[next(self.turns) % len(self.cases)]
        if part == "backward":
            assert provider.backward is not None
            run = partial(provider.backward, case, provider.forward(case))
        else:
            run = partial(getattr(provider, part), case)
        elapsed, host, _ = self.machine.time(run, self.head_starts[provider.name])
        return elapsed, host
