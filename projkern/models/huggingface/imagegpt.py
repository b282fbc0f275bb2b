"""ImageGPT's checkpoints (``openai/imagegpt-small`` has the paper's M_1's shape) as GPT-2's, as far as that goes.

The same: the causal attention, the four linear operators of a block, learned positions, and an untied head. Its
last token only ever starts a sequence, as the start slot does, and its head has no row for that one. Different:

- Its norms divide by the root mean square, x / sqrt(mean(x^2) + eps) * weight: they do not subtract the mean, and
  have no bias. The weight is kept and the bias 0, but a layer norm sees x less its mean.
- Its activation is x sigmoid(1.702 x), that of a ``GPT`` the tanh form of GELU.
"""

import re
from typing import Any

import torch
from torch import Tensor

QUICK_GELU = (
    "The activation was quick_gelu, x sigmoid(1.702 x), and becomes GELU in its tanh form: the two differ by at most "
    "0.021."
)
CENTRING = (
    "The norms divided by the root mean square without subtracting the mean, and become layer norms, which subtract "
    "it: they agree only where the mean is 0."
)


def as_gpt2(values: dict[str, Any], state: dict[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor], list[str]]:
    """Rewrite an ImageGPT's config.json and tensors as those of a GPT-2 whose last token is the start slot.

    Args:
        values: its config.json.
        state: its tensors by name; nothing in it is changed.

    Returns:
        The same two for GPT-2, and a sentence for each thing that is lost.
    """
    notes = [CENTRING]
    activation = values.get("activation_function", "quick_gelu")
    if activation == "quick_gelu":
        notes.append(QUICK_GELU)
        activation = "gelu_new"
    rewritten = dict(state)
    for name, tensor in state.items():
        if re.search(r"(^|\.)ln_(1|2|f)\.weight$", name):
            rewritten[name.removesuffix("weight") + "bias"] = torch.zeros_like(tensor)
    head = state.get("lm_head.weight")
    if head is not None:
        rewritten["lm_head.weight"] = torch.cat([head, torch.zeros_like(head[:1])])
    # ImageGPT's defaults, where config.json leaves them out; those of GPT-2 are others.
    defaults = {"vocab_size": 513, "n_positions": 1024, "n_embd": 512, "n_layer": 24, "n_head": 8}
    values = defaults | values | {"activation_function": activation, "tie_word_embeddings": False}
    return values, rewritten, notes
