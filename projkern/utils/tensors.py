"""Tensors in safetensors files, alone and in checkpoint folders; pickles are refused, as reading one can run code."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, load_file, save_file
from torch import Tensor

from .errors import InputError
from .files import is_utf8, read_object, require_readable, write_atomically

_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_PICKLE_START = re.compile(rb"PK\x03\x04|\x80[\x02-\x05][^\0]")  # torch's archive; a pickle by itself


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Read ``model.safetensors``, or the shards that ``model.safetensors.index.json`` lists.

    Returns:
        Name -> tensor, on the CPU, as stored.

    Raises:
        InputError: no such file, pickled weights in its place, a missing shard, or a file that is damaged.
    """
    whole, index = _weight_files(folder)
    if whole.exists():
        return read_tensors(whole)
    require_safetensors(folder)
    shards = sorted(set(_weight_map(index).values()))
    return {name: tensor for shard in shards for name, tensor in read_tensors(folder / shard).items()}


class StoredTensors(Mapping[str, Tensor]):
    """The tensors of safetensors files by name, each read when it is asked for: on the CPU, and the caller's own.

    A file is opened for one tensor and closed after it: pages that are mapped count as the process's own. So reading
    takes twice the tensor's bytes, and nothing once it is dropped.

    Args:
        places: of each tensor the file, and its name there.
    """

    def __init__(self, places: Mapping[str, tuple[Path, str]]) -> None:
        self._places = dict(places)

    @classmethod
    def of_file(cls, path: Path) -> StoredTensors:
        """Those of one file; raises InputError as ``read_tensors``."""
        with _readable(path), safe_open(path, "pt") as file:
            names = file.keys()
        return cls({name: (path, name) for name in names})

    @classmethod
    def of_folder(cls, folder: Path) -> StoredTensors:
        """Those of a checkpoint folder; raises InputError as ``read_weights``, for a damaged shard when it is read."""
        whole, index = _weight_files(folder)
        if whole.exists():
            return cls.of_file(whole)
        require_safetensors(folder)
        return cls({name: (folder / shard, name) for name, shard in _weight_map(index).items()})

    def under(self, prefix: str) -> StoredTensors:
        """Those whose names begin with ``prefix``, by the rest of their names."""
        return self.renamed({name[len(prefix) :]: name for name in self if name.startswith(prefix)})

    def renamed(self, names: Mapping[str, str]) -> StoredTensors:
        """Some of them by other names: ``names`` has the present one for each."""
        return StoredTensors({new: self._places[name] for new, name in names.items()})

    def __getitem__(self, name: str) -> Tensor:
        return self.read(name)

    def read(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """One of them, in another type where that is given."""
        path, stored_name = self._places[name]
        with _readable(path), safe_open(path, "pt") as file:
            tensor: Tensor = file.get_tensor(stored_name)
            return tensor.to(dtype or tensor.dtype, copy=True)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of one."""
        path, stored_name = self._places[name]
        with _readable(path), safe_open(path, "pt") as file:
            return tuple(file.get_slice(stored_name).get_shape())

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def require_safetensors(folder: Path) -> None:
    """Raises InputError where a folder has no weights in safetensors, and says so where they are pickled."""
    if any(path.exists() for path in _weight_files(folder)):
        return
    pickled = sorted(path.name for kind in _PICKLED for path in folder.glob(kind))
    if pickled:
        raise InputError(_refusal(folder / pickled[0]))
    whole, index = _weight_files(folder)
    raise InputError(f"{folder} must hold a checkpoint; it has neither {whole.name} nor {index.name}")


def _weight_files(folder: Path) -> tuple[Path, Path]:
    return folder / "model.safetensors", folder / "model.safetensors.index.json"


def _weight_map(index: Path) -> dict[str, str]:
    """The shard of each tensor."""
    contents = "the list of the shards of the weights"
    shards = read_object(index, contents).get("weight_map")
    if not isinstance(shards, dict):
        raise InputError(f"{index} must hold {contents}; it has no weight_map")
    for name in shards.values():
        if not isinstance(name, str) or name in ("", "..") or Path(name).name != name:
            raise InputError(f"{index} must list files of its own folder; it lists {name}")
    return shards


def same_bits(tensor: Tensor, other: Tensor) -> bool:
    """Whether two tensors of one type and shape are the same, NaN and the sign of zero included."""
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.itemsize]
    return tensor.dtype == other.dtype and torch.equal(tensor.view(integers), other.view(integers))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read one safetensors file; raises InputError where it is missing, damaged, or a pickle."""
    with _readable(path):
        return load_file(path) if is_utf8(path) else load(path.read_bytes())


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turns errors of reading a file into InputError."""
    try:
        require_readable(path)
        yield
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    except SafetensorError as error:
        with path.open("rb") as file:
            if _PICKLE_START.match(file.read(4)):
                raise InputError(_refusal(path)) from None
        raise InputError(f"{path} is damaged or cut short: {error}") from error


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write one safetensors file, atomically; raises OSError where it cannot be."""
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        write_atomically(path, lambda partial: save_file(stored, partial))
    except SafetensorError as error:
        raise OSError(f"{path} cannot be written: {error}") from error


def _refusal(path: Path) -> str:
    return (
        f"{path} holds pickled weights, which can run code when they are read, and is refused. Weights must be in "
        "safetensors; the library that wrote these, or safetensors' own conversion, converts them"
    )
