"""What a training step costs: its operations, and the time of its parts."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.flop_counter import (
    FlopCounterMode,
    flop_registry,
    register_flop_formula,
    sdpa_backward_flop,
    sdpa_flop,
)

from projkern.data.stream import Images
from projkern.kernels import ops  # registers the operators that are counted
from projkern.training.config import TrainConfig
from projkern.training.stages import ImageStage
from projkern.training.steps import forward_backward_step, make_optimizer
from projkern.utils.device import wait_for

from .documents import PARTS

WARM_UP, STEPS = 3, 12

assert ops  # imported for what it registers
os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or the profiler writes across the progress bar


def flops_per_step(stage: ImageStage, data: Images) -> int:
    """Floating-point operations of one step's forward and backward: those of matrix products, attention and projection.

    Counted by torch's ``FlopCounterMode`` from the shapes; a multiply-add is two. Attention counts as if it were not
    causal, and on a CPU with heads of width 16 at least, as they are padded to. The optimizer's are left out.
    """
    tokens, t = data.batch(0)
    with FlopCounterMode(display=False) as counter:
        total = sum(stage.loss_weights[name] * loss for name, loss in stage.losses(tokens, t).items())
        assert isinstance(total, Tensor)
        total.backward()
    stage.module.zero_grad(set_to_none=True)
    return int(counter.get_total_flops())


def seconds_of_parts(
    make: Callable[[], ImageStage], data: Images, config: TrainConfig, dtype: torch.dtype
) -> dict[str, float]:
    """Seconds that each of ``PARTS`` takes of one step, mean over 12 steps of a fresh stage.

    "generation" (p and q from t) and "projection" (W_s from them) are parts of the forward pass and are left out of
    "forward"; what the backward pass spends on the projection's gradients is given as "projection, backward" and left
    out of "backward".
    """
    stage = make()
    optimizer = make_optimizer(stage, config.schedule)
    device = next(stage.module.parameters()).device
    stage.module.train()

    def step(k: int) -> None:
        with record_function("data"):
            tokens, t = data.batch(k)
        forward_backward_step(stage, tokens, t, optimizer, dtype, config.schedule.clip)
        wait_for(device)

    for k in range(WARM_UP):
        step(k)
    on_card = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * on_card]) as profiler:
        for k in range(WARM_UP, WARM_UP + STEPS):
            step(k)
    spent: dict[str, float] = {}
    for event in profiler.key_averages():
        micro = event.device_time_total if on_card else event.cpu_time_total
        spent[event.key] = micro * 1e-6 / STEPS
    parts = {name: spent.get(name, 0.0) for name in PARTS}
    parts["projection, backward"] = spent.get("projkern::project_backward", 0.0)
    parts["forward"] -= parts["generation"] + parts["projection"]
    parts["backward"] -= parts["projection, backward"]
    return parts


def _sizes(weights: list[Tensor], entries: list[int]) -> list[tuple[int, int]]:
    """(elements of W, row group) of each projection."""
    return [(weights[w].numel(), group) for w, group in zip(entries[::3], entries[1::3])]


@register_flop_formula(torch.ops.projkern.project_forward, get_raw=True)
def _project_forward(
    weights: list[Tensor], p: Tensor, q: Tensor, entries: list[int], dtype: torch.dtype, **rest: Any
) -> int:
    return sum(2 * len(p) * size * (group + 1) // group for size, group in _sizes(weights, entries))


@register_flop_formula(torch.ops.projkern.project_backward, get_raw=True)
def _project_backward(
    weights: list[Tensor], p: Tensor, q: Tensor, grads: list[Tensor], entries: list[int], *needs: Any, **rest: Any
) -> int:
    # T again, dW and dp go over all of W; U and dq over one in g of it.
    return sum(2 * len(p) * size * (3 * group + 2) // group for size, group in _sizes(weights, entries))


# torch has formulas for attention's kernels on cards alone.
for _kernel, _formula in (("", sdpa_flop), ("_backward", sdpa_backward_flop)):
    _attention = getattr(torch.ops.aten, f"_scaled_dot_product_flash_attention_for_cpu{_kernel}")
    if _attention not in flop_registry:
        register_flop_formula(_attention, get_raw=True)(_formula)
