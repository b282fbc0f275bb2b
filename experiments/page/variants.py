"""Beyond the paper: other weight generators, recipes against the paper's plain one, learning rates."""

from __future__ import annotations

import re
from typing import Any

from projkern.evaluation.equivalent import LEVEL
from projkern.models.names import with_tildes
from projkern.training.presets import PLAIN, QUICK
from projkern.utils.markdown import table

from ..documents import ITS_OWN, SOURCE, Document, labels, models_of, results_of
from ..settings import as_json, complete
from .statistics import Difference, difference
from .tables import NOT_RUN, Models, interval, marked_difference, mean_and_deviation, spread_of
from .trainings import costs

PLAIN_GENERATOR = "diagonal"
PLAIN_RECIPE = "paper's"
LOCAL_TANGENT = "local tangent"
LENGTH_RIVALS = (("P_1/4", "M~_1/4"), ("P_1/8", "M~_1/8"), ("P_1/4", "M~_1/2"), ("P_1/8", "M~_1/4"))
"""Models that ``lengths`` holds against each other: of one size, then of about four times the size."""


def generators(document: Document) -> str:
    """Appendix B's generators; the paper has no figures for them."""
    lines = []
    for label in _lines(document):
        models = models_of(document, label)
        first = next(iter(models.values()))
        operator = first.get("operator_parameters")
        spread = spread_of(models)
        lines.append(
            [
                label,
                f"{first['parameters']:,}",
                "" if operator is None else f"{operator:,}",
                mean_and_deviation(spread),
                str(spread.seeds),
                _minus_base(models) if label == LOCAL_TANGENT else _against(document, label, PLAIN_GENERATOR),
            ]
        )
    head = ["generator", "parameters of P_1/4", "of its operator", "loss", "seeds", f"minus {PLAIN_GENERATOR}, 95 %"]
    notes = [_local_tangent(document)] if LOCAL_TANGENT in labels(document) else []
    return "\n\n".join([table(head, lines), *notes, costs(document)])


def _minus_base(models: Models) -> str:
    """Of the local tangent: its task means are paired with those of the model that it starts from."""
    return f"{interval(difference(models, _of_base(models, 'base')))} minus its base"


def _of_base(models: Models, images: str) -> dict[int, Any]:
    return {seed: model[images] for seed, model in models.items()}


def _local_tangent(document: Document) -> str:
    """What sets its line apart from the others."""
    models, settings = models_of(document, LOCAL_TANGENT), results_of(document, LOCAL_TANGENT)[0]["settings"]
    how = settings["tangents"]
    same, everyday = (mean_and_deviation(spread_of(_of_base(models, images))) for images in ("base", "base_everyday"))
    seconds = sum(model["seconds_per_task"] for model in models.values()) / len(models)
    chosen = dict.fromkeys(f"{model['damping']:g} and {model['radius']:g}" for model in models.values())
    raised = sum(damping > model["damping"] for model in models.values() for damping in model["dampings"])
    left = [norms[-1] / norms[0] for model in models.values() for norms in model["residuals"]]
    return (
        "The local tangent (Eq. 3) is no generator: it is one step from an unconditional M_1/4, its base, which was "
        "trained for as many steps as P_1/4 and its source together. It is computed for one task at a time, from "
        f"{how['training_images']} images of that task in {seconds:.0f} seconds, which the costs below leave out. Its "
        f"loss is of {how['images']} images of each of {how['tasks']} held-out tasks, not of the other lines' "
        f"{settings['eval_images']:,} images of a task each, so only its base is set beside it: {same} on its images, "
        f"{everyday} on those of the other lines. Its interval is over tasks in place of images. Damping and radius "
        f"were chosen on {how['other_tasks']} other tasks: {', '.join(chosen)}. Of {len(left)} tangents, {raised} "
        "needed more damping against negative curvature. Conjugate gradients left at most "
        f"{100 * max(left):.2g} % of the right-hand side."
    )


def recipes(document: Document) -> str:
    """Each recipe's verdict by rule, and which became the default."""
    lines = []
    for label in _lines(document):
        spread = spread_of(models_of(document, label))
        verdict = "the reference" if label == PLAIN_RECIPE else f"**{_verdict(document, label)}**"
        default = "default" if is_default(document, label) else ""
        against = _against(document, label, PLAIN_RECIPE)
        tuned = models_of(document, f"{SOURCE} with {label}")
        source = f"{spread_of(tuned).mean:.3f}" if tuned else ""
        cells = [mean_and_deviation(spread), str(spread.seeds), against, source, verdict, default]
        lines.append([label, *cells])
    others = len(lines) - (PLAIN_RECIPE in labels(document))
    head = ["recipe", "loss of P_1/4", "seeds", "minus paper's, 95 %", "its source", "verdict", ""]
    parts = [
        table(head, lines),
        f"With {others} recipes tried at this level, about {(1 - LEVEL) * others:.1f} would stand out by chance alone.",
        _default(document),
        costs(document),
    ]
    return "\n\n".join(parts)


def rates(document: Document) -> str:
    """Losses at each learning rate, the lowest of a model in bold."""
    spreads = {label: spread_of(models_of(document, label)) for label in labels(document)}
    lines = []
    for label, spread in spreads.items():
        best = min((x for x in spreads if model_of_rates(x) == model_of_rates(label)), key=lambda x: spreads[x].mean)
        shown = mean_and_deviation(spread)
        lines.append([with_tildes(label), f"**{shown}**" if label == best else shown, str(spread.seeds)])
    return "\n\n".join([table(["model and rates", "loss", "seeds"], lines), costs(document)])


def model_of_rates(label: str) -> str:
    """What a line of ``rates`` trains: "M~_1/4, norms" of "M~_1/4, norms, small_lr = 0.008"."""
    return re.split(r", \w+ = ", label, maxsplit=1)[0]


def lengths(document: Document) -> str:
    """One line a model and one column a length; then how far projected models are below others, at each length."""
    by_label = {label: models_of(document, label) for label in labels(document)}
    steps = sorted({int(label.split(", ")[1].removesuffix(" steps")) for label in by_label})
    names = list(dict.fromkeys(label.partition(",")[0] for label in by_label))

    def at(name: str, count: int) -> Models:
        return by_label.get(f"{name}, {count} steps", {})

    rows = [
        [with_tildes(name), *(mean_and_deviation(spread_of(at(name, n))) if at(name, n) else "" for n in steps)]
        for name in names
    ]
    gaps = [
        [f"{low} minus {with_tildes(high)}", *(marked_difference(at(low, n), at(high, n)) for n in steps)]
        for low, high in LENGTH_RIVALS
    ]
    by_length = [f"{n:,} steps" for n in steps]
    return "\n\n".join([table(["model", *by_length], rows), table(["difference", *by_length], gaps), costs(document)])


def _lines(document: Document) -> list[str]:
    """Of the table: all trainings but those of sources."""
    return [label for label in labels(document) if not label.startswith("M_")]


def is_default(document: Document, label: str) -> bool:
    """Whether the package does by default what a recipe changes of the plain one, and changes nothing else of it."""
    recipe, plain = (results_of(document, which) for which in (label, PLAIN_RECIPE))
    if not recipe or not plain:
        return False
    settings, reference, default = map(_comparable, (recipe[0]["settings"], plain[0]["settings"], as_json(QUICK)))
    changed = [name for name in default if name not in ITS_OWN and settings[name] != reference[name]]
    return bool(changed) and all(settings[name] == default[name] for name in {*changed, *PLAIN})


def _comparable(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings with ``tables_lr`` and ``source_batch`` as shares of ``operator_lr`` and ``batch_size``."""
    settings = complete(settings)
    wholes = (("tables_lr", "operator_lr"), ("source_batch", "batch_size"))
    return settings | {name: (settings[name] or settings[whole]) / settings[whole] for name, whole in wholes}


def _default(document: Document) -> str:
    chosen = [label for label in _lines(document) if is_default(document, label)]
    if not chosen:
        return "None became the default."
    gains = ", ".join(f"{label} ({_against(document, label, PLAIN_RECIPE) or NOT_RUN})" for label in chosen)
    return f"The default, with its difference to the paper's plain recipe: {gains}."


def _difference(document: Document, label: str, plain: str) -> Difference | None:
    models, reference = models_of(document, label), models_of(document, plain)
    return difference(models, reference) if models and reference and label != plain else None


def _against(document: Document, label: str, plain: str) -> str:
    gap = _difference(document, label, plain)
    return "" if gap is None else interval(gap)


def _verdict(document: Document, label: str) -> str:
    gap = _difference(document, label, PLAIN_RECIPE)
    if gap is None:
        return f"open: {PLAIN_RECIPE} {NOT_RUN}"
    if len(models_of(document, label).keys() & models_of(document, PLAIN_RECIPE).keys()) < 2:
        return "undecided: fewer than two seeds in common"
    low, high = gap.interval
    return "wins" if high < 0 else "loses" if low > 0 else "no difference"
