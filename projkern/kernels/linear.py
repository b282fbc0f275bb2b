"""A linear layer with weights of its own for each task, in three forms of one operator.

    y[b,s,:] = W_s[b] x[b,s,:],   W_s[b] = P(t_b) W Q(t_b)                      (arXiv 2506.05641, Eq. 1)

*Materialised* generates W_s and multiplies by it. *Projected* makes each tile of W_s inside the product and never
writes it. *Factored* scales x, multiplies by W itself, and sums: it costs g² more arithmetic but reads W once
for the whole batch. ``projkern.explain`` says what each moves and computes, and which one ``auto`` takes.
"""

from operator import index

import torch
from torch import Tensor

from ..utils.device import autocast_dtype, without_autocast
from ..utils.errors import InputError
from . import cost, limits, linear_ops
from .arguments import Group, check_kinds, check_width, describe, group_pairs

_FORMS = {"materialised": linear_ops.materialised, "projected": linear_ops.projected, "factored": linear_ops.factored}


def project_linear(x: Tensor, weight: Tensor, p: Tensor, q: Tensor, group: Group, *, form: str = "auto") -> Tensor:
    """Multiply the tokens of each task by the weights projected for that task.

    Tokens of the same task belong in S, from however many examples: each of the B tasks is generated once.
    Differentiable in ``x``, ``weight``, ``p`` and ``q``, in reverse mode, to any order.

    Args:
        x: (B, S, M / col_group), S tokens for each of B tasks; float32, bfloat16 or float16, or float64 with
            float64 ``weight``. Under autocast, cast to its type like the input of any linear layer.
        weight: (N, M) source matrix W; float32, bfloat16, float16 or float64.
        p: (B, N) weights of the rows. float32, or float64 when ``weight`` is float64.
        q: (B, M) weights of the columns, of the same dtype.
        group: how many neighbours make one: an int, or (row_group, col_group). 1 leaves an axis's size alone.
        form: "materialised"; "projected", which needs Triton, a CUDA device, groups up to 16 and no float64;
            "factored"; or "auto", the one that ``explain`` predicts to be fastest and to fit into memory, and on other
            devices than a CPU or a CUDA card, which it does not know, "materialised". Forms
            round differently, and ``auto`` depends on the machine: name one where runs must agree bit by bit. In
            ``torch.compile``, ``auto`` makes a graph for each B and S; a form that is named may leave them open.

    Returns:
        y (B, S, N / row_group) in the dtype of ``x``. W_s is rounded to that dtype too, except in the factored form,
        which multiplies in the wider type of ``x`` and ``weight``.

    Raises:
        TypeError: an argument that is not a tensor, or of a dtype that is not served.
        InputError: shapes that disagree, a group that does not divide, devices that differ, an unknown form.
        RuntimeError: "projected" where it cannot run; the message says why.
    """
    if not isinstance(weight, Tensor) or weight.dim() != 2:
        raise InputError(f"weight must be a tensor (N, M); it was {describe(weight)}")
    ((row_group, col_group),) = group_pairs([weight], [group])
    check_kinds([weight], p, q)
    N, M = weight.shape
    check_width("p", p, N, "rows")
    check_width("q", q, M, "columns")
    _check_input(x, weight, M // col_group)
    if p.shape[:-1] != x.shape[:1] or q.shape[:-1] != x.shape[:1]:
        raise InputError(
            f"p and q must have one row for each of the {len(x)} tasks of x; they were {describe(p)} and {describe(q)}"
        )
    if not isinstance(form, str) or form not in ("auto", *_FORMS):
        raise InputError(f"form must be one of auto, {', '.join(_FORMS)}; it was {form!r}")

    if (cast_to := autocast_dtype(x.device)) is not None and x.dtype != torch.float64:
        x = x.to(cast_to)
    if form == "auto":
        backward = torch.is_grad_enabled() and any(t.requires_grad for t in (x, weight, p, q))
        # torch.compile may know none of these as numbers yet.
        sizes = index(N), index(M), index(row_group), index(col_group), index(x.shape[0]), index(x.shape[1])
        form = cost.choose(*sizes, weight.dtype, x.dtype, x.device, backward)
    elif form == "projected":
        reason = limits.why_not_served(weight.dtype, x.dtype, row_group, col_group)
        reason = reason or linear_ops.why_not_here(x.device)
        if reason is not None:
            raise RuntimeError(f"form 'projected' cannot run here: {reason}")
    with without_autocast(x.device):
        return _FORMS[form](x, weight, p, q, row_group, col_group)


def _check_input(x: Tensor, weight: Tensor, width: int) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a tensor; it was {describe(x)}")
    if x.dim() != 3 or x.shape[-1] != width:
        raise InputError(f"x must be (B, S, {width}), its width M / col_group; it was {describe(x)}")
    for name, dtype in (("weight", weight.dtype), ("x", x.dtype)):
        if dtype.is_floating_point and dtype not in (*limits.DTYPES, torch.float64):
            raise TypeError(f"{name} must be float32, bfloat16, float16 or float64; it was {dtype}")
    if x.layout != torch.strided:
        raise TypeError(f"x must be dense; it was {x.layout}")
    if not x.dtype.is_floating_point or (x.dtype == torch.float64) != (weight.dtype == torch.float64):
        raise TypeError(f"x must be of a floating type, float64 with float64 weight only; it was {x.dtype}")
    if x.device != weight.device:
        raise InputError(f"x must be on the device of the weight, {weight.device}; it was on {x.device}")
