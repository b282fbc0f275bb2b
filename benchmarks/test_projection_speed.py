"""pytest-benchmark: every provider on one layer of d = 512, forward and backward. ``pytest benchmarks``.

On every device that is here; on a card each call is timed to the end of the device's work, and the device's own
time, by events, is in ``extra_info``. ``python -m benchmarks.compare`` measures all 24 layers, in turns, against the
machine's limits; this suite is to look at one provider, or to let another tool watch it.
"""

from __future__ import annotations

import itertools
import statistics

import pytest
import torch

from . import providers
from .case import Case, relative_error, tolerance, truth
from .machine import Machine, machine_of
from .providers import BACKENDS, BASELINES, COMPILED, Provider
from .roofline import Cell

GROUPS, BATCHES = (2, 4, 8), (1, 8, 32, 128)
OUTPUTS = {"cpu": "float32", "cuda": "bfloat16"}
FORMS = ("", ", stacked", ", compiled", ", stacked, compiled")
NAMES = [
    *((device, name) for device, backends in BACKENDS.items() for name in backends),
    *((device, f"{name}{form}") for device in BACKENDS for name in BASELINES for form in FORMS[:2]),
    *((device, f"{name}{form}") for device in BACKENDS for name in COMPILED for form in FORMS[2:]),
]


@pytest.fixture(scope="module")
def machines() -> dict[str, Machine]:
    return {name: machine_of(name) for name in BACKENDS if name == "cpu" or torch.cuda.is_available()}


def provider_of(name: str) -> Provider:
    for baseline, form in itertools.product(BASELINES, FORMS):
        if name == f"{baseline}{form}":
            return providers.baseline(baseline, "stacked" in form, "compiled" in form)
    return providers.fused(name)


def verify(provider: Provider, case: Case) -> None:
    results = provider.per_matrix(case, provider.both(case))
    for i in case.checked():
        for actual, expected in zip(results[i], truth(case.matrices[i], case.group)):
            assert relative_error(actual, expected) <= tolerance(actual.dtype, torch.float32)


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize(("device", "name"), NAMES)
def test_forward_and_backward(benchmark, machines, device, name, batch, group):
    if device not in machines:
        pytest.skip("torch sees no CUDA card here")
    if name in BACKENDS[device] and name not in providers.backends(device):
        pytest.skip(f"backend {name} cannot run here; python -m projkern.env says why")
    benchmark.group = f"{device}, B = {batch}, g = {group}"
    torch._dynamo.reset()
    machine = machines[device]
    case = Case(Cell(1, 512, batch, group, outputs=OUTPUTS[device]), machine.device)
    provider = provider_of(name)
    verify(provider, case)

    def run() -> None:
        provider.both(case)
        machine.wait()

    benchmark.pedantic(run, rounds=5, warmup_rounds=1)
    on_device = [machine.time(lambda: provider.both(case), 5e-3)[0] for _ in range(5)]
    benchmark.extra_info |= {"device_seconds": statistics.median(on_device), "machine": machine.describe()}
