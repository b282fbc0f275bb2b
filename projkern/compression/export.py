"""The result as a folder of Hugging Face's format: written, read back, compared, then renamed into place."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..data.text import Windows
from ..export.checked import TOLERANCE, compare_logits, read_back, save_pretrained
from ..utils.files import new_folder, write_text

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_CARD = """---
library_name: transformers
tags:
- {kind}
- projkern
---

# A {kind} of {parameters:,} parameters, compressed from {source_parameters:,}

{sizes}. Made from `{source}` by {method}
([Projected Compression](https://arxiv.org/abs/2506.22255)), with {tokens:,} tokens of training. Loss on held-out text,
nats per token: {loss:.3f} ± {error:.3f} (source {source_loss:.3f}, before training {start_loss:.3f}).

```python
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("path/to/this/folder")
```

It is an ordinary model of its class: what reads the source reads it, with the sizes of `config.json`. The licence and
the terms of use are the source's.
{notes}"""
_METHODS = {"project": "projection", "prune": "hard pruning and retraining", "group": "grouped projection"}
_WITHOUT_HEAD_DIM = (
    "{name} has no head_dim of its own. transformers reads that of config.json ({head_dim}); an engine that "
    "computes it as hidden_size / num_attention_heads ({computed}) cannot load this model."
)


def notes_of(config: Any) -> list[str]:
    """What a user of the small model should know, a sentence each."""
    head_dim = getattr(config, "head_dim", None)
    computed = config.hidden_size / config.num_attention_heads
    if head_dim in (None, computed) or "head_dim" in type(config)().to_dict():
        return []
    return [_WITHOUT_HEAD_DIM.format(name=type(config).__name__, head_dim=head_dim, computed=f"{computed:g}")]


@torch.no_grad()
def write_model(
    folder: Path,
    model: PreTrainedModel,
    trained: PreTrainedModel,
    source: str,
    tokenizer: PreTrainedTokenizerBase | None,
    summary: dict[str, Any],
    windows: Windows,
) -> list[str]:
    """Write the small model with tokenizer, generation settings and card, and see that transformers reads it back.

    Args:
        folder: what is there already is replaced once the new one is right.
        model: the small model.
        trained: the model whose logits the one that is read back must have.
        source: name of the source.

    Returns:
        What a user should know of it.

    Raises:
        WrongModel: what was read back is not what was trained.
        OSError: something could not be written.
    """
    from transformers import AutoModelForCausalLM

    tokens = next(windows.held_out_batches(1)).to(model.device)
    expected = trained.eval()(tokens, use_cache=False).logits.float().cpu()
    with new_folder(folder, replace=True) as partial:  # one of a run that was stopped between this and its summary
        save_pretrained(model, partial)
        notes = write_card(partial, model.config, source, tokenizer, summary)
        logits = read_back(AutoModelForCausalLM, partial).to(model.device)(tokens, use_cache=False).logits.float().cpu()
        compare_logits("transformers", folder, logits, expected, TOLERANCE)
    return notes


def write_card(
    folder: Path, config: Any, source: str, tokenizer: PreTrainedTokenizerBase | None, summary: dict[str, Any]
) -> list[str]:
    """Write tokenizer and card of a model of this configuration; returns what a user should know of it."""
    notes = notes_of(config)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    write_text(folder / "README.md", _card(config, source, summary, notes))
    return notes


def _card(config: Any, source: str, summary: dict[str, Any], notes: list[str]) -> str:
    sizes = summary["sizes"]
    return _CARD.format(
        kind=config.model_type,
        parameters=summary["result"]["parameters"],
        source_parameters=summary["source"]["parameters"],
        sizes=f"Hidden size {sizes['hidden']}, intermediate size {sizes['intermediate']}, {sizes['layers']} layers",
        source=source,
        method=_METHODS[summary["method"]],
        tokens=summary["tokens"],
        loss=summary["result"]["loss"],
        error=summary["result"]["standard_error"],
        source_loss=summary["source"]["loss"],
        start_loss=summary["start"]["loss"],
        notes="".join(f"\n{note}\n" for note in notes),
    )
