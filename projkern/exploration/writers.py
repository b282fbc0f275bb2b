"""What the models of a run on tasks of text write for one task: the generated one, the conditional one, the source."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from ..language.sampling import write
from ..language.stages import TextModel
from ..language.trained import LanguageRun
from ..models.names import SOURCE, ModelName
from ..models.sampling import Draws
from ..training.stages import count
from ..utils.device import wait_for

TOKENS = 160


@dataclass(frozen=True)
class Text:
    """What one model wrote, and its figures."""

    name: ModelName
    text: str
    parameters: int
    generation_seconds: float | None
    """From t to the small model; None for a model that is not generated."""
    tokens_per_second: float


class Writers:
    """The models of a finished run that a visitor compares: P_s and M~_s of each scale, and the source.

    Raises as ``LanguageRun.models`` does.
    """

    def __init__(self, run: LanguageRun) -> None:
        self.run = run
        self._models = [m for m in run.models() if m.name.is_projected or m.name.is_conditional or m.name == SOURCE]
        self._models.sort(key=lambda m: (not m.name.is_projected, not m.name.is_conditional))
        self.names = tuple(model.name for model in self._models)
        self.takes_samples = run.vectors.reader is not None

    def t(self, task: str, sample: str) -> Tensor:
        """The t of a sample of text, where there is one, else that of a task; raises InputError for a short sample."""
        return self.run.t_like(sample) if sample.strip() and self.takes_samples else self.run.t_of(task)

    def write(self, t: Tensor, prompt: str, draws: Draws) -> Iterator[Text]:
        """Each model's text after a prompt, one after the other."""
        for model in self._models:
            yield self._write(model, t, prompt, draws)

    def _write(self, model: TextModel, t: Tensor, prompt: str, draws: Draws) -> Text:
        wait_for(self.run.device)
        began = time.perf_counter()
        small = model.standalone(t)
        wait_for(self.run.device)
        seconds = time.perf_counter() - began
        written = write(small, self.run.tokenizer, draws, prompt, TOKENS)
        is_generated = model.name.is_projected
        return Text(
            model.name,
            written.texts[0],
            count(small) if is_generated else model.parameters,
            seconds if is_generated else None,
            written.tokens_per_second,
        )
