"""A standalone model for each of many tasks, a chunk of tasks in one fused call, as one job that can be resumed.

A model that has its name is whole and right (see ``checked``), so a job that was killed goes on with the names that
are missing.
"""

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from tqdm import tqdm

from ..data import Palette
from ..models import ProjectionOperator
from ..utils import digests
from ..utils.errors import InputError
from ..utils.files import (
    Format,
    is_nonempty,
    locked,
    place_to_fill,
    put_in_place,
    read_object,
    require_utf8,
    write_atomically,
)
from . import onnx
from .checked import CheckedWriter

FORMAT = Format("projkern projection", 1, "a projection")


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
            projection.json, which records their origin.
        out: the folder.
        origin: of the operator; goes into every model and into projection.json. The model card shows "run", "scale"
            and "step", beside a digest of the operator.
        palette: the colours of the tokens.
        with_onnx: write model.onnx beside each model too.
        resume: go on with the same job in ``out``; models that are there already stay.
        overwrite: replace the models in ``out``.

    Returns:
        How many models this call wrote.

    Raises:
        FileExistsError: ``out`` holds such models already, and neither flag was given.
        FolderInUse: another process is writing to it.
        InputError: a t of another shape; ``out`` holds other files, or, with ``resume``, another job.
        WrongModel: a model failed its check. It is removed.
        OSError: something could not be written (a full disk, say); the models that are there are whole.
        MissingDependency: ``with_onnx`` without the packages that it needs.
    """
    if t.dim() not in (1, 2) or t.shape[-1] != operator.task_dim or not t.numel():
        raise InputError(f"t must be ({operator.task_dim},) or (N, {operator.task_dim}); it was {tuple(t.shape)}")
    require_utf8(out)
    writer = CheckedWriter(operator, origin | {"digest": digest(operator)}, palette, with_onnx)
    if t.dim() == 1:
        return _one(writer, t, out, resume, overwrite)
    return _many(writer, t, out, resume, overwrite)


def digest(operator: ProjectionOperator) -> str:
    """16 hexadecimal digits that tell an operator and its source from any other."""
    kind = f"{operator.kind} {operator.t_mean} {operator.t_std}".encode()
    tensors = chain(operator.source.state_dict().items(), operator.state_dict().items())
    return digests.digest(chain([kind], digests.parts_of(tensors)))


def _one(writer: CheckedWriter, t: Tensor, out: Path, resume: bool, overwrite: bool) -> int:
    out = out.resolve()
    if is_nonempty(out):
        origin = model_origin(out)
        if origin is None:
            raise InputError(f"out must be a new folder or one that holds a projected model; {out} holds other files")
        if resume:
            job = writer.provenance(t)
            stored = {name: origin.get(name) for name in job} | {"onnx": (out / onnx.FILE).exists()}
            _same_job(out, job | {"onnx": writer.with_onnx}, stored)
            return 0
        _may_replace(out, overwrite)
    work = place_to_fill(out)
    with locked(work), _with_state(lambda: "the model is not there"):
        try:
            for name in ("model", ".model.partial"):  # left by a process that was killed
                shutil.rmtree(work / name, ignore_errors=True)
            writer.write(t[None], [work / "model"], lambda: None)
            put_in_place(work / "model", out)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return 1


def _many(writer: CheckedWriter, t: Tensor, out: Path, resume: bool, overwrite: bool) -> int:
    description = out / "projection.json"
    job = writer.origin | {
        "tasks": digests.digest([t.contiguous().numpy().data]),
        "count": len(t),
        "onnx": writer.with_onnx,
    }
    if is_nonempty(out) and not description.exists():
        raise InputError(f"out must be a new folder or one that holds projected models; {out} holds other files")
    digits = max(5, len(str(len(t) - 1)))
    folders = [out / f"task-{k:0{digits}}" for k in range(len(t))]

    def complete() -> str:
        return f"{sum(folder.exists() for folder in folders)} of {len(t)} models are complete; --resume makes the rest"

    with locked(out), _with_state(complete):
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
            f"{out} already holds projected models; give --resume to go on with them or --overwrite to replace them"
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


def model_origin(folder: Path) -> dict[str, Any] | None:
    """The origin that a projected model records; None for anything else."""
    try:
        origin = read_object(folder / "config.json", "a model").get("projkern")
    except InputError:
        return None
    return origin if isinstance(origin, dict) else None


def _save_array(path: Path, t: Tensor) -> None:
    with path.open("wb") as file:
        np.save(file, t.numpy(), allow_pickle=False)


@contextmanager
def _with_state(state: Callable[[], str]) -> Iterator[None]:
    """Add to an error of writing the state in which it leaves the job."""
    try:
        yield
    except FileExistsError:
        raise
    except OSError as error:
        raise OSError(f"{error}; {state()}") from error
