"""From a source and text to a projected model: what is kept, and where P starts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..data.text import Windows
from ..models.huggingface.axes import Sizes, find_axes, shapes_of, sizes_of
from ..training.distributed import ALONE, Ranks
from ..utils.errors import InputError
from ..utils.tensors import read_tensors, write_tensors
from .config import CompressConfig
from .depth import influence, with_layers
from .importance import Inputs, gather_inputs, scores_of
from .plan import Plan
from .projected import ProjectedModel
from .shares import owned_names
from .sizes import choose_sizes

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

_AT_ONCE = 4  # windows


@dataclass(frozen=True)
class Kept:
    """What a compression keeps of its source; all that a resumed one needs to build the same module.

    Args:
        layers: numbers of the layers, ascending.
        hidden, intermediate: as in ``Plan``.
    """

    layers: list[int]
    hidden: Tensor
    intermediate: dict[str, Tensor]

    def save(self, path: Path) -> None:
        tensors = {"layers": torch.tensor(self.layers), "hidden": self.hidden}
        write_tensors(path, tensors | {f"intermediate.{layer}": kept for layer, kept in self.intermediate.items()})

    @classmethod
    def load(cls, path: Path) -> Kept:
        """Read what ``save`` wrote; raises InputError where it is damaged."""
        tensors = read_tensors(path)
        if not {"layers", "hidden"} <= tensors.keys():
            raise InputError(f"{path} must hold what a compression keeps; it holds something else")
        prefix = "intermediate."
        intermediate = {name[len(prefix) :]: kept for name, kept in tensors.items() if name.startswith(prefix)}
        return cls(tensors["layers"].tolist(), tensors["hidden"], intermediate)


def target_sizes(source: PreTrainedConfig, config: CompressConfig) -> Sizes:
    """The sizes that the settings ask for; raises InputError where the source cannot have them."""
    exact = (config.sizes.hidden_size, config.sizes.intermediate_size, config.sizes.layers)
    keep = 0.5 if config.sizes.keep is None and exact == (None, None, None) else config.sizes.keep
    sizes = choose_sizes(source, keep, *exact)
    find_axes(source, sizes)  # refuses what cannot be projected
    return sizes


def check_length(config: CompressConfig, source: PreTrainedConfig) -> None:
    """Raises InputError where windows are longer than the source's positions."""
    most = getattr(source, "max_position_embeddings", None) or config.text.length
    if config.text.length > most:
        raise InputError(f"length must be at most the model's {most} positions; it was {config.text.length}")


def choose(
    source: PreTrainedModel,
    windows: Windows,
    config: CompressConfig,
    sizes: Sizes,
    ranks: Ranks = ALONE,
    *,
    moments: bool = True,
) -> tuple[Kept, Inputs]:
    """What to keep of a source, by its scores, and its inputs, which the compensated start needs.

    Args:
        sizes: of ``target_sizes``.
        ranks: the processes that share the projected model; each has the moments of its own part.
        moments: whether the inputs have the moments that this start needs, of all layers at once.
    """
    batches = calibration(windows, config)
    total = sizes_of(source.config).layers
    layers = list(range(total))
    if sizes.layers < total:
        scores = influence(source, batches)
        layers = sorted(scores.argsort(descending=True, stable=True)[: sizes.layers].tolist())
    shallow = shallow_source(source, layers)
    axes = find_axes(shallow.config, sizes)
    is_compensated = moments and config.method.start == "compensated"
    inputs = Inputs()
    if is_compensated or config.method.importance == "activation":
        own = owned_names(shapes_of(shallow), axes, ranks.rank, ranks.size) if is_compensated else ()
        inputs = gather_inputs(shallow, axes, batches, moments=own)
    plan = Plan.of(shallow, sizes, scores_of(config.method.importance, shallow, axes, inputs))
    return ranks.from_main(Kept(layers, plan.hidden, plan.intermediate)), inputs


def make_projected(
    source: PreTrainedModel,
    kept: Kept,
    config: CompressConfig,
    sizes: Sizes,
    inputs: Inputs | None = None,
    ranks: Ranks = ALONE,
) -> ProjectedModel:
    """The projected model of a source. Without ``inputs`` its P selects, whatever the setting ``start``."""
    shallow = shallow_source(source, kept.layers)
    plan = Plan.of(shallow, sizes).keeping(kept.hidden, kept.intermediate)
    return ProjectedModel(shallow, plan, config.method.method, config.method.block, inputs, ranks)


def shallow_source(source: PreTrainedModel, layers: list[int]) -> PreTrainedModel:
    """The source with some of its layers, or itself where all are kept."""
    return source if len(layers) == sizes_of(source.config).layers else with_layers(source, layers)


def calibration(windows: Windows, config: CompressConfig) -> list[Tensor]:
    """The first windows of the training order."""
    steps = -(-config.method.calibration // windows.batch_size)
    tokens = torch.cat([windows.batch(step) for step in range(steps)])[: config.method.calibration]
    return list(tokens.split(_AT_ONCE))
