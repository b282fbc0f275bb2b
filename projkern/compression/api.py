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
        model: the source, in float32 unless it is on a card. It is not changed. Training is not stored on the way: for
            a long one, use the command.
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
    from ..data.text import Windows, check_tokens, open_tokens
    from ..training.loop import train
    from ..training.metrics import Metrics
    from ..utils.device import pick_machine
    from .config import CompressConfig
    from .start import check_length, choose, make_projected, target_sizes
    from .training import compression_job
    from .writing import write_tokens

    if unknown := {"model", "device", "text", "split_at_blank_lines"} & settings.keys():
        raise InputError(f"settings must be those of a model in memory; {min(unknown)} is none")
    sizes = {"keep": keep, "hidden_size": hidden_size, "intermediate_size": intermediate_size, "layers": layers}
    if text is None:
        settings = {"generate": 2_000_000} | settings
    config = CompressConfig().replace(**sizes, **settings)
    if text is not None:
        check_tokens(text.cpu().numpy(), model.config.vocab_size)
    check_length(config, model.config)
    target = target_sizes(model.config, config)
    dtype = pick_machine(str(model.device), config.run.dtype).dtype
    was_training = model.training
    model.eval()
    try:
        with tempfile.TemporaryDirectory() as name:
            folder, options = Path(name), config.text
            if text is not None:
                ids = text.cpu().numpy()
            else:
                assert options.generate is not None
                write_tokens(model, options.generate, options.length, config.run.seed, folder / "tokens.npy")
                ids = open_tokens(folder / "tokens.npy")
            windows = Windows(ids, options.length, config.tuning.batch_size, options.held_out, config.run.seed)
            kept, inputs = choose(model, windows, config, target)
            projected = make_projected(model, kept, config, target, inputs)
            del inputs
            job = compression_job(projected, model, windows, config, dtype)
            train(job, folder / "checkpoint", Metrics(folder))
            return projected.merge()
    finally:
        model.train(was_training)
