"""A whole run on tasks of text in one folder: every stage, then the evaluation, the table and samples of text."""

from __future__ import annotations

import platform
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers

from ..data.corpora import Corpus, part_of, read_token_files
from ..kernels.dispatch import describe
from ..models.huggingface.causal import PretrainedFolder
from ..models.huggingface.grouping import Grouping
from ..models.huggingface.operator import positions_of
from ..models.names import SOURCE
from ..training import checkpoint, distributed
from ..training.distributed import Ranks
from ..training.loop import train
from ..training.metrics import Metrics
from ..training.stages import names_of
from ..training.steps import stage_job
from ..utils.device import Machine, pick_machine
from ..utils.errors import InputError
from ..utils.files import SETTINGS, new_folder, open_output, require_utf8, write_json
from ..utils.version import __version__
from .config import FROM_SOURCE, NAME, LanguageConfig
from .folder import (
    FORMAT,
    SOURCE_CONFIG,
    TASKS_FILE,
    TOKENIZER,
    TOKENS,
    VECTORS,
    Tasks,
    check_tasks,
    read_config,
    read_tasks,
    read_tokenizer,
    resumed_config,
    write_tasks,
)
from .losses import judge
from .report import write_report
from .stages import TaskSpace, TextModel, make_stage, new_source
from .trained import LanguageRun, empty_source, open_texts
from .vectors import TaskVectors, check_task_dim, of_file, of_names, of_source

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DEFAULT_TASK_DIM = 16
"""Length of t where it comes from the source."""


def run(out: Path, config: LanguageConfig, *, resume: bool = False, overwrite: bool = False) -> dict[str, Any]:
    """Train all models of a run, continuing where its folder left off, and report on them.

    The folder is touched only once the device, the tasks and the source are known to be there.

    Returns:
        What ``summary.json`` holds.

    Raises:
        InputError, OSError: settings that cannot be met, or a folder that cannot be used.
    """
    return distributed.run_together(_run, out, config, resume, overwrite)


def _run(out: Path, config: LanguageConfig, ranks: Ranks, resume: bool, overwrite: bool) -> dict[str, Any]:
    require_utf8(out)
    machine = pick_machine(distributed.local_device(config.run.device), config.run.dtype)
    is_resumed = resume and (out / SETTINGS).exists()
    config = resumed_config(out, config.flat()) if is_resumed else config.absolute()
    ranks.require_even(config.schedule.batch_size, config.tasks.examples_per_task)
    for name, path in (("tasks", config.tasks.tasks), ("source", config.model.source), ("t", config.tasks.t)):
        is_inside = path is not None and Path(path).resolve().is_relative_to(out.resolve())
        if overwrite and is_inside and path not in (NAME, FROM_SOURCE):
            raise InputError(f"{name} must not be in the folder that is to be overwritten, {out}; it was {path}")
    has_tasks = resume and (out / TASKS_FILE).exists()  # then the run no longer needs the texts themselves
    corpora = [] if has_tasks else check_tasks(config)
    source, tokenizer = _open_source(out, config, resume)
    for scale in config.operator.scales:
        Grouping.of(source.config, scale, shrink_heads=config.operator.shrink_heads)
    if not has_tasks:
        _check_t(config, [corpus.name for corpus in corpora], source)
    if not is_resumed and config.model.source is not None:
        config = config.replace(source_digest=PretrainedFolder.open(Path(config.model.source)).digest())
    has_moved = is_resumed and read_config(out) != config
    output = open_output(out, FORMAT, config.to_json(), resume=resume, overwrite=overwrite, has_moved=has_moved)
    with ranks.on_main(output):
        with ranks.main_first():
            tasks = _prepare(out, config, corpora, source, tokenizer) if ranks.is_main else read_tasks(out)
        return _train_all(out, config, machine, ranks, tasks, source)


def _check_t(config: LanguageConfig, names: list[str], source: PreTrainedModel) -> None:
    """Raises InputError where t cannot be had as the settings say."""
    if config.tasks.t == FROM_SOURCE:
        trained = len(names) - len(config.tasks.held_out_tasks)
        check_task_dim(config.tasks.task_dim or DEFAULT_TASK_DIM, trained, source.config.hidden_size)
    elif config.tasks.t != NAME:
        of_file(Path(config.tasks.t), names)


def _open_source(out: Path, config: LanguageConfig, resume: bool) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model that M_1 starts from, in float32, and its tokenizer.

    Once a run has a checkpoint of M_1 it no longer needs the source itself.
    """
    if resume and checkpoint.latest(checkpoint.stage_folder(out, SOURCE)) is not None:
        return empty_source(out), read_tokenizer(out)
    if config.model.source is None:
        # Bytes: a well-known tokenizer that every language goes through, and that loads with the models.
        tokenizer = transformers.ByT5Tokenizer(extra_ids=0)
        torch.manual_seed(config.run.seed)
        return new_source(config, tokenizer), tokenizer
    folder = PretrainedFolder.open(Path(config.model.source))
    folder.require_same("source", config.model.source_digest)
    model = folder.load(torch.device("cpu"), torch.float32).requires_grad_(True)
    if config.tasks.length > positions_of(model):
        raise InputError(
            f"length must be at most the source's {positions_of(model)} positions; it was {config.tasks.length}"
        )
    return model, folder.tokenizer()


def _prepare(
    out: Path,
    config: LanguageConfig,
    corpora: list[Corpus],
    source: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
) -> Tasks:
    """What training reads, in the run's folder. Texts that do not serve leave it as it was, for others to be tried."""
    try:
        if not (out / SOURCE_CONFIG).exists():
            with new_folder(out / SOURCE_CONFIG) as partial:
                source.config.save_pretrained(partial)
        tasks = write_tasks(out, config, corpora, tokenizer, source.config.vocab_size)
        values = torch.zeros(len(tasks.names), 1, 1)
        open_texts(out, config, tasks, tasks.names, values, "train", torch.device("cpu"))  # all are long enough
        if config.tasks.t != FROM_SOURCE:
            _vectors(out, config, tasks, source)
        return tasks
    except InputError:
        for folder in (TOKENS, TOKENIZER, SOURCE_CONFIG):
            shutil.rmtree(out / folder, ignore_errors=True)
        for name in (SETTINGS, TASKS_FILE, VECTORS):
            (out / name).unlink(missing_ok=True)
        raise


def _train_all(
    out: Path, config: LanguageConfig, machine: Machine, ranks: Ranks, tasks: Tasks, source: PreTrainedModel
) -> dict[str, Any]:
    print(f"Training on {machine.reason}; projection by {describe(machine.device)}.")
    metrics, seconds = Metrics(out), 0.0
    models: list[TextModel] = []
    # M_1 takes no t, which may come from it.
    vectors = TaskVectors(torch.zeros(len(tasks.trained), 1, 1), torch.empty(0, 1), None)
    for name in names_of(config.operator.scales, config.schedule):
        data = open_texts(out, config, tasks, tasks.trained, vectors.values, "train", machine.device)
        stage = make_stage(name, config, TaskSpace.of(vectors), source, machine.device)
        job = stage_job(stage, data, config.schedule, config.run, machine.dtype, "windows")
        seconds += train(job, checkpoint.stage_folder(out, name), metrics)
        stage.module.eval()
        if name == SOURCE:
            with ranks.main_first():
                vectors = _vectors(out, config, tasks, source)
        models += stage.models
    ranks.finish()
    start_time = time.monotonic()
    trained = LanguageRun.open(out, machine.device)
    summary = judge(trained, models) | {
        "seconds": round(seconds + time.monotonic() - start_time, 1),
        "device": machine.reason,
        "versions": {
            "projkern": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
    }
    write_report(trained, summary, models)
    write_json(out / "summary.json", summary)
    return summary


def _vectors(out: Path, config: LanguageConfig, tasks: Tasks, source: PreTrainedModel) -> TaskVectors:
    """The t of every task, stored in the run's folder; from the source, that is as it is before P_s is trained."""
    path, settings = out / VECTORS, config.tasks
    if not path.exists():
        if settings.t == NAME:
            vectors = of_names(len(tasks.names))
        elif settings.t != FROM_SOURCE:
            vectors = of_file(Path(settings.t), tasks.names)
        else:
            tokens = read_token_files(out / TOKENS, len(tasks.names), source.config.vocab_size)
            trained, held_out = (
                [part_of(tokens[number], "train") for number in tasks.numbers(names)]
                for names in (tasks.trained, tasks.held_out)
            )
            dim = settings.task_dim or DEFAULT_TASK_DIM
            vectors = of_source(source, trained, held_out, dim, settings.sample, config.run.seed)
        vectors.save(path)
    return TaskVectors.load(path)
