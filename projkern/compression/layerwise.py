"""A model run layer by layer: all batches pass one layer before the next is entered.

So what is gathered of a layer is complete, and can be used and dropped, before the next begins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from .depth import layers_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class _Call(NamedTuple):
    """What a layer is called with beside the hidden states."""

    arguments: tuple[Any, ...]
    options: dict[str, Any]


class LayerRun:
    """Token batches on their way through a model. What its layers are called with is recorded by a run without them.

    Args:
        model: in evaluation mode.
        batches: (B, T) each; their hidden states (B, T, d) stay in memory.
    """

    @torch.no_grad()
    def __init__(self, model: PreTrainedModel, batches: list[Tensor]) -> None:
        self.model, self.batches = model, batches
        path, layers = layers_of(model)
        self.layers: dict[str, nn.Module] = {f"{path}.{number}": layer for number, layer in enumerate(layers)}
        self._calls: dict[str, list[_Call]] = {name: [] for name in self.layers}
        self._states: list[Tensor] = []
        self._returns_tuple: bool | None = None

        def record(name: str, states: Tensor, *arguments: Any, **options: Any) -> Tensor:
            if self._returns_tuple is None:
                layer = self.layers[name]
                self._returns_tuple = isinstance(type(layer).forward(layer, states, *arguments, **options), tuple)
            if len(self._states) == len(self._calls[name]):
                self._states.append(states)
            self._calls[name].append(_Call(arguments, options))
            return states

        self._run_without_layers(record)

    @torch.no_grad()
    def __iter__(self) -> Iterator[str]:
        """Run all: the name of each layer once all batches have passed it, and "" once they have passed the rest."""
        for name, layer in self.layers.items():
            for number, (arguments, options) in enumerate(self._calls[name]):
                output = layer(self._states[number], *arguments, **options)
                self._states[number] = output[0] if isinstance(output, tuple) else output
            yield name
        ends = {name: iter(self._states) for name in self.layers}
        self._run_without_layers(lambda name, states, *arguments, **options: next(ends[name]))
        yield ""

    def _run_without_layers(self, instead: Callable[..., Tensor]) -> None:
        """Run the model on all batches with ``instead`` in place of each layer; it is called with the layer's name."""
        with _replaced(self.layers, lambda *arguments, **options: self._as_output(instead(*arguments, **options))):
            for tokens in self.batches:
                self.model(tokens.to(self.model.device), use_cache=False)

    def _as_output(self, states: Tensor) -> Tensor | tuple[Tensor]:
        return (states,) if self._returns_tuple else states


@contextmanager
def _replaced(layers: dict[str, nn.Module], instead: Callable[..., Any]) -> Iterator[None]:
    for name, layer in layers.items():
        layer.forward = partial(_with_states_first, instead, name)
    try:
        yield
    finally:
        for layer in layers.values():
            del layer.forward


def _with_states_first(instead: Callable[..., Any], name: str, *arguments: Any, **options: Any) -> Any:
    if not arguments:
        arguments = (options.pop("hidden_states"),)
    return instead(name, *arguments, **options)
