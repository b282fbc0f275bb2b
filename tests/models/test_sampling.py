"""Decoding token by token equals the whole forward, and draws follow the distribution that the settings give."""

from __future__ import annotations

import pytest
import torch
from decoding import assert_same, decoded

import projkern as pk
from projkern.models.blocks import Affine, Factored
from projkern.models.operator import ProjectionOperator
from projkern.models.sampling import probabilities, sample
from projkern.utils.errors import InputError

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
    model, t = operator(head_width), torch.rand(6, 3)[tasks]
    tokens = torch.randint(11, (len(t), 9))
    assert_same(decoded(model.decoder(t, form=form), tokens), model(tokens, t))


@pytest.mark.parametrize("form", ["materialised", "factored"])
def test_tasks_of_another_type_are_the_same_tasks(form):
    model, t = operator(), torch.rand(6, 3, dtype=torch.float64)
    assert_same(model.decoder(t, form=form).step(None), model.decoder(t.float(), form=form).step(None))


def test_autocast_leaves_a_tasks_weights_alone():
    """What multiplies the source is of full precision in either form; only the products round."""
    model, t = operator(), torch.rand(6, 3)
    with torch.autocast("cpu", torch.bfloat16):
        layers = model.decoder(t, form="factored")._layers
    for layer, expected in zip(layers, model.decoder(t, form="factored")._layers):
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
    model, seen = operator(), []
    original = ProjectionOperator._materialised
    monkeypatch.setattr(ProjectionOperator, "_materialised", lambda self, t: seen.append(len(t)) or original(self, t))
    t = torch.rand(3, 3)
    for rows in (t[[0, 0, 0, 0]], t[[0, 0, 2, 2]], t):
        model.decoder(rows, form="materialised")
    assert seen == [1, 2, 3]


def test_auto_takes_the_form_whose_step_is_faster(monkeypatch):
    """Written out while there are at most g² models, and beyond memory never; between the two, whichever wins."""
    model, t = operator(group=2), torch.rand(5, 3)

    def factored(t):
        return isinstance(model.decoder(t)._layers[0].mlp_in, Factored)

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
    with pytest.raises(InputError, match="^tokens .*None"):
        decoder.step(torch.zeros(2, dtype=torch.int64))
    decoder.step(None)
    for wrong in (None, torch.zeros(3, dtype=torch.int64), torch.zeros(2), torch.zeros(2, 1, dtype=torch.int64)):
        with pytest.raises(InputError, match=r"^tokens .*int64 \(2,\)"):
            decoder.step(wrong)
    for _ in range(8):
        decoder.step(torch.zeros(2, dtype=torch.int64))
    with pytest.raises(InputError, match="^step .* 9 "):
        decoder.step(torch.zeros(2, dtype=torch.int64))


def test_decoders_are_checked():
    with pytest.raises(InputError, match="^batch .* 0"):
        gpt().decoder(0)
    with pytest.raises(InputError, match="^t .*None"):
        gpt().decoder(2, torch.rand(2, 3))
    with pytest.raises(InputError, match=r"^t .*\(B, 3\).*None"):
        gpt(task_dim=3).decoder(2)
    with pytest.raises(InputError, match=r"^t .*\(2, 3\)"):
        gpt(task_dim=3).decoder(2, torch.rand(1, 3))
    with pytest.raises(InputError, match="^t "):
        operator().decoder(torch.rand(0, 3))
    with pytest.raises(InputError, match=r"^t .*\(2, 3\)"):
        operator().decoder(torch.rand(2, 4))
    with pytest.raises(InputError, match="^form .*auto, materialised or factored.*'projected'"):
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
    shares = probabilities(KNOWN.log() + 3, **({"temperature": 1.0, "top_k": None, "top_p": None} | settings))
    torch.testing.assert_close(shares, torch.tensor(expected, dtype=torch.float32), atol=1e-4, rtol=0)


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
    ("settings", "pattern"),
    [
        ({"temperature": -0.1}, "^temperature .* -0.1"),
        ({"temperature": float("nan")}, "^temperature .* nan"),
        ({"temperature": float("inf")}, "^temperature .* inf"),
        ({"top_k": 0}, "^top_k .* 0"),
        ({"top_p": 0.0}, "^top_p .* 0.0"),
        ({"top_p": 1.1}, "^top_p .* 1.1"),
    ],
)
def test_settings_of_draws_are_checked(settings, pattern):
    with pytest.raises(InputError, match=pattern):
        sample(gpt().decoder(1), **settings)


def test_a_used_decoder_is_refused():
    decoder = gpt().decoder(1)
    decoder.step(None)
    with pytest.raises(InputError, match="^decoder .* 1"):
        sample(decoder)


def test_logits_that_are_no_numbers():
    model = gpt()
    with torch.no_grad():
        model.tables.token_embedding.fill_(float("nan"))
    with pytest.raises(InputError, match="^decoder .*token 1 "):
        sample(model.decoder(2), progress=False)


def test_keys_and_values_without_room(monkeypatch):
    monkeypatch.setattr("projkern.models.decode.free_memory", lambda device: 1e6)
    with pytest.raises(MemoryError, match=r"5000 sequences.* 11\.5 MB.* 1\.0 MB"):
        gpt().decoder(5000)
