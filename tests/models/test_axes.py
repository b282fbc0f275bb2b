"""Which axes shrink, for many families, and which models are refused, in words that say why."""

from __future__ import annotations

import re

import decoders
import pytest

from projkern.compression.sizes import choose_sizes
from projkern.models.huggingface.axes import Axis, Sizes, find_axes, sizes_of
from projkern.utils.errors import InputError

HALF = Sizes(32, 56, decoders.LAYERS)
HIDDEN, FORWARD = Axis(True), Axis(False)
LLAMA = {
    "model.embed_tokens.weight": (None, HIDDEN),
    "lm_head.weight": (None, HIDDEN),
    "model.norm.weight": (HIDDEN,),
    "input_layernorm.weight": (HIDDEN,),
    "post_attention_layernorm.weight": (HIDDEN,),
    "self_attn.q_proj.weight": (None, HIDDEN),
    "self_attn.k_proj.weight": (None, HIDDEN),
    "self_attn.v_proj.weight": (None, HIDDEN),
    "self_attn.o_proj.weight": (HIDDEN, None),
    "mlp.gate_proj.weight": (FORWARD, HIDDEN),
    "mlp.up_proj.weight": (FORWARD, HIDDEN),
    "mlp.down_proj.weight": (HIDDEN, FORWARD),
}


def test_axes_of_a_llama_by_name():
    axes = find_axes(decoders.config_of("llama"), HALF)
    assert {re.sub(r"model\.layers\.\d+\.", "", name): of for name, of in axes.items()} == LLAMA


def test_a_fused_matrix_has_its_copies():
    axes = find_axes(decoders.config_of("phi3"), HALF)
    assert axes["model.layers.0.mlp.gate_up_proj.weight"] == (Axis(False, copies=2), HIDDEN)


def test_an_axis_that_stays_has_none():
    axes = find_axes(decoders.config_of("llama"), Sizes(decoders.HIDDEN, 56, decoders.LAYERS))
    assert {axis for of in axes.values() for axis in of} == {None, FORWARD}


@pytest.mark.parametrize("family", decoders.FAMILIES)
def test_every_family_has_both_axes(family):
    axes = find_axes(decoders.config_of(family), HALF)
    assert {axis.is_residual for of in axes.values() for axis in of if axis} == {True, False}


@pytest.mark.parametrize("family", decoders.REFUSED)
def test_refused_families_say_why(family):
    with pytest.raises(InputError, match=decoders.REFUSED[family][2]):
        choose_sizes(decoders.config_of(family), keep=0.5)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "stablelm"])
def test_feed_forward_alone_where_heads_follow(family):
    """What keeps the residual stream can shrink the feed-forward."""
    config = decoders.config_of(family)
    sizes = choose_sizes(config, intermediate=48)
    assert sizes.hidden == decoders.HIDDEN
    axes = find_axes(config, sizes)
    assert {axis for of in axes.values() for axis in of} == {None, FORWARD}


def test_quantised_is_refused():
    config = decoders.config_of("llama")
    config.quantization_config = {"quant_method": "gptq"}
    with pytest.raises(InputError, match="quantised"):
        find_axes(config, HALF)


@pytest.mark.parametrize(
    ("sizes", "name"),
    [
        ({"hidden": 65}, "hidden_size"),
        ({"hidden": 0}, "hidden_size"),
        ({"intermediate": 113}, "intermediate_size"),
        ({"layers": 4}, "layers"),
        ({"layers": 0}, "layers"),
        ({"keep": 0.0}, "keep"),
        ({"keep": 1.1}, "keep"),
        ({"keep": 0.0001}, "keep"),
        ({"keep": 0.5, "hidden": 32}, "keep"),
        ({"hidden": 34}, "hidden_size .* 32 or 36, a multiple of its 4 heads"),
    ],
)
def test_sizes_that_cannot_be(sizes, name):
    with pytest.raises(InputError, match=name):
        choose_sizes(decoders.config_of("llama"), **sizes)


@pytest.mark.parametrize("keep", [0.2, 0.35, 0.5, 0.8])
def test_keep_comes_near_to_its_share(keep):
    import transformers as hf

    config = hf.LlamaConfig(
        hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
        vocab_size=49152, tie_word_embeddings=True,
    )  # fmt: skip
    sizes = choose_sizes(config, keep=keep)
    assert sizes.hidden % 9 == sizes.hidden % 16 == sizes.intermediate % 128 == 0

    def parameters(hidden: int, intermediate: int) -> int:
        return 49152 * hidden + 30 * (2 * hidden * (576 + 192) + 3 * hidden * intermediate + 2 * hidden) + hidden

    share = parameters(sizes.hidden, sizes.intermediate) / parameters(576, 1536)
    assert abs(share / keep - 1) < 0.1


def test_keep_all_is_the_source():
    config = decoders.config_of("llama")
    assert choose_sizes(config, keep=1.0) == choose_sizes(config) == sizes_of(config)
