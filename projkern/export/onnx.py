"""A model as one ONNX file, through torch's exporter; its logits are checked in onnxruntime.

    input_ids  (batch, sequence) int64, the start token ``vocab_size`` first, as in the GPT-2 folder beside it
    logits     (batch, sequence, vocab_size): without the GPT-2 head's row of the start token, which means nothing

Both axes are dynamic. Exporting takes seconds, so it is done once for a shape: the graph has the weights as inputs,
under the names of the GPT-2 format, and each model's file fixes them to its own.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models import GPTConfig
from ..models.blocks import Affine, assemble, transformer
from ..models.huggingface.gpt2 import linear_names, norm_names
from ..models.layout import LINEARS, NORMS
from ..utils.errors import MissingDependency

FILE = "model.onnx"


def require_onnx() -> tuple[ModuleType, ModuleType]:
    """The modules onnx and onnxruntime; raises MissingDependency, which says how to install them."""
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401  (torch's exporter needs it)
    except ImportError as error:
        install = "pip install 'projkern[onnx]'"
        raise MissingDependency(f"ONNX needs {error.name}, which is not installed: {install}") from error
    return onnx, onnxruntime


class OnnxWriter:
    """Writes models of one shape as ONNX files.

    Args:
        config: the shape; unconditional.
        state: the tensors of any one such model, under GPT-2's names (``gpt2.tensors``); their values do not matter.

    Raises:
        MissingDependency: onnx, onnxscript or onnxruntime is missing.
    """

    def __init__(self, config: GPTConfig, state: dict[str, Tensor]) -> None:
        require_onnx()
        self._vocab_size = config.vocab_size
        weights = self._weights(state)
        batch, sequence = torch.export.Dim("batch"), torch.export.Dim("sequence", max=config.n_positions)
        with _quietly():
            program = torch.onnx.export(
                _Graph(config).eval(),
                (torch.zeros(2, min(3, config.n_positions), dtype=torch.int64),),
                kwargs={"state": weights},
                dynamo=True,
                verbose=False,
                dynamic_shapes={"input_ids": {0: batch, 1: sequence}, "state": dict.fromkeys(weights)},
                input_names=["input_ids", *weights],
                output_names=["logits"],
            )
        assert program is not None
        self._proto = program.model_proto
        for part in (self._proto, self._proto.graph, *self._proto.graph.node, *self._proto.graph.value_info):
            del part.metadata_props[:]  # file and line that each node comes from: larger than a small model

    def write(self, path: Path, state: dict[str, Tensor]) -> None:
        """Write one model.

        Args:
            path: the file.
            state: its tensors under GPT-2's names.

        Raises:
            OSError: it cannot be written.
        """
        onnx, _ = require_onnx()
        weights = self._weights(state)
        model = onnx.ModelProto()
        model.CopyFrom(self._proto)
        free = [value for value in model.graph.input if value.name not in weights]
        del model.graph.input[:]
        model.graph.input.extend(free)
        model.graph.initializer.extend(
            onnx.numpy_helper.from_array(tensor.detach().numpy(), name) for name, tensor in weights.items()
        )
        path.write_bytes(model.SerializeToString())

    def _weights(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        return state | {"lm_head.weight": state["lm_head.weight"][: self._vocab_size]}


@contextmanager
def _quietly() -> Iterator[None]:
    """Without the messages of torch's exporter about its own inner workings."""
    exporter = logging.getLogger("torch.onnx")
    before = exporter.level
    exporter.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        exporter.setLevel(before)


def run(path: Path, input_ids: Tensor) -> Tensor:
    """The logits of an ONNX file in onnxruntime: (batch, sequence) int64 -> (batch, sequence, vocab_size)."""
    _, onnxruntime = require_onnx()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"input_ids": input_ids.numpy().astype(np.int64)})
    return torch.from_numpy(logits)


class _Graph(nn.Module):
    """The GPT as a function of its weights in GPT-2's layout."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self._config = config

    def forward(self, input_ids: Tensor, state: dict[str, Tensor]) -> Any:
        d, layers = self._config.n_embd, self._config.n_layer
        linears = [Affine(state[f"{name}.weight"].mT, state[f"{name}.bias"]) for name in linear_names(layers)]
        by_operator = [linears[k * layers : (k + 1) * layers] for k in range(len(LINEARS))]
        first, second, (final,) = (
            [Affine(state[f"{name}.weight"], state[f"{name}.bias"]) for name in norm_names(norm, layers)]
            for norm in NORMS
        )
        x = F.embedding(input_ids, state["transformer.wte.weight"])
        x = x + state["transformer.wpe.weight"][: input_ids.shape[1]]
        batch, sequence = input_ids.shape
        blocks = assemble(list(zip(first, second)), by_operator)
        x = transformer(x.view(1, batch * sequence, d), blocks, batch, self._config.n_head, 0.0)
        return F.linear(F.layer_norm(x, (d,), *final), state["lm_head.weight"]).view(batch, sequence, -1)
