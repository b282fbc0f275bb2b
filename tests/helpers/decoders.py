"""Tiny random decoders of many families, and a hard pruning of theirs that is written by the names of parameters."""

from __future__ import annotations

import re
from typing import Any

import torch
import transformers as hf

HIDDEN, INTERMEDIATE, HEADS, LAYERS, VOCABULARY = 64, 112, 4, 3, 96

_COMMON: dict[str, Any] = {
    "hidden_size": HIDDEN,
    "intermediate_size": INTERMEDIATE,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_WIDE = {"head_dim": 24}  # not hidden_size / num_attention_heads
FAMILIES: dict[str, tuple[type, dict[str, Any]]] = {
    "llama": (hf.LlamaConfig, {}),
    "llama, tied": (hf.LlamaConfig, {"tie_word_embeddings": True}),
    "llama, biases": (hf.LlamaConfig, {"attention_bias": True, "mlp_bias": True}),
    "mistral": (hf.MistralConfig, _WIDE),
    "qwen2": (hf.Qwen2Config, {}),
    "qwen3": (hf.Qwen3Config, _WIDE),
    "gemma": (hf.GemmaConfig, _WIDE),
    "gemma2": (hf.Gemma2Config, _WIDE),
    "gemma3": (hf.Gemma3TextConfig, _WIDE),
    "phi": (hf.PhiConfig, {}),
    "phi3": (hf.Phi3Config, {}),
    "olmo2": (hf.Olmo2Config, {}),
    "granite": (hf.GraniteConfig, {}),
    "smollm3": (hf.SmolLM3Config, {}),
    "cohere": (hf.CohereConfig, {}),
    "starcoder2": (hf.Starcoder2Config, {}),
    "glm4": (hf.Glm4Config, _WIDE),
}
_HEADS_FOLLOW, _EXPERTS = "width of the heads follows", "experts and convolutions"
REFUSED: dict[str, tuple[type, dict[str, Any], str]] = {
    "gpt2": (hf.GPT2Config, {}, _HEADS_FOLLOW),
    "gpt_neox": (hf.GPTNeoXConfig, {}, _HEADS_FOLLOW),
    "stablelm": (hf.StableLmConfig, {}, _HEADS_FOLLOW),
    "falcon": (hf.FalconConfig, {}, _HEADS_FOLLOW),
    "bloom": (hf.BloomConfig, {}, _HEADS_FOLLOW),
    "opt": (hf.OPTConfig, {"word_embed_proj_dim": HIDDEN, "ffn_dim": INTERMEDIATE}, "parameters at every size"),
    "mixtral": (hf.MixtralConfig, {"num_local_experts": 2}, _EXPERTS),
    "qwen3_moe": (hf.Qwen3MoeConfig, {"num_experts": 2, "moe_intermediate_size": 32}, _EXPERTS),
    "gpt_oss": (hf.GptOssConfig, {"num_local_experts": 2}, _EXPERTS),
    "mamba": (hf.MambaConfig, {}, _EXPERTS),
    "gemma3, with images": (hf.Gemma3Config, {}, "text_config"),
}


def config_of(family: str, **changes: Any) -> Any:
    kind, settings, *_ = (FAMILIES | REFUSED)[family]
    values = _COMMON | settings | changes
    if family == "gpt2":  # it has another name for it
        values["n_inner"] = values.pop("intermediate_size")
    return kind(**values)


def decoder(family: str, seed: int = 0, **changes: Any) -> Any:
    """A tiny model whose every parameter is random, norms and biases too."""
    torch.manual_seed(seed)
    model = hf.AutoModelForCausalLM.from_config(config_of(family, **changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


_READS_RESIDUAL = r"(q|k|v|qkv|gate|up|gate_up)_proj|fc1|c_fc|embed_tokens|lm_head"
_WRITES_RESIDUAL = r"o_proj|down_proj|self_attn\.dense|fc2|mlp\.c_proj|\w*layernorm|model\.norm"
_WRITES_FEED_FORWARD = r"mlp\.(gate|up)_proj|fc1|c_fc"
_READS_FEED_FORWARD = r"down_proj|fc2|mlp\.c_proj"


def prune_by_name(model: Any, hidden: torch.Tensor, intermediate: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """The parameters of the small model: rows and columns taken by name.

    Args:
        hidden: kept coordinates of the residual stream.
        intermediate: of each layer's feed-forward.
    """
    state = {}
    for name, w in model.named_parameters():
        layer = re.search(r"layers\.(\d+)\.", name)
        kind = re.sub(r"\.(weight|bias)$", "", name)
        if re.search(rf"({_READS_RESIDUAL})$", kind) and w.dim() == 2:
            w = w[:, hidden]
        if re.search(rf"({_WRITES_RESIDUAL})$", kind):
            w = w[hidden]
        if layer is not None:
            kept = intermediate[int(layer[1])]
            if re.search(rf"({_WRITES_FEED_FORWARD})$", kind):
                w = w[kept]
            if kind.endswith("mlp.gate_up_proj"):
                w = torch.cat([w[kept], w[kept + INTERMEDIATE]])
            if re.search(rf"({_READS_FEED_FORWARD})$", kind) and w.dim() == 2:
                w = w[:, kept]
        state[name] = w.detach()
    return state
