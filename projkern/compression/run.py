"""A whole compression in one folder: text, start, training, the small model, the report."""

from __future__ import annotations

import platform
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers

from ..data.text import Windows, open_tokens, tokenise
from ..models.huggingface.causal import Checkpoint
from ..training import checkpoint
from ..training.loop import train
from ..training.metrics import Metrics
from ..utils.device import Machine, pick_machine
from ..utils.errors import InputError
from ..utils.files import SETTINGS, Format, open_output, read_object, write_json
from ..utils.settings import require_unchanged
from ..utils.version import __version__
from .axes import Sizes
from .config import CompressConfig
from .export import write_model
from .measures import held_out_loss, measure_speed, write_samples
from .projected import ProjectedModel
from .report import write_report
from .start import Kept, choose, make_projected, target_sizes
from .training import compression_job
from .writing import write_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

FORMAT = Format("projkern compression", 1, "the settings of a compression")
START = Format("projkern start", 1, "the losses at the start of a compression")
TOKENS, KEPT, SUMMARY = "tokens.npy", "kept.safetensors", "summary.json"


@dataclass(frozen=True)
class Input:
    """What a compression reads: the source's folder, its tokenizer, and the sizes to come to."""

    source: Checkpoint
    tokenizer: PreTrainedTokenizerBase | None
    sizes: Sizes


def resumed_config(out: Path, changes: dict[str, Any]) -> CompressConfig:
    """The settings of a compression to be continued; raises InputError where ``changes`` asks for others."""
    values = FORMAT.read(out / SETTINGS)
    del values["version"]
    config = CompressConfig.from_json(values)
    require_unchanged(config, changes, str(out / SETTINGS))
    return config


def run(out: Path, config: CompressConfig, *, resume: bool = False, overwrite: bool = False) -> dict[str, Any]:
    """Compress a model, continuing where the folder left off, and report on it.

    A finished folder that is to be resumed stays as it is. The folder is touched only once the source and the text are
    known to be there and to fit.

    Returns:
        What ``summary.json`` holds.

    Raises:
        InputError, OSError: a source, text or settings that cannot be used, or a folder that cannot.
        Interrupted, Diverged, CheckpointError: of the training.
    """
    if resume and (out / SUMMARY).exists():
        return read_object(out / SUMMARY, "what a compression came to")
    machine = pick_machine(config.run.device, config.run.dtype)
    source = Checkpoint.open(Path(config.model))
    sizes = target_sizes(source.config, config)
    needs_tokenizer = (bool(config.text.text) and not config.text.is_tokenised) or source.has_tokenizer()
    tokenizer = source.tokenizer() if needs_tokenizer else None
    longest = getattr(source.config, "max_position_embeddings", None) or config.text.length
    if config.text.length > longest:
        raise InputError(f"length must be at most the model's {longest} positions; it was {config.text.length}")
    if not (out / TOKENS).exists() or overwrite:
        for path in map(Path, config.text.text):
            if not path.is_file():
                raise InputError(f"text must be files that are there; {path} is not")
    if overwrite and Path(config.model).resolve().is_relative_to(out.resolve()):
        raise InputError(f"model must not be in the folder that is to be overwritten, {out}; it was {config.model}")
    with open_output(out, FORMAT, config.to_json(), resume=resume, overwrite=overwrite):
        return _compress(out, config, machine, Input(source, tokenizer, sizes))


def _compress(out: Path, config: CompressConfig, machine: Machine, given: Input) -> dict[str, Any]:
    began = time.monotonic()
    source = given.source.load(machine.device, torch.float32 if machine.dtype == torch.float32 else None)
    parameters = count(source)
    print(f"Source {source.config.model_type} of {parameters:,} parameters, on {machine.reason}.")
    windows = _windows(out, config, source, given.tokenizer)
    projected = _start(out, config, source, windows)
    small = count(projected.small)
    print(f"To {small:,} parameters ({small / parameters:.1%}): {given.sizes}.")
    job = compression_job(projected, source, windows, config, machine.dtype)
    seconds = train(job, out / "checkpoint", Metrics(out))
    projected.materialise()
    projected.small.eval()
    result = held_out_loss(projected.small, windows, config.micro_batch)
    models = {"source": source, "result": projected.small}
    prompt = next(windows.held_out_batches(1))[:, :16]
    losses = START.read(out / "start.json")
    summary = {
        "source": losses["source"] | {"parameters": parameters},
        "start": losses["start"],
        "result": result.to_json() | {"parameters": small},
        "method": config.method.method,
        "tokens": job.steps * job.batch_size,
        "seconds": round(seconds, 1),
        "sizes": {"hidden": given.sizes.hidden, "intermediate": given.sizes.intermediate, "layers": given.sizes.layers},
        "lr": config.rate(source.config.hidden_size),
        "trained_parameters": count(projected),
        "speed": measure_speed(models, prompt),
        "device": machine.reason,
        "versions": _versions(),
    }
    samples = write_samples(models, given.tokenizer, windows) if given.tokenizer is not None else []
    notes = write_model(out / "model", projected, given.source, given.tokenizer, summary, windows)
    summary["total_seconds"] = round(time.monotonic() - began, 1)
    write_report(out, config, summary, samples, notes)
    write_json(out / SUMMARY, summary)
    return summary


def _windows(
    out: Path, config: CompressConfig, source: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None
) -> Windows:
    """The run's text as windows; tokenised or written by the source, once."""
    text, path = config.text, out / TOKENS
    if text.is_tokenised:
        path = Path(text.text[0])
    elif not path.exists() and text.generate is not None:
        write_tokens(source, text.generate + text.held_out * text.length, text.length, config.run.seed, path)
    elif not path.exists():
        assert tokenizer is not None
        files = [Path(name) for name in text.text]
        tokenise(files, tokenizer, source.config.vocab_size, path, at_blank_lines=text.split_at_blank_lines)
    return Windows(
        open_tokens(path, source.config.vocab_size),
        text.length,
        config.tuning.batch_size,
        text.held_out,
        config.run.seed,
    )


def _start(out: Path, config: CompressConfig, source: PreTrainedModel, windows: Windows) -> ProjectedModel:
    """The projected model as training finds it: made anew, or from what an interrupted run has stored."""
    folder = out / "checkpoint"
    if (out / KEPT).exists():
        projected = make_projected(source, Kept.load(out / KEPT), config)
        return projected
    kept, inputs = choose(source, windows, config)
    projected = make_projected(source, kept, config, inputs)
    START.write(
        out / "start.json",
        {
            "source": held_out_loss(source, windows, config.micro_batch).to_json(),
            "start": held_out_loss(projected.small, windows, config.micro_batch).to_json(),
        },
    )
    shutil.rmtree(folder, ignore_errors=True)
    checkpoint.save(folder, 0, 0.0, projected, [])
    kept.save(out / KEPT)  # last: its presence says that the start is stored whole
    return projected


def count(model: torch.nn.Module) -> int:
    """Numbers in a model's parameters."""
    return sum(p.numel() for p in model.parameters())


def _versions() -> dict[str, str]:
    return {
        "projkern": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }
