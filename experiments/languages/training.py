"""The training of one arm, from a source that all arms of a seed share."""

from __future__ import annotations

import platform
import time
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from projkern.data.corpora import TaskTexts
from projkern.language.losses import by_task
from projkern.language.presets import LANGUAGES
from projkern.language.run import run
from projkern.language.stages import TaskSpace, make_stage
from projkern.language.trained import LanguageRun, open_texts
from projkern.models.huggingface.operator import predict
from projkern.models.names import SOURCE
from projkern.training.checkpoint import latest, stage_folder
from projkern.training.loop import train
from projkern.training.losses import evaluate
from projkern.training.metrics import Metrics
from projkern.training.steps import stage_job
from projkern.utils.files import SETTINGS, read_object
from projkern.utils.version import __version__

from .arms import BASE, UNTUNED_RATE, Arm
from .fine_tuning import fine_tune

Result = dict[str, Any]


def base_folder(out: Path, seed: int) -> Path:
    """Where the source of a seed lies."""
    return out / f"source-{seed}"


def train_base(out: Path, tasks: Path, seed: int, changes: dict[str, Any]) -> None:
    """Train the source that all arms of a seed share: a run whose other models are not trained."""
    folder = base_folder(out, seed)
    config = LANGUAGES.replace(**BASE, tasks=str(tasks.resolve()), seed=seed, steps=0, **changes)
    run(folder, config, resume=(folder / SETTINGS).exists())


def train_arm(arm: Arm, exponent: int, seed: int, out: Path, changes: dict[str, Any]) -> Result:
    """Train an arm, from its last checkpoint if there is one, and judge it.

    Args:
        arm: it.
        exponent: of its learning rate.
        seed: whose source it starts from.
        out: of all trainings.
        changes: of settings, for a test.
    """
    torch.set_num_threads(1)
    base = LanguageRun.open(base_folder(out, seed))
    rate = 2.0**exponent if arm.tuning is None else UNTUNED_RATE
    settings = {"steps": arm.steps, arm.rate: rate} | arm.settings | changes
    config = base.config.replace(**settings)
    stage = make_stage(arm.model, config, TaskSpace.of(base.vectors), base.source, base.device)
    tasks = base.tasks
    data = open_texts(base.path, config, tasks, tasks.trained, base.vectors.values, "train", base.device)
    name = f"{arm.name} {arm.steps} {rate} {seed}" if arm.tuning is None else f"{arm.model} {arm.steps} {rate} {seed}"
    folder = out / name.replace("/", "-").replace(" ", "_")
    folder.mkdir(parents=True, exist_ok=True)
    job = stage_job(stage, data, config.schedule, config.run, torch.float32, "windows")
    seconds = train(job, stage_folder(folder, arm.model), Metrics(folder), on_step=lambda step: False)
    stage.module.eval()
    held_out = base.texts("validation")
    models = {}
    for model in stage.models:
        losses = evaluate(model.predict, held_out, held_out.count)
        row: dict[str, Any] = {
            "loss": losses.mean,
            "parameters": model.parameters,
            "by_task": by_task(losses, held_out),
        }
        if model.takes_task:
            row["loss_with_another_t"] = evaluate(
                model.predict, held_out, held_out.count, TaskTexts.with_other_tasks
            ).mean
        models[str(model.name)] = row
    if arm.tuning is not None:
        began = time.monotonic()
        small = stage.models[0].standalone(torch.empty(0))
        losses_by_task = fine_tune(base, small, arm.tuning.steps, 2.0**exponent, arm.tuning.adapter_rank)
        models[str(arm.model)] |= {"loss": mean(losses_by_task), "by_task": losses_by_task}
        seconds += time.monotonic() - began
    source = evaluate(lambda tokens, t: predict(base.source, tokens), held_out, held_out.count).mean
    return {
        "arm": arm.name,
        "steps": arm.steps,
        "exponent": exponent,
        "seed": seed,
        "seconds": round(seconds, 1),
        "source_seconds": round(_seconds_of_source(base), 1),
        "source": source,
        "models": models,
        "versions": {"projkern": __version__, "torch": torch.__version__, "python": platform.python_version()},
    }


def _seconds_of_source(base: LanguageRun) -> float:
    last = latest(stage_folder(base.path, SOURCE))
    assert last is not None
    return float(read_object(last / "state.json", "the state of a checkpoint")["seconds"])
