"""The operator of transformers models: the same function as a GPT's, and ordinary models of every family."""

import copy
import io

import pytest
import torch
import torch.nn.functional as F
import transformers as hf
from decoders import FAMILIES, config_of, decoder

import projkern as pk
from projkern.models.huggingface.grouping import Grouping
from projkern.models.huggingface.operator import TransformersOperator, predict, start_token
from projkern.models.layout import LINEARS
from projkern.utils.errors import InputError

SHRINKING = ("gpt2", "gpt_neox", "bloom")
"""Families whose heads follow the hidden size: compression refuses that, an operator does it."""


def tokens_and_tasks(vocab_size, task_dim=3, count=4, length=6, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(vocab_size, (count, length), generator=generator)
    t = torch.rand(count // 2, task_dim, generator=generator, dtype=dtype)
    return tokens, t.repeat_interleave(2, 0)


def randomise(module, seed=0):
    """Parameters away from their start, where nothing depends on t."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p += 0.1 * torch.randn(p.shape, generator=generator, dtype=p.dtype)


def of_gpt2(gpt, folder):
    """The same GPT as a transformers GPT-2, in float64."""
    gpt.save_pretrained(folder)
    return hf.GPT2LMHeadModel.from_pretrained(folder).double()


def copied_operator(fused, source):
    """An operator on a GPT-2 with the parameters of one on a GPT."""
    functional = pk.ProjectionOperator(source, scale=1 / fused.group, task_dim=fused.task_dim, rank=2).double()
    state, own = fused.state_dict(), dict(zip(functional.own_names, functional.own))
    with torch.no_grad():
        for name in ("inner_weight", "inner_bias"):
            getattr(functional.generator, name).copy_(state[f"generator.{name}"])
        for k, (rows, _) in enumerate(fused.generator.shapes.values()):
            for name, axis in (("outer_weight", 1), ("outer_bias", 1)):
                p, q = state[f"generator.{name}.{k}"].tensor_split([rows], dim=axis)
                getattr(functional.generator, name)[k].copy_(torch.cat([q, p], axis))  # GPT-2 has inputs first
        small = pk.GPT(fused.config).double()
        small.tables.load_state_dict(fused.tables.state_dict())
        for name in LINEARS:
            small.biases[name].copy_(fused.biases[name])
    from projkern.models.huggingface import gpt2

    for name, tensor in gpt2.tensors(small).items():
        if name in own:
            own[name].data.copy_(tensor)
    return functional


def test_of_a_gpt_it_is_the_class_itself():
    source = pk.GPT(pk.GPTConfig(vocab_size=8, n_positions=6, n_embd=8, n_layer=1, n_head=2))
    assert type(pk.ProjectionOperator(source, 1 / 2, 3)) is pk.ProjectionOperator
    assert type(pk.ProjectionOperator(decoder("llama"), 1 / 2, 3)) is TransformersOperator


@pytest.mark.parametrize("is_sorted", [True, False])
def test_a_gpt_and_the_same_gpt2_have_the_same_losses_and_gradients(tmp_path, is_sorted):
    torch.manual_seed(0)
    config = pk.GPTConfig(vocab_size=11, n_positions=6, n_embd=16, n_layer=2, n_head=2)
    gpt = pk.GPT(config)
    randomise(gpt)
    source = of_gpt2(gpt, tmp_path / "gpt2")
    gpt = gpt.double()
    fused = pk.ProjectionOperator(gpt, scale=1 / 2, task_dim=3, rank=2).double()
    randomise(fused, seed=1)
    functional = copied_operator(fused, source)
    tokens, t = tokens_and_tasks(11, dtype=torch.float64)
    if not is_sorted:
        order = torch.tensor([0, 2, 3, 1])
        tokens, t = tokens[order], t[order]
    losses = []
    for operator in (fused, functional):
        logits = operator(tokens, t)[..., :11]
        losses.append(F.cross_entropy(logits.flatten(0, 1), tokens.flatten()))
        losses[-1].backward()
    assert abs(losses[0] - losses[1]) < 1e-10
    for name in ("inner_weight", "inner_bias"):
        mine, other = (getattr(o.generator, name).grad for o in (fused, functional))
        assert mine.abs().max() > 1e-4
        torch.testing.assert_close(other, mine, atol=1e-10, rtol=0)
    weights = [f"transformer.h.{i}.attn.c_attn.weight" for i in range(2)]
    for layer, name in enumerate(weights):
        gradient = source.get_parameter(name).grad
        torch.testing.assert_close(gradient.T, gpt.weights["attn_qkv"].grad[layer], atol=1e-10, rtol=0)
        bias = source.get_parameter(name.replace("weight", "bias")).grad
        torch.testing.assert_close(bias, gpt.biases["attn_qkv"].grad[layer], atol=1e-10, rtol=0)


def test_at_the_start_a_gpt2_is_projected_as_a_gpt_is(tmp_path):
    gpt = pk.GPT(pk.GPTConfig(vocab_size=11, n_positions=6, n_embd=16, n_layer=2, n_head=2))
    randomise(gpt)
    source = of_gpt2(gpt, tmp_path / "gpt2")
    tokens, t = tokens_and_tasks(11, dtype=torch.float64)
    fused = pk.ProjectionOperator(gpt.double(), 1 / 2, 3).double()(tokens, t)
    functional = pk.ProjectionOperator(source, 1 / 2, 3).double()(tokens, t)[..., :11]
    torch.testing.assert_close(functional, fused, atol=1e-7, rtol=0)


@pytest.mark.parametrize("shrink_heads", [False, True])
@pytest.mark.parametrize("family", [*FAMILIES, *SHRINKING])
def test_every_family_gives_ordinary_models(family, shrink_heads, tmp_path):
    torch.manual_seed(0)
    source = decoder(family)
    operator = pk.ProjectionOperator(source, 1 / 2, task_dim=3, rank=2, shrink_heads=shrink_heads, vectors_of_t=True)
    randomise(operator)
    tokens, t = tokens_and_tasks(source.config.vocab_size)
    logits = operator(tokens, t)
    logits.square().mean().backward()
    unused = [n for n, p in operator.named_parameters() if p.grad is None or not p.grad.any()]
    assert not unused
    matrices = [name for stack in operator.grouping.stacks for name in stack.names]
    assert all(source.get_parameter(name).grad.any() for name in matrices)
    for i in (0, 2):
        small = operator.generate(t[i])
        assert_generated(operator, t[[0, i]], small)
        small.save_pretrained(tmp_path / str(i))
        loaded, loading = hf.AutoModelForCausalLM.from_pretrained(tmp_path / str(i), output_loading_info=True)
        assert type(loaded) is type(source) and not any(loading.values())
        assert loaded.config.hidden_size == source.config.hidden_size // 2
        with torch.no_grad():
            torch.testing.assert_close(predict(loaded, tokens[i : i + 1]), logits[i : i + 1], atol=1e-5, rtol=1e-5)
        assert loaded.generate(tokens[:1, :2], min_new_tokens=2, max_new_tokens=2, do_sample=False).shape == (1, 4)


def assert_generated(operator, t, small):
    """One parameter at a time, all are those of ``small``, the model of the last of the tasks, bit for bit."""
    values = dict(operator.each_parameter(t))
    assert values.keys() == dict(small.named_parameters()).keys()
    for name, parameter in small.named_parameters():
        assert torch.equal(values[name][-1], parameter), name


@pytest.mark.parametrize("family", ["opt", "mixtral", "qwen3_moe", "mamba", "gemma3, with images"])
def test_what_cannot_be_done_says_why(family):
    with pytest.raises(InputError, match="source|model"):
        Grouping.of(config_of(family), 1 / 2)


@pytest.mark.parametrize(
    ("scale", "options", "name"),
    [(0.3, {}, "scale"), (1 / 3, {}, "hidden_size"), (1 / 16, {"shrink_heads": True}, "pairs")],
)
def test_scales_that_do_not_fit(scale, options, name):
    with pytest.raises(InputError, match=name):
        Grouping.of(config_of("llama"), scale, **options)


def test_rotary_pairs_stay_pairs():
    """A head that turns only the first pair of each group, projected, is the small head turned."""
    source = decoder("llama")
    operator = pk.ProjectionOperator(source, 1 / 2, task_dim=3, shrink_heads=True)
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    x = torch.zeros(1, 1, 5, 16)
    x[..., ::2] = torch.randn(1, 1, 5, 8)  # the first coordinate of each group of two
    positions = torch.arange(5)[None]
    turned = []
    for model, head in ((source, x), (operator.small, x[..., ::2])):
        cos, sin = model.model.rotary_emb(head, positions)
        turned.append(apply_rotary_pos_emb(head, head, cos, sin)[0])
    large, small = turned
    torch.testing.assert_close(large.unflatten(-1, (8, 2)).sum(-1), small, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("share", [0.25, 0.5])
def test_partly_rotary_heads_keep_whole_pairs(share):
    config = config_of("phi", partial_rotary_factor=share)
    width = int(16 * share)
    Grouping.of(config, 1 / (width // 2), shrink_heads=True)
    with pytest.raises(InputError, match=f"{width} coordinates of a head that rotate"):
        Grouping.of(config, 1 / width, shrink_heads=True)


def test_a_source_in_half_precision():
    source = decoder("llama").bfloat16()
    operator = pk.ProjectionOperator(source, 1 / 2, task_dim=3)
    tokens, t = tokens_and_tasks(source.config.vocab_size)
    logits = operator(tokens, t)
    assert logits.dtype == torch.float32
    logits.sum().backward()
    assert source.model.layers[0].mlp.up_proj.weight.grad.any()
    with torch.no_grad():
        torch.testing.assert_close(predict(operator.generate(t[0]), tokens[:1]), logits[:1], atol=1e-4, rtol=1e-4)


def test_generated_models_have_the_dropout_of_their_class():
    source = decoder("gpt2")
    operator = pk.ProjectionOperator(source, 1 / 2, task_dim=3)
    tokens, t = tokens_and_tasks(source.config.vocab_size)
    assert not torch.equal(operator.train()(tokens, t), operator(tokens, t))
    assert torch.equal(operator.eval()(tokens, t), operator(tokens, t))


def test_what_is_no_language_model_is_refused():
    for source in (hf.LlamaModel(config_of("llama")), torch.nn.Linear(2, 2)):
        with pytest.raises(InputError, match="source must be a GPT or a causal language model"):
            pk.ProjectionOperator(source, 1 / 2, task_dim=3)


def test_a_subclass_of_the_operator_changes_nothing():
    class Mine(pk.ProjectionOperator):
        pass

    assert type(pk.ProjectionOperator(decoder("llama"), 1 / 2, 3)) is TransformersOperator
    gpt = pk.GPT(pk.GPTConfig(vocab_size=8, n_positions=6, n_embd=8, n_layer=1, n_head=2))
    assert type(Mine(gpt, 1 / 2, 3)) is Mine


def test_without_change_it_is_a_pruning_free_projection_at_g_1():
    source = decoder("llama, biases")
    operator = pk.ProjectionOperator(source, 1, task_dim=3)
    for name, own in zip(operator.own_names, operator.own):
        torch.testing.assert_close(
            own, torch.zeros_like(own) if name in operator.grouping.added else source.get_parameter(name)
        )
    tokens, t = tokens_and_tasks(source.config.vocab_size)
    torch.testing.assert_close(operator(tokens, t), predict(source, tokens), atol=1e-5, rtol=1e-5)


def test_copies_and_state_travel():
    source = decoder("llama")
    operator = pk.ProjectionOperator(source, 1 / 2, task_dim=3, rank=2)
    randomise(operator)
    tokens, t = tokens_and_tasks(source.config.vocab_size)
    other = pk.ProjectionOperator(source, 1 / 2, task_dim=3, rank=2)
    file = io.BytesIO()
    torch.save(operator.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file))
    torch.testing.assert_close(other(tokens, t), operator(tokens, t))
    assert isinstance(copy.deepcopy(operator), TransformersOperator)


def test_wrong_arguments_are_named():
    operator = pk.ProjectionOperator(decoder("llama"), 1 / 2, task_dim=3)
    with pytest.raises(InputError, match="t must be"):
        operator(torch.zeros(2, 3, dtype=torch.long), torch.zeros(2, 4))
    with pytest.raises(InputError, match="t must be"):
        operator.generate(torch.zeros(1, 3))
    with pytest.raises(InputError, match="decoder"):
        operator.decoder(torch.zeros(1, 3))


def test_the_start_token_is_the_models_own():
    assert start_token(decoder("llama")) == 1
    source = decoder("llama")
    source.config.bos_token_id = None
    assert start_token(source) == 2
