"""Decoding token by token equals the whole forward, draws follow the distribution asked for, and the command."""

from __future__ import annotations

import functools
import json
import os
import re

import numpy as np
import pytest
import torch
from decoding import assert_same, decoded
from PIL import Image

import projkern as pk
from projkern import sample as command
from projkern.models.blocks import Affine, Factored
from projkern.models.decode import Decoder
from projkern.models.operator import ProjectionOperator
from projkern.models.sampling import probabilities, sample
from projkern.train import main as train
from projkern.utils.pictures import beside_tasks

HEADS = 2


def randomise(module, std=0.2):
    """Give every parameter noise, so that nothing hides behind a zero."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * std)
    return module.eval()


def gpt(head_width=8, task_dim=None, dropout=0.0):
    config = pk.GPTConfig(11, 9, HEADS * head_width, n_layer=2, n_head=HEADS, dropout=dropout, task_dim=task_dim)
    return randomise(pk.GPT(config))


def operator(head_width=8, group=2):
    """Of models with this head width."""
    return randomise(pk.ProjectionOperator(randomise(gpt(group * head_width)), 1 / group, task_dim=3, rank=5))


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize("head_width", [4, 8, 16, 24])
def test_a_model_decodes_to_its_forward(head_width):
    model, tokens = gpt(head_width), torch.randint(11, (3, 9))
    assert_same(decoded(model.decoder(3), tokens), model(tokens))


def test_a_conditional_model_decodes_to_its_forward():
    model, tokens, t = gpt(task_dim=3), torch.randint(11, (4, 9)), torch.rand(4, 3)
    assert_same(decoded(model.decoder(4, t), tokens), model(tokens, t))


@pytest.mark.parametrize("form", ["materialised", "factored", "auto"])
@pytest.mark.parametrize("tasks", [[0], [0, 1, 2, 3, 4, 5], [0, 0, 0, 1, 1, 1], [0] * 6, [0, 1, 0, 2, 2, 2]])
@pytest.mark.parametrize("head_width", [8, 20])
def test_each_row_decodes_with_the_model_of_its_own_task(head_width, tasks, form):
    made, t = operator(head_width), torch.rand(6, 3)[tasks]
    tokens = torch.randint(11, (len(t), 9))
    assert_same(decoded(made.decoder(t, form=form), tokens), made(tokens, t))


@pytest.mark.parametrize("form", ["materialised", "factored"])
def test_tasks_of_another_type_are_the_same_tasks(form):
    made, t = operator(), torch.rand(6, 3, dtype=torch.float64)
    assert_same(made.decoder(t, form=form).step(None), made.decoder(t.float(), form=form).step(None))


def test_autocast_leaves_a_tasks_weights_alone():
    """What multiplies the source is of full precision in either form; only the products round."""
    made, t = operator(), torch.rand(6, 3)
    with torch.autocast("cpu", torch.bfloat16):
        layers = made.decoder(t, form="factored")._layers
    for layer, expected in zip(layers, made.decoder(t, form="factored")._layers):
        assert torch.equal(layer.mlp_in.p, expected.mlp_in.p) and torch.equal(layer.mlp_in.q, expected.mlp_in.q)


def test_decoding_drops_nothing_out():
    model, tokens = gpt(dropout=0.5), torch.randint(11, (2, 9))
    expected = model(tokens)
    assert_same(decoded(model.train().decoder(2), tokens), expected)


def test_logits_are_ordinary_tensors():
    logits = gpt().decoder(1).step(None)
    assert not logits.is_inference() and not logits.requires_grad
    logits[:, 0] = 0


def test_repeated_tasks_are_generated_once(monkeypatch):
    made, seen = operator(), []
    original = ProjectionOperator._materialised
    monkeypatch.setattr(ProjectionOperator, "_materialised", lambda self, t: seen.append(len(t)) or original(self, t))
    t = torch.rand(3, 3)
    for rows in (t[[0, 0, 0, 0]], t[[0, 0, 2, 2]], t):
        made.decoder(rows, form="materialised")
    assert seen == [1, 2, 3]


def test_auto_takes_the_form_whose_step_is_faster(monkeypatch):
    """Written out while there are at most g² models, and beyond memory never; between the two, whichever wins."""
    made, t = operator(group=2), torch.rand(5, 3)

    def factored(t):
        return isinstance(made.decoder(t)._layers[0].mlp_in, Factored)

    for slow in (Factored, Affine):
        monkeypatch.setattr(
            "projkern.models.decode.Decoder._seconds",
            lambda self, layers, slow=slow: 1 + isinstance(layers[0].mlp_in, slow),
        )
        assert not factored(t[:4])
        assert factored(t) == (slow is Affine)
    monkeypatch.setattr("projkern.models.operator.free_memory", lambda device: 1)
    monkeypatch.setattr("projkern.models.decode.Decoder._seconds", lambda self, layers: pytest.fail("no room to try"))
    assert factored(t)


def test_steps_are_checked():
    model = gpt()
    decoder = model.decoder(2)
    assert decoder.batch == 2 and decoder.positions == 9
    assert decoder.cache_bytes == 2 * 2 * 2 * 9 * model.config.n_embd * 4  # layers, keys and values, rows
    with pytest.raises(ValueError, match="tokens must be None in the first step"):
        decoder.step(torch.zeros(2, dtype=torch.int64))
    decoder.step(None)
    for wrong in (None, torch.zeros(3, dtype=torch.int64), torch.zeros(2), torch.zeros(2, 1, dtype=torch.int64)):
        with pytest.raises(ValueError, match=r"tokens must be int64 \(2,\).*it was"):
            decoder.step(wrong)
    for _ in range(8):
        decoder.step(torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match="at most, once for each position"):
        decoder.step(torch.zeros(2, dtype=torch.int64))


def test_decoders_are_checked():
    with pytest.raises(ValueError, match="batch must be at least 1; it was 0"):
        gpt().decoder(0)
    with pytest.raises(ValueError, match="t must be None"):
        gpt().decoder(2, torch.rand(2, 3))
    with pytest.raises(ValueError, match=r"t must be \(B, 3\).*it was None"):
        gpt(task_dim=3).decoder(2)
    with pytest.raises(ValueError, match=r"t must be \(2, 3\)"):
        gpt(task_dim=3).decoder(2, torch.rand(1, 3))
    with pytest.raises(ValueError, match="t must hold at least one"):
        operator().decoder(torch.rand(0, 3))
    with pytest.raises(ValueError, match=r"t must be \(2, 3\)"):
        operator().decoder(torch.rand(2, 4))
    with pytest.raises(ValueError, match="form must be auto, materialised or factored; it was 'projected'"):
        operator().decoder(torch.rand(2, 3), form="projected")


KNOWN = torch.tensor([[0.5, 0.05, 0.3, 0.15], [0.1, 0.2, 0.3, 0.4]])


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [[0.5, 0.05, 0.3, 0.15], [0.1, 0.2, 0.3, 0.4]]),
        ({"temperature": 0}, [[1, 0, 0, 0], [0, 0, 0, 1]]),
        ({"temperature": 1e-9}, [[1, 0, 0, 0], [0, 0, 0, 1]]),
        ({"temperature": 1e-300}, [[1, 0, 0, 0], [0, 0, 0, 1]]),  # 0 in float32
        ({"temperature": 0.5}, [[0.6849, 0.0068, 0.2466, 0.0616], [0.0333, 0.1333, 0.3, 0.5333]]),
        ({"top_k": 2}, [[0.625, 0, 0.375, 0], [0, 0, 3 / 7, 4 / 7]]),
        ({"top_k": 9}, [[0.5, 0.05, 0.3, 0.15], [0.1, 0.2, 0.3, 0.4]]),
        ({"top_p": 0.6}, [[0.625, 0, 0.375, 0], [0, 0, 3 / 7, 4 / 7]]),
        ({"top_p": 0.45}, [[1, 0, 0, 0], [0, 0, 3 / 7, 4 / 7]]),
        ({"top_p": 1e-12}, [[1, 0, 0, 0], [0, 0, 0, 1]]),
        ({"top_p": 1.0}, [[0.5, 0.05, 0.3, 0.15], [0.1, 0.2, 0.3, 0.4]]),
        # Of the three that top-k leaves, two have 0.8 / 0.95 and 0.7 / 0.9: more than 0.75.
        ({"top_k": 3, "top_p": 0.75}, [[0.625, 0, 0.375, 0], [0, 0, 3 / 7, 4 / 7]]),
    ],
)
def test_what_is_drawn_from(settings, expected):
    found = probabilities(KNOWN.log() + 3, **({"temperature": 1.0, "top_k": None, "top_p": None} | settings))
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float32), atol=1e-4, rtol=0)


def test_all_of_the_probability_is_all_of_the_tokens():
    assert (probabilities(torch.linspace(0, 12, 512)[None], 1.0, None, 1.0) > 0).all()


def stuck(batch):
    """A decoder that always predicts the first row of KNOWN, whatever it is fed."""
    model = gpt()
    with torch.no_grad():
        model.tables.final_norm_weight.zero_()
        model.tables.final_norm_bias.fill_(1.0)
        model.tables.head.fill_(-100.0)
        model.tables.head[:4] = (KNOWN[0].log() / model.config.n_embd)[:, None]
    return model.decoder(batch)


def test_draws_follow_the_distribution():
    tokens = sample(stuck(2000), progress=False).tokens
    shares = torch.bincount(tokens.flatten(), minlength=11)[:4] / tokens.numel()
    torch.testing.assert_close(shares, KNOWN[0], atol=5 * (0.25 / tokens.numel()) ** 0.5, rtol=0)
    assert set(sample(stuck(500), top_k=2, progress=False).tokens.unique().tolist()) == {0, 2}


def test_tokens_drawn_are_fed_back():
    """Greedy draws are the argmax of the forward of themselves."""
    model = gpt()
    tokens = sample(model.decoder(3), temperature=0, progress=False).tokens
    assert tokens.shape == (3, 9) and tokens.dtype == torch.int64
    assert torch.equal(model(tokens).argmax(-1), tokens)
    assert torch.equal(tokens[0], tokens[1])


def test_a_seed_repeats_its_draws():
    model = gpt()
    first, again, other = (sample(model.decoder(4), seed=seed, progress=False) for seed in (3, 3, 4))
    assert torch.equal(first.tokens, again.tokens) and not torch.equal(first.tokens, other.tokens)
    assert len(first.tokens.unique(dim=0)) > 1
    assert first.seconds > 0 and first.tokens_per_second == pytest.approx(36 / first.seconds)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -0.1}, "temperature must be a number >= 0; it was -0.1"),
        ({"temperature": float("nan")}, "temperature must be a number >= 0; it was nan"),
        ({"temperature": float("inf")}, "temperature must be a number >= 0; it was inf"),
        ({"top_k": 0}, "top_k must be at least 1; it was 0"),
        ({"top_p": 0.0}, r"top_p must lie in \(0, 1\]; it was 0.0"),
        ({"top_p": 1.1}, r"top_p must lie in \(0, 1\]; it was 1.1"),
    ],
)
def test_settings_of_draws_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        sample(gpt().decoder(1), **settings)


def test_a_used_decoder_is_refused():
    decoder = gpt().decoder(1)
    decoder.step(None)
    with pytest.raises(ValueError, match="decoder must be a fresh one; it was at position 1"):
        sample(decoder)


def test_logits_that_are_no_numbers():
    model = gpt()
    with torch.no_grad():
        model.tables.token_embedding.fill_(float("nan"))
    with pytest.raises(ValueError, match="decoder must give finite logits; those of token 1 were not"):
        sample(model.decoder(2), progress=False)


def test_keys_and_values_without_room(monkeypatch):
    monkeypatch.setattr("projkern.models.decode.free_memory", lambda device: 1e6)
    with pytest.raises(MemoryError, match=r"keys and values of 5000 sequences take 11\.5 MB; 1\.0 MB are free"):
        gpt().decoder(5000)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A trained run, tiny, with two scales."""
    os.environ["PROJKERN_CACHE"] = str(tmp_path_factory.getbasetemp() / "cache")
    out = tmp_path_factory.mktemp("runs") / "run"
    settings = "--image-size 6 --colors 8 --n-layer 1 --n-embd 32 --source-steps 3 --steps 3 --batch-size 4"
    settings += " --eval-images 4 --warmup 1 --scales 1/2 1/4"
    assert train(["--out", str(out), *settings.split()]) == 0
    return out


def draw(*arguments):
    return command.main([str(argument) for argument in arguments])


def test_samples_of_random_tasks(run, tmp_path, capsys):
    out = tmp_path / "eight.png"
    assert draw(run, "--scale", "1/4", "--random", 8, "--out", out) == 0
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert re.fullmatch(rf"Wrote 8 images to {out}: [\d,]+ tokens per second, [\d.]+ s\.", last)
    with Image.open(out) as picture:
        assert picture.format == "PNG" and picture.width > 900 and picture.height > 250  # four pairs across, two down
        assert len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)) > 100
    assert [path.name for path in tmp_path.iterdir()] == ["eight.png"]


def test_the_seed_decides_the_picture(run, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert draw(run, "--scale", "1/2", "--random", 2, "--seed", seed, "--out", tmp_path / f"{name}.png") == 0
    a, b, c = (np.asarray(Image.open(tmp_path / f"{name}.png")) for name in "abc")
    assert np.array_equal(a, b) and not np.array_equal(a, c)


def test_samples_of_one_task(run, tmp_path):
    (tmp_path / "t.json").write_text(json.dumps([0.5] * 18))
    out = tmp_path / "one.png"
    given = ("--temperature", 0.7, "--top-k", 3, "--top-p", 0.9, "--form", "factored")
    assert draw(run, "--scale", "1/4", "--t", tmp_path / "t.json", "--images", 3, *given, "--out", out) == 0
    with Image.open(out) as picture:
        assert 2 < picture.width / picture.height < 4  # a texture and three samples in a line


def test_samples_of_a_generated_model(run, tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    from projkern.__main__ import main

    model = tmp_path / "model"
    (tmp_path / "t.json").write_text(json.dumps([0.5] * 18))
    assert main(["project", str(run), "--scale", "1/4", "--t", str(tmp_path / "t.json"), "--out", str(model)]) == 0
    monkeypatch.chdir(tmp_path)
    assert draw(model, "--images", 2) == 0
    with Image.open("samples.png") as picture:
        assert picture.width > picture.height
    assert draw(model, "--scale", "1/4", "--overwrite") == 1


def test_a_picture_is_replaced_only_when_asked(run, tmp_path, capsys):
    out = tmp_path / "there.png"
    out.write_text("mine")
    assert draw(run, "--scale", "1/4", "--random", 1, "--out", out) == 1
    assert "--overwrite" in capsys.readouterr().err and out.read_text() == "mine"
    assert draw(run, "--scale", "1/4", "--random", 1, "--out", out, "--overwrite") == 0
    assert out.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--random", "2"], "--scale must be given for a run; .* has 1/2, 1/4"),
        (["--scale", "1/4"], "--t or --random must be given"),
        (["--scale", "1/3", "--random", "2"], "scale must be one .*1/2, 1/4.*it was 1/3"),
        (["--scale", "1/4", "--random", "0"], "it was 0"),
        (["--scale", "1/4", "--random", "1", "--images", "0"], "--images must be at least 1; it was 0"),
        (["--scale", "1/4", "--random", "1", "--temperature", "-1"], "temperature must be"),
        (["--scale", "1/4", "--t", "nowhere.json"], "nowhere.json"),
        (["--scale", "1/4", "--random", "1", "--out", "nowhere/out.png"], "--out must be a file in a folder"),
    ],
)
def test_what_the_command_refuses(run, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert draw(run, *arguments) == 1
    assert re.search(message, capsys.readouterr().err)
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore:.*leave the training range")
def test_a_task_whose_model_gives_no_numbers(run, tmp_path, capsys):
    (tmp_path / "huge.json").write_text(json.dumps([1e38] * 18))
    assert draw(run, "--scale", "1/4", "--t", tmp_path / "huge.json", "--out", tmp_path / "x.png") == 1
    assert "decoder must give finite logits; those of token 0 were not" in capsys.readouterr().err
    assert not (tmp_path / "x.png").exists()


@pytest.mark.parametrize("seed", ["-1", str(2**63), "1.5"])
def test_seeds_are_checked(run, capsys, seed):
    with pytest.raises(SystemExit):
        draw(run, "--scale", "1/4", "--random", "1", "--seed", seed)
    assert f"argument --seed: must be a whole number below 2^63; it was '{seed}'" in capsys.readouterr().err


def test_a_folder_that_holds_nothing(tmp_path, capsys):
    (tmp_path / "config.json").write_text("5")
    assert draw(tmp_path, "--scale", "1/4", "--random", 1, "--out", tmp_path / "x.png") == 1
    assert f"{tmp_path} holds something else" in capsys.readouterr().err
    (tmp_path / "config.json").unlink()
    assert draw(tmp_path, "--scale", "1/4", "--random", 1, "--out", tmp_path / "x.png") == 1
    assert f"{tmp_path} holds no run" in capsys.readouterr().err


@pytest.mark.parametrize(("tasks", "each", "ratio"), [(1, 1, 1.4), (8, 1, 2.8), (3, 12, 1.3), (2, 3, 4.9)])
def test_a_picture_has_the_shape_of_what_it_shows(tmp_path, tasks, each, ratio):
    images = torch.rand(tasks, each, 3, 6, 6) * 2 - 1
    beside_tasks(tmp_path / "p.png", images, images[:, 0], "title")
    with Image.open(tmp_path / "p.png") as picture:
        assert picture.width / picture.height == pytest.approx(ratio, rel=0.2)


def test_the_benchmark_measures_what_it_has_verified(tmp_path, monkeypatch, capsys):
    """At a tiny shape: everything is measured, and the tables are made of it."""
    from benchmarks import attention, sampling, sampling_tables

    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)  # those of other tests
    monkeypatch.setattr(sampling, "PAPER", pk.GPTConfig(11, 32, 64, n_layer=1, n_head=8))
    monkeypatch.setattr(sampling, "DEPTHS", (1, 8, 16))
    monkeypatch.setattr(sampling, "TASKS", (1, 5))
    monkeypatch.setattr(attention, "POSITIONS", 32)
    monkeypatch.setattr(attention, "WIDTHS", (8, 16))
    monkeypatch.setattr(attention, "CASES", ((1, 5), (8, 32)))
    monkeypatch.setattr(attention, "SEQUENCES", ((2, 9),))
    monkeypatch.setattr(attention, "measure_one_query", functools.partial(attention.measure_one_query, rounds=1))
    out = tmp_path / "result.json"
    assert sampling.main([str(out), "--rounds", "2"]) == 0
    result = json.loads(out.read_text())
    assert {(row["group"], row["tasks"]) for row in result["forms"]} == {(g, n) for g in (2, 4, 8) for n in (1, 5)}
    assert all(row["auto"] == "materialised" for row in result["forms"] if row["tasks"] <= row["group"] ** 2)
    for table in (sampling_tables.models, sampling_tables.forms, sampling_tables.one_query, sampling_tables.sequences):
        assert table(result).count("\n|") >= 3

    def wrong(decoder, tokens):
        return -decoder_step(decoder, tokens)

    decoder_step = Decoder.step
    monkeypatch.setattr(Decoder, "step", wrong)
    with pytest.raises(AssertionError, match="decoded logits differ"):
        sampling.main([str(tmp_path / "wrong.json"), "--rounds", "2"])
    assert not (tmp_path / "wrong.json").exists()
