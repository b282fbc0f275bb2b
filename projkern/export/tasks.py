"""Many tasks, a standalone model for each: generated a chunk at a time in one fused call, written, read back, checked.

A model's folder is filled under a hidden name, ``.task-00000.partial``, and gets its own by one rename once what
transformers reads from it has given the logits of the training-time forward. So whatever has its name is whole and
right, and a job that was killed goes on with the names that are missing. Before a chunk's renames the system is told
once to put all it holds onto the disk, so that this is true after a power failure too; for small models that costs
far less than doing it file by file.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..data import Palette
from ..models import ProjectionOperator
from ..models.huggingface import gpt2
from ..models.operator import TaskWeights, generate_weights
from ..utils.errors import InputError, ProjkernError
from ..utils.files import Format, hidden_name, is_nonempty, locked, read_object, sync, write_atomically
from . import onnx

FORMAT = Format("projkern projection", 1, "a projection")
TOLERANCE = 1e-5
"""Largest difference of the logits, beside the largest logit (or 1, if that is more)."""
ONNX_TOLERANCE = 1e-4
"""The same in onnxruntime, whose kernels are its own."""
CHUNK_BYTES = 256 << 20
CHUNK_MODELS = 64


class WrongModel(ProjkernError, RuntimeError):
    """A model that does not do, read back, what it did in training."""


def project_tasks(
    operator: ProjectionOperator,
    t: Tensor,
    out: Path,
    *,
    origin: dict[str, Any],
    palette: Palette | None = None,
    with_onnx: bool = False,
    resume: bool = False,
    overwrite: bool = False,
) -> int:
    """Write the model of each task as a folder that transformers loads.

    Memory beside the operator: at most about 256 MiB, or what one model and its forward take, if that is more; it does
    not grow with the number of tasks.

    Args:
        operator: in evaluation mode.
        t: (task_dim,): ``out`` is the model. (N, task_dim): ``out`` holds task-00000 and so on, tasks.npy with t, and
            projection.json, which says what they are models of.
        out: the folder.
        origin: where the operator comes from; goes into every model and into projection.json. "run", "scale" and
            "step" are what the model card tells, beside a digest of the operator.
        palette: the colours of the tokens.
        with_onnx: write model.onnx beside each model too.
        resume: go on with the same job in ``out``; what is there already stays.
        overwrite: replace what is there.

    Returns:
        How many models were made by this call.

    Raises:
        FileExistsError: ``out`` holds such models already, and neither flag was given.
        FolderInUse: another process is writing to it.
        ValueError: a t of another shape; ``out`` holds something else, or, with ``resume``, another job.
        WrongModel: a model failed its check. It is not kept.
        OSError: something could not be written (a full disk, say); the models that are there are whole.
        ImportError: ``with_onnx`` without what it needs.
    """
    if t.dim() not in (1, 2) or t.shape[-1] != operator.task_dim or not t.numel():
        raise InputError(f"t must be ({operator.task_dim},) or (N, {operator.task_dim}); it was {tuple(t.shape)}")
    writer = CheckedWriter(operator, origin | {"digest": digest(operator)}, palette, with_onnx)
    if t.dim() == 1:
        return _one(writer, t, out, resume, overwrite)
    return _many(writer, t, out, resume, overwrite)


def digest(operator: ProjectionOperator) -> str:
    """16 hexadecimal digits that tell an operator and its source from any other."""
    total = hashlib.sha256(f"{operator.kind} {operator.t_mean} {operator.t_std}".encode())
    for module in (operator.source, operator):
        for name, tensor in module.state_dict().items():
            total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            total.update(tensor.contiguous().cpu().view(torch.uint8).numpy().data)
    return total.hexdigest()[:16]


@torch.no_grad()
def state_dicts(operator: ProjectionOperator, generated: TaskWeights) -> Iterator[dict[str, Tensor]]:
    """The tensors of each of U generated models under GPT-2's names (``gpt2.tensors``).

    What does not depend on t is shared by all; what does is laid out for all of them at once.
    """
    shared = {name: tensor.cpu() for name, tensor in gpt2.table_tensors(operator.tables).items()}
    names = gpt2.linear_names(operator.config.n_layer)
    weights = [w.mT.cpu().contiguous().unbind(0) for w in generated.weights]  # the other library has inputs first
    biases = [b.cpu().unbind(0) for b in operator.with_own_biases(generated.biases)]
    weight_names, bias_names = [f"{name}.weight" for name in names], [f"{name}.bias" for name in names]
    for w, b in zip(zip(*weights), zip(*biases)):
        yield shared | dict(zip(weight_names, w)) | dict(zip(bias_names, b))


class CheckedWriter:
    """Writes the models of one operator's tasks, a chunk at a time, each read back and checked."""

    def __init__(
        self, operator: ProjectionOperator, origin: dict[str, Any], palette: Palette | None, with_onnx: bool
    ) -> None:
        self.operator, self.origin, self.with_onnx = operator, origin, with_onnx
        self._writer = gpt2.Writer(operator.config, palette)
        self._onnx: onnx.OnnxWriter | None = None  # exported from the first model
        if with_onnx:
            onnx.require_onnx()
        config = operator.config
        generator = torch.Generator().manual_seed(0)
        self._probe = torch.randint(config.vocab_size, (1, config.n_positions), generator=generator)
        self._input_ids = torch.cat([torch.full((1, 1), config.vocab_size), self._probe[:, :-1]], dim=1)

    @property
    def chunk(self) -> int:
        """Models to make at once: each has its weights twice, and the activations and logits of its check."""
        config = self.operator.config
        weights = 2 * 12 * config.n_layer * config.n_embd**2
        check = config.n_positions * (16 * config.n_embd + 2 * config.vocab_size)
        return max(1, min(CHUNK_MODELS, CHUNK_BYTES // (4 * (weights + check))))

    def provenance(self, t: Tensor) -> dict[str, Any]:
        return self.origin | {"t": t.tolist()}

    @torch.no_grad()
    def write(self, t: Tensor, folders: Sequence[Path], done: Callable[[], object]) -> None:
        """Write the models of t (U, task_dim), each into its folder, which must not be there, or none of them.

        Args:
            done: called once for each model.
        """
        partials = [hidden_name(folder) for folder in folders]
        device = self.operator.tables.head.device
        (generated,) = generate_weights([self.operator], t.to(device))
        expected = self.operator.run(self._probe.expand(len(t), -1).to(device), generated).cpu()
        try:
            for row, partial, state, logits in zip(t, partials, state_dicts(self.operator, generated), expected):
                if not logits.isfinite().all():
                    raise WrongModel(f"t must give a model of finite logits; it was {row.tolist()}")
                partial.mkdir()
                self._writer.write(partial, state, self.provenance(row))
                self._check(partial, logits)
                if self.with_onnx:
                    self._write_onnx(partial / onnx.FILE, state, logits)
                done()
            os.sync()
            for partial, folder in zip(partials, folders):
                partial.rename(folder)
            sync(folders[0].parent)
        finally:
            for partial in partials:
                shutil.rmtree(partial, ignore_errors=True)

    def _check(self, folder: Path, expected: Tensor) -> None:
        from transformers import GPT2LMHeadModel

        loaded: Any = GPT2LMHeadModel.from_pretrained(folder, local_files_only=True, output_loading_info=True)
        model, report = loaded
        wrong = {kind: sorted(names) for kind, names in report.items() if names}
        if wrong:
            raise WrongModel(f"{folder} does not hold what transformers looks for: {wrong}")
        logits = model.eval()(self._input_ids).logits[0, :, : self.operator.config.vocab_size]
        _compare("transformers", folder, logits, expected, TOLERANCE)

    def _write_onnx(self, path: Path, state: dict[str, Tensor], expected: Tensor) -> None:
        if self._onnx is None:
            self._onnx = onnx.OnnxWriter(self.operator.config, state)
        self._onnx.write(path, state)
        _compare("onnxruntime", path, onnx.run(path, self._input_ids)[0], expected, ONNX_TOLERANCE)


def _compare(library: str, path: Path, logits: Tensor, expected: Tensor, tolerance: float) -> None:
    largest = max(1.0, expected.abs().max().item())
    error = (logits - expected).abs().max().item() / largest
    if not error <= tolerance:  # nor is NaN
        raise WrongModel(
            f"{path}, read back by {library}, must give the logits of the training-time forward within {tolerance:g} "
            f"of the largest ({largest:g}); they were {error:.1e} of it off"
        )


def _one(writer: CheckedWriter, t: Tensor, out: Path, resume: bool, overwrite: bool) -> int:
    out = out.resolve()
    is_taken = out.exists() and (not out.is_dir() or any(out.iterdir()))
    if is_taken:
        origin = _model_origin(out)
        if origin is None:
            wanted = "a new folder or one that holds a projected model"
            raise InputError(f"out must be {wanted}; {out} holds something else")
        if resume:
            job = writer.provenance(t)
            stored = {name: origin.get(name) for name in job} | {"onnx": (out / onnx.FILE).exists()}
            _same_job(out, job | {"onnx": writer.with_onnx}, stored)
            return 0
        _may_replace(out, overwrite)
    work = hidden_name(out)
    with locked(work), _saying(lambda: "the model is not there"), _quiet_transformers():
        try:
            for left in ("model", "replaced", ".model.partial"):  # by a process that was killed
                shutil.rmtree(work / left, ignore_errors=True)
            writer.write(t[None], [work / "model"], lambda: None)
            if is_taken:
                out.rename(work / "replaced")
            (work / "model").rename(out)
            sync(out.parent)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return 1


def _many(writer: CheckedWriter, t: Tensor, out: Path, resume: bool, overwrite: bool) -> int:
    description = out / "projection.json"
    job = writer.origin | {
        "tasks": hashlib.sha256(t.contiguous().numpy().tobytes()).hexdigest()[:16],
        "count": len(t),
        "onnx": writer.with_onnx,
    }
    if is_nonempty(out) and not description.exists():
        raise InputError(f"out must be a new folder or one that holds projected models; {out} holds something else")
    digits = max(5, len(str(len(t) - 1)))
    folders = [out / f"task-{k:0{digits}}" for k in range(len(t))]

    def complete() -> str:
        return f"{sum(folder.exists() for folder in folders)} of {len(t)} models are complete; --resume makes the rest"

    with locked(out), _saying(complete), _quiet_transformers():
        _remove_partials(out)
        if description.exists():
            stored = FORMAT.read(description)
            if resume:
                _same_job(out, job, stored)
            else:
                _may_replace(out, overwrite)
                _remove_models(out)
        if not resume or not description.exists():
            FORMAT.write(description, job)
        write_atomically(out / "tasks.npy", lambda path: _save_array(path, t))
        missing = [k for k, folder in enumerate(folders) if not folder.exists()]
        with tqdm(total=len(t), initial=len(t) - len(missing), unit=" models", desc="project") as bar:
            for first in range(0, len(missing), writer.chunk):
                chunk = missing[first : first + writer.chunk]
                writer.write(t[chunk], [folders[k] for k in chunk], bar.update)
    return len(missing)


def _same_job(out: Path, job: dict[str, Any], stored: dict[str, Any]) -> None:
    """Raise InputError where a job differs from the one stored in ``out``, in anything but the format's version."""
    differing = sorted(name for name in job | stored if name != "version" and job.get(name) != stored.get(name))
    if differing:
        name = differing[0]
        raise InputError(
            f"{name} must be that of the job in {out} to go on with it, {stored.get(name)}; it was {job.get(name)}"
        )


def _may_replace(out: Path, overwrite: bool) -> None:
    if not overwrite:
        raise FileExistsError(
            f"{out} already holds what was projected; give --resume to go on with it or --overwrite to replace it"
        )
    if out.resolve() == Path.cwd():
        raise InputError(f"out must not be the working directory if it is to be overwritten; it was {out}")


def _remove_partials(folder: Path) -> None:
    for path in folder.glob(".*.partial"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _remove_models(folder: Path) -> None:
    for path in folder.iterdir():
        if re.fullmatch(r"task-\d{5,}", path.name):
            path.rename(folder / f".{path.name}.partial")  # so that no half-deleted model passes for one
    _remove_partials(folder)


def _model_origin(folder: Path) -> dict[str, Any] | None:
    """What a projected model says of its origin; None for anything else."""
    try:
        origin = read_object(folder / "config.json", "a model").get("projkern")
    except InputError:
        return None
    return origin if isinstance(origin, dict) else None


def _save_array(path: Path, t: Tensor) -> None:
    with path.open("wb") as file:
        np.save(file, t.numpy(), allow_pickle=False)


@contextmanager
def _saying(state: Callable[[], str]) -> Iterator[None]:
    """Add to an error of writing what is there in spite of it."""
    try:
        yield
    except FileExistsError:
        raise
    except OSError as error:
        raise OSError(f"{error}; {state()}") from error


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Without a progress bar for the reading of each model."""
    from transformers.utils import logging

    before = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if before:
            logging.enable_progress_bar()
