"""Losses against one component of t, beyond the range that was trained (the paper's Figure 4)."""

from collections.abc import Sequence

from torch import Tensor
from tqdm import tqdm

from ..data import TASK_NAMES
from ..data.stream import Images
from ..training.losses import Batches, Losses, evaluate
from ..training.stages import Model
from ..utils.errors import InputError

VALUES = tuple(i / 10 for i in range(21))
"""The paper's range, [0, 2], of which the first half was trained."""


def component(name: str) -> int:
    """The index of a component of t; raises InputError where there is none of that name."""
    if name not in TASK_NAMES:
        raise InputError(f"sweep must name components of t ({', '.join(TASK_NAMES)}); it was {name}")
    return TASK_NAMES.index(name)


def with_component(name: str, value: float) -> Batches:
    """Images drawn anew, whose t has ``value`` in the component ``name``, with that t.

    Their digits and other components are those of the stream.
    """
    index = component(name)

    def batch(data: Images, step: int) -> tuple[Tensor, Tensor]:
        t = data.tasks(step)
        t[:, index] = value
        return data.batch(step, t)

    return batch


def sweep(
    models: Sequence[Model], data: Images, images: int, name: str, values: Sequence[float] = VALUES
) -> dict[str, list[Losses]]:
    """Losses of each model, by its name, at each value of one component.

    Args:
        models: of one run.
        data: the stream whose first images are used at every value.
        images: N >= 2.
        name: one of ``TASK_NAMES``.
        values: any finite numbers.

    Raises:
        InputError: another name, or fewer than two images.
    """
    curves: dict[str, list[Losses]] = {str(model.name): [] for model in models}
    with tqdm(total=len(values) * len(models), desc=f"sweep of {name}", unit=" evaluations") as progress:
        for value in values:
            batches = with_component(name, value)
            for model in models:
                curves[str(model.name)].append(evaluate(model.predict, data, images, batches))
                progress.update()
    return curves
