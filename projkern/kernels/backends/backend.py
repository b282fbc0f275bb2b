"""What a backend is: a module with these four functions. To add one, list it in ``kernels/dispatch.py`` too."""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..plan import Plan


class Forward(NamedTuple):
    """The operands of a forward. All are contiguous and on one device."""

    weights: list[Tensor]
    """(layers, rows, cols) each, all of one dtype."""
    p: Tensor
    """(batch, plan.p_width), float32 (float64 for float64 weights)."""
    q: Tensor
    """(batch, plan.q_width), as p."""
    flat: Tensor
    """Written: sum(plan.output_sizes(batch)) elements, W_s of matrix k from plan.output_offsets(batch)[k] on. The
    padding between matrices is not written."""


class Backward(NamedTuple):
    """The operands of a backward. All are contiguous and on one device; a gradient that is None costs nothing."""

    weights: list[Tensor]
    """As in Forward."""
    p: Tensor
    q: Tensor
    grads: list[Tensor]
    """G = dL/dW_s of each matrix, (batch, out_rows, out_cols), all of one dtype."""
    d_weights: list[Tensor | None]
    """Written: dL/dW, as the weights, or None; what no matrix reads becomes zero."""
    dp: Tensor | None
    """Written: dL/dp, as p."""
    dq: Tensor | None
    """Written: dL/dq, as q."""


class Backend(Protocol):
    """Kernels of the grouped projection for some devices and dtypes. Nothing of autograd."""

    @property
    def SERVES(self) -> str:
        """The dtypes and devices, in words, for an error."""

    def why_unavailable(self) -> str | None:
        """Why these kernels cannot run here; None if they can."""

    def serves(self, device: torch.device, weight_dtype: torch.dtype, output_dtype: torch.dtype) -> bool:
        """Whether tensors of these kinds can be projected here."""

    def project_forward(self, plan: Plan, call: Forward) -> None:
        """Write W_s of every matrix of the plan into ``call.flat``."""

    def project_backward(self, plan: Plan, call: Backward) -> None:
        """Write the gradients of ``project_forward`` into ``d_weights``, ``dp`` and ``dq``."""
