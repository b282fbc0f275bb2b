"""Task identifiers of images: embeddings from a file, or computed by an encoder (paper, section 3.1)."""

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..utils.errors import InputError, MissingDependency
from .digits import Split
from .images import LabelledImages

Encoder = Callable[[Tensor], Tensor]  # images (B, 3, S, S) in [0, 1] -> embeddings (B, dim)

_KEYS = {"train": "train", "validation": "val"}


def read_embeddings(path: str | Path, split: Split, images: LabelledImages) -> np.ndarray:
    """Read the embedding of each image of a collection.

    Args:
        path: an ``.npy`` (n, dim), or an ``.npz`` with arrays ``train`` and ``val``. It may name the images, so that
            the order is checked: ``train_names`` and ``val_names``, or ``names`` where it serves one split.
        split: which of the two arrays to read.
        images: the collection, the unreadable ones included.

    Returns:
        (n, dim) float32, row i that of image i.

    Raises:
        OSError: the file cannot be opened.
        InputError: it is something else, has values that are not finite, or does not fit the images.
    """
    t, names = _read(Path(path), _KEYS[split])
    if t.ndim != 2 or t.shape[1] < 1 or t.dtype.kind not in "fiu":
        raise InputError(f"embeddings must be numbers (n, dim); in {path} they were {t.shape} {t.dtype}")
    if len(t) != len(images):
        raise InputError(
            f"embeddings must be as many as the {split} images, {len(images)} in {images.path}, and in the order of "
            f"these; {path} has {len(t)}"
        )
    if names is not None:
        _check_order(path, [str(name) for name in names.tolist()], [str(name) for name in images.names])
    t = t.astype(np.float32)
    if not np.isfinite(t).all():
        row = int((~np.isfinite(t)).any(1).argmax())
        raise InputError(f"embeddings must be finite; in {path} row {row} of {split} is not")
    return t


def _read(path: Path, key: str) -> tuple[np.ndarray, np.ndarray | None]:
    try:
        stored = np.load(path, allow_pickle=False)
        if isinstance(stored, np.ndarray):
            return stored, None
        with stored:
            if key not in stored:
                raise InputError(f"it holds {', '.join(stored.files) or 'nothing'} and no {key}")
            names = next((stored[name] for name in (f"{key}_names", "names") if name in stored), None)
            return stored[key], names
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(
            f"embeddings must be an .npy file, or an .npz with {key}; {path} cannot be used: {error}"
        ) from error


def _check_order(path: str | Path, stored: list[str], names: list[str]) -> None:
    if stored == names or stored == [Path(name).name for name in names]:
        return
    if len(stored) != len(names):
        raise InputError(f"embeddings must name each of the {len(names)} images once; {path} has {len(stored)} names")
    row = next(i for i, name in enumerate(names) if stored[i] not in (name, Path(name).name))
    raise InputError(
        f"embeddings must be in the order of the images; {path} has {stored[row]} at row {row}, where the images have "
        f"{names[row]}"
    )


def load_encoder(name: str, device: torch.device) -> Encoder:
    """Load a program that computes embeddings of images.

    Args:
        name: ``timm:NAME``, a pretrained model of timm, of which the pooled features are taken, at unit length; or a
            file, ``.pt2`` of torch.export, else TorchScript, that maps images (B, 3, S, S) in [0, 1] to (B, dim). Such
            a file is a program: load your own only.
        device: where it runs.

    Raises:
        MissingDependency: timm is not installed.
        InputError: there is no such model, or the file is no such program.
    """
    if name.startswith("timm:"):
        return _timm(name.removeprefix("timm:"), device)
    try:
        module: Any = torch.export.load(name).module() if name.endswith(".pt2") else torch.jit.load(name, device)
        return module.to(device)
    except Exception as error:  # torch raises many kinds
        raise InputError(
            f"encoder must be timm:NAME, or a file of TorchScript or torch.export; it was {name}: {error}"
        ) from error


def _timm(name: str, device: torch.device) -> Encoder:
    try:
        import timm
    except ImportError:
        raise MissingDependency("encoder timm:... needs timm: pip install timm") from None
    try:
        model = timm.create_model(name, pretrained=True, num_classes=0).eval().to(device)
    except Exception as error:  # of timm and of the libraries that download, each with types of their own
        raise InputError(
            f"encoder must name a pretrained model of timm that can be had here; it was {name}: {error!r}"
        ) from error
    settings = timm.data.resolve_model_data_config(model)
    mean, std = (torch.tensor(settings[key], device=device)[:, None, None] for key in ("mean", "std"))

    def encode(images: Tensor) -> Tensor:
        resized = F.interpolate(images, settings["input_size"][1:], mode="bicubic", antialias=True)
        return F.normalize(model((resized - mean) / std), dim=1)

    return encode
