"""Standalone models that are written, read back and checked: each is whole and right before it has its name.

A model's folder is filled under a hidden name, ``.task-00000.partial``, and gets its own by one rename once the tensors
read from it are those that were generated, bit for bit. The first model of a chunk must also give the logits of the
training-time forward in transformers' code, the first of all as transformers reads its folder, and on a whole sequence;
the others differ from it in their numbers alone. Before a chunk's renames the system is told once to put all it holds
onto the disk, so that this is true after a power failure too; for small models that costs far less than doing it file
by file.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..data import Palette
from ..models import ProjectionOperator
from ..models.huggingface import gpt2
from ..models.huggingface.causal import quiet_transformers
from ..models.operator import TaskWeights, generate_weights
from ..utils.errors import ProjkernError
from ..utils.files import hidden_name, sync
from ..utils.tensors import read_weights
from . import onnx

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOLERANCE = 1e-5
"""Largest difference of the logits, beside the largest logit (or 1, if that is more)."""
ONNX_TOLERANCE = 1e-4
"""The same in onnxruntime, whose kernels are its own."""
CHUNK_BYTES = 256 << 20
CHUNK_MODELS = 64


FEW_TOKENS = 8
"""Tokens that every model is run on, to see that its logits are finite; the first of all runs a whole sequence."""


class WrongModel(ProjkernError, RuntimeError):
    """A model that is not, read back, the one that was generated."""


@torch.no_grad()
def state_dicts(operator: ProjectionOperator, generated: TaskWeights) -> Iterator[dict[str, Tensor]]:
    """The tensors of each of U generated models under GPT-2's names (``gpt2.tensors``).

    Tensors that do not depend on t are shared by all; the others are laid out for all models at once.
    """
    shared = {name: tensor.cpu() for name, tensor in gpt2.table_tensors(operator.tables).items()}
    names = gpt2.linear_names(operator.config.n_layer)
    weights = [w.mT.cpu().contiguous().unbind(0) for w in generated.weights]  # the other library has inputs first
    biases = [b.cpu().unbind(0) for b in operator.with_own_biases(generated.biases)]
    weight_names, bias_names = [f"{name}.weight" for name in names], [f"{name}.bias" for name in names]
    for w, b in zip(zip(*weights), zip(*biases)):
        yield shared | dict(zip(weight_names, w)) | dict(zip(bias_names, b))


class CheckedWriter:
    """Writes the models of one operator's tasks, a chunk at a time, each read back and checked."""

    def __init__(
        self, operator: ProjectionOperator, origin: dict[str, Any], palette: Palette | None, with_onnx: bool
    ) -> None:
        self.operator, self.origin, self.with_onnx = operator, origin, with_onnx
        self._writer = gpt2.Writer(operator.config, palette)
        self._onnx: onnx.OnnxWriter | None = None  # exported from the first model
        self._small: Any = None  # transformers' model of the first folder, into which those of later chunks are read
        if with_onnx:
            onnx.require_onnx()
        config = operator.config
        generator = torch.Generator().manual_seed(0)
        self._probe = torch.randint(config.vocab_size, (1, config.n_positions), generator=generator)
        self._input_ids = torch.cat([torch.full((1, 1), config.vocab_size), self._probe[:, :-1]], dim=1)

    @property
    def chunk(self) -> int:
        """Models to generate at once: each has its weights twice, and the activations and logits of its check."""
        config = self.operator.config
        weights = 2 * config.n_layer * sum(rows * cols for rows, cols in config.linear_shapes().values())
        tokens = config.n_positions if self.with_onnx else FEW_TOKENS
        check = tokens * (16 * config.n_embd + 2 * config.vocab_size)
        return max(1, min(CHUNK_MODELS, CHUNK_BYTES // (4 * (weights + check))))

    def provenance(self, t: Tensor) -> dict[str, Any]:
        return self.origin | {"t": t.tolist()}

    @torch.no_grad()
    def write(self, t: Tensor, folders: Sequence[Path], done: Callable[[], object]) -> None:
        """Write the models of t (U, task_dim), each into its folder, or none of them.

        Args:
            t: task identifiers.
            folders: one for each, not there yet.
            done: called once for each model.

        Raises:
            WrongModel: a model failed its check.
            OSError: something could not be written.
        """
        partials = [hidden_name(folder) for folder in folders]
        device = self.operator.tables.head.device
        (generated,) = generate_weights([self.operator], t.to(device))
        few = self._probe[:, : None if self.with_onnx else FEW_TOKENS].expand(len(t), -1).to(device)
        expected = self.operator.run(few, generated).cpu()
        first = TaskWeights([w[:1] for w in generated.weights], [b[:1] for b in generated.biases])
        probe = self._probe if self._small is None else self._probe[:, :FEW_TOKENS]
        of_first = self.operator.run(probe.to(device), first)[0].cpu()
        try:
            for row, partial, state, logits in zip(t, partials, state_dicts(self.operator, generated), expected):
                if not logits.isfinite().all():
                    raise WrongModel(f"t must give a model of finite logits; it was {row.tolist()}")
                partial.mkdir()
                self._writer.write(partial, state, self.provenance(row))
                _check_tensors(partial, state)
                if partial == partials[0]:
                    self._check_logits(partial, of_first)
                if self.with_onnx:
                    self._write_onnx(partial / onnx.FILE, state, logits)
                done()
            os.sync()
            for partial, folder in zip(partials, folders):
                partial.rename(folder)
            sync(folders[0].parent)
        finally:
            for partial in partials:
                shutil.rmtree(partial, ignore_errors=True)

    def _check_logits(self, folder: Path, expected: Tensor) -> None:
        from transformers import GPT2LMHeadModel

        if self._small is None:
            self._small = read_back(GPT2LMHeadModel, folder)
        else:  # of the same names and configuration, so that there is nothing else to find
            self._small.load_state_dict(read_weights(folder))
        logits = self._small(self._input_ids[:, : len(expected)]).logits[0, :, : self.operator.config.vocab_size]
        compare_logits("transformers", folder, logits, expected, TOLERANCE)

    def _write_onnx(self, path: Path, state: dict[str, Tensor], expected: Tensor) -> None:
        if self._onnx is None:
            self._onnx = onnx.OnnxWriter(self.operator.config, state)
        self._onnx.write(path, state)
        compare_logits("onnxruntime", path, onnx.run(path, self._input_ids)[0], expected, ONNX_TOLERANCE)


def _check_tensors(folder: Path, state: dict[str, Tensor]) -> None:
    """Raises WrongModel where the tensors in a folder are not those of ``state``, bit for bit."""
    stored = read_weights(folder)
    wrong = stored.keys() ^ state.keys()
    wrong |= {name for name in stored.keys() & state.keys() if not torch.equal(stored[name], state[name])}
    if wrong:
        raise WrongModel(f"{folder}, read back, must hold the tensors that were generated; {min(wrong)} is another")


def save_pretrained(model: PreTrainedModel, folder: Path) -> None:
    """Write a transformers model, without its progress bars, into a ``new_folder``."""
    with quiet_transformers():
        model.save_pretrained(folder)


def read_back(kind: Any, folder: Path) -> Any:
    """A model, in evaluation mode, as a class of transformers reads it from a folder that has just been written.

    Raises:
        WrongModel: the folder does not hold exactly the tensors that the class looks for.
    """
    with quiet_transformers():
        model, loading = kind.from_pretrained(folder, local_files_only=True, dtype="auto", output_loading_info=True)
    wrong = {trouble: sorted(map(str, names)) for trouble, names in loading.items() if names}
    if wrong:
        raise WrongModel(f"{folder} does not hold the tensors that transformers looks for: {wrong}")
    return model.eval()


def compare_logits(library: str, path: Path, logits: Tensor, expected: Tensor, tolerance: float) -> None:
    """Raises WrongModel where logits differ by more than ``tolerance`` of the largest (of 1, if that is more)."""
    largest = max(1.0, expected.abs().max().item())
    error = (logits - expected).abs().max().item() / largest
    if not error <= tolerance:  # true of NaN too
        raise WrongModel(
            f"{path}, read back by {library}, must give the logits of the training-time forward within {tolerance:g} "
            f"of the largest ({largest:g}); they were {error:.1e} of it off"
        )
