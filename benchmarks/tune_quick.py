"""Tune the learning rates of the quick preset: ``python -m benchmarks.tune_quick OUT.json [--threads N]``.

Every model of the comparison gets its own sweep, by the paper's plain recipe, on another seed than the preset's.
Results go into OUT.json as they come, and a sweep that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model, save_model

from projkern.data import load_digits, synthmnist_palette
from projkern.models import GPT
from projkern.models.names import SOURCE, ModelName
from projkern.training.data import make_data
from projkern.training.loop import train
from projkern.training.losses import evaluate, nats_per_token
from projkern.training.metrics import Metrics
from projkern.training.presets import PLAIN, QUICK
from projkern.training.stages import ImageStage, make_stage
from projkern.training.steps import stage_job
from projkern.utils.files import write_json

BASE = QUICK.replace(**PLAIN, seed=1, checkpoint_every=10**9, log_every=100)
SWEEPS: dict[str, list[dict[str, float]]] = {
    str(SOURCE): [{"source_lr": lr} for lr in (5e-4, 1e-3, 2e-3, 4e-3)],
    "M_1/4": [{"small_lr": lr} for lr in (3e-3, 6e-3, 1.2e-2, 2.4e-2)],
    "M~_1/4": [{"small_lr": lr} for lr in (3e-3, 6e-3, 1.2e-2, 2.4e-2)],
    "P_1/4": [
        *({"tuning_lr": 1e-3, "operator_lr": lr} for lr in (3e-3, 6e-3, 1.2e-2)),
        *({"tuning_lr": lr, "operator_lr": 6e-3} for lr in (5e-4, 2e-3)),
    ],
}
"""P_1/4 starts from the best source; its two rates are swept one at a time."""
CONTROL = "M_1, as many steps more"
"""What co-training does to the source is to be compared with what the same steps do to it alone."""
SWEEPS[CONTROL] = [{"tuning_lr": 1e-3}]


def source_alone(stage: ImageStage) -> ImageStage:
    """A co-training stage with its operator left out: the source's own loss, and nothing else."""
    (alone,) = (m for m in stage.models if m.name.is_tuned_source)
    return dataclasses.replace(
        stage,
        losses=lambda tokens, t: {CONTROL: nats_per_token(alone.predict(tokens, t), tokens)},
        loss_weights={CONTROL: 1.0},
        models=[alone],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", nargs="+", choices=SWEEPS, default=list(SWEEPS), help="models to sweep")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results: list[dict[str, Any]] = json.loads(options.out.read_text("utf-8")) if options.out.exists() else []
    done = {(r["model"], *r["rates"].values()) for r in results}
    palette = synthmnist_palette(BASE.data.side, BASE.data.vocab_size, load_digits(split="train"))
    cpu = torch.device("cpu")
    training = make_data(BASE, palette, load_digits(split="train"), "train", cpu)
    validation = make_data(BASE, palette, load_digits(split="validation"), "validation", cpu)
    source_weights = options.out.with_suffix(".source.safetensors")
    for name in options.only:
        for rates in SWEEPS[name]:
            if (name, *rates.values()) in done:
                continue
            config = BASE.replace(**rates)
            source = None
            if name in ("P_1/4", CONTROL):
                source = make_stage(SOURCE, config, cpu).module
                assert isinstance(source, GPT)
                load_model(source, source_weights)
            stage = make_stage(ModelName.parse("P_1/4" if name == CONTROL else name), config, cpu, source)
            if name == CONTROL:
                stage = source_alone(stage)
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder)
                train(
                    stage_job(stage, training, config.schedule, config.run, torch.float32, "images"),
                    path / "checkpoint",
                    Metrics(path),
                )
            stage.module.eval()
            losses = {
                CONTROL if name == CONTROL else str(m.name): evaluate(m.predict, validation, BASE.run.eval_images).mean
                for m in stage.models
            }
            if name == str(SOURCE) and losses[name] <= min(
                (r["losses"][name] for r in results if r["model"] == name), default=float("inf")
            ):
                save_model(stage.module, str(source_weights))
            results.append({"model": name, "rates": rates, "losses": losses, "torch": torch.__version__})
            write_json(options.out, results)
            print(json.dumps(results[-1]), flush=True)


if __name__ == "__main__":
    main()
