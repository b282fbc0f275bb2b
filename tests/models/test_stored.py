"""A model that is left in its files runs as the loaded one does, bit for bit, whatever its family."""

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
