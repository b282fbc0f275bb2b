"""pytest-benchmark: every provider on one layer of d = 512, forward and backward. ``pytest benchmarks``.

``python -m benchmarks.compare`` measures all 24 layers, interleaved, against the machine's limits.
"""

from __future__ import annotations

import pytest
import torch

import projkern as pk

from .compare import verify
from .providers import BASELINES, Case

GROUPS, BATCHES = (2, 4, 8), (1, 8, 32)


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("provider", ["fused", *BASELINES, *(f"{name}, compiled" for name in BASELINES)])
def test_forward_and_backward(benchmark, provider, batch, group):
    benchmark.group = f"B = {batch}, g = {group}"
    case = Case(1, 512, batch, group)
    if provider == "fused":
        verify(pk.project, group)
        run = case.fused
    else:
        name, _, compiled = provider.partition(", ")
        project = torch.compile(BASELINES[name], dynamic=False) if compiled else BASELINES[name]
        verify(project, group)
        run = case.baseline(project)
    benchmark.pedantic(run, rounds=5, warmup_rounds=1)
