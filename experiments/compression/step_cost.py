"""``python -m experiments.compression.step_cost MODEL``: what the merge costs of a training step, and the memory.

Each method runs in a process of its own, for its peak memory; a CPU's freed memory is kept, so that this is an upper
bound. Seconds are of the processor, so that other work on the machine changes little; on a card they are of the clock.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from projkern.compression.config import CompressConfig
from projkern.compression.losses import next_token_losses
from projkern.compression.start import choose, make_projected, target_sizes
from projkern.compression.training import CLIP, make_optimizers
from projkern.data.text import Windows
from projkern.models.huggingface.causal import PretrainedFolder
from projkern.utils.device import pick_machine, wait_for
from projkern.utils.files import write_json

CASES = (
    ("prune", "adamw"),
    ("project", "adamw"),
    ("project", "muon"),
    ("project in blocks of 64", "adamw"),
    ("group", "adamw"),
)
PARTS = ("merge", "source", "small model", "gradients of P", "optimizer")
NO_RATE = 1e-9
"""At a real one without warm-up the logits would soon underflow, and denormal numbers take a CPU longer."""


def measure(model: Path, method: str, optimizer: str, sizes: dict[str, int], rounds: int) -> dict[str, Any]:
    """Seconds of each part of a step, and bytes.

    Of the parts, "source" and "small model" grow with the tokens of a step; the others do not.
    """
    machine = pick_machine()
    device = machine.device
    if device.type == "cpu":
        torch.set_num_threads(1)
    name, _, blocks = method.partition(" in blocks of ")
    config = CompressConfig().replace(
        method=name,
        block=int(blocks) if blocks else None,
        optimizer=optimizer,
        start="pruned",
        importance="index",
        **sizes,
    )
    source = PretrainedFolder.open(model).load(device, torch.float32 if device.type == "cpu" else None)
    torch.manual_seed(0)
    ids = torch.randint(source.config.vocab_size, (config.text.length * 40,))
    windows = Windows(ids.numpy(), config.text.length, 4, 2, 0)
    target = target_sizes(source.config, config)
    kept, _ = choose(source, windows, config, target)
    projected = make_projected(source, kept, config, target)
    optimizers = make_optimizers(projected, config, NO_RATE)
    tokens = windows.batch(0)[:2].to(device)
    seconds: dict[str, list[float]] = {part: [] for part in PARTS}

    def clock() -> float:
        wait_for(device)
        return time.process_time() if device.type == "cpu" else time.perf_counter()

    def step() -> list[float]:
        times = [clock()]
        projected.materialise()
        times.append(clock())
        with torch.autocast(device.type, dtype=machine.dtype, enabled=machine.dtype != torch.float32):
            with torch.no_grad():
                teacher: Tensor = source(tokens, use_cache=False).logits
            times.append(clock())
            logits = projected.small(tokens, use_cache=False).logits
        loss, *_ = next_token_losses(logits, tokens, teacher, 0.5)
        loss.backward()
        del logits, teacher
        times.append(clock())
        projected.clip_gradients(CLIP)
        spent = 0.0

        def step_block(block: Any) -> None:
            nonlocal spent
            began = clock()
            for each in optimizers[block]:
                each.step()
            spent += clock() - began

        projected.backward(step_block)
        times.append(clock() - spent)
        return [*(after - before for before, after in pairwise(times)), spent]

    for i in range(rounds + 1):
        for part, value in zip(PARTS, step()):
            seconds[part] += [value] * (i > 0)
    states = [state for of in optimizers.values() for each in of for state in each.state.values()]
    return {
        "method": method,
        "optimizer": optimizer,
        "tokens": tokens.numel(),
        "seconds": {part: round(median(values), 5) for part, values in seconds.items()},
        "parameters": {
            "source": sum(p.numel() for p in source.parameters()),
            "small": sum(p.numel() for p in projected.small.parameters()),
            "trained": sum(p.numel() for p in projected.parameters()),
        },
        "bytes": {
            "peak": _peak(device),
            "source": sum(p.nbytes for p in source.parameters()),
            "trained and optimizer": sum(p.nbytes for p in projected.parameters())
            + sum(x.nbytes for state in states for x in state.values() if isinstance(x, Tensor)),
            "small model and gradients": 2 * sum(p.nbytes for p in projected.small.parameters()),
            "largest block": max(
                sum(p.nbytes for p in block.projections) + 2 * sum(w.nbytes for w in block.frozen)
                for block in projected.all_blocks()
            ),
        },
        "device": machine.reason,
        "versions": {"torch": torch.__version__},
    }


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def share(row: dict[str, Any], tokens: int, *, with_source: bool) -> float:
    """The part of a step of so many tokens that merging and taking its gradients are."""
    seconds, count = row["seconds"], tokens / row["tokens"]
    own = seconds["merge"] + seconds["gradients of P"]
    run = count * (seconds["small model"] + (seconds["source"] if with_source else 0))
    return float(own / (own + run + seconds["optimizer"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="folder of the source")
    parser.add_argument("--hidden-size", type=int, default=288)
    parser.add_argument("--intermediate-size", type=int, default=768)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("experiments/results/compression/step_cost.json"))
    parser.add_argument("--method", choices=dict(CASES), help="measure this one here and print it")
    parser.add_argument("--optimizer", default="adamw")
    options = parser.parse_args()
    sizes = {"hidden_size": options.hidden_size, "intermediate_size": options.intermediate_size}
    if options.method is not None:
        print(json.dumps(measure(options.model, options.method, options.optimizer, sizes, options.rounds)))
        return
    rows = []
    for method, optimizer in CASES:
        command = [sys.executable, "-m", "experiments.compression.step_cost", *sys.argv[1:]]
        command += ["--method", method, "--optimizer", optimizer]
        finished = subprocess.run(command, check=True, capture_output=True, encoding="utf-8")
        rows.append(json.loads(finished.stdout))
        print(method, optimizer, rows[-1]["seconds"], flush=True)
        write_json(options.out, {"model": options.model.name, "sizes": sizes, "rows": rows})


if __name__ == "__main__":
    main()
