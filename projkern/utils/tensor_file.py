"""A safetensors file whose tensors are written one at a time, in any order: its header is laid out beforehand.

    8 bytes: length of the header | header: JSON | the tensors, end to end          (the documented format)

The bytes are those that safetensors' ``save_file`` writes.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from torch import Tensor

Layout = dict[str, tuple[torch.dtype, tuple[int, ...]]]
"""The dtype and the shape of each tensor of a file."""
_NAMES = {
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""In the order of the file: wide numbers first, so that all are aligned."""
_ALIGNMENT = 8


class TensorFile:
    """A new safetensors file, to be filled by ``write`` and then closed; a context manager.

    Args:
        path: of the file, which is made with its full length at once.
        layout: what it will hold.

    Raises:
        OSError: it cannot be written.
    """

    def __init__(self, path: Path, layout: Layout) -> None:
        self._layout, self._missing = dict(layout), set(layout)
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        places, end = {}, 0
        order = list(_NAMES)
        for name in sorted(layout, key=lambda name: (order.index(layout[name][0]), name)):
            dtype, shape = layout[name]
            start, end = end, end + math.prod(shape) * dtype.itemsize
            header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [start, end]}
            places[name] = start
        head = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        head += b" " * (-len(head) % _ALIGNMENT)
        data = 8 + len(head)
        self._offsets = {name: data + start for name, start in places.items()}
        self._file = path.open("w+b")
        self._file.write(len(head).to_bytes(8, "little") + head)
        self._file.truncate(data + end)

    def write(self, name: str, tensor: Tensor) -> None:
        """Write one tensor, of the dtype and shape that the layout has for it."""
        assert (tensor.dtype, tuple(tensor.shape)) == self._layout[name], name
        self._file.seek(self._offsets[name])
        self._file.write(bytes_of(tensor))
        self._missing.discard(name)

    def read(self, name: str) -> Tensor:
        """Read one tensor back."""
        dtype, shape = self._layout[name]
        tensor = torch.empty(shape, dtype=dtype)
        self._file.seek(self._offsets[name])
        self._file.readinto(bytes_of(tensor))
        return tensor

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        self._file.close()
        assert kind is not None or not self._missing, f"{len(self._missing)} tensors were not written"


def bytes_of(tensor: Tensor) -> memoryview:
    """The numbers of a tensor as bytes; no copy where it is contiguous and on the CPU."""
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data
