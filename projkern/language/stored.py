"""A trained operator that is left in its files: small models are generated with one parameter in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..models import TransformersOperator
from ..training.checkpoint import CheckpointError
from ..utils.digests import digest, parts_of
from ..utils.tensors import StoredTensors

CHUNK_BYTES = 256 << 20
CHUNK_MODELS = 64


@dataclass(frozen=True)
class StoredOperator:
    """An operator, of which memory holds the functions of t alone.

    Args:
        operator: its source and its own parameters are on the meta device.
        source: the source's parameters.
        own: the small models' own parameters.
        digest: 16 hexadecimal digits that tell the operator from any other.
    """

    operator: TransformersOperator
    source: StoredTensors
    own: StoredTensors
    digest: str

    @classmethod
    def open(
        cls, operator: TransformersOperator, stored: StoredTensors, source: Path | None, device: torch.device
    ) -> StoredOperator:
        """Read the functions of t.

        Args:
            operator: of the shape of what is stored, on the meta device.
            stored: the checkpoint of its training.
            source: the folder of the source's checkpoint; None where the operator's own has it.
            device: where models are generated.

        Raises:
            CheckpointError: the checkpoint is of another operator.
        """
        state = stored.under("operator.")
        if state.keys() != operator.state_dict().keys():
            raise CheckpointError(f"{min(state.keys() ^ operator.state_dict().keys())} is of another operator")
        functions = {"generator.": operator.generator, "vectors.": operator.vectors}
        for prefix, module in functions.items():
            if module is not None:
                _read_into(module, state.under(prefix), device)
        return cls(
            operator.eval(),
            stored.under("source.") if source is None else StoredTensors.of_folder(source),
            state.renamed({name: f"own.{number}" for number, name in enumerate(operator.own_names)}),
            digest(parts_of((name, state[name]) for name in sorted(state))),
        )

    @property
    def chunk(self) -> int:
        """Models to generate at once: of each, the factors of all matrices and three times its largest matrix."""
        stacks = self.operator.grouping.stacks
        factors = sum(len(stack.names) * sum(stack.shape) for stack in stacks)
        largest = max(stack.shape[0] * stack.shape[1] // (stack.groups[0] * stack.groups[1]) for stack in stacks)
        return max(1, min(CHUNK_MODELS, CHUNK_BYTES // (4 * (factors + 3 * largest))))

    def each_parameter(self, t: Tensor) -> Iterator[tuple[str, list[Tensor]]]:
        """As of the operator; t (U, task_dim)."""
        return self.operator.each_parameter(t, self.source, self.own)


def _read_into(module: nn.Module, stored: StoredTensors, device: torch.device) -> None:
    module.load_state_dict({name: stored[name].to(device) for name in stored}, assign=True)
