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
    text: Tensor | None = None,
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
        text: (n,) token ids of text to train on; without them the model writes its own.
        keep: share of the parameters to keep; 0.5 unless sizes are given.
        hidden_size, intermediate_size, layers: exact sizes in place of ``keep``.
        settings: any other setting of ``projkern.compress``, by its option's name with underscores: ``method``,
            ``tokens``, ``generate`` (how much the model writes; 2 million tokens by default), ``length``, ``seed``.

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
    if text is not None and (text.dim() != 1 or text.is_floating_point()):
        raise InputError(f"text must be token ids (n,); it was {text.dtype} {tuple(text.shape)}")
    was_training = model.training
    model.eval()
    try:
        with tempfile.TemporaryDirectory() as name:
            folder, options = Path(name), config.text
            if text is None:
                assert options.generate is not None
                amount = options.generate + options.held_out * options.length
                write_tokens(model, amount, options.length, config.run.seed, folder / "tokens.npy")
                ids = open_tokens(folder / "tokens.npy")
            else:
                ids = text.cpu().numpy()
            windows = Windows(ids, options.length, config.tuning.batch_size, options.held_out, config.run.seed)
            kept, inputs = choose(model, windows, config)
            projected = make_projected(model, kept, config, inputs)
            dtype = torch.bfloat16 if config.run.dtype == "bfloat16" else torch.float32
            job = compression_job(projected, model, windows, config, dtype)
            train(job, folder / "checkpoint", Metrics(folder))
            return projected.merge()
    finally:
        model.train(was_training)
