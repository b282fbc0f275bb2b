"""A whole compression in one folder: text, start, training, the small model, the report."""

from __future__ import annotations

import platform
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers

from ..data.text import Windows, open_tokens, tokenise
from ..export.streamed import check_logits, write_settings
from ..models.huggingface.axes import Sizes
from ..models.huggingface.causal import PretrainedFolder
from ..models.huggingface.stored import is_stored, open_stored
from ..training import checkpoint, distributed
from ..training.distributed import Ranks
from ..training.loop import train
from ..training.metrics import Metrics
from ..training.stages import count
from ..utils.device import Machine, pick_machine
from ..utils.digests import contents, digest
from ..utils.errors import InputError
from ..utils.files import SETTINGS, Format, new_folder, open_output, read_object, require_utf8, write_json
from ..utils.version import __version__
from .config import CompressConfig
from .export import write_card, write_model
from .measures import held_out_loss, measure_speed, write_samples
from .projected import ProjectedModel
from .report import write_report
from .start import Kept, check_length, choose, make_projected, target_sizes
from .training import compression_job
from .untrained import write_start
from .writing import write_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

FORMAT = Format("projkern compression", 1, "the settings of a compression")
START = Format("projkern start", 1, "the losses at the start of a compression")
TOKENS, KEPT, CHECKPOINTS, SUMMARY = "tokens.npy", "kept.safetensors", "checkpoint", "summary.json"
MOST_BYTES = 1 << 30
"""Of a source that is left in its files: a larger one is not loaded to measure its speed and to write samples."""


def resumed_config(out: Path, changes: dict[str, Any]) -> CompressConfig:
    """The settings of a compression to be continued; raises InputError where ``changes`` asks for others."""
    return CompressConfig.resumed(out / SETTINGS, FORMAT, changes)


def run(out: Path, config: CompressConfig, *, resume: bool = False, overwrite: bool = False) -> dict[str, Any]:
    """Compress a model, continuing where the folder left off, and report on it.

    A finished folder that is to be resumed stays as it is. The folder is touched only once the source and the files of
    text are known to be there and to fit.

    Returns:
        What ``summary.json`` holds.

    Raises:
        InputError, OSError: a source, text or settings that cannot be used, or a folder that cannot.
        Interrupted, Diverged, CheckpointError: of the training.
    """
    return distributed.run_together(_run, out, config, resume, overwrite)


def _run(out: Path, config: CompressConfig, ranks: Ranks, resume: bool, overwrite: bool) -> dict[str, Any]:
    is_resumed = resume and (out / SETTINGS).exists()
    config = resumed_config(out, config.flat()) if is_resumed else config.absolute()
    if is_resumed and (out / SUMMARY).exists():
        ranks.finish()
        return read_object(out / SUMMARY, "what a compression came to")
    require_utf8(out)
    machine = pick_machine(distributed.local_device(config.run.device), config.run.dtype)
    ranks.require_even(config.tuning.batch_size, 1)
    folder = PretrainedFolder.open(Path(config.model))
    sizes = target_sizes(folder.config, config)
    check_length(config, folder.config)
    tokenizer = None
    if (config.text.text and not config.text.is_tokenised) or folder.has_tokenizer():
        tokenizer = folder.tokenizer()
    _check_files(out, config, overwrite)
    if is_resumed:
        folder.require_same("model", config.model_digest)
        _require_same_text(config)
    else:
        config = config.replace(model_digest=folder.digest(), text_digest=_text_digest(config))
    has_moved = is_resumed and CompressConfig.read(out / SETTINGS, FORMAT) != config
    output = open_output(out, FORMAT, config.to_json(), resume=resume, overwrite=overwrite, has_moved=has_moved)
    with ranks.on_main(output):
        try:
            return _compress(out, config, machine, ranks, folder, tokenizer, sizes)
        except InputError:
            # So that other settings can be tried.
            if ranks.is_main and not (out / KEPT).exists() and config.text.generate is None:
                for name in (SETTINGS, TOKENS):
                    (out / name).unlink(missing_ok=True)
            raise


def _check_files(out: Path, config: CompressConfig, overwrite: bool) -> None:
    """Raises InputError where there is no text, or where an input would be deleted."""
    if not config.text.text and config.text.generate is None:
        raise InputError("text must be files, or generate the number of tokens that the model writes; it was neither")
    for path in map(Path, config.text.text):
        if not path.is_file() and (overwrite or not (out / TOKENS).exists()):
            raise InputError(f"text must be files that are there; {path} is not")
    for name, paths in (("model", (config.model,)), ("text", config.text.text)):
        for path in map(Path, paths):
            if overwrite and path.resolve().is_relative_to(out.resolve()):
                raise InputError(f"{name} must not be in the folder that is to be overwritten, {out}; it was {path}")


def _text_digest(config: CompressConfig) -> str | None:
    """Of a file of token ids; other text is tokenised once, into the folder."""
    return digest(contents(map(Path, config.text.text))) if config.text.is_tokenised else None


def _require_same_text(config: CompressConfig) -> None:
    if config.text.text_digest not in (None, _text_digest(config)):
        raise InputError(f"text must be the tokens that the job began with; those of {config.text.text[0]} are others")


def _compress(
    out: Path,
    config: CompressConfig,
    machine: Machine,
    ranks: Ranks,
    folder: PretrainedFolder,
    tokenizer: PreTrainedTokenizerBase | None,
    sizes: Sizes,
) -> dict[str, Any]:
    dtype = torch.float32 if machine.dtype == torch.float32 else None
    is_run_seldom = config.steps == 0 or (ranks.size > 1 and config.tuning.distill == 0)
    is_left = is_run_seldom and config.text.generate is None
    stored = open_stored(folder, machine.device, dtype or folder.dtype) if is_left else None
    source = stored or folder.load(machine.device, dtype)
    print(f"Source {source.config.model_type} of {count(source):,} parameters, on {machine.reason}.")
    with ranks.main_first():
        windows = _windows(out, config, source, tokenizer)
    if config.steps == 0 and is_stored(source):
        ranks.finish()
        return _compress_stored(out, config, machine, folder, tokenizer, sizes, source, windows)
    projected = _start(out, config, ranks, source, windows, sizes)
    job = compression_job(projected, source, windows, config, machine.dtype)
    small, passes = count(projected.small), job.steps * config.tuning.batch_size / windows.count
    print(f"To {small:,} parameters ({small / count(source):.1%}): {sizes}.")
    print(f"{job.steps * job.batch_size:,} tokens of training, {passes:.1f} passes over the text.")
    seconds = train(job, out / CHECKPOINTS, Metrics(out))
    result = projected.merge(folder.dtype)
    as_source = result if source.dtype == folder.dtype else projected.merge(source.dtype)
    trained_parameters = sum(ranks.gather(count(projected)))
    ranks.finish()
    losses = START.read(out / "start.json")
    losses["result"] = _loss(result, windows, config)
    summary = _summary(config, machine, sizes, source, losses, small, seconds, trained_parameters)
    loaded = _loaded(source, folder)
    models = {} if loaded is None else {"source": loaded, "result": as_source}
    summary["speed"], samples = _speed_and_samples(models, folder, tokenizer, windows)
    # What training computed with, where the file has its numbers; else what is stored of them.
    trained = projected.small if folder.dtype == torch.float32 else result
    notes = write_model(out / "model", result, trained, folder.folder.name, tokenizer, summary, windows)
    write_report(out, config, summary, windows, samples, notes)
    write_json(out / SUMMARY, summary)
    return summary


def _compress_stored(
    out: Path,
    config: CompressConfig,
    machine: Machine,
    folder: PretrainedFolder,
    tokenizer: PreTrainedTokenizerBase | None,
    sizes: Sizes,
    source: PreTrainedModel,
    windows: Windows,
) -> dict[str, Any]:
    """As ``_compress``, without training, of a source that is left in its files."""
    if not (out / KEPT).exists():
        choose(source, windows, config, sizes, moments=False)[0].save(out / KEPT)
    if not (out / "start.json").exists():
        START.write(out / "start.json", {"source": _loss(source, windows, config)})
    losses = START.read(out / "start.json")
    target = out / "model"
    with new_folder(target, replace=True) as partial:  # one of a run that was stopped between this and its summary
        small, trained = write_start(partial, source, Kept.load(out / KEPT), config, sizes, windows, folder.dtype)
        print(f"To {count(small):,} parameters ({count(small) / count(source):.1%}): {sizes}.")
        write_settings(partial, small, folder.dtype)
        result = open_stored(PretrainedFolder.open(partial), machine.device, folder.dtype)
        assert result is not None
        losses["start"] = losses["result"] = _loss(result, windows, config)
        summary = _summary(config, machine, sizes, source, losses, count(small), 0.0, trained)
        models: dict[str, PreTrainedModel] = {}
        if loaded := _loaded(source, folder):
            models = {"source": loaded, "result": PretrainedFolder.open(partial).load(machine.device, source.dtype)}
        summary["speed"], samples = _speed_and_samples(models, folder, tokenizer, windows)
        notes = write_card(partial, small.config, folder.folder.name, tokenizer, summary)
        check_logits(partial, small, next(windows.held_out_batches(1)))
    write_report(out, config, summary, windows, samples, notes)
    write_json(out / SUMMARY, summary)
    return summary


def _loaded(source: PreTrainedModel, folder: PretrainedFolder) -> PreTrainedModel | None:
    """The source in memory; None where it is stored and too large to be loaded for a measurement."""
    if not is_stored(source):
        return source
    if sum(p.numel() for p in source.parameters()) * source.dtype.itemsize > MOST_BYTES:
        return None
    return folder.load(source.device, source.dtype)


def _summary(
    config: CompressConfig,
    machine: Machine,
    sizes: Sizes,
    source: PreTrainedModel,
    losses: dict[str, Any],
    parameters: int,
    seconds: float,
    trained: int,
) -> dict[str, Any]:
    return {
        "source": losses["source"] | {"parameters": count(source)},
        "start": losses["start"],
        "result": losses["result"] | {"parameters": parameters},
        "method": config.method.method,
        "tokens": config.steps * config.tuning.batch_size * config.text.length,
        "seconds": round(seconds, 1),
        "sizes": {"hidden": sizes.hidden, "intermediate": sizes.intermediate, "layers": sizes.layers},
        "lr": config.rate(source.config.hidden_size, source.config.num_hidden_layers),
        "trained_parameters": trained,
        "device": machine.reason,
        "versions": _versions(),
    }


def _speed_and_samples(
    models: dict[str, PreTrainedModel],
    folder: PretrainedFolder,
    tokenizer: PreTrainedTokenizerBase | None,
    windows: Windows,
) -> tuple[dict[str, dict[str, float]], list[dict[str, str]]]:
    if not models:
        return {}, []
    speed = measure_speed(models, next(windows.held_out_batches(1))[:, :16], folder.dtype)
    return speed, write_samples(models, tokenizer, windows) if tokenizer is not None else []


def _windows(
    out: Path, config: CompressConfig, source: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None
) -> Windows:
    """The run's text as windows; tokenised or written by the source, once."""
    text, path = config.text, out / TOKENS
    if text.is_tokenised:
        path = Path(text.text[0])
    elif not path.exists() and text.generate is not None:
        write_tokens(source, text.generate, text.length, config.run.seed, path)
    elif not path.exists():
        assert tokenizer is not None
        files = [Path(name) for name in text.text]
        tokenise(files, tokenizer, source.config.vocab_size, path, at_blank_lines=text.split_at_blank_lines)
    tokens = open_tokens(path, source.config.vocab_size)
    return Windows(tokens, text.length, config.tuning.batch_size, text.held_out, config.run.seed)


def _start(
    out: Path, config: CompressConfig, ranks: Ranks, source: PreTrainedModel, windows: Windows, sizes: Sizes
) -> ProjectedModel:
    """The projected model as training begins with it: a new one, or that of an interrupted run."""
    checkpoints = out / CHECKPOINTS
    if ranks.from_main((out / KEPT).exists() and checkpoint.latest(checkpoints) is not None):
        return make_projected(source, Kept.load(out / KEPT), config, sizes, None, ranks)
    kept, inputs = choose(source, windows, config, sizes, ranks)
    projected = make_projected(source, kept, config, sizes, inputs, ranks)
    del inputs  # moments are larger than the source's feed-forwards
    if ranks.is_main:
        losses = {"source": _loss(source, windows, config), "start": _loss(projected.small, windows, config)}
        START.write(out / "start.json", losses)
        shutil.rmtree(checkpoints, ignore_errors=True)
    checkpoint.Parts(projected, [], ranks).save(checkpoints, 0, 0.0)
    if ranks.is_main:
        kept.save(out / KEPT)  # last: its presence says that the start is stored whole
    return projected


def _loss(model: PreTrainedModel, windows: Windows, config: CompressConfig) -> dict[str, Any]:
    return held_out_loss(model, windows, config.micro_batch(model.config.vocab_size)).to_json()


def _versions() -> dict[str, str]:
    return {
        "projkern": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }
