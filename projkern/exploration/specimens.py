"""The meaning of one task identifier: its texture, and for each scale the model generated for it, with samples."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..data import TASK_DIM, TASK_NAMES, texture
from ..models.names import ModelName
from ..models.sampling import sample
from ..training.stages import count
from ..training.trained import TrainedRun
from ..utils.device import wait_for
from ..utils.errors import InputError

CLASSES = ("class_stripes", "class_rings", "class_cells")


@dataclass(frozen=True)
class Specimen:
    """A small model generated for one t, and the images that it draws."""

    name: ModelName
    parameters: int
    generation_seconds: float
    """From t to the small model, its weights written."""
    images: Tensor
    """(B, 3, S, S) float32 in [-1, 1]."""
    tokens_per_second: float
    """Of all B images together."""


class Specimens:
    """Generates specimens of a trained run, at each of its scales.

    Args:
        run: its operators are read now.
        samples: B >= 1, images that each model draws.

    Raises:
        InputError: no sample, a run on tokenised images, or one that is not whole (see ``TrainedRun.operator``).
    """

    def __init__(self, run: TrainedRun, samples: int) -> None:
        if samples < 1:
            raise InputError(f"samples must be at least 1; it was {samples}")
        if run.config.data.folder is not None:
            raise InputError(
                f"run must be one on SynthMNIST, where each number of t has a meaning; {run.path} is on tokenised "
                "images. python -m projkern.sample draws images of its models"
            )
        self.run, self._samples = run, samples
        self._operators = run.operators()
        self.names = tuple(self._operators)
        for operator in self._operators.values():
            operator.generate(torch.zeros(TASK_DIM, device=run.device))  # the first call also loads the kernels

    def texture(self, t: Tensor) -> Tensor:
        """The texture that t (18,) means, at the run's size and before quantisation: (3, S, S) in [-1, 1]."""
        return texture(t[None], self.run.config.data.side)[0]

    def draw(self, t: Tensor, seed: int) -> Iterator[Specimen]:
        """Generate the model of t (18,) at each scale in turn, and let it draw."""
        t = t.to(self.run.device)
        for name, operator in self._operators.items():
            wait_for(self.run.device)
            began = time.perf_counter()
            small = operator.generate(t)
            wait_for(self.run.device)
            seconds = time.perf_counter() - began
            drawn = sample(small.decoder(self._samples), seed=seed, progress=False)
            images = self.run.decode(drawn.tokens)
            yield Specimen(name, count(small), seconds, images, drawn.tokens_per_second)


def texture_class(t: Tensor) -> str:
    """Which of ``CLASSES`` t (18,) picks: the largest of the three, of equals the first."""
    first = TASK_NAMES.index(CLASSES[0])
    return CLASSES[int(t[first : first + len(CLASSES)].argmax())]
