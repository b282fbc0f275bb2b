"""A safetensors file written one tensor at a time has the bytes of the library's own; so has a folder read lazily."""

import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from projkern.utils.errors import InputError
from projkern.utils.tensor_file import TensorFile
from projkern.utils.tensors import StoredTensors, same_bits

TENSORS = {
    "b.weight": torch.randn(3, 5),
    "a.weight": torch.randn(5, 3).mT,
    "ä": torch.randn(7, dtype=torch.bfloat16),
    "double": torch.randn(2, 2, dtype=torch.float64),
    "half": torch.full((3,), torch.nan, dtype=torch.float16),
    "number": torch.tensor(3),
    "flags": torch.tensor([True, False, True]),
    "bytes": torch.arange(5, dtype=torch.uint8),
    "empty": torch.empty(0, 4),
}


def layout(tensors):
    return {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}


def test_the_bytes_are_those_of_safetensors(tmp_path):
    path, expected = tmp_path / "ours.safetensors", tmp_path / "theirs.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in TENSORS.items()}, expected, metadata={"format": "pt"})
    with TensorFile(path, layout(TENSORS)) as file:
        for name in sorted(TENSORS, reverse=True):
            file.write(name, TENSORS[name])
            assert same_bits(file.read(name), TENSORS[name])  # before the others are there
    assert path.read_bytes() == expected.read_bytes()
    (tmp_path / "other").touch()
    assert path.stat().st_mode == (tmp_path / "other").stat().st_mode  # as the umask says
    assert load_file(path).keys() == TENSORS.keys()


def test_bits_are_compared():
    nan, zero = torch.tensor([torch.nan, 1.0]), torch.zeros(2, dtype=torch.bfloat16)
    assert same_bits(nan, nan.clone()) and same_bits(zero, zero.clone())
    assert not same_bits(zero, -zero) and not same_bits(nan, nan + 1) and not same_bits(zero, zero.half())


def test_a_file_that_was_not_filled_is_an_error(tmp_path):
    with pytest.raises(AssertionError, match="1 tensors"), TensorFile(tmp_path / "file", layout(TENSORS)) as file:
        for name in TENSORS.keys() - {"ä"}:
            file.write(name, TENSORS[name])


def test_tensors_of_shards_are_read_one_by_one_and_are_the_callers_own(tmp_path):
    names = ("b.weight", "number")
    for name in names:
        save_file({name: TENSORS[name]}, tmp_path / f"{name}.safetensors")
    index = {"weight_map": {name: f"{name}.safetensors" for name in names}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    stored = StoredTensors.of_folder(tmp_path)
    assert list(stored) == list(names) and len(stored) == 2
    tensor = stored["b.weight"]
    tensor.zero_()
    assert torch.equal(stored["b.weight"], TENSORS["b.weight"])
    below = stored.under("b.")
    assert list(below) == ["weight"] and torch.equal(below["weight"], TENSORS["b.weight"])
    with pytest.raises(KeyError):
        stored["other"]
    os.truncate(tmp_path / "number.safetensors", 20)
    with pytest.raises(InputError, match="number.safetensors is damaged"):
        stored["number"]
