"""The three sizes of every experiment."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from projkern.training import presets
from projkern.training.config import TrainConfig
from projkern.training.presets import PLAIN, QUICK


@dataclass(frozen=True)
class Size:
    """How large the models of the experiments are, and how long they are trained.

    Args:
        what: in words.
        base: shape and schedule of Table 1.
        rates: learning rates by model: "M_1/4" (also for its conditional forms), "M~_1/4, norms" (for one of these),
            "P_1/4", "P~", "generator linear".
        seeds: how many of each.
        brief: steps of the comparisons of generators and recipes.
        recipes: by name, what each changes of the paper's.
        token_rates: those of ``rates`` that are others on tokenised images.
        tokens: what the experiments on tokenised images change of ``base``, besides what the images bring.
        tokenizer: of those images, as ``TokenizeConfig``.
    """

    what: str
    base: TrainConfig
    rates: dict[str, dict[str, float]]
    seeds: int
    brief: int
    recipes: dict[str, dict[str, Any]]
    token_rates: dict[str, dict[str, float]] = field(default_factory=dict)
    tokens: dict[str, Any] = field(default_factory=dict)
    tokenizer: dict[str, Any] = field(default_factory=dict)


def small(**rates: float) -> dict[str, dict[str, float]]:
    """The same rates for the baselines of all sizes."""
    return {f"M_{s}": rates for s in ("1/2", "1/4", "1/8")}


def projected(**rates: float) -> dict[str, dict[str, float]]:
    """The same rates for the projected models of all sizes."""
    return {name: rates for name in ("P_1/2", "P_1/4", "P_1/8", "P~")}


_NORMALISED: dict[str, Any] = {"t_mean": 0.5, "t_std": 12**-0.5}
_BIAS_OF_T = {"bias_of_t": True, **_NORMALISED}


def recipes(base: TrainConfig, operator_lr: float) -> dict[str, dict[str, Any]]:
    """What goes beyond the paper, one change at a time."""
    return {
        "start: noise": {"start": "noise"},
        "start: random signs": {"start": "signs"},
        "start: one row and column of each group": {"start": "one-hot"},
        "t normalised": _NORMALISED,
        "first layer shared": {"shared_inner": True},
        "p and q tied along the residual stream": {"tied": True},
        "distillation from the source": {"distill": 0.5},
        "distillation from the source, twice as strong": {"distill": 1.0},
        "distillation from the source, four times as strong": {"distill": 2.0},
        "w_src = 0.3": {"w_src": 0.3},
        "w_src = 0": {"w_src": 0.0},
        "source sees a quarter of the batch": {"source_batch": base.schedule.batch_size // 4},
        "tables at half the rate": {"tables_lr": operator_lr / 2},
        "tables at twice the rate": {"tables_lr": operator_lr * 2},
        "r = 32": {"rank": 32},
        "b depends on t": {"bias_of_t": True},
        "b depends on t, t normalised": _BIAS_OF_T,
        "b depends on t, t normalised, distillation": {**_BIAS_OF_T, "distill": 0.5},
        "b depends on t, t normalised, distillation twice as strong": {**_BIAS_OF_T, "distill": 1.0},
        "b depends on t, t normalised, distillation four times as strong": {**_BIAS_OF_T, "distill": 2.0},
    }


_MINI = QUICK.replace(
    **PLAIN,
    side=12,
    vocab_size=32,
    n_layer=3,
    n_head=2,
    n_embd=64,
    batch_size=8,
    source_steps=4000,
    steps=4000,
    warmup=100,
    log_every=50,
    checkpoint_every=500,
    eval_images=1024,
)
_SMALL = presets.SMALL.replace(**PLAIN, source_steps=4000, steps=4000, warmup=200)
_PAPER = presets.PAPER.replace(**PLAIN)
MINI = Size(
    "12x12 pixels in 32 colours, 3 layers, d = 64: an hour and a half for Table 1 on two CPU cores",
    _MINI,
    {
        "M_1": {"source_lr": 2e-3},
        "M_1/2": {"small_lr": 4e-3},
        "M_1/4": {"small_lr": 1.6e-2},
        "M_1/8": {"small_lr": 3.2e-2},
        "M~_1/4, norms": {"small_lr": 4e-3},
        "M~_1/8, norms": {"small_lr": 1.6e-2},
        "M~_1/4, every position": {"small_lr": 8e-3},
        "M~_1/8, every position": {"small_lr": 1.6e-2},
        "generator linear": {"operator_lr": 2e-3},
        **projected(tuning_lr=2e-3, operator_lr=8e-3),
    },
    seeds=3,
    brief=1500,
    recipes=recipes(_MINI, operator_lr=8e-3),
    token_rates=small(small_lr=8e-3) | {"M_1/8": {"small_lr": 3.2e-2}},
    tokens={"source_steps": 2000, "steps": 2000, "eval_images": 5000},
    tokenizer={"size": 24},
)
SMALL = Size(
    "16x16 pixels in 64 colours, 6 layers, d = 256: half an hour for Table 1 on one card, by estimate, with --jobs 6",
    _SMALL,
    {"M_1": {"source_lr": 1e-3}, **small(small_lr=3e-3), **projected(tuning_lr=5e-4, operator_lr=5e-3)},
    seeds=3,
    brief=1500,
    recipes=recipes(_SMALL, operator_lr=5e-3),
    tokenizer={"size": 32},
)
PAPER = Size(
    presets.PRESETS["paper"][0],
    _PAPER,
    {"M_1": {"source_lr": 1e-3}, **small(small_lr=1e-3), **projected(tuning_lr=1e-3, operator_lr=1e-3)},
    seeds=1,
    brief=100_000,
    recipes=recipes(_PAPER, operator_lr=1e-3),
    tokenizer={"size": 64},
)

SIZES = {"mini": MINI, "small": SMALL, "paper": PAPER}
