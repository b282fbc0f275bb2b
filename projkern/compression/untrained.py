"""A compression without training, of a source that is left in its files: one block is made, merged, written, dropped.

Memory holds the largest parameter and what is made of it, the hidden states of the calibration windows, and, for the
compensated start, the second moments of one layer's inputs. The numbers are those of the projected model at its start.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from tqdm import tqdm

from ..data.text import Windows
from ..export.streamed import WeightsWriter
from ..models.huggingface.axes import Sizes, build_empty, layer_of, shapes_of
from .config import CompressConfig
from .importance import gathering
from .layerwise import LayerRun
from .making import BlockMaker
from .plan import Plan
from .start import Kept, calibration, shallow_source

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@torch.no_grad()
def write_start(
    folder: Path,
    source: PreTrainedModel,
    kept: Kept,
    config: CompressConfig,
    sizes: Sizes,
    windows: Windows,
    dtype: torch.dtype,
) -> tuple[PreTrainedModel, int]:
    """Write the weights of the small model that training would begin with.

    Args:
        folder: of the model.
        source: of ``models.huggingface.stored``.
        kept: of ``start.choose``.
        dtype: of the small model.

    Returns:
        The small model on the meta device, and how many parameters training would have.

    Raises:
        WrongModel: what was read back is not what was written.
        OSError: something could not be written.
    """
    shallow = shallow_source(source, kept.layers)
    plan = Plan.of(shallow, sizes).keeping(kept.hidden, kept.intermediate)
    small = build_empty(plan.config)
    small.generation_config = source.generation_config
    total = len(shapes_of(small))
    with WeightsWriter(folder, small, dtype) as writer, tqdm(total=total, desc="write", unit=" parameters") as bar:
        for name, value in _parameters(shallow, plan, config, windows):
            writer.write(name, value.to(dtype))
            bar.update()
    maker = BlockMaker(shallow, plan, config.method.method, config.method.block, None)
    return small, sum(map(maker.count, maker.names()))


def _parameters(
    source: PreTrainedModel, plan: Plan, config: CompressConfig, windows: Windows
) -> Iterator[tuple[str, Tensor]]:
    """The parameters of the small model, in float32."""
    method = config.method
    maker = BlockMaker(source, plan, method.method, method.block, None)
    waiting, passed = maker.names(), set()
    if method.start != "compensated":  # products with a selection, without the products
        for names in waiting:
            yield from ((name, maker.select(name)) for name in names)
        return
    run = LayerRun(source, calibration(windows, config))
    with gathering(source, plan.axes, moments=plan.axes) as inputs:
        for layer in run:
            passed.add(layer)
            maker = BlockMaker(source, plan, method.method, method.block, inputs)  # with no projection of layers before
            for names in [names for names in waiting if all(layer_of(name) in passed for name in names)]:
                waiting.remove(names)
                block = maker.make(names)
                value = block.residual.detach()
                if block.projections:
                    value = block.product().add_(value)
                yield from block.stack.by_name(value).items()
                for name in names:
                    inputs.moments.pop(name, None)
