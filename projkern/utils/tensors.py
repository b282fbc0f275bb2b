"""Tensors in safetensors files, alone and in checkpoint folders; pickles are refused, as reading one can run code."""

import re
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from .errors import InputError
from .files import read_object, write_atomically

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
    return {name: tensor for shard in _shards(index) for name, tensor in read_tensors(folder / shard).items()}


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


def _shards(index: Path) -> list[str]:
    contents = "the list of the shards of the weights"
    shards = read_object(index, contents).get("weight_map")
    if not isinstance(shards, dict):
        raise InputError(f"{index} must hold {contents}; it has no weight_map")
    for name in shards.values():
        if not isinstance(name, str) or name in ("", "..") or Path(name).name != name:
            raise InputError(f"{index} must list files of its own folder; it lists {name}")
    return sorted(set(shards.values()))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read one safetensors file; raises InputError where it is missing, damaged, or a pickle."""
    try:
        return load_file(path)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    except SafetensorError as error:
        with path.open("rb") as file:
            if _PICKLE_START.match(file.read(4)):
                raise InputError(_refusal(path)) from None
        raise InputError(f"{path} is damaged or cut short: {error}") from error


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write one safetensors file, atomically and as readable as any other file; raises OSError where it cannot be."""

    def write(partial: Path) -> None:
        partial.touch()
        mode = partial.stat().st_mode  # safetensors leaves files to their owner alone
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, partial)
        partial.chmod(mode)

    try:
        write_atomically(path, write)
    except SafetensorError as error:
        raise OSError(f"{path} cannot be written: {error}") from error


def _refusal(path: Path) -> str:
    return (
        f"{path} holds pickled weights, which can run code when they are read, and is refused. Weights must be in "
        "safetensors; the library that wrote these, or safetensors' own conversion, converts them"
    )
