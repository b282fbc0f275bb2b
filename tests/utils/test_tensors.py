"""Tensors in safetensors files: alone, in shards, and nothing that could run code."""

from __future__ import annotations

import json
import os
import pickle

import pytest
import torch
from permissions import as_nobody
from safetensors.torch import save_file

from projkern.utils.errors import InputError
from projkern.utils.tensors import read_tensors, read_weights, write_tensors

TENSORS = {
    "weight": torch.arange(6.0).view(2, 3),
    "counts": torch.tensor([1, 2], dtype=torch.int64),
    "half": torch.ones(2, dtype=torch.bfloat16),
    "scalar": torch.tensor(0.5),
}


def assert_equal(tensors, expected):
    assert tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        assert tensors[name].dtype == tensor.dtype and torch.equal(tensors[name], tensor), name


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "x.safetensors"
    write_tensors(path, TENSORS)
    assert_equal(read_tensors(path), TENSORS)
    (tmp_path / "other").touch()
    assert path.stat().st_mode == (tmp_path / "other").stat().st_mode
    assert sorted(p.name for p in tmp_path.iterdir()) == ["other", "x.safetensors"]


def test_a_path_of_any_bytes(tmp_path):
    path = tmp_path / os.fsdecode(b"r\xfcn.safetensors")
    write_tensors(path, TENSORS)
    assert_equal(read_tensors(path), TENSORS)


def test_views_and_parameters_are_written_as_they_are_seen(tmp_path):
    whole = torch.nn.Parameter(torch.arange(12.0).view(3, 4))
    views = {"transposed": whole.T, "column": whole[:, 1], "expanded": torch.zeros(1).expand(3)}
    write_tensors(tmp_path / "x.safetensors", views)
    assert_equal(read_tensors(tmp_path / "x.safetensors"), {name: view.detach() for name, view in views.items()})


def test_an_error_of_writing_keeps_the_file_of_before(tmp_path):
    write_tensors(tmp_path / "x.safetensors", TENSORS)
    with pytest.raises(OSError, match="none"):
        write_tensors(tmp_path / "none" / "x.safetensors", TENSORS)
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(OSError, match=r"folder\.safetensors"):
        write_tensors(tmp_path / "folder.safetensors", TENSORS)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder.safetensors", "x.safetensors"]


@pytest.mark.parametrize("size", [0, 7, 50, -1])
def test_damaged_files(tmp_path, size):
    path = tmp_path / "x.safetensors"
    write_tensors(path, TENSORS)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(InputError, match=r"x\.safetensors is damaged"):
        read_tensors(path)


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match=r"x\.safetensors cannot be read: .*No such file"):
        read_tensors(tmp_path / "x.safetensors")


def test_a_file_that_may_not_be_read(tmp_path):
    path = tmp_path / "x.safetensors"
    write_tensors(path, TENSORS)
    path.chmod(0)
    with as_nobody(), pytest.raises(InputError, match=r"x\.safetensors cannot be read: .*Permission denied"):
        read_tensors(path)


@pytest.mark.parametrize("kind", ["torch", "pickle"])
def test_pickles_are_refused(tmp_path, kind):
    path = tmp_path / "x.safetensors"
    if kind == "torch":
        torch.save(TENSORS, path)
    else:
        path.write_bytes(pickle.dumps({"weight": [1.0]}))
    with pytest.raises(InputError, match=r"x\.safetensors holds pickled weights"):
        read_tensors(path)


# Checkpoint folders


def test_a_folder_of_one_file(tmp_path):
    save_file(TENSORS, tmp_path / "model.safetensors")
    torch.save({}, tmp_path / "pytorch_model.bin")  # beside it, pickles do no harm
    assert_equal(read_weights(tmp_path), TENSORS)


def shards(folder, weight_map):
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def test_a_folder_of_shards(tmp_path):
    save_file({"a": torch.zeros(1), "b": torch.ones(1)}, tmp_path / "1.safetensors")
    save_file({"c": torch.full((1,), 2.0)}, tmp_path / "2.safetensors")
    shards(tmp_path, {"a": "1.safetensors", "b": "1.safetensors", "c": "2.safetensors"})
    assert {name: tensor.item() for name, tensor in read_weights(tmp_path).items()} == {"a": 0, "b": 1, "c": 2}
    (tmp_path / "2.safetensors").unlink()
    with pytest.raises(InputError, match=r"2\.safetensors cannot be read"):
        read_weights(tmp_path)


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "sub/x.safetensors", "", "..", 3, None])
def test_shards_of_other_folders_are_refused(tmp_path, name):
    with pytest.raises(InputError, match=r"index\.json must list files of its own folder"):
        read_weights(shards(tmp_path, {"a": name}))


@pytest.mark.parametrize("weight_map", [None, [], "x"])
def test_an_index_without_a_map(tmp_path, weight_map):
    with pytest.raises(InputError, match=r"index\.json must hold"):
        read_weights(shards(tmp_path, weight_map))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "last.ckpt", "model.pkl"])
def test_a_folder_of_pickles_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(InputError, match=f"{name} holds pickled weights"):
        read_weights(tmp_path)


def test_an_empty_folder(tmp_path):
    with pytest.raises(InputError, match=f"{tmp_path} must hold a checkpoint"):
        read_weights(tmp_path)
