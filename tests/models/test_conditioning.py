"""The forms of the conditional baseline: the paper's is as it was, and the stronger ones take t where they say."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from decoding import assert_same, decoded

import projkern as pk
from projkern.models.layout import CONDITIONINGS, LINEARS
from projkern.utils.errors import InputError

TASK_DIM = 3
CONFIG = pk.GPTConfig(vocab_size=11, n_positions=9, n_embd=32, n_layer=2, n_head=2, task_dim=TASK_DIM)
FORMS = {form: dataclasses.replace(CONFIG, conditioning=form) for form in CONDITIONINGS}
STRONGER = CONDITIONINGS[1:]

pytestmark = pytest.mark.usefixtures("one_thread")


def gpt(form, **changes):
    """A model of this form as training starts it, the same for all forms but for what they add."""
    torch.manual_seed(0)
    return pk.GPT(dataclasses.replace(FORMS[form], **changes))


def randomised(form, **changes):
    """A model whose every parameter has noise, so that nothing hides behind a zero."""
    model = gpt(form, **changes)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


def batch(size=4):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(11, (size, 9), generator=generator), torch.rand(size, TASK_DIM, generator=generator)


def loss(model):
    tokens, t = batch()
    return F.cross_entropy(model(tokens, t).flatten(0, 1), tokens.flatten())


# ---------------------------------------------------------------- the paper's form


def test_the_papers_form_is_the_default_with_the_keys_it_had():
    assert FORMS["first"] == CONFIG
    norms = [f"{norm}_{kind}" for norm in ("norm_1", "norm_2", "final_norm") for kind in ("weight", "bias")]
    tables = ["token_embedding", "position_embedding", *norms, "head", "start_of_task.weight", "start_of_task.bias"]
    linears = [f"{kind}.{name}" for kind in ("weights", "biases") for name in LINEARS]
    assert set(pk.GPT(CONFIG).state_dict()) == {*(f"tables.{name}" for name in tables), *linears}


def test_the_papers_form_draws_what_it_drew():
    """In the order of before: embeddings, Linear(t), head, then the linear operators."""
    model, d = gpt("first"), CONFIG.n_embd
    torch.manual_seed(0)
    assert torch.equal(model.tables.token_embedding, torch.randn(11, d) * 0.02)
    assert torch.equal(model.tables.position_embedding, torch.randn(9, d) * 0.02)
    start = torch.nn.Linear(TASK_DIM, d)
    assert torch.equal(model.tables.start_of_task.weight, start.weight)
    assert torch.equal(model.tables.head, torch.randn(11, d) * 0.02)
    for name, (rows, cols) in CONFIG.linear_shapes().items():
        std = 0.5 / cols**0.5 / (4**0.5 if name.endswith("out") else 1)
        assert torch.allclose(model.weights[name], torch.randn(2, rows, cols) * std, rtol=1e-6, atol=0)


# ---------------------------------------------------------------- the stronger forms


@pytest.mark.parametrize("form", STRONGER)
def test_a_stronger_form_starts_as_the_papers(form):
    tokens, t = batch()
    paper, model = gpt("first").state_dict(), gpt(form).state_dict()
    assert all(torch.equal(paper[name], model[name]) for name in paper)
    assert_same(gpt(form)(tokens, t), gpt("first")(tokens, t))


@pytest.mark.parametrize("form", STRONGER)
def test_what_a_stronger_form_adds_depends_on_t_after_a_step(form):
    model, (_, t) = gpt(form), batch()
    added = lambda: [change for change in model.conditioning(t) if change is not None]  # noqa: E731
    assert not any(change.any() for change in added())
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    loss(model).backward()
    optimizer.step()
    assert len(added()) == {"every": 1, "norms": 2}[form]
    for change in added():
        assert (change[0] != change[1]).any()


@pytest.mark.parametrize("form", STRONGER)
def test_the_stronger_form_is_the_formula(form):
    """For one t, a plain model whose position embeddings, start and norms are those that t gives."""
    model, (tokens, t) = randomised(form), batch()
    for i in range(len(t)):
        plain = pk.GPT(dataclasses.replace(CONFIG, task_dim=None)).eval()
        plain.weights, plain.biases = model.weights, model.biases
        own = {name: values for name, values in model.tables.state_dict().items() if "start" not in name}
        own["position_embedding"] = own["position_embedding"] + model.conditioning.offset(t[i])
        own["start"] = model.tables.start_of_task(t[i])
        if form == "norms":
            a, b = model.conditioning.norms(t[i]).view(2, 5, 32)
            for name, rows in {"norm_1": slice(0, 2), "norm_2": slice(2, 4), "final_norm": 4}.items():
                own[f"{name}_weight"] = (1 + a[rows]) * own[f"{name}_weight"]
                own[f"{name}_bias"] = own[f"{name}_bias"] + b[rows]
        plain.tables.load_state_dict(own)
        assert_same(model(tokens, t)[i : i + 1], plain(tokens[i : i + 1]))


@pytest.mark.parametrize("form", CONDITIONINGS)
@pytest.mark.parametrize("head_width", [4, 16])
def test_every_form_decodes_to_its_forward(form, head_width):
    (tokens, t), model = batch(), randomised(form, n_embd=2 * head_width, t_mean=0.5, t_std=0.3)
    assert_same(decoded(model.decoder(4, t), tokens), model(tokens, t))


@pytest.mark.parametrize("form", CONDITIONINGS)
def test_gradients_reach_all(form):
    model = randomised(form).train()
    loss(model).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())


@pytest.mark.parametrize("form", CONDITIONINGS)
def test_no_logit_sees_its_own_token_or_later_ones(form):
    model, (tokens, t) = randomised(form), batch()
    changed = tokens.clone()
    changed[:, 4:] = (changed[:, 4:] + 1) % 11
    before, after = model(tokens, t), model(changed, t)
    assert torch.allclose(before[:, :5], after[:, :5], atol=1e-5)
    assert not torch.allclose(before[:, 5:], after[:, 5:], atol=1e-3)


@pytest.mark.parametrize("form", CONDITIONINGS)
def test_bfloat16_stays_near(form):
    model, (tokens, t) = randomised(form), batch()
    expected = model(tokens, t)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(tokens, t).float()
    assert (rounded - expected).abs().max() < 0.05 * expected.abs().max()


def count(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(("group", "every", "norms"), [(1, 34_496, 3_297_152), (8, 5_376, 414_272)])
def test_parameters(group, every, norms):
    """At the paper's shape, 18 numbers in t: 64·19 + 65·d for every position, 64·19 + 65·2·49·d for 49 norms."""
    d = 512 // group
    assert (every, norms) == (64 * 19 + 65 * d, 64 * 19 + 65 * 2 * 49 * d + every)
    paper = pk.GPTConfig(vocab_size=512, n_positions=1024, n_embd=d, n_layer=24, n_head=8, task_dim=18)
    with torch.device("meta"):
        first, *stronger = [count(pk.GPT(dataclasses.replace(paper, conditioning=form))) for form in CONDITIONINGS]
    assert [many - first for many in stronger] == [every, norms]


@pytest.mark.parametrize("group", [2, 4, 8])
def test_the_strongest_learns_fewer_parameters_from_t_than_an_operator(group):
    paper = pk.GPTConfig(vocab_size=512, n_positions=1024, n_embd=512, n_layer=24, n_head=8)
    small = dataclasses.replace(paper, n_embd=512 // group, task_dim=18, conditioning="norms")
    with torch.device("meta"):
        operator = pk.ProjectionOperator(pk.GPT(paper), 1 / group, task_dim=18, rank=8)
        assert count(pk.GPT(small).conditioning) < count(operator.generator)


# ---------------------------------------------------------------- t, and errors


@pytest.mark.parametrize("form", CONDITIONINGS)
def test_t_enters_normalised(form):
    (tokens, t), model = batch(), randomised(form, t_mean=0.25, t_std=0.5)
    raw = randomised(form)
    assert torch.equal(model(tokens, t), raw(tokens, (t - 0.25) / 0.5))
    assert torch.equal(model.decoder(4, t).step(None), raw.decoder(4, (t - 0.25) / 0.5).step(None))
    assert not torch.allclose(model(tokens, t), raw(tokens, t))


@pytest.mark.parametrize("form", CONDITIONINGS)
def test_a_t_of_another_shape_is_refused(form):
    model, (tokens, t) = gpt(form), batch()
    for wrong in (t[:3], t[0], t[:, :2], t[:, None]):
        for call in (lambda t: model(tokens, t), lambda t: model.decoder(4, t)):
            with pytest.raises(InputError, match=r"^t .*\(4, 3\)"):
                call(wrong)
    with pytest.raises(InputError, match=r"^t .*\(B, 3\).*None"):
        model(tokens)


@pytest.mark.parametrize("form", CONDITIONINGS)
def test_a_conditional_model_is_not_exported(form, tmp_path):
    with pytest.raises(InputError, match="^model .* 3 "):
        gpt(form).save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "pattern"),
    [
        ({"conditioning": "all"}, "^conditioning .*first, every or norms.*'all'"),
        ({"conditioning": "every", "task_dim": None}, "^conditioning .*task_dim.*'every'"),
        ({"conditioning": "norms", "task_dim": None}, "^conditioning .*task_dim.*'norms'"),
        ({"t_std": 0.0}, "^t_std .* 0.0"),
        ({"t_std": float("nan")}, "^t_std .* nan"),
        ({"t_mean": float("inf")}, "^t_mean .* inf"),
    ],
)
def test_bad_settings(changes, pattern):
    with pytest.raises(InputError, match=pattern):
        dataclasses.replace(CONFIG, **changes)
