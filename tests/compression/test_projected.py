"""Projected models: the start is hard pruning, gradients are autograd's, and nothing hangs on the order of things."""

from __future__ import annotations

import decoders
import pytest
import torch
import torch.nn.functional as F

import projkern as pk
from projkern.compression.config import IMPORTANCES
from projkern.compression.importance import gather_inputs, scores_of
from projkern.compression.plan import Plan, Scores
from projkern.compression.projected import ProjectedModel
from projkern.compression.projections import compensated, selection
from projkern.models.huggingface.axes import Sizes, find_axes, sizes_of

HALF = Sizes(32, 56, decoders.LAYERS)
FORMS = [
    ("project", None),
    ("prune", None),
    ("group", None),
    ("project", 8),
    ("project", 5),
    ("project", 32),
    ("project", 50),
]
TOKENS = torch.arange(48).view(4, 12) % decoders.VOCABULARY

pytestmark = pytest.mark.usefixtures("one_thread")


def random_plan(model, sizes=HALF, seed=0):
    generator = torch.Generator().manual_seed(seed)
    layers = [f"model.layers.{i}" for i in range(decoders.LAYERS)]
    scores = Scores(
        torch.rand(decoders.HIDDEN, generator=generator),
        {layer: torch.rand(decoders.INTERMEDIATE, generator=generator) for layer in layers},
    )
    return Plan.of(model, sizes, scores)


@pytest.mark.parametrize("family", decoders.FAMILIES)
def test_the_start_is_hard_pruning_by_name(family):
    """Every parameter, bit for bit; and the file's model computes what these parameters do."""
    model = decoders.decoder(family)
    plan = random_plan(model)
    kept = [plan.intermediate[f"model.layers.{i}"] for i in range(decoders.LAYERS)]
    expected = decoders.prune_by_name(model, plan.hidden, kept)
    for method, block in FORMS:
        small = ProjectedModel(model, plan, method, block).merge()
        parameters = dict(small.named_parameters())
        assert parameters.keys() == expected.keys()
        for name, values in expected.items():
            assert torch.equal(parameters[name], values), (method, name)


@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_nothing_shrinks_nothing_changes(family):
    model = decoders.decoder(family)
    for method in ("project", "prune", "group"):
        small = ProjectedModel(model, Plan.of(model, sizes_of(model.config)), method).merge()
        for name, values in model.named_parameters():
            assert torch.equal(small.get_parameter(name), values)


def disturbed(projected, seed=1):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in projected.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=generator))
    return projected


@pytest.mark.parametrize(("method", "block"), FORMS)
@pytest.mark.parametrize("family", ["llama, tied", "phi3", "starcoder2"])
def test_gradients_are_those_of_plain_autograd(family, method, block):
    """Several micro-batches on the merged model, then one product with the Jacobian, block by block."""
    model = decoders.decoder(family)
    projected = disturbed(ProjectedModel(model, random_plan(model), method, block))
    expected = torch.autograd.grad(
        sum(projected(row, labels=row).loss for row in TOKENS.split(1)), list(projected.parameters())
    )
    projected.small.zero_grad()  # as people do; the next line puts the gradients back
    projected.materialise()
    for row in TOKENS.split(1):
        projected.small(row, labels=row).loss.backward()
    taken = {}
    names = {p: name for name, p in projected.named_parameters()}
    projected.backward(lambda part: taken.update({names[p]: p.grad.clone() for p in part.parameters()}))
    assert all(p.grad is None for p in projected.parameters())
    for (name, _), gradient in zip(projected.named_parameters(), expected):
        assert (taken[name] - gradient).abs().max() <= 1e-5 * gradient.abs().max().clamp(min=1e-3), name
    assert all(p.grad is None for p in model.parameters())


def test_gradients_by_finite_differences():
    """One entry of each P and A of each shape, in float64."""
    model = decoders.decoder("starcoder2").double()  # norms of others compute in float32
    projected = disturbed(ProjectedModel(model, random_plan(model)))
    projected.double()
    projected.small.double()

    def loss():
        logits = projected(TOKENS).logits  # transformers' own loss would be in float32
        return F.cross_entropy(logits[:, :-1].mT, TOKENS[:, 1:])

    gradients = torch.autograd.grad(loss(), list(projected.parameters()))
    for (name, p), gradient in list(zip(projected.named_parameters(), gradients))[::5]:
        place = tuple(size // 2 for size in p.shape)
        values = []
        with torch.no_grad():
            for step in (1e-5, -2e-5):
                p[place] += step
                values.append(loss().item())
            p[place] += 1e-5
        assert (values[0] - values[1]) / 2e-5 == pytest.approx(gradient[place].item(), rel=1e-4, abs=1e-8), name


def permuted(model, hidden, intermediate):
    """The same function with its coordinates in another order."""
    other = decoders.decoder("llama")
    axes = find_axes(model.config, HALF)
    with torch.no_grad():
        for name, p in other.named_parameters():
            w = model.get_parameter(name)
            for i, axis in enumerate(axes[name]):
                if axis is not None:
                    w = w.index_select(i, hidden if axis.is_residual else intermediate)
            p.copy_(w)
    return other


@pytest.mark.parametrize("importance", ["activation", "magnitude"])
def test_the_order_of_coordinates_does_not_matter(importance):
    """A permuted source gives the same small model, up to the order of its coordinates: the same logits."""
    model = decoders.decoder("llama")
    generator = torch.Generator().manual_seed(3)
    other = permuted(
        model,
        torch.randperm(decoders.HIDDEN, generator=generator),
        torch.randperm(decoders.INTERMEDIATE, generator=generator),
    )
    assert torch.allclose(other(TOKENS).logits, model(TOKENS).logits, atol=1e-4)
    logits = []
    for source in (model, other):
        axes = find_axes(source.config, HALF)
        inputs = gather_inputs(source, axes, [TOKENS], moments=axes)
        plan = Plan.of(source, HALF, scores_of(importance, source, axes, inputs))
        logits.append(ProjectedModel(source, plan, inputs=inputs).merge()(TOKENS).logits)
    assert torch.allclose(*logits, atol=1e-3)
    first = ProjectedModel(model, Plan.of(model, HALF)).merge()(TOKENS).logits
    assert not torch.allclose(logits[0], first, atol=1e-1)  # the test can fail


def test_group_is_what_the_projection_kernels_compute():
    """One-hot p and q of W in the order of the groups select; the gradient is that of a dense P within the groups."""
    model = decoders.decoder("llama")
    plan = random_plan(model)
    grouped, dense = (disturbed(ProjectedModel(model, plan, method)) for method in ("group", "project"))
    name = "model.layers.1.mlp.up_proj.weight"
    (part,) = [b for b in grouped.all_blocks() if name in b.stack.names]
    (whole,) = [b for b in dense.all_blocks() if name in b.stack.names]
    with torch.no_grad():
        for side, axis in ((0, plan.intermediate["model.layers.1"]), (1, plan.hidden)):
            size = model.get_parameter(name).shape[side]
            coordinates = selection(size, axis, 1).coordinates
            p = (part.left, part.right)[side][1]  # (n, s, 1), of layer 1
            matrix = torch.zeros(size, len(axis))
            for j, (rows, values) in enumerate(zip(coordinates, p[..., 0])):
                matrix[rows[rows >= 0], j] = values[rows >= 0]
            (whole.left, whole.right)[side][1] = matrix
        whole.residual.copy_(part.residual)
    assert torch.allclose(part.merged()[1], whole.merged()[1], atol=1e-5)


@pytest.mark.parametrize("block", [1, 5, 8, 32])
def test_every_coordinate_is_in_one_block(block):
    kept = torch.tensor([0, 3, 4, 7, 11, 12, 20, 21, 22, 30, 31])
    projection = selection(33, kept, block)
    inside = projection.coordinates[projection.coordinates >= 0]
    assert inside.sort().values.tolist() == list(range(33))
    assert projection.values.sum() == len(kept)


def test_the_compensated_start_predicts_what_is_dropped():
    """Inputs whose dropped coordinates are linear in the kept ones lose nothing."""
    torch.manual_seed(0)
    kept = torch.tensor([1, 2, 5, 7])
    mixing = torch.randn(4, 8)
    mixing[:, kept] = torch.eye(4)
    x = torch.randn(500, 4) @ mixing
    weight = torch.randn(6, 8)
    p = compensated(selection(8, kept, None), kept, x.mT @ x).values[0]
    assert torch.allclose(x[:, kept] @ (weight @ p).mT, x @ weight.mT, atol=2e-2)
    assert not torch.allclose(x[:, kept] @ weight[:, kept].mT, x @ weight.mT, atol=1)


def test_both_methods_may_start_compensated():
    model = decoders.decoder("llama")
    axes = find_axes(model.config, HALF)
    text = torch.randint(decoders.VOCABULARY, (32, 24), generator=torch.Generator().manual_seed(0))
    inputs = gather_inputs(model, axes, text.split(8), moments=axes)
    plan = Plan.of(model, HALF, scores_of("activation", model, axes, inputs))
    project, prune, plain = (
        ProjectedModel(model, plan, method, inputs=moments).merge()(TOKENS).logits
        for method, moments in (("project", inputs), ("prune", inputs), ("project", None))
    )
    assert torch.equal(project, prune)
    assert not torch.allclose(project, plain, atol=1e-2)


@pytest.mark.parametrize("importance", IMPORTANCES)
def test_scores_have_every_layer(importance):
    model = decoders.decoder("qwen3")
    axes = find_axes(model.config, HALF)
    scores = scores_of(importance, model, axes, gather_inputs(model, axes, [TOKENS]))
    assert scores.hidden.shape == (decoders.HIDDEN,) and scores.hidden.isfinite().all()
    assert list(scores.intermediate) == [f"model.layers.{i}" for i in range(decoders.LAYERS)]


def test_activations_are_summed_over_the_norms_outputs():
    model = decoders.decoder("llama")
    axes = find_axes(model.config, HALF)
    total, down = torch.zeros(decoders.HIDDEN), {}
    handles = []

    def add(module, arguments, output):
        total.add_(output.detach().abs().sum((0, 1)))

    for i, layer in enumerate(model.model.layers):
        handles += [norm.register_forward_hook(add) for norm in (layer.input_layernorm, layer.post_attention_layernorm)]
        handles.append(
            layer.mlp.down_proj.register_forward_pre_hook(lambda m, a, i=i: down.update({i: a[0].abs().sum((0, 1))}))
        )
    model(TOKENS)
    for handle in handles:
        handle.remove()
    scores = scores_of("activation", model, axes, gather_inputs(model, axes, [TOKENS]))
    assert torch.allclose(scores.hidden.float(), total, rtol=1e-4)
    for i in range(decoders.LAYERS):
        assert torch.allclose(scores.intermediate[f"model.layers.{i}"].float(), down[i].detach(), rtol=1e-4)


def test_a_loop_of_ones_own():
    """The halves by themselves, as the documentation shows them."""
    model = decoders.decoder("llama")
    projected = pk.ProjectedModel(model, pk.CompressionPlan.of(model, HALF))
    optimizer = torch.optim.AdamW(projected.parameters(), lr=1e-2)
    losses = []
    for _ in range(20):
        projected.materialise()
        loss = projected.small(TOKENS, labels=TOKENS).loss
        loss.backward()
        projected.backward()
        optimizer.step()
        losses.append(loss.item())
    small = projected.merge()
    assert small(TOKENS, labels=TOKENS).loss < losses[0] - 0.5


@pytest.mark.parametrize("arguments", [("shrink",), ("project", 0), ("prune", 8), ("group", 8)])
def test_forms_that_are_none(arguments):
    model = decoders.decoder("llama")
    with pytest.raises(pk.utils.errors.InputError, match=r"method|block"):
        ProjectedModel(model, random_plan(model), *arguments)
