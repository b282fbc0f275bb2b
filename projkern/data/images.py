"""Collections of labelled images on disk, read at one size: what a tokenizer is trained on and applied to."""

import contextlib
import io
import itertools
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from threading import Lock

import numpy as np
from PIL import Image, ImageOps

from ..utils.errors import InputError, ProjkernError
from ..utils.files import files_under

_NAMED = 5  # unreadable images that a message names
_BROKEN = (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)
"""What Pillow raises for files that are no images, or damaged ones."""
_UNREADABLE = (OSError, ValueError, EOFError, zipfile.BadZipFile)
"""What NumPy raises for files that are no arrays, or damaged ones."""


class DamagedFile(ProjkernError, RuntimeError):
    """A file of many images that cannot be read; raised when one of them is read."""


@dataclass
class LabelledImages:
    """Images in a fixed order, each read on demand.

    Args:
        path: where they lie.
        names: (n) one for each image.
        labels: (n,) int64.
        open: the image of an index, in any mode and size; an image for which it raises is unreadable.
        skipped: indices of the unreadable images met so far.
    """

    path: Path
    names: Sequence[str]
    labels: np.ndarray
    open: Callable[[int], Image.Image]
    skipped: set[int] = field(default_factory=set)

    def __len__(self) -> int:
        return len(self.labels)

    def batches(
        self, size: int, batch: int = 256, indices: Sequence[int] | np.ndarray | None = None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The readable images, in parts.

        Args:
            size: S; other sizes are cropped to their central square and resized (bicubic, antialiased). Before that an
                image is turned as its EXIF orientation says, and 16-bit grey is scaled to 8 bits.
            batch: images read at a time.
            indices: of the images to read, in this order; None: all.

        Yields:
            Indices (b,) int64 of the readable images, and the images (b, S, S, 3) uint8. The others are noted
            in ``skipped``.
        """
        remaining = iter(range(len(self)) if indices is None else indices)

        def read(index: int) -> np.ndarray | None:
            try:
                image = _as_rgb(self.open(index))
                return np.asarray(ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC))
            except _BROKEN:
                return None

        with ThreadPoolExecutor() as pool:
            while part := [int(index) for index in itertools.islice(remaining, batch)]:
                images = list(pool.map(read, part))
                self.skipped.update(index for index, image in zip(part, images) if image is None)
                readable = [index for index, image in zip(part, images) if image is not None]
                if readable:
                    yield np.array(readable), np.stack([image for image in images if image is not None])

    def describe_skipped(self) -> str:
        """How many images could not be read, and the names of the first; empty where all could."""
        if not self.skipped:
            return ""
        first = ", ".join(str(self.names[index]) for index in sorted(self.skipped)[:_NAMED])
        more = ", ..." if len(self.skipped) > _NAMED else ""
        return f"{len(self.skipped)} of {len(self)} images of {self.path} could not be read: {first}{more}"


def open_images(path: str | Path) -> LabelledImages:
    """Open a collection of labelled images.

    Args:
        path: a folder of class folders of image files, where both are sorted by name and a label is the index of
            the class folder (hidden files and folders are left out); an ``.npz`` of JPEG files end to end (``jpeg``
            (bytes,) uint8, ``offsets`` (n + 1,), ``labels`` (n,) and optionally ``names``); or an ``.npz`` of the
            downsampled ImageNet (``data`` (n, 3 S S) uint8, channels first, ``labels`` (n,) from 1), or a folder of
            these.

    Returns:
        A ``LabelledImages``.

    Raises:
        FileNotFoundError: there is nothing at ``path``.
        InputError: something else is, or a collection of no images.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"images must be a folder or an .npz file; there is nothing at {path}")
    if path.is_file():
        with _stored(path) as stored:
            return _jpegs(path) if "jpeg" in stored else _pixels(path, [path])
    if files := sorted((file for file in path.glob("*.npz") if not file.name.startswith(".")), key=_natural):
        return _pixels(path, files)
    return _class_folders(path)


def _class_folders(path: Path) -> LabelledImages:
    suffixes = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    classes = sorted(folder for folder in path.iterdir() if folder.is_dir() and not folder.name.startswith("."))
    files, labels = [], []
    for label, folder in enumerate(classes):
        class_files = [file for file in files_under(folder) if file.suffix.lower() in suffixes]
        files += class_files
        labels += [label] * len(class_files)
    if not files:
        raise InputError(f"images must be a folder of class folders of images, or of .npz files; {path} holds neither")
    names = [file.relative_to(path).as_posix() for file in files]
    return LabelledImages(path, names, np.array(labels, np.int64), lambda index: Image.open(files[index]))


def _as_rgb(image: Image.Image) -> Image.Image:
    """Upright, in 8 bits a channel; raises one of ``_BROKEN`` where it has pixels of which that cannot be made."""
    with contextlib.suppress(Exception):  # damaged EXIF says nothing; damaged pixels are found below
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        # Pillow's own conversion would clip all above 255 to white.
        return Image.fromarray(np.round(np.asarray(image) / 257).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(f"its pixels, of mode {image.mode}, have no known range")
    return image.convert("RGB")


def _jpegs(path: Path) -> LabelledImages:
    with _stored(path) as stored:
        jpeg, offsets, labels = (_array(path, stored, name) for name in ("jpeg", "offsets", "labels"))
        names = stored["names"].tolist() if "names" in stored else [f"{path.name}:{i}" for i in range(len(labels))]
    n = len(labels)
    if offsets.shape != (n + 1,) or len(names) != n or n == 0:
        raise InputError(
            f"{path} must have n >= 1 labels and names and n + 1 offsets; it has {n}, {len(names)} and {len(offsets)}"
        )
    if offsets[0] < 0 or (np.diff(offsets) < 0).any() or offsets[-1] > len(jpeg):
        raise InputError(
            f"{path} must have offsets that grow from 0 to the {len(jpeg)} bytes of jpeg; they were others"
        )

    def read(index: int) -> Image.Image:
        return Image.open(io.BytesIO(jpeg[offsets[index] : offsets[index + 1]].tobytes()))

    return LabelledImages(path, names, labels.astype(np.int64), read)


def _pixels(path: Path, files: list[Path]) -> LabelledImages:
    parts = []
    for file in files:
        with _stored(file) as stored:
            parts.append(_array(file, stored, "labels").astype(np.int64).reshape(-1))
        n, (shape, kind) = len(parts[-1]), _header(file, "data")
        side = round((shape[-1] / 3) ** 0.5) if len(shape) == 2 else 0
        if shape != (n, 3 * side * side) or kind != np.uint8:
            raise InputError(f"{file} must have data ({n}, 3 S S) uint8 for its {n} labels; it was {shape} {kind}")
    starts = np.cumsum([0, *map(len, parts)])
    if starts[-1] == 0:
        raise InputError(f"{path} must hold images; it holds none")
    one_at_a_time = Lock()

    @lru_cache(maxsize=1)  # one of ImageNet's files takes a gigabyte, and images are read in order
    def pixels(number: int) -> np.ndarray:
        try:
            with np.load(files[number]) as stored:
                data: np.ndarray = stored["data"]
        except (*_UNREADABLE, zlib.error) as error:
            raise DamagedFile(f"{files[number]} is damaged: {error}") from error
        return data.reshape(len(data), 3, round((data.shape[1] / 3) ** 0.5), -1)

    def read(index: int) -> Image.Image:
        number = int(np.searchsorted(starts, index, side="right")) - 1
        with one_at_a_time:
            image = pixels(number)[index - starts[number]]
        return Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))

    names = [f"{file.name}:{row}" for file, part in zip(files, parts) for row in range(len(part))]
    return LabelledImages(path, names, np.concatenate(parts) - 1, read)


def _stored(path: Path) -> np.lib.npyio.NpzFile:
    try:
        stored = np.load(path, allow_pickle=False)
    except _UNREADABLE as error:
        raise InputError(f"{path} must be an .npz file; it cannot be read: {error}") from error
    if not isinstance(stored, np.lib.npyio.NpzFile):
        raise InputError(f"{path} must be an .npz file; it holds a single array")
    return stored


def _array(path: Path, stored: np.lib.npyio.NpzFile, name: str) -> np.ndarray:
    if name not in stored:
        raise InputError(f"{path} must hold {name}; it holds {', '.join(stored.files) or 'nothing'}")
    try:
        return np.asarray(stored[name])
    except (*_UNREADABLE, zlib.error) as error:
        raise InputError(f"{path} is damaged: {name} cannot be read: {error}") from error


def _header(path: Path, name: str) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type of an array, without reading it."""
    with zipfile.ZipFile(path) as archive:
        if f"{name}.npy" not in archive.namelist():
            raise InputError(f"{path} must hold {name}; it does not")
        with archive.open(f"{name}.npy") as file:
            version = np.lib.format.read_magic(file)
            header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, kind = header(file)
    return shape, kind


def _natural(path: Path) -> list[tuple[int, str]]:
    """Sorts batch_2 before batch_10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", path.name)]
