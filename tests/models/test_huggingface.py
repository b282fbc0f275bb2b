"""Models to and from other libraries: the same logits there, the same bits back, and clear words for what cannot be."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
import zipfile

import pytest
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

import projkern as pk
from projkern.data import Palette
from projkern.export import onnx
from projkern.models import blocks, tables
from projkern.models.huggingface import gpt2, imagegpt
from projkern.utils.errors import InputError

CONFIG = pk.GPTConfig(vocab_size=11, n_positions=9, n_embd=32, n_layer=3, n_head=2, dropout=0.1)
GPT2_SHAPE = {"vocab_size": 12, "n_positions": 9, "n_embd": 32, "n_layer": 2, "n_head": 2}

pytestmark = pytest.mark.usefixtures("one_thread")


def randomise(module):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = pk.GPT(CONFIG)
    randomise(model)
    return model.eval()


@pytest.fixture
def palette():
    return Palette(torch.rand(11, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1)


def with_start(tokens, start):
    return torch.cat([torch.full_like(tokens[:, :1], start), tokens[:, :-1]], dim=1)


def assert_same_bits(model, other):
    assert model.config == other.config
    state, other_state = model.state_dict(), other.state_dict()
    assert state.keys() == other_state.keys()
    assert all(torch.equal(state[name], other_state[name]) for name in state)


@torch.no_grad()
def test_transformers_gives_the_same_logits(model, tmp_path):
    gpt2.save(model, tmp_path / "small")
    reference, loading = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "small", output_loading_info=True)
    assert not any(loading.values())
    assert reference.lm_head.weight.data_ptr() != reference.transformer.wte.weight.data_ptr()
    tokens = torch.randint(11, (4, 9))
    logits = reference.eval()(with_start(tokens, 11)).logits
    torch.testing.assert_close(logits[..., :11], model(tokens), atol=1e-5, rtol=1e-5)
    assert not logits[..., 11].any()  # as the card says: the row of the start token is zero


def test_generating_without_arguments_draws_whole_sequences(model, tmp_path):
    gpt2.save(model, tmp_path / "small")
    reference = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "small")
    drawn = reference.generate()
    assert drawn.shape == (1, 10) and drawn[0, 0] == 11 and (drawn[0, 1:] < 11).all()
    torch.manual_seed(0)
    counts = reference.generate(num_return_sequences=4000, max_length=2)[:, 1].bincount(minlength=11)
    expected = model(torch.zeros(1, 1, dtype=torch.int64))[0, 0].softmax(0)  # all colours, not the likeliest 50 or so
    assert (counts / 4000 - expected).abs().max() < 0.03


def test_round_trip_keeps_every_bit(model, palette, tmp_path):
    gpt2.save(model, tmp_path / "small", palette)
    read = gpt2.load(tmp_path / "small")
    assert_same_bits(model, read.model)
    assert not read.model.training and read.notes == [] and read.provenance == {"format": 1}
    assert torch.equal(read.palette.colors, palette.colors)


def test_round_trip_of_another_type(model, tmp_path):
    gpt2.save(model.to(torch.bfloat16), tmp_path / "small")
    assert_same_bits(model, gpt2.load(tmp_path / "small").model)
    assert transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "small").dtype == torch.bfloat16


def test_methods_of_the_model(model, tmp_path):
    model.save_pretrained(tmp_path / "small")
    assert_same_bits(model, pk.GPT.from_pretrained(tmp_path / "small"))


def test_palette_is_what_imagegpts_processor_reads(model, palette, tmp_path):
    from transformers.models.imagegpt.image_processing_pil_imagegpt import ImageGPTImageProcessorPil

    gpt2.save(model, tmp_path / "small", palette)
    images = torch.rand(2, 3, 3, 3, generator=torch.Generator().manual_seed(1))
    processor = ImageGPTImageProcessorPil.from_pretrained(tmp_path / "small")
    tokens = processor(list((images * 255).round().to(torch.uint8)), return_tensors="pt")["input_ids"]
    expected = palette.encode((images * 255).round() / 127.5 - 1)
    assert torch.equal(tokens.view(2, -1), expected)


@torch.no_grad()
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("length", [1, 5, 9])
def test_onnx_gives_the_same_logits(model, tmp_path_factory, onnx_writer, batch, length):
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    onnx_writer.write(path, gpt2.tensors(model))
    tokens = torch.randint(11, (batch, length))
    logits = onnx.run(path, with_start(tokens, 11))
    torch.testing.assert_close(logits, model(tokens), atol=1e-4, rtol=1e-4)


@pytest.fixture(scope="module")
def onnx_writer():
    """Exported from other weights than those that the tests write."""
    return onnx.OnnxWriter(CONFIG, gpt2.tensors(pk.GPT(CONFIG)))


def test_onnx_file_says_nothing_of_this_machine(model, tmp_path, onnx_writer):
    onnx_writer.write(tmp_path / "model.onnx", gpt2.tensors(model))
    content = (tmp_path / "model.onnx").read_bytes()
    assert b".py" not in content and b"/projkern/" not in content


def test_onnx_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r"onnxruntime.*pip install 'projkern\[onnx\]'"):
        onnx.require_onnx()


# In


def saved_gpt2(folder, **settings):
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2_SHAPE, **settings)).eval()
    randomise(model)
    model.save_pretrained(folder, max_shard_size=settings.get("max_shard_size", "50GB"))
    return model


@torch.no_grad()
def test_gpt2_with_a_tied_head_is_untied(tmp_path):
    reference = saved_gpt2(tmp_path / "tied", bos_token_id=7)
    read = gpt2.load(tmp_path / "tied")
    assert read.palette is None and read.provenance is None and "token 7" in read.notes[0]
    tokens = torch.randint(12, (3, 9))
    expected = reference(with_start(tokens, 7)).logits
    torch.testing.assert_close(read.model(tokens), expected, atol=1e-5, rtol=1e-5)
    read.model.tables.head += 1
    assert torch.equal(read.model.tables.token_embedding, reference.transformer.wte.weight)


@torch.no_grad()
def test_a_head_that_is_stored_counts_though_the_settings_tie_it(tmp_path):
    saved_gpt2(tmp_path / "tied", bos_token_id=7)
    state = load_file(tmp_path / "tied/model.safetensors") | {"lm_head.weight": torch.randn(12, 32)}
    save_file(state, tmp_path / "tied/model.safetensors", metadata={"format": "pt"})
    reference, tokens = (
        transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "tied").eval(),
        torch.randint(12, (3, 9)),
    )
    logits = gpt2.load(tmp_path / "tied").model(tokens)
    torch.testing.assert_close(logits, reference(with_start(tokens, 7)).logits, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_gpt2_in_shards_and_under_the_first_releases_names(tmp_path):
    reference = saved_gpt2(tmp_path / "whole", bos_token_id=7)
    expected = gpt2.load(tmp_path / "whole").model
    reference.save_pretrained(tmp_path / "sharded", max_shard_size="20kB")
    assert len(list((tmp_path / "sharded").glob("model-*.safetensors"))) > 1
    assert_same_bits(gpt2.load(tmp_path / "sharded").model, expected)
    state = load_file(tmp_path / "whole/model.safetensors")
    state = {name.removeprefix("transformer."): tensor for name, tensor in state.items()}
    state["h.0.attn.bias"] = torch.ones(1, 1, 9, 9)  # the causal mask, as early versions stored it
    save_file(state, tmp_path / "whole/model.safetensors")
    values = json.loads((tmp_path / "whole/config.json").read_text())
    for later in ("tie_word_embeddings", "add_cross_attention", "scale_attn_weights", "dtype", "n_inner"):
        del values[later]
    values |= {"n_ctx": 9, "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}}}
    (tmp_path / "whole/config.json").write_text(json.dumps(values))
    assert_same_bits(gpt2.load(tmp_path / "whole").model, expected)


@pytest.mark.parametrize(
    ("settings", "pattern"),
    [
        ({"activation_function": "relu"}, "^activation_function of .*gelu_new.* relu"),
        ({"layer_norm_epsilon": 1e-6}, "^layer_norm_epsilon of .*1e-05.* 1e-06"),
        ({"scale_attn_weights": False}, "^scale_attn_weights of .*True.* False"),
        ({"scale_attn_by_inverse_layer_idx": True}, "^scale_attn_by_inverse_layer_idx of .*False.* True"),
        ({"n_inner": 64}, "^n_inner of .*None or 128.* 64"),
        ({"bos_token_id": None}, "^bos_token_id of .* None"),
        ({"bos_token_id": 50256}, "^bos_token_id of .* 50256"),
    ],
)
def test_gpt2_that_cannot_be_represented(tmp_path, settings, pattern):
    saved_gpt2(tmp_path / "other", **{"bos_token_id": 0} | settings)
    with pytest.raises(InputError, match=pattern):
        gpt2.load(tmp_path / "other")


def saved_imagegpt(folder):
    torch.manual_seed(0)
    config = transformers.ImageGPTConfig(**GPT2_SHAPE)
    model = transformers.ImageGPTForCausalImageModeling(config).eval()
    randomise(model)
    model.save_pretrained(folder)
    return model


class _RootMeanSquare:
    """``torch.nn.functional`` with the norm and the activation of ImageGPT in place of GPT-2's."""

    def __getattr__(self, name):
        return getattr(F, name)

    def layer_norm(self, x, shape, weight, bias):
        assert not bias.any()
        return x / torch.sqrt(x.square().mean(-1, keepdim=True) + 1e-5) * weight

    def gelu(self, x, approximate):
        return x * torch.sigmoid(1.702 * x)


@torch.no_grad()
def test_imagegpt_agrees_but_for_what_its_notes_say(tmp_path, monkeypatch, palette):
    reference = saved_imagegpt(tmp_path / "image")
    (tmp_path / "image/preprocessor_config.json").write_text(json.dumps({"clusters": palette.colors.tolist()}))
    read = gpt2.load(tmp_path / "image")
    assert read.notes == [imagegpt.CENTRING, imagegpt.QUICK_GELU]
    assert read.model.config == pk.GPTConfig(**GPT2_SHAPE | {"vocab_size": 11}, dropout=0.1)
    assert torch.equal(read.palette.colors, palette.colors)
    tokens = torch.randint(11, (3, 9))
    expected = reference(with_start(tokens, 11)).logits
    assert expected.shape == (3, 9, 11)
    assert not torch.allclose(read.model(tokens), expected, atol=1e-2)
    for module in (tables, blocks):
        monkeypatch.setattr(module, "F", _RootMeanSquare())
    torch.testing.assert_close(read.model(tokens), expected, atol=1e-5, rtol=1e-5)


def test_how_far_the_activations_differ():
    x = torch.linspace(-20, 20, 400_001, dtype=torch.float64)
    assert (x * torch.sigmoid(1.702 * x) - F.gelu(x, approximate="tanh")).abs().max() < 0.021


# Bad input


class Runs(nn.Module):
    """A pickle that would tell on itself."""

    def __reduce__(self):
        return (pytest.fail, ("a pickle was read",))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.safetensors", "model.ckpt"])
@pytest.mark.parametrize("legacy", [True, False])
def test_pickles_are_refused_unread(model, tmp_path, name, legacy):
    gpt2.save(model, tmp_path / "small")
    (tmp_path / "small/model.safetensors").unlink()
    torch.save({"w": Runs()}, tmp_path / "small" / name, _use_new_zipfile_serialization=not legacy)
    assert zipfile.is_zipfile(tmp_path / "small" / name) != legacy
    with pytest.raises(InputError, match=r"pickled.*safetensors"):
        gpt2.load(tmp_path / "small")


def damage(folder, what):
    if what == "cut":
        content = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
    elif what in ("missing", "unknown", "shape"):
        state = load_file(folder / "model.safetensors")
        wpe = state.pop("transformer.wpe.weight")
        state |= {"missing": {}, "unknown": {"transformer.wpe.weight": wpe, "extra": wpe.clone()}}.get(
            what, {"transformer.wpe.weight": wpe[:5].clone()}
        )
        save_file(state, folder / "model.safetensors")
    elif what == "no weights":
        (folder / "model.safetensors").unlink()
    elif what == "shard":
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors.index.json").write_text('{"weight_map": {"w": "../../etc/passwd"}}')
    elif what in (5, ".."):
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": what}}))
    elif what == "header":  # a length of 0x0280, which as bytes is a pickle's beginning too
        (folder / "model.safetensors").write_bytes(b"\x80\x02" + bytes(6) + b"{")
    elif what in ("types", "narrow"):
        state = load_file(folder / "model.safetensors")
        if what == "types":
            state["lm_head.weight"] = state["lm_head.weight"].bfloat16()
        else:
            state = {name: tensor.to(torch.float8_e4m3fn) for name, tensor in state.items()}
        save_file(state, folder / "model.safetensors")
    elif what == "config":
        (folder / "config.json").write_text("{cut")
    else:
        values = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(values | what))


@pytest.mark.parametrize(
    ("what", "pattern"),
    [
        ("cut", "model.safetensors is damaged"),
        ("missing", "wpe.weight"),
        ("unknown", " extra "),
        ("shape", r"^wpe.weight of .*\(9, 32\).* torch.float32 \(5, 32\)"),
        ("types", "^tensors of .*torch.bfloat16, torch.float32"),
        ("narrow", r"^wte.weight of .*16 to 64 bits.* torch.float8_e4m3fn \(12, 32\)"),
        ("header", "model.safetensors is damaged"),
        ("no weights", "model.safetensors.* model.safetensors.index.json"),
        ("shard", "index.json .* ../../etc/passwd"),
        (5, "index.json .* 5$"),
        ("..", r"index.json .* \.\.$"),
        ("config", "config.json "),
        ({"model_type": "llama"}, "small .*gpt2 or imagegpt.* llama"),
        ({"projkern": {"format": 2}}, "small .*format 1.*{'format': 2}"),
        ({"projkern": {"format": 1, "t": 5}}, "^t of .* 5"),
        ({"projkern": {"format": 1, "t": [float("nan")]}}, "^t of .*nan"),
        ({"n_embd": "wide"}, "config.json .*GPT-2"),
        ({"n_head": 5}, "^n_embd .* 5.* 32"),
    ],
)
def test_bad_folders(model, tmp_path, what, pattern):
    gpt2.save(model, tmp_path / "small")
    damage(tmp_path / "small", what)
    with pytest.raises(InputError, match=pattern):
        gpt2.load(tmp_path / "small")


def test_settings_of_no_use_here_are_not_looked_at(model, tmp_path):
    gpt2.save(model, tmp_path / "small")
    damage(tmp_path / "small", {"quantization_config": 5, "id2label": [], "max_position_embeddings": "x"})
    assert_same_bits(model, gpt2.load(tmp_path / "small").model)


@pytest.mark.parametrize(
    ("clusters", "pattern"),
    [([[0.0, 0.0, 2.0]] * 11, "^clusters of .*palette"), ([[0.0] * 3] * 5, "^clusters of .* 11 .* 5")],
)
def test_bad_palettes(model, tmp_path, clusters, pattern):
    gpt2.save(model, tmp_path / "small")
    (tmp_path / "small/preprocessor_config.json").write_text(json.dumps({"clusters": clusters}))
    with pytest.raises(InputError, match=pattern):
        gpt2.load(tmp_path / "small")


def test_what_cannot_be_saved(model, palette, tmp_path):
    conditional = pk.GPT(dataclasses.replace(CONFIG, task_dim=18))
    with pytest.raises(InputError, match=r"^model .* 18 "):
        gpt2.save(conditional, tmp_path / "small")
    with pytest.raises(InputError, match="^palette .* 12 .* 11 "):
        gpt2.save(pk.GPT(dataclasses.replace(CONFIG, vocab_size=12)), tmp_path / "small", palette)
    model.weights["mlp_in"].data = model.weights["mlp_in"].data.bfloat16()
    with pytest.raises(InputError, match=r"^model .*torch.bfloat16, torch.float32"):
        gpt2.save(model, tmp_path / "small")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_something_in_it_is_not_written_to(model, tmp_path):
    (tmp_path / "small").mkdir()
    gpt2.save(model, tmp_path / "small")
    before = (tmp_path / "small/model.safetensors").read_bytes()
    with pytest.raises(FileExistsError, match="^folder .*small"):
        gpt2.save(pk.GPT(CONFIG), tmp_path / "small")
    assert (tmp_path / "small/model.safetensors").read_bytes() == before
    shutil.rmtree(tmp_path / "small")
    assert list(tmp_path.iterdir()) == []
