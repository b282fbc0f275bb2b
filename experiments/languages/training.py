"""The training of one arm, from a source that all arms of a seed share."""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from projkern.data.corpora import TaskTexts
from projkern.language.config import LanguageConfig
from projkern.language.losses import by_task
from projkern.language.presets import LANGUAGES
from projkern.language.run import run
from projkern.language.stages import TaskSpace, TextModel, make_stage, plain_model
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
from .compressing import compressed
from .fine_tuning import fine_tune

Result = dict[str, Any]


def base_folder(out: Path, seed: int) -> Path:
    """Where the source of a seed lies."""
    return out / f"source-{seed}"


def train_base(out: Path, tasks: Path, seed: int, changes: dict[str, Any]) -> None:
    """Train the source that all arms of a seed share: a run whose other models are not trained."""
    folder = base_folder(out, seed)
    if (folder / "summary.json").exists():
        return
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
    if arm.is_compressed:
        small, seconds = compressed(base, config, 2.0**exponent, out / f"compressed-{seed}-{arm.steps}")
        models: Sequence[TextModel] = [plain_model(arm.model, small)]
    else:
        models, seconds = _train_stage(arm, base, config, out, rate)
    held_out = base.texts("validation")
    rows = {str(model.name): _row(model, held_out) for model in models}
    if arm.tuning is not None:
        began = time.monotonic()
        small = models[0].standalone(torch.empty(0))
        losses = fine_tune(base, small, arm.tuning.steps, 2.0**exponent, arm.tuning.adapter_rank)
        rows[str(arm.model)] |= {"loss": mean(losses), "by_task": losses}
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
        "models": rows,
        "versions": {"projkern": __version__, "torch": torch.__version__, "python": platform.python_version()},
    }


def _train_stage(
    arm: Arm, base: LanguageRun, config: LanguageConfig, out: Path, rate: float
) -> tuple[Sequence[TextModel], float]:
    """The models of an arm's training, and its seconds."""
    stage = make_stage(arm.model, config, TaskSpace.of(base.vectors), base.source, base.device)
    tasks = base.tasks
    data = open_texts(base.path, config, tasks, tasks.trained, base.vectors.values, "train", base.device)
    name = arm.name if arm.tuning is None else str(arm.model)
    folder = out / f"{name} {arm.steps} {rate} {config.run.seed}".replace("/", "-").replace(" ", "_")
    folder.mkdir(parents=True, exist_ok=True)
    job = stage_job(stage, data, config.schedule, config.run, torch.float32, "windows")
    seconds = train(job, stage_folder(folder, arm.model), Metrics(folder), on_step=lambda step: False)
    stage.module.eval()
    return stage.models, seconds


def _row(model: TextModel, held_out: TaskTexts) -> dict[str, Any]:
    losses = evaluate(model.predict, held_out, held_out.count)
    row = {"loss": losses.mean, "parameters": model.parameters, "by_task": by_task(losses, held_out)}
    if model.takes_task:
        other = evaluate(model.predict, held_out, held_out.count, TaskTexts.with_other_tasks)
        row["loss_with_another_t"] = other.mean
    return row


def _seconds_of_source(base: LanguageRun) -> float:
    last = latest(stage_folder(base.path, SOURCE))
    assert last is not None
    return float(read_object(last / "state.json", "the state of a checkpoint")["seconds"])
