"""What a step of P_s costs beside a step of M_1 and one of M_s: ``python -m benchmarks.step OUT.json``.

The quick preset's models and batch; whole steps (data, forward, backward, clipping, optimizer), interleaved.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path

import torch

from projkern.data import SynthMNIST, load_digits, synthmnist_palette
from projkern.memory import keep_freed_memory
from projkern.models import GPT
from projkern.training.config import QUICK, SOURCE_NAME
from projkern.training.files import write_json
from projkern.training.loop import backward_and_step, make_optimizer
from projkern.training.run import make_data
from projkern.training.stages import Stage, make_stage

from .machine import describe, seconds


def stepper(stage: Stage, data: SynthMNIST) -> Callable[[int], None]:
    """A function that makes the k-th training step of a stage."""
    optimizer = make_optimizer(stage, QUICK)
    stage.module.train()

    def step(k: int) -> None:
        tokens, t = data.batch(k)
        backward_and_step(stage, stage.losses(tokens, t), optimizer, QUICK.clip)

    return step


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step", description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rounds", type=int, default=60)
    options = parser.parse_args()
    cpu = torch.device("cpu")
    keep_freed_memory()
    digits = load_digits()
    palette = synthmnist_palette(QUICK.image_size, QUICK.colors, digits)
    data = make_data(QUICK, palette, digits, "train", cpu)
    source = make_stage(SOURCE_NAME, QUICK, cpu).module
    assert isinstance(source, GPT)
    steps = {n: stepper(make_stage(n, QUICK, cpu, source), data) for n in (SOURCE_NAME, "M_1/4", "M~_1/4", "P_1/4")}
    samples: dict[str, list[float]] = {name: [] for name in steps}
    for k in range(options.rounds + 5):
        for name, step in steps.items():
            elapsed = seconds(lambda step=step, k=k: step(k))
            if k >= 5:  # the first steps warm up
                samples[name].append(elapsed)
    ratios = [p / (a + b) for p, a, b in zip(samples["P_1/4"], samples[SOURCE_NAME], samples["M_1/4"])]
    write_json(options.out, {"machine": describe(), "seconds": samples, "ratios": ratios})
    for name, values in samples.items():
        print(f"{name:>7}: {1e3 * statistics.median(values):.1f} ms a step")
    print(f"P_1/4 / (M_1 + M_1/4): {statistics.median(ratios):.3f} (median of {len(ratios)} interleaved rounds)")


if __name__ == "__main__":
    main()
