"""Tables 1 and 2: unconditional, conditional and projected models of each size."""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from typing import Any

import numpy as np

from projkern.evaluation.equivalent import NoFit, size_of_loss
from projkern.models.names import with_tildes
from projkern.utils.markdown import table

from ..documents import SOURCE, Document, labels, models_of, variants_of
from ..plans import ALL_STEPS
from . import paper
from .statistics import difference, equivalent_size_over_seeds, spread
from .tables import (
    NOT_RUN,
    ONE_SEED,
    Cell,
    Claim,
    Models,
    claims_table,
    clearly_below,
    interval,
    losses_table,
    marked_difference,
    mean_and_deviation,
    not_above,
    sign_verdict,
    spread_of,
)
from .trainings import costs

SMALL = paper.SCALES[1:]
SOURCE_LIMIT = 0.03
_VERDICTS = ("holds", "holds, within noise", "fails, within noise", "fails", ONE_SEED, NOT_RUN)
PAPER = {"table1": paper.TABLE_1, "table2": paper.TABLE_2}


def section(document: Document) -> str:
    """All that the page says of Table 1 or 2 at one size."""
    base = "M_1" if "M_1" in PAPER[document["experiment"]] else "M~_1"
    checked = claims(document)
    parts = [
        losses_table(cells(document, base), with_tildes(base)),
        "**What the paper claims.** " + in_brief(checked),
        claims_table(checked),
        *weak_baselines(document),
        *against_every_baseline(document),
        "**What t is worth, and what a smaller s costs:** one loss over another.",
        ratios(document),
        "**Equivalent sizes k,** with bootstrap intervals.",
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
            plain = name.partition(",")[0]
            unconditional = plain.replace("~", "")
            beaten = [x for x in dict.fromkeys((unconditional, plain, name.removesuffix(ALL_STEPS))) if x != name]
            loss = spread_of(models_of(document, name)).mean
            no_better = [with_tildes(x) for x in beaten if (m := models_of(document, x)) and spread_of(m).mean <= loss]
            weak += [f"{with_tildes(name)} (against {' and '.join(no_better)})"] if no_better else []
    if not weak:
        return []
    return [
        f"**Beware:** no better than what they should beat are {'; '.join(weak)}. They did not train well at their "
        "learning rate and length, so claims and equivalent sizes that rest on them prove little."
    ]


def in_brief(claims: list[Claim]) -> str:
    """How many hold, and which do not."""
    by: dict[str, list[str]] = {}
    for claim in claims:
        by.setdefault(claim.verdict, []).append(claim.statement.partition(";")[0])
    counts = "; ".join(f"{verdict}: {len(by[verdict])}" for verdict in sorted(by, key=_VERDICTS.index))
    failing = "; ".join(statement for verdict in by if verdict.startswith("fails") for statement in by[verdict])
    return f"Of {len(claims)} claims, {counts}." + (f" Those that fail: {failing}." if failing else "")


def against_every_baseline(document: Document) -> list[str]:
    """Tables of differences to all forms of M̃ of a projected model's own size, and of about four times that."""
    shifts = {"of its own size": 0}
    if document["experiment"] == "table1":
        shifts["of about four times its size"] = 1
    forms, parts = _forms(document), []
    for which, shift in shifts.items():
        rows = []
        for rival, s in zip(SMALL, SMALL[shift:]):
            for name in (f"P_{s}", *variants_of(document, f"P_{s}")):
                models = models_of(document, name)
                plain = "" if name == f"P_{s}" else marked_difference(models, models_of(document, f"P_{s}"))
                gaps = [marked_difference(models, models_of(document, f"M~_{rival}{form}")) for form in forms]
                rows.append([name, *gaps, plain])
        parts += [
            f"**Against every baseline {which}:** loss of the projected model minus that of the baseline. Bold: the "
            "projected model is lower, beyond noise; italic: the baseline is.",
            table(["model", *(f"minus {with_tildes('M~')}{form}" for form in forms), "minus P_s"], rows),
        ]
    return parts


def _forms(document: Document) -> list[str]:
    """What follows s in the names of conditional baselines: nothing, and the forms that several sizes have."""
    names = [name.partition(",") for name in labels(document) if name.startswith("M~_") and "," in name]
    forms = [comma + form for _, comma, form in names]
    return ["", *(form for form in dict.fromkeys(forms) if forms.count(form) > 1)]


def cells(document: Document, base: str) -> list[Cell]:
    """The paper's lines, each kind of model followed by ours of that kind that go beyond the paper."""
    reported = PAPER[document["experiment"]]
    lines = []
    for kind in ("M_", "M~_", "P_", "P~_"):
        for name in (kind + s for s in paper.SCALES):
            models = models_of(document, name)
            if models or name in reported:
                lines.append(Cell(name, models, reported.get(name), base))
        more = [name for name in labels(document) if name.startswith(kind) and "," in name]
        lines += [Cell(name, models_of(document, name), None, base) for name in more]
    after = [f"{SOURCE} with {name}" for name in _tuning(document)]
    tuned = [models_of(document, f"{SOURCE} with P_{s}") for s in SMALL]
    lines += [Cell(name, models, None, base) for name in after if (models := models_of(document, name))]
    if paper.SOURCE_MEAN in reported:
        lines.append(Cell(paper.SOURCE_MEAN, _mean_source(tuned), reported[paper.SOURCE_MEAN], base))
    joint = models_of(document, SOURCE)
    if joint or SOURCE in reported:
        lines.append(Cell(f"{SOURCE} with P~", joint, reported.get(SOURCE), base))
    return lines


def _tuning(document: Document) -> list[str]:
    """Projected models with a source of their own."""
    return [f"P_{s}" for s in SMALL] + [name for s in SMALL for name in variants_of(document, f"P_{s}")]


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
    """What the paper says of its table (sections 3.3.2, 3.3.3 and 4), held against the stored results."""

    def models(name: str) -> Models:
        return models_of(document, name)

    checked = []
    for s in SMALL:
        statement = f"P_{s} is below {with_tildes(f'M~_{s}')}; ranges over seeds do not overlap"
        checked.append(clearly_below(statement, models(f"P_{s}"), models(f"M~_{s}")))
    checked += _lead_grows(document)
    if document["experiment"] == "table1":
        checked += [_four_times(document, f"P_{s}", f"M~_{larger}") for larger, s in pairwise(SMALL)]
        checked += [_joint(document, s) for s in SMALL]
    tuned = [f"{SOURCE} with {name}" for name in _tuning(document)] + [SOURCE] * (document["experiment"] == "table1")
    alone = ["M_1", *variants_of(document, "M_1")]
    return checked + [_source_keeps(document, name, before) for before in alone for name in tuned]


def _four_times(document: Document, low: str, high: str) -> Claim:
    """The paper says "roughly comparable" (section 3.3.2); that one is at or below the other is more."""
    reported = PAPER["table1"]
    statement = f"{low} is at or below {with_tildes(high)}, about four times its size"
    claim = not_above(statement, models_of(document, low), models_of(document, high))
    shown = f"; the paper's {reported[low]:g} against {reported[high]:g}"
    return dataclasses.replace(claim, evidence=claim.evidence and claim.evidence + shown)


def _lead_grows(document: Document) -> list[Claim]:
    reported = PAPER[document["experiment"]]
    checked = []
    for before, s in pairwise(SMALL):
        statement = f"P_{s} leads {with_tildes(f'M~_{s}')} by more than P_{before} leads {with_tildes(f'M~_{before}')}"
        pairs = [(models_of(document, f"P_{x}"), models_of(document, f"M~_{x}")) for x in (before, s)]
        if not all(projected and conditional for projected, conditional in pairs):
            checked.append(Claim(statement, NOT_RUN))
            continue
        smaller, larger = (difference(projected, conditional) for projected, conditional in pairs)
        growth = larger - smaller
        shown = " against ".join(f"{reported[f'M~_{x}'] - reported[f'P_{x}']:.3f}" for x in (s, before))
        evidence = f"{-larger.mean:.3f} against {-smaller.mean:.3f}: {interval(growth)}; the paper's {shown}"
        checked.append(Claim(statement, sign_verdict(growth), evidence))
    return checked


def _joint(document: Document, s: str) -> Claim:
    """The noise is that of the difference: of the seeds where there are several, and of the images."""
    statement = f"{with_tildes(f'P~_{s}')} is within noise of P_{s} (95 % interval over seeds and images), or below it"
    claim = not_above(statement, models_of(document, f"P~_{s}"), models_of(document, f"P_{s}"))
    verdict = {"fails, within noise": "holds, within noise"}.get(claim.verdict, claim.verdict)
    return Claim(statement, verdict, claim.evidence)


def _source_keeps(document: Document, name: str, alone: str) -> Claim:
    """Against M_1 before, and against M_1 after as many steps without a projected model: a source goes on learning."""
    shown = with_tildes(f"{name} with P~" if name == SOURCE else name)
    statement = f"The {shown} is at most {100 * SOURCE_LIMIT:.0f} % above {alone}"
    reference, tuned = models_of(document, alone), models_of(document, name)
    if not reference or not tuned:
        return Claim(statement, NOT_RUN)
    limit = {seed: {"by_image": np.multiply(1 + SOURCE_LIMIT, model["by_image"])} for seed, model in reference.items()}
    over, before = difference(tuned, limit), spread_of(reference).mean
    change, low, high = (100 * (x / before + SOURCE_LIMIT) for x in (over.mean, *over.interval))
    evidence = f"{spread_of(tuned).mean:.3f} against {before:.3f}: {change:+.1f} % [{low:+.1f}, {high:+.1f}]"
    return Claim(statement, sign_verdict(over), evidence)


def ratios(document: Document) -> str:
    """Of losses, here and in the paper: what t is worth at each s, and what the next smaller s costs."""
    reported = PAPER[document["experiment"]]
    pairs = [(f"{kind}_{s}", f"M_{s}") for kind in ("M~", "P") for s in paper.SCALES]
    pairs += [(f"{kind}_{s}", f"{kind}_{larger}") for kind in ("M~", "P") for larger, s in pairwise(paper.SCALES)]
    lines = []
    for one, other in pairs:
        above, below = models_of(document, one), models_of(document, other)
        if one in reported and other in reported and above and below:
            ratio = f"{spread_of(above).mean / spread_of(below).mean:.3f}"
            in_paper = f"{reported[one] / reported[other]:.3f}"
            lines.append([f"{with_tildes(one)} over {with_tildes(other)}", ratio, in_paper])
    return table(["losses", "ours", "the paper's"], lines)


def another_t(document: Document) -> str:
    """Losses with t of the image, and with that of another image."""
    names = [name for name in labels(document) if name != "P~"] + [f"P~_{s}" for s in SMALL]
    lines = []
    for name in names:
        models = [m for m in models_of(document, name).values() if "loss_with_another_t" in m]
        if models:
            own, other = (spread([m[which] for m in models]) for which in ("loss", "loss_with_another_t"))
            rise = spread([m["loss_with_another_t"] - m["loss"] for m in models])
            lines.append([with_tildes(name), *map(mean_and_deviation, (own, other, rise))])
    return table(["model", "its own t", "another's", "rise"], lines)


def equivalent_sizes(document: Document) -> str:
    """How many times larger a conditional model with a projected one's loss is, here and by the paper's figures."""
    experiment, forms, lines = document["experiment"], _forms(document), []
    for s in SMALL:
        in_paper = [f"{_papers_times(experiment, s):.1f}", paper.TIMES[experiment].get(f"P_{s}", "")]
        for name in (f"P_{s}", *variants_of(document, f"P_{s}"), f"P~_{s}"):
            if (models := models_of(document, name)) or name in PAPER[experiment]:
                times = [_times(_baselines(document, form), models) for form in forms]
                lines.append([with_tildes(name), *times, *(in_paper if name == f"P_{s}" else ["", ""])])
    against = [f"{with_tildes('M~_s')}{form}" for form in forms]
    return table(["model", *against, "from the paper's losses", "in the paper's words"], lines)


def _baselines(document: Document, form: str) -> list[Models]:
    """Conditional models of one form, the smallest first, with the parameters that are left of them once t is given."""
    baselines: list[Models] = []
    for s in reversed(paper.SCALES):
        plain = models_of(document, f"M_{s}") or models_of(document, f"P_{s}")
        if (models := models_of(document, f"M~_{s}{form}")) and plain:
            parameters = {"parameters": next(iter(plain.values()))["parameters"]}
            baselines.append({seed: {**model, **parameters} for seed, model in models.items()})
    return baselines


def _times(baselines: list[Models], projected: Models) -> str:
    if not projected:
        return NOT_RUN
    try:
        size = equivalent_size_over_seeds(baselines, projected)
    except NoFit as reason:
        return f"none: {reason}"
    if size.beyond is None:
        shown = "too many resamplings have no fit" if size.interval is None else "{:.1f}, {:.1f}".format(*size.interval)
        return f"{size.times:.1f} [{shown}]"
    own = next(iter(projected.values()))["parameters"]
    end = next(iter(baselines[-1 if size.beyond == "largest" else 0].values()))["parameters"]
    return f"{'above' if size.beyond == 'largest' else 'below'} {end / own:.1f}"


def _papers_times(experiment: str, s: str) -> float:
    reported, rising = PAPER[experiment], paper.SCALES[::-1]
    losses = np.array([reported[f"M~_{scale}"] for scale in rising])
    size = size_of_loss([paper.PARAMETERS[scale] for scale in rising], losses, np.array(reported[f"P_{s}"]))
    return float(size) / paper.PARAMETERS[s]
