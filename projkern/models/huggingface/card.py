"""The model card, README.md, that goes with every exported model."""

from typing import Any

from ...data import TASK_NAMES
from ..layout import GPTConfig

_HEAD = """---
library_name: transformers
tags:
- gpt2
- projkern
---

# A GPT of {parameters:,} parameters{name}

{layers} layers, width {width}, {heads} heads, {vocabulary} tokens, sequences of {positions}.{images}

```python
from transformers import GPT2LMHeadModel

model = GPT2LMHeadModel.from_pretrained("path/to/this/folder")
tokens = model.generate()[:, 1:]  # draws a whole sequence; the first token is the start slot
```

## What differs from a GPT-2 that was trained on text

- The head is not tied to the token embedding.
- Position 0 is a start slot, a learned vector. In this format it is the token {vocabulary}, `bos_token_id`, which
  every sequence begins with. It never was a target of the training: its row of the head is zero, so its logit is 0
  and means nothing. Leave column {vocabulary} out, as the stored generation settings do.
- There is no end token. With the start slot in front, `generate` returns {returned} tokens, one more than there are
  positions: the last one is never fed back.
"""

_ORIGIN = """
## Where it comes from

Generated in one shot, without fine-tuning, by a projection operator
([Projectable Models](https://arxiv.org/abs/2506.05641)), and checked: what transformers reads from this folder gives
the logits of the training-time forward.

| | |
|---|---|
"""


def model_card(config: GPTConfig, parameters: int, provenance: dict[str, Any], images: bool) -> str:
    """The text of a card.

    Args:
        config: the model's shape.
        parameters: their number, as this package counts them.
        provenance: the model's origin: the run, scale, training step, digest and t, or nothing.
        images: whether the tokens are colours, and the folder holds them.
    """
    head = _HEAD.format(
        parameters=parameters,
        name=f", generated for one task at s = {provenance['scale']}" if "t" in provenance else "",
        layers=config.n_layer,
        width=config.n_embd,
        heads=config.n_head,
        vocabulary=config.vocab_size,
        positions=config.n_positions,
        returned=config.n_positions + 1,
        images=" Tokens are colours, those of `preprocessor_config.json` (`ImageGPTImageProcessor`)." if images else "",
    )
    if "t" not in provenance:
        return head
    rows = {
        "run": f"`{provenance['run']}`",
        "scale s": provenance["scale"],
        "training step": provenance["step"],
        "digest of source and operator": f"`{provenance['digest']}`",
    }
    t = provenance["t"]
    names = TASK_NAMES if len(t) == len(TASK_NAMES) else [f"t[{i}]" for i in range(len(t))]
    rows |= {f"t: {name}": f"{value:g}" for name, value in zip(names, t)}
    return head + _ORIGIN + "".join(f"| {name} | {value} |\n" for name, value in rows.items())
