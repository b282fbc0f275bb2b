"""Without training, a source that is left in its files becomes the model that a loaded one becomes."""

import json
import shutil

import pytest
import text_models
import torch
from decoders import decoder
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from projkern.compression import run as run_module
from projkern.compression.config import CompressConfig

pytestmark = pytest.mark.usefixtures("one_thread")
DEFAULT = CompressConfig().replace(
    length=12, batch_size=4, micro_batch=2, held_out=4, tokens=0, calibration=8, hidden_size=32, intermediate_size=56
)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return text_models.write_text(tmp_path_factory.mktemp("text") / "words.txt", words=600)


@pytest.mark.parametrize(
    ("family", "dtype", "settings"),
    [
        ("llama", torch.float32, {}),
        ("llama, tied", torch.bfloat16, {"method": "group", "layers": 2}),
        ("phi3", torch.float32, {"method": "prune", "importance": "magnitude"}),
        ("gemma3", torch.float32, {"block": 8, "start": "pruned", "importance": "index"}),
    ],
)
def test_it_is_the_model_of_a_loaded_source(family, dtype, settings, text, tmp_path, monkeypatch):
    source = text_models.write_model(tmp_path / "source", family)
    decoder(family).to(dtype).save_pretrained(source, max_shard_size="60KB")
    config = DEFAULT.replace(model=str(source), text=(str(text),), **settings)
    if settings:  # once is enough for what follows
        leave_out_reports(monkeypatch)
    stored = run_module.run(tmp_path / "stored", config)
    assert not (tmp_path / "stored" / "checkpoint").exists()
    monkeypatch.setattr(run_module, "open_stored", lambda *arguments: None)
    loaded = run_module.run(tmp_path / "loaded", config)
    for name in ("source", "result"):
        assert stored[name] == loaded[name], name
    assert stored["trained_parameters"] == loaded["trained_parameters"]
    assert stored["speed"].keys() == loaded["speed"].keys()
    weights, expected = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("stored", "loaded"))
    assert weights.keys() == expected.keys()
    for name, tensor in expected.items():
        assert tensor.dtype == dtype and torch.equal(weights[name], tensor), name
    for name in ("config.json", "generation_config.json"):
        first, second = (json.loads((tmp_path / way / "model" / name).read_text()) for way in ("stored", "loaded"))
        assert first == second
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "stored" / "model").dtype == dtype


def leave_out_reports(monkeypatch):
    monkeypatch.setattr(run_module, "measure_speed", lambda *arguments: {})
    monkeypatch.setattr(run_module, "write_samples", lambda *arguments: [])
    monkeypatch.setattr(run_module, "write_report", lambda *arguments: None)


def test_stopped_it_goes_on_with_what_it_knows(text, tmp_path, monkeypatch):
    leave_out_reports(monkeypatch)
    source = text_models.write_model(tmp_path / "source")
    config, out = DEFAULT.replace(model=str(source), text=(str(text),)), tmp_path / "out"
    expected = run_module.run(tmp_path / "whole", config)

    def stop(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(run_module, "write_card", stop)
        run_module.run(out, config)
    assert (out / "kept.safetensors").exists() and not (out / "model").exists()
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "choose", stop)
        resumed = run_module.run(out, config, resume=True)
    assert resumed["result"] == expected["result"] and resumed["source"] == expected["source"]
    files = [folder / "model" / "model.safetensors" for folder in (out, tmp_path / "whole")]
    assert files[0].read_bytes() == files[1].read_bytes()
    shutil.rmtree(source)
    assert run_module.run(out, config, resume=True) == resumed


def test_a_large_source_is_not_loaded(text, tmp_path, monkeypatch):
    source = text_models.write_model(tmp_path / "source")
    monkeypatch.setattr(run_module, "MOST_BYTES", 0)
    monkeypatch.setattr("projkern.models.huggingface.causal.PretrainedFolder.load", None)
    summary = run_module.run(tmp_path / "out", DEFAULT.replace(model=str(source), text=(str(text),)))
    assert summary["speed"] == {} and (tmp_path / "out" / "report.md").exists()
