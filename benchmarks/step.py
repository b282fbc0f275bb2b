"""What a step of P_s costs beside a step of M_1 and one of M_s: ``python -m benchmarks.step OUT.json``.

Whole steps (data, forward, backward, clipping, optimizer), interleaved; each from its call until the device is done
with it. On a CPU the quick preset's models and batch, in float32; on a card (``--device cuda``) those of the paper's
preset, under bfloat16 autocast. A batch that does not fit the card's memory is halved until it does.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch

from projkern.data import SynthMNIST, load_digits
from projkern.data.palette import Palette
from projkern.models import GPT
from projkern.models.names import SOURCE, Kind, ModelName
from projkern.training.config import TrainConfig
from projkern.training.data import make_data
from projkern.training.presets import PRESETS
from projkern.training.stages import ImageStage, make_stage
from projkern.training.steps import forward_backward_step, make_optimizer
from projkern.utils.device import keep_freed_memory

from .compare import write_result
from .machine import Machine, machine_of

WARM_UP = 5


def stepper(stage: ImageStage, data: SynthMNIST, config: TrainConfig, dtype: torch.dtype) -> Callable[[int], None]:
    """A function that makes the k-th training step of a stage, as the training loop does."""
    optimizer = make_optimizer(stage, config.schedule)
    stage.module.train()

    def step(k: int) -> None:
        tokens, t = data.batch(k)
        forward_backward_step(stage, tokens, t, optimizer, dtype, config.schedule.clip)

    return step


def measure(config: TrainConfig, scale: Fraction, machine: Machine, rounds: int) -> dict[str, Any]:
    """Seconds of the steps of M_1, M_s, M~_s and P_s, and of each round the ratio of P_s to M_1 and M_s."""
    dtype = torch.float32 if machine.device.type == "cpu" else torch.bfloat16
    # Which colours they are changes nothing about the time, and fitting the paper's 512 takes a while.
    colors = torch.rand(config.data.vocab_size, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1
    data = make_data(config, Palette(colors).to(machine.device), load_digits(), "train", machine.device)
    source = make_stage(SOURCE, config, machine.device).module
    assert isinstance(source, GPT)
    kinds = (Kind.UNCONDITIONAL, Kind.CONDITIONAL, Kind.PROJECTED)
    small, conditional, projected = (ModelName(kind, scale) for kind in kinds)
    steps = {
        str(name): stepper(make_stage(name, config, machine.device, source), data, config, dtype)
        for name in (SOURCE, small, conditional, projected)
    }
    samples: dict[str, list[float]] = {name: [] for name in steps}
    for k in range(WARM_UP + rounds):
        for name, step in steps.items():
            elapsed = machine.wall(lambda step=step, k=k: step(k))
            if k >= WARM_UP:
                samples[name].append(elapsed)
    return {
        "scale": str(scale),
        "dtype": str(dtype).removeprefix("torch."),
        "shape": {
            "layers": config.model.n_layer,
            "width": config.model.n_embd,
            "tokens": config.data.positions,
            "batch": config.schedule.batch_size,
        },
        "seconds": samples,
        "ratios": [p / (a + b) for p, a, b in zip(*(samples[str(name)] for name in (projected, SOURCE, small)))],
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step", description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--preset", choices=PRESETS, help="quick on a CPU, paper on a card")
    parser.add_argument("--scale", type=Fraction, default=Fraction(1, 4))
    parser.add_argument("--batch", type=int, help="that of the preset unless given")
    parser.add_argument("--rounds", type=int, default=None, help="60 on a CPU, 20 on a card")
    options = parser.parse_args(argv)
    on_card = options.device == "cuda"
    preset = options.preset or ("paper" if on_card else "quick")
    _, config = PRESETS[preset]
    config = config.replace(batch_size=options.batch or config.schedule.batch_size, scales=(options.scale,))
    try:
        machine = machine_of(options.device)
    except RuntimeError as error:
        parser.error(str(error))
    keep_freed_memory()
    result = None
    while result is None:
        try:
            result = measure(config, options.scale, machine, options.rounds or (20 if on_card else 60))
        except torch.OutOfMemoryError:
            if config.schedule.batch_size == 1:
                raise
            config = config.replace(batch_size=config.schedule.batch_size // 2)
        machine.clear()
    write_result(options.out, {"machine": machine.describe(), "preset": preset, **result})
    for name, values in result["seconds"].items():
        print(f"{name:>7}: {1e3 * statistics.median(values):.1f} ms a step")
    ratios = result["ratios"]
    print(
        f"P_{options.scale} / (M_1 + M_{options.scale}): {statistics.median(ratios):.3f} "
        f"(median of {len(ratios)} interleaved rounds, batch {config.schedule.batch_size})"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
