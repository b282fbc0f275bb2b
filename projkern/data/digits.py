"""Handwritten digits for SynthMNIST: scikit-learn's embedded ones, MNIST's idx files, or OpenML.

Whatever the source, a digit is a 28x28 image of white ink on black paper with MNIST's margins, so the
rest of the package sees one format (paper, appendix C.3: "one of the MNIST images").
"""

import gzip
import os
import tempfile
import zlib
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..utils.errors import InputError
from ..utils.files import home_folder
from .names import OPENML

Split = Literal["train", "validation"]

SIDE = 28  # height and width of an MNIST digit, pixels
INK = 20  # MNIST's digits are drawn in the middle 20x20 box of the 28x28 image
_IDX_PREFIX = {"train": "train", "validation": "t10k"}
_OPENML_TRAIN = 60_000  # rows of mnist_784 that are MNIST's training files; the rest are its test files


@dataclass(frozen=True)
class Digits:
    """Digit images and their classes.

    Attributes:
        images: (n, 28, 28) uint8, 0 is paper, 255 is ink.
        labels: (n,) int64 in [0, 9].
    """

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 3 or 0 in self.images.shape:
            raise InputError(
                f"images must be uint8 of shape (n, h, w) with n, h, w >= 1; it was {self.images.dtype} "
                f"{tuple(self.images.shape)}"
            )
        if self.labels.shape != self.images.shape[:1]:
            raise InputError(f"labels must be ({len(self.images)},); it was {tuple(self.labels.shape)}")

    def __len__(self) -> int:
        return len(self.images)


def check_split(split: str) -> None:
    """Raise InputError unless ``split`` is "train" or "validation"."""
    if split not in get_args(Split):
        raise InputError(f"split must be one of {', '.join(map(repr, get_args(Split)))}; it was {split!r}")


def load_digits(source: str | os.PathLike[str] | None = None, split: Split = "train") -> Digits:
    """Handwritten digits of one split, in a fixed order.

    Args:
        source: ``None``: scikit-learn's embedded 1,797 digits (8x8, enlarged to MNIST's format; needs no
            network), first four fifths for training and last fifth for validation. A directory: MNIST's
            four idx files, gzipped or not, train files for training and t10k files for validation.
            ``"openml"``: MNIST downloaded, and cached, by scikit-learn.
        split: "train" or "validation".

    Returns:
        ``Digits`` with 28x28 images, 1,438 + 359 from scikit-learn, 60,000 + 10,000 from MNIST.

    Raises:
        FileNotFoundError: the directory or one of its idx files is missing.
        InputError: unknown split, or an idx file that is truncated, is of the wrong kind or has the wrong
            counts.
        ConnectionError: OpenML cannot be reached.
    """
    check_split(split)
    if source is None:
        return _sklearn_digits(split)
    if source == OPENML:
        return _openml_digits(split)
    return _idx_digits(Path(source), split)


def _sklearn_digits(split: Split) -> Digits:
    from sklearn.datasets import load_digits as load

    bunch = load()
    small = torch.from_numpy(bunch.images).float()[:, None] / 16  # [n, 1, 8, 8]
    large = F.interpolate(small, size=(INK, INK), mode="bicubic", align_corners=False)
    large = ((large - 0.3) * 2.5).clamp(0, 1)  # enlarging blurs and fattens: restore a pen's stroke
    images = F.pad(large[:, 0] * 255, [(SIDE - INK) // 2] * 4).round().to(torch.uint8)
    labels = torch.from_numpy(bunch.target).long()
    held_out = len(images) // 5
    part = slice(None, -held_out) if split == "train" else slice(-held_out, None)
    return Digits(images[part], labels[part])


def _openml_digits(split: Split) -> Digits:
    from sklearn.datasets import fetch_openml

    # Without a home scikit-learn takes "~" for the name of a folder.
    cache = None if home_folder() or "SCIKIT_LEARN_DATA" in os.environ else tempfile.gettempdir()
    try:
        pixels, labels = fetch_openml(
            "mnist_784", version=1, return_X_y=True, as_frame=False, parser="liac-arff", data_home=cache
        )
    except (OSError, HTTPException, EOFError, ValueError, zlib.error) as error:  # the last three: a damaged download
        raise ConnectionError(
            "source must be the directory of MNIST's idx files, or None for scikit-learn's embedded digits, where "
            f"OpenML cannot be reached ({error!r}); it was 'openml'"
        ) from error
    part = slice(None, _OPENML_TRAIN) if split == "train" else slice(_OPENML_TRAIN, None)
    images = torch.from_numpy(pixels[part].astype(np.uint8)).view(-1, SIDE, SIDE)
    return Digits(images, torch.from_numpy(labels[part].astype(np.int64)))


def _idx_digits(directory: Path, split: Split) -> Digits:
    if not directory.is_dir():
        raise FileNotFoundError(
            "source must be the directory of MNIST's idx files, 'openml', or None for scikit-learn's embedded digits; "
            f"it was {str(directory)!r}, which is no directory"
        )
    images_path = _find_idx(directory, f"{_IDX_PREFIX[split]}-images-idx3-ubyte")
    labels_path = _find_idx(directory, f"{_IDX_PREFIX[split]}-labels-idx1-ubyte")
    images, labels = read_idx(images_path, ndim=3), read_idx(labels_path, ndim=1)
    if len(images) != len(labels):
        raise InputError(
            f"{images_path} must have an image for each of the {len(labels)} labels in {labels_path}; "
            f"it has {len(images)}"
        )
    if images.shape[1:] != (SIDE, SIDE) or len(images) == 0:
        raise InputError(f"{images_path} must be (n, {SIDE}, {SIDE}) with n >= 1; it was {images.shape}")
    return Digits(torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64)))


def _find_idx(directory: Path, name: str) -> Path:
    names = (name, name.replace("-idx", ".idx"))  # as they are published, and as some archives have them
    for folder in (directory, directory / "raw", directory / "MNIST" / "raw"):  # the latter two are torchvision's
        for path in (folder / f"{name}{suffix}" for name in names for suffix in ("", ".gz")):
            if path.is_file():
                return path
    raise FileNotFoundError(f"{directory} must hold {name} or {name}.gz; it holds neither")


def read_idx(path: Path, ndim: int) -> np.ndarray:
    """Read an idx file of unsigned bytes (MNIST's format), gzipped if its name ends in ".gz".

    The file is the magic number 0x0000080N for N dimensions, N big-endian 32-bit sizes, then the bytes.

    Args:
        path: the file.
        ndim: number of dimensions it must have.

    Returns:
        uint8 array of the shape that the file's header gives, writable.

    Raises:
        InputError: the file is truncated, too long, badly compressed or has another magic number.
    """
    data = path.read_bytes()
    if path.suffix.lower() == ".gz":
        try:
            data = gzip.decompress(data)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise InputError(f"{path} must be a whole gzip file; it is not ({error})") from error
    header = 4 + 4 * ndim
    if len(data) < header:
        raise InputError(f"{path} must have {header} bytes for its header alone; it has {len(data)}")
    magic, *shape = (int(v) for v in np.frombuffer(data, ">u4", count=1 + ndim))
    if magic != 0x0800 + ndim:
        raise InputError(
            f"{path} must start with {0x0800 + ndim:#010x}, as an idx file of bytes with {ndim} dimension(s) does; "
            f"it starts with {magic:#010x}"
        )
    expected = header + int(np.prod(shape, dtype=np.int64))
    if len(data) != expected:
        raise InputError(f"{path} must have {expected} bytes, as its sizes {shape} say; it has {len(data)}")
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape).copy()
