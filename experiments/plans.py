"""The trainings behind each of the paper's tables."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

from projkern.models.generators import GENERATORS
from projkern.models.names import SOURCE, Kind, ModelName
from projkern.training.presets import PLAIN, QUICK
from projkern.training.stages import gpt_config
from projkern.utils.errors import InputError

from .equal_parameters import count_parameters, rank_for
from .jobs import Job
from .sizes import Size
from .tangents import Tangents

M_1 = str(SOURCE)
SCALES = (Fraction(1, 2), Fraction(1, 4), Fraction(1, 8))
RANKS = {Fraction(1, 2): (8, 16), Fraction(1, 4): (8, 16, 32)}
"""Inner widths r for the sources of Table 3; for M_1 it is Table 1's."""
RATES_SEED = 100
ALL_STEPS = ", all steps"
LENGTHS = (Fraction(1, 4), Fraction(1), Fraction(4))
"""Of trainings, in those of Table 1."""
BRIEF_SCALE = SCALES[1]
"""Of the comparisons of generators and recipes."""


Rows = Iterator[tuple[str, Job]]
"""The label of a table's row, and the job behind it."""


class Plan:
    """Makes the jobs of one size on one data set, each model at its own learning rates.

    Args:
        size: shapes and schedules.
        changes: settings that the data and the machine bring.
        shown: what stored results say in place of settings that belong to this machine, such as folders.
        prefix: of the names of jobs, another one for each data set.
    """

    def __init__(self, size: Size, changes: dict[str, Any], shown: dict[str, str], prefix: str = "") -> None:
        self.size, self.shown, self.prefix = size, shown, prefix
        self.base = size.base.replace(**changes)

    def job(self, name: str, stage: ModelName, seed: int, source: Job | None = None, **changes: Any) -> Job:
        """One training of a stage as ``training/stages.py`` names it."""
        config = self.base.replace(**{"seed": seed, **self.rates(name, stage), **changes})
        return Job(f"{self.prefix}{_folder(name)}/seed-{seed}", stage, config, source, self.shown)

    def rates(self, name: str, stage: ModelName) -> dict[str, float]:
        """The learning rates of a training: its own, or those of its stage."""
        known = self.size.rates
        plain = ModelName(Kind.UNCONDITIONAL, stage.scale) if stage.is_conditional else stage
        return known.get(name.removesuffix(ALL_STEPS)) or known.get(str(plain), {})

    def source(self, seed: int) -> Job:
        """The pretrained M_1."""
        return self.job(M_1, SOURCE, seed)

    def projected(self, seed: int, scale: Fraction, name: str | None = None, **changes: Any) -> Job:
        """P_s, from the pretrained M_1."""
        stage = ModelName(Kind.PROJECTED, scale)
        return self.job(name or str(stage), stage, seed, self.source(seed), **{"scales": (scale,), **changes})

    def brief(self, seed: int, name: str = "plain", **changes: Any) -> Job:
        """P_s for a comparison of generators or recipes."""
        return self.projected(seed, BRIEF_SCALE, f"brief, {name}", **{"steps": self.size.brief, **changes})

    def all_steps(self) -> dict[str, int]:
        """For a baseline that sees as many batches as a projected model and its source together."""
        schedule = self.base.schedule
        return {"source_steps": 0, "steps": schedule.source_steps + schedule.steps}


def _folder(name: str) -> str:
    return re.sub(r"[^\w=.~-]+", "-", name)


def _conditional(scale: Fraction) -> ModelName:
    return ModelName(Kind.CONDITIONAL, scale)


def table1(plan: Plan, seed: int) -> Rows:
    """Table 1: source, baselines, projected models, and those of all sizes on one source; and stronger baselines."""

    def row(stage: ModelName, variant: str = "", **changes: Any) -> tuple[str, Job]:
        return f"{stage}{variant}", plan.job(f"{stage}{variant}", stage, seed, **changes)

    all_steps: dict[str, Any] = plan.all_steps()
    yield row(SOURCE)
    for s in SCALES:
        yield f"P_{s}", plan.projected(seed, s)
        yield row(_conditional(s))
    yield row(ModelName(Kind.JOINT), source=plan.source(seed), scales=SCALES, joint=True)
    for s in SCALES:
        yield row(ModelName(Kind.UNCONDITIONAL, s))
    yield row(_conditional(Fraction(1)), small_lr=plan.size.rates[M_1]["source_lr"])
    for s in SCALES:
        yield row(_conditional(s), ALL_STEPS, **all_steps)
        yield row(_conditional(s), ", norms", conditioning="norms")
        yield row(_conditional(s), f", norms{ALL_STEPS}", conditioning="norms", **all_steps)
        yield row(_conditional(s), ", every position", conditioning="every")
    yield row(SOURCE, ALL_STEPS, source_steps=all_steps["steps"])
    yield from _default_recipe(plan, seed)


def _default_recipe(plan: Plan, seed: int) -> Rows:
    """P_s by the package's defaults, t normalised as the data ask for it."""
    from_data = ("t_mean", "t_std") if plan.base.data.folder is not None else ()
    recipe = {name: value for name, value in QUICK.flat().items() if name in PLAIN and name not in from_data}
    for s in SCALES:
        label = f"P_{s}, default recipe"
        yield label, plan.projected(seed, s, label, **recipe)


def figure4(plan: Plan, seed: int) -> Rows:
    """Figure 4: those models of Table 1 that depend on t, which are measured against t_scale."""
    rows = table1(plan, seed)
    yield from ((label, job) for label, job in rows if job.stage.is_projected or job.stage.is_conditional)


def table2(plan: Plan, seed: int) -> Rows:
    """Table 2: the same on tokenised images, with an encoder's embedding as t."""
    yield M_1, plan.source(seed)
    for s in SCALES:
        yield f"P_{s}", plan.projected(seed, s)
        yield f"M~_{s}", plan.job(f"M~_{s}", _conditional(s), seed)
    yield "M~_1", plan.job("M~_1", _conditional(Fraction(1)), seed, small_lr=plan.size.rates[M_1]["source_lr"])
    for s in SCALES:
        label = f"M~_{s}{ALL_STEPS}"
        yield label, plan.job(label, _conditional(s), seed, None, **plan.all_steps())
    yield from _default_recipe(plan, seed)


def table3(plan: Plan, seed: int) -> Rows:
    """Table 3: smaller sources, with more parameters in the operator in return."""
    for s in SCALES[1:]:
        yield f"P_{s} from M_1, r = {plan.base.operator.rank}", plan.projected(seed, s)
        for source_scale, ranks in RANKS.items():
            if s == source_scale:
                continue
            width: dict[str, Any] = {"n_embd": int(plan.base.model.n_embd * source_scale)}
            lr = plan.size.rates[f"M_{source_scale}"]["small_lr"]
            source = plan.job(f"source M_{source_scale}", SOURCE, seed, **width, source_lr=lr)
            rates = plan.size.rates[f"P_{s}"]
            # A smaller source takes a higher rate, when it is tuned no less than when it was pretrained.
            rates = rates | {"tuning_lr": lr * rates["tuning_lr"] / plan.size.rates[M_1]["source_lr"]}
            for rank in ranks:
                label = f"P_{s} from M_{source_scale}, r = {rank}"
                stage = ModelName(Kind.PROJECTED, s / source_scale)
                changes = {**rates, **width, "scales": (stage.scale,), "rank": rank}
                yield label, plan.job(label, stage, seed, source, **changes)


def table4(plans: dict[str, Plan], seed: int) -> Rows:
    """Table 4: P_1/2 trained with less of some classes.

    Args:
        plans: by the rows for which it serves, "1/8, halves" and "1/8, mod 2", say, joined by "; ": a plan on that part
            of the training images.
    """
    for labels, plan in plans.items():
        job = plan.projected(seed, SCALES[0])
        yield from ((label, job) for label in labels.split("; "))


def generators(plan: Plan, seed: int) -> Rows:
    """Appendix B's weight generators, each with about as many parameters as the paper's where its kind allows it.

    A kind that refuses a source of this size is left out.
    """
    for kind in GENERATORS:
        if kind == "diagonal":
            yield kind, plan.brief(seed)
        elif (rank := _equal_rank(plan, kind)) is not None:
            rates = plan.size.rates.get(f"generator {kind}", {})
            yield kind, plan.brief(seed, f"generator {kind}", generator=kind, rank=rank, **rates)
    steps = plan.base.schedule.source_steps + plan.size.brief
    stage = ModelName(Kind.UNCONDITIONAL, BRIEF_SCALE)
    base = plan.job("local tangent", stage, seed, source_steps=0, steps=steps)
    yield "local tangent", dataclasses.replace(base, tangents=Tangents())


def _equal_rank(plan: Plan, kind: str) -> int | None:
    """The rank with the paper's number of parameters, or 1 where none comes near; None where the kind is refused."""
    shape = gpt_config(plan.base, Fraction(1)), BRIEF_SCALE, plan.base.data.task_dim
    try:
        count_parameters(kind, *shape, 1)
    except InputError:
        return None
    try:
        return rank_for(kind, count_parameters("diagonal", *shape, plan.base.operator.rank), *shape)
    except InputError:  # a kind whose size is fixed, or starts above it: the table shows its parameters
        return 1


def recipes(plan: Plan, seed: int) -> Rows:
    """Beyond the paper: one change at a time, against the paper's own recipe."""
    yield "paper's", plan.brief(seed)
    for name, changes in plan.size.recipes.items():
        yield name, plan.brief(seed, f"recipe {name}", **changes)


def _around(values: dict[str, Any], *factors: float) -> Iterator[tuple[str, dict[str, Any]]]:
    """The values, and each in turn multiplied by the factors, with words for them."""
    one_changed = (values | {name: value * factor} for name, value in values.items() for factor in factors)
    for changes in (values, *one_changed):
        yield ", ".join(f"{name} = {value:g}" for name, value in changes.items()), changes


def _baseline_rates(plan: Plan, seed: int, form: str, conditioning: str) -> Rows:
    for s in SCALES:
        model = _conditional(s)
        for how, changes in _around(plan.rates(f"{model}{form}", model), 0.5, 2):
            label = f"{model}{form}, {how}"
            yield label, plan.job(label, model, seed, conditioning=conditioning, **changes)


def token_rates(plan: Plan, seed: int) -> Rows:
    """Learning rates: those of the size and others around them, on a seed that no table uses."""
    seed += RATES_SEED
    for how, changes in _around(plan.size.rates[M_1], 0.5, 2):
        yield f"{M_1}, {how}", plan.job(f"{M_1}, {how}", SOURCE, seed, **changes)
    yield from _baseline_rates(plan, seed, "", "first")
    for how, changes in _around(plan.size.rates[f"P_{BRIEF_SCALE}"], 0.5, 2):
        label = f"P_{BRIEF_SCALE}, {how}"
        yield label, plan.brief(seed, label, **changes)


def rates(plan: Plan, seed: int) -> Rows:
    """The same for SynthMNIST, with those of stronger baselines and of other generators."""
    yield from token_rates(plan, seed)
    seed += RATES_SEED
    yield from _baseline_rates(plan, seed, ", norms", "norms")
    yield from _baseline_rates(plan, seed, ", every position", "every")
    for kind in GENERATORS:
        if kind != "diagonal" and (rank := _equal_rank(plan, kind)) is not None:
            usual = {"operator_lr": plan.size.rates[f"P_{BRIEF_SCALE}"]["operator_lr"]}
            for how, changes in _around(plan.size.rates.get(f"generator {kind}", usual), 0.25, 4):
                label = f"generator {kind}, {how}"
                yield label, plan.brief(seed, label, generator=kind, rank=rank, **changes)


def lengths(plan: Plan, seed: int) -> Rows:
    """Table 1's models after shorter and longer trainings, the source's and their own."""
    for factor in LENGTHS:
        schedule = plan.base.schedule
        steps = {"source_steps": int(schedule.source_steps * factor), "steps": int(schedule.steps * factor)}
        variant = "" if factor == 1 else f", {steps['steps']} steps"
        source = plan.job(f"{M_1}{variant}", SOURCE, seed, None, **steps)
        yield f"{M_1}, {steps['source_steps']} steps", source
        for s in SCALES:
            model = _conditional(s)
            yield f"{model}, {steps['steps']} steps", plan.job(f"{model}{variant}", model, seed, None, **steps)
        for s in SCALES[1:]:
            model = ModelName(Kind.PROJECTED, s)
            job = plan.job(f"{model}{variant}", model, seed, source, scales=(s,), **steps)
            yield f"{model}, {steps['steps']} steps", job


ON_SYNTHMNIST: dict[str, Callable[[Plan, int], Rows]] = {
    "table1": table1,
    "table3": table3,
    "figure4": figure4,
    "generators": generators,
    "recipes": recipes,
    "rates": rates,
    "lengths": lengths,
}
STORED_IN = {"figure4": "table1"}
"""Experiments whose results are another one's."""
ON_TOKENS = ("table2", "table4", "token_rates")
