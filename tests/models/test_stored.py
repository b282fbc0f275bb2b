"""A model that is left in its files runs as the loaded one does, bit for bit, whatever its family."""

import subprocess
import sys

import pytest
import torch
from decoders import FAMILIES, decoder

from projkern.models.huggingface.causal import PretrainedFolder
from projkern.models.huggingface.stored import open_stored, parameters_of
from projkern.utils.errors import InputError

CPU = torch.device("cpu")


@pytest.mark.parametrize("family", [*FAMILIES, "gpt2"])
def test_it_runs_as_the_loaded_model(family, tmp_path):
    decoder(family).bfloat16().save_pretrained(tmp_path, max_shard_size="60KB")
    folder = PretrainedFolder.open(tmp_path)
    loaded = folder.load(CPU, torch.float32)
    stored = open_stored(folder, CPU, torch.float32)
    assert stored is not None
    assert stored.config.to_dict() | {"_name_or_path": ""} == loaded.config.to_dict() | {"_name_or_path": ""}
    assert stored.generation_config.to_dict() == loaded.generation_config.to_dict()
    parameters = parameters_of(stored)
    for name, parameter in loaded.named_parameters():
        assert torch.equal(parameters[name], parameter), name
    tokens = torch.arange(12).view(2, 6)
    with torch.no_grad():
        assert torch.equal(stored(tokens).logits, loaded(tokens).logits)
        assert torch.equal(stored(tokens).logits, loaded(tokens).logits)
    assert all(p.isnan().all() and p.untyped_storage().nbytes() <= 8 for p in stored.parameters())  # nothing is held


def test_files_that_do_not_fit(tmp_path):
    model = decoder("llama")
    model.save_pretrained(tmp_path)
    folder = PretrainedFolder.open(tmp_path)
    folder.config.hidden_size *= 2
    with pytest.raises(InputError, match="in place of"):
        open_stored(folder, CPU, torch.float32)
    decoder("gpt_neox").save_pretrained(tmp_path)  # under names that are not those of its class
    assert open_stored(PretrainedFolder.open(tmp_path), CPU, torch.float32) is None


BOUND = """
import sys
from pathlib import Path

import torch
from transformers import LlamaConfig

from projkern.models.huggingface.axes import build_empty
from projkern.models.huggingface.causal import PretrainedFolder
from projkern.models.huggingface.operator import TransformersOperator
from projkern.models.huggingface.stored import open_stored, parameters_of
from projkern.utils.tensor_file import TensorFile

torch.set_num_threads(1)
torch.set_grad_enabled(False)


def most():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) >> 10


def use(layers):
    folder = Path(sys.argv[1]) / str(layers)
    folder.mkdir()
    config = LlamaConfig(hidden_size=512, intermediate_size=1408, num_hidden_layers=layers, vocab_size=1000,
                         num_attention_heads=8, architectures=["LlamaForCausalLM"], dtype="float32")
    config.save_pretrained(folder)
    empty = build_empty(config)
    layout = {name: (torch.float32, tuple(p.shape)) for name, p in empty.named_parameters()}
    with TensorFile(folder / "model.safetensors", layout) as file:
        for name, (_, shape) in layout.items():
            file.write(name, torch.full(shape, 0.01))
    source = open_stored(PretrainedFolder.open(folder), torch.device("cpu"), torch.float32)
    assert source(torch.arange(8)[None]).logits.isfinite().all()
    with torch.device("meta"):
        operator = TransformersOperator(empty, 1 / 4, 2)
    operator.generator.to_empty(device="cpu")
    own = {name: torch.zeros(1) for name in operator.own_names}
    assert sum(1 for _ in operator.each_parameter(torch.eye(2), parameters_of(source), own)) == len(layout)
    return (folder / "model.safetensors").stat().st_size >> 20


use(1)
before = most()
print(use(8), most() - before)
"""


def test_memory_does_not_grow_with_the_source(tmp_path):
    done = subprocess.run([sys.executable, "-c", BOUND, str(tmp_path)], check=True, capture_output=True, text=True)
    size, growth = map(int, done.stdout.split())  # MB
    assert size > 95 and growth < size / 4
