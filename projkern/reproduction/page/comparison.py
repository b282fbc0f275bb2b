"""Tables 1 and 2: unconditional, conditional and projected models of each size."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np

from ...evaluation.equivalent import NoFit, size_of_loss
from ...training.report import pretty
from ..results import SOURCE, Document, labels, models_of
from . import paper
from .markdown import (
    NOT_RUN,
    Cell,
    Claim,
    Models,
    apart,
    claims_table,
    interval,
    losses_table,
    mean_and_deviation,
    not_above,
    sign_verdict,
    spread_of,
    table,
)
from .statistics import difference, equivalent_size_over_seeds, spread
from .trainings import costs

SMALL = paper.SCALES[1:]
SOURCE_LIMIT = 0.03
PAPER = {"table1": paper.TABLE_1, "table2": paper.TABLE_2}


def section(document: Document) -> str:
    """All that the page says of Table 1 or 2 at one size."""
    base = "M_1" if "M_1" in PAPER[document["experiment"]] else "M~_1"
    parts = [
        losses_table(cells(document, base), pretty(base)),
        claims_table(claims(document)),
        *weak_baselines(document),
        "**How losses rise as s falls.** A claim that fails here and not in the paper does so on one side of this.",
        rises(document),
        "**Equivalent sizes**",
        equivalent_sizes(document),
        "**How much t matters:** the loss where each image comes with the t of another one.",
        another_t(document),
        costs(document),
    ]
    return "\n\n".join(parts)


def weak_baselines(document: Document) -> list[str]:
    """A warning of conditional baselines that are no better than what they should beat, where there are any."""
    weak = []
    for name in labels(document):
        if name.startswith("M~_"):
            plain, _, form = name.partition(", ")
            beaten = f"M_{plain.removeprefix('M~_')}" if not form else plain
            ours, theirs = models_of(document, name), models_of(document, beaten)
            if theirs and spread_of(ours).mean >= spread_of(theirs).mean:
                weak.append(f"{pretty(name)} (against {pretty(beaten)})")
    if not weak:
        return []
    return [
        f"**Beware:** no better than what they should beat are {'; '.join(weak)}. They did not train well at their "
        "learning rate and length, and what is claimed or read off against them proves little."
    ]


def cells(document: Document, base: str) -> list[Cell]:
    """The paper's lines, each kind of model followed by ours of that kind that go beyond the paper."""
    theirs = PAPER[document["experiment"]]
    found = []
    for kind in ("M_", "M~_", "P_", "P~_"):
        for name in (kind + s for s in paper.SCALES):
            models = models_of(document, name)
            if models or name in theirs:
                found.append(Cell(name, models, theirs.get(name), base))
        more = [name for name in labels(document) if name.startswith(kind) and "," in name]
        found += [Cell(name, models_of(document, name), None, base) for name in more]
    after = [f"{SOURCE} with P_{s}" for s in SMALL]
    tuned = [models_of(document, name) for name in after]
    found += [Cell(name, models, None, base) for name, models in zip(after, tuned) if models]
    if paper.SOURCE_MEAN in theirs:
        found.append(Cell(paper.SOURCE_MEAN, _mean_source(tuned), theirs[paper.SOURCE_MEAN], base))
    joint = models_of(document, SOURCE)
    if joint or SOURCE in theirs:
        found.append(Cell(f"{SOURCE} with P~", joint, theirs.get(SOURCE), base))
    return found


def _mean_source(tuned: list[dict[int, dict[str, Any]]]) -> Models:
    """Of the sources tuned with each P_s, for the seeds that all of them have."""
    seeds = set.intersection(*(set(models) for models in tuned))
    return {
        seed: {
            "loss": spread([models[seed]["loss"] for models in tuned]).mean,
            "parameters": tuned[0][seed]["parameters"],
        }
        for seed in sorted(seeds)
    }


def claims(document: Document) -> list[Claim]:
    """What the paper says of its table (sections 3.3.2, 3.3.3 and 4), asked of ours."""

    def models(name: str) -> Models:
        return models_of(document, name)

    stronger = [name for name in labels(document) if name.startswith("M~_") and "," in name]
    found = []
    for s in SMALL:
        for rival in (f"M~_{s}", *(name for name in stronger if name.startswith(f"M~_{s},"))):
            statement = f"{pretty(f'P_{s}')} is below {pretty(rival)}; ranges over seeds do not overlap"
            found.append(apart(statement, models(f"P_{s}"), models(rival)))
    found += _lead_grows(document)
    if document["experiment"] == "table1":
        for larger, s in pairwise(SMALL):
            for rival in (f"M~_{larger}", *(name for name in stronger if name.startswith(f"M~_{larger},"))):
                statement = f"{pretty(f'P_{s}')} is at or below {pretty(rival)}, about four times its size"
                claim = not_above(statement, models(f"P_{s}"), models(rival))
                found.append(_beside_papers(claim, f"P_{s}", rival, PAPER["table1"]))
        for s in SMALL:
            found.append(_joint(document, s))
    found += _variants(document)
    tuned = [f"{SOURCE} with P_{s}" for s in SMALL] + [SOURCE] * (document["experiment"] == "table1")
    alone = [label for label in labels(document) if label.startswith("M_1,")]
    return found + [_source_keeps(document, name, before) for before in ("M_1", *alone) for name in tuned]


def _beside_papers(claim: Claim, low: str, high: str, theirs: Mapping[str, float]) -> Claim:
    """With the paper's own figures, where it has them."""
    if not claim.evidence or high not in theirs:
        return claim
    shown = f"{claim.evidence}; the paper's {theirs[low]:g} against {theirs[high]:g}"
    return dataclasses.replace(claim, evidence=shown)


def _variants(document: Document) -> list[Claim]:
    """Projected models that were trained otherwise: against the paper's recipe, and for the paper's claims."""
    found = []
    for larger, s in pairwise(paper.SCALES):
        plain, rival = models_of(document, f"P_{s}"), models_of(document, f"M~_{s}")
        for name in (label for label in labels(document) if label.startswith(f"P_{s},")):
            models = models_of(document, name)
            found.append(not_above(f"{name}, is at or below P_{s}", models, plain))
            statement = f"{name}, is below {pretty(f'M~_{s}')}; ranges over seeds do not overlap"
            found.append(apart(statement, models, rival))
            if document["experiment"] == "table1" and larger != "1":
                statement = f"{name}, is at or below {pretty(f'M~_{larger}')}, about four times its size"
                found.append(not_above(statement, models, models_of(document, f"M~_{larger}")))
    return found


def _lead_grows(document: Document) -> list[Claim]:
    theirs = PAPER[document["experiment"]]
    found = []
    for before, s in pairwise(SMALL):
        statement = f"P_{s} leads {pretty(f'M~_{s}')} by more than P_{before} leads {pretty(f'M~_{before}')}"
        pairs = [(models_of(document, f"P_{x}"), models_of(document, f"M~_{x}")) for x in (before, s)]
        if not all(projected and conditional for projected, conditional in pairs):
            found.append(Claim(statement, NOT_RUN))
            continue
        smaller, larger = (difference(projected, conditional) for projected, conditional in pairs)
        growth = larger - smaller
        shown = " against ".join(f"{theirs[f'M~_{x}'] - theirs[f'P_{x}']:.3f}" for x in (s, before))
        evidence = f"{-larger.mean:.3f} against {-smaller.mean:.3f}: {interval(growth)}; the paper's {shown}"
        found.append(Claim(statement, sign_verdict(growth), evidence))
    return found


def _joint(document: Document, s: str) -> Claim:
    """The noise is that of the difference: of the seeds where there are several, and of the images."""
    statement = f"{pretty(f'P~_{s}')} is within noise of P_{s} (95 % interval over seeds and images), or below it"
    claim = not_above(statement, models_of(document, f"P~_{s}"), models_of(document, f"P_{s}"))
    verdict = {"fails, within noise": "holds, within noise"}.get(claim.verdict, claim.verdict)
    return Claim(statement, verdict, claim.evidence)


def _source_keeps(document: Document, name: str, alone: str) -> Claim:
    """Against M_1 before, and against M_1 after as many steps without a projected model: a source goes on learning."""
    shown = pretty(f"{name} with P~" if name == SOURCE else name)
    statement = f"The {shown} is at most {100 * SOURCE_LIMIT:.0f} % above {alone}"
    reference, tuned = models_of(document, alone), models_of(document, name)
    if not reference or not tuned:
        return Claim(statement, NOT_RUN)
    limit = {seed: {"by_image": np.multiply(1 + SOURCE_LIMIT, model["by_image"])} for seed, model in reference.items()}
    over, before = difference(tuned, limit), spread_of(reference).mean
    change, low, high = (100 * (x / before + SOURCE_LIMIT) for x in (over.mean, *over.interval))
    evidence = f"{spread_of(tuned).mean:.3f} against {before:.3f}: {change:+.1f} % [{low:+.1f}, {high:+.1f}]"
    return Claim(statement, sign_verdict(over), evidence)


def rises(document: Document) -> str:
    """Ratios of losses, ours and the paper's."""
    theirs = PAPER[document["experiment"]]
    lines = []
    for kind in ("M~_", "P_"):
        for larger, s in pairwise(paper.SCALES):
            above, below = models_of(document, kind + s), models_of(document, kind + larger)
            if kind + larger in theirs and above and below:
                ratio = spread_of(above).mean / spread_of(below).mean
                of_paper = theirs[kind + s] / theirs[kind + larger]
                lines.append([f"{pretty(kind + s)} over {pretty(kind + larger)}", f"{ratio:.3f}", f"{of_paper:.3f}"])
    return table(["losses", "ours", "the paper's"], lines)


def another_t(document: Document) -> str:
    """Losses with t of the image, and with that of another image."""
    names = [name for name in labels(document) if name != "P~"] + [f"P~_{s}" for s in SMALL]
    lines = []
    for name in names:
        told = [m for m in models_of(document, name).values() if "loss_with_another_t" in m]
        if told:
            own, other = (spread([m[which] for m in told]) for which in ("loss", "loss_with_another_t"))
            rise = spread([m["loss_with_another_t"] - m["loss"] for m in told])
            lines.append([pretty(name), *map(mean_and_deviation, (own, other, rise))])
    return table(["model", "its own t", "another's", "rise"], lines)


def equivalent_sizes(document: Document) -> str:
    """How many times larger a conditional model with a projected one's loss is, in ours and in the paper's figures."""
    lines = []
    for s in SMALL:
        theirs = [f"{_papers_times(document['experiment'], s):.1f}"]
        theirs.append(paper.TIMES[document["experiment"]].get(f"P_{s}", ""))
        for name in (f"P_{s}", f"P~_{s}"):
            projected = models_of(document, name)
            if projected or name in PAPER[document["experiment"]]:
                last = theirs if name.startswith("P_") else ["", ""]
                lines.append([pretty(name), "M̃_s", *_times(_baselines(document, ""), projected), *last])
        for name in (label for label in labels(document) if label.startswith(f"P_{s},")):
            lines.append([name, "M̃_s", *_times(_baselines(document, ""), models_of(document, name)), "", ""])
        for form in _stronger_forms(document):
            against = _times(_baselines(document, form), models_of(document, f"P_{s}"))
            lines.append([f"P_{s}", f"M̃_s{form}", *against, "", ""])
    return table(["model", "against", "k", "95 % interval", "from the paper's losses", "in the paper's words"], lines)


def _stronger_forms(document: Document) -> list[str]:
    """What follows s in the names of stronger baselines, of forms that several sizes have."""
    names = [name.partition(",") for name in labels(document) if name.startswith("M~_") and "," in name]
    forms = [comma + form for _, comma, form in names]
    return [form for form in dict.fromkeys(forms) if forms.count(form) > 1]


def _baselines(document: Document, form: str) -> list[Models]:
    """Conditional models of one form, the smallest first, with the parameters that are left of them once t is given."""
    found: list[Models] = []
    for s in reversed(paper.SCALES):
        plain = models_of(document, f"M_{s}") or models_of(document, f"P_{s}")
        if (models := models_of(document, f"M~_{s}{form}")) and plain:
            left = {"parameters": next(iter(plain.values()))["parameters"]}
            found.append({seed: {**model, **left} for seed, model in models.items()})
    return found


def _times(baselines: list[Models], projected: Models) -> list[str]:
    if not projected:
        return [NOT_RUN, ""]
    try:
        size = equivalent_size_over_seeds(baselines, projected)
    except NoFit as reason:
        return [f"none: {reason}", ""]
    if size.beyond is None:
        low, high = size.interval or (None, None)
        shown = "none: too many resamplings have no fit" if low is None else f"{low:.1f} to {high:.1f}"
        return [f"{size.times:.1f}", shown]
    own = next(iter(projected.values()))["parameters"]
    end = next(iter(baselines[-1 if size.beyond == "largest" else 0].values()))["parameters"]
    bound = "above" if size.beyond == "largest" else "below"
    return [f"{bound} {end / own:.1f}", "none: beyond the baselines"]


def _papers_times(experiment: str, s: str) -> float:
    theirs, rising = PAPER[experiment], paper.SCALES[::-1]
    losses = np.array([theirs[f"M~_{scale}"] for scale in rising])
    size = size_of_loss([paper.PARAMETERS[scale] for scale in rising], losses, np.array(theirs[f"P_{s}"]))
    return float(size) / paper.PARAMETERS[s]
