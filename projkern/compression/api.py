"""Compression of a model that is in memory, by one call."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..utils.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


def compress(
    model: PreTrainedModel,
    tokens: Tensor | None = None,
    *,
    keep: float | None = None,
    hidden_size: int | None = None,
    intermediate_size: int | None = None,
    layers: int | None = None,
    **settings: Any,
) -> PreTrainedModel:
    """Compress a causal language model of transformers to a smaller one of its class.

    Args:
        model: the source, in float32 unless it is on a card. It is not changed.
        tokens: (n,) token ids of text to train on; without them the model writes its own.
        keep: share of the parameters to keep; 0.5 unless sizes are given.
        hidden_size, intermediate_size, layers: exact sizes in place of ``keep``.
        settings: any other setting of ``projkern.compress``, by its option's name with underscores: ``method``,
            ``generate`` (how much the model writes; 2 million tokens by default), ``length``, ``lr``, ``seed``.

    Returns:
        The small model, in evaluation mode, on the source's device.

    Raises:
        InputError: an argument or a model that cannot be used.
    """
    import torch

    from ..data.text import Windows, open_tokens
    from ..training.loop import train
    from ..training.metrics import Metrics
    from .config import CompressConfig
    from .start import choose, make_projected
    from .training import compression_job
    from .writing import write_tokens

    sizes = {"keep": keep, "hidden_size": hidden_size, "intermediate_size": intermediate_size, "layers": layers}
    config = CompressConfig().replace(**sizes, **settings)
    if tokens is not None and (tokens.dim() != 1 or tokens.is_floating_point()):
        raise InputError(f"tokens must be token ids (n,); they were {tokens.dtype} {tuple(tokens.shape)}")
    was_training = model.training
    model.eval()
    try:
        with tempfile.TemporaryDirectory() as name:
            folder, text = Path(name), config.text
            if tokens is None:
                assert text.generate is not None
                amount = text.generate + text.held_out * text.length
                write_tokens(model, amount, text.length, config.run.seed, folder / "tokens.npy")
                ids = open_tokens(folder / "tokens.npy")
            else:
                ids = tokens.cpu().numpy()
            windows = Windows(ids, text.length, config.tuning.batch_size, text.held_out, config.run.seed)
            kept, inputs = choose(model, windows, config)
            projected = make_projected(model, kept, config, inputs)
            dtype = torch.bfloat16 if config.run.dtype == "bfloat16" else torch.float32
            job = compression_job(projected, model, windows, config, dtype)
            train(job, folder / "checkpoint", Metrics(folder))
            return projected.merge()
    finally:
        model.train(was_training)
