"""Tables 3 and 4 and Figure 4: source size, transfer between tasks, scales that were not trained."""

from __future__ import annotations

from itertools import product

from projkern.models.names import with_tildes
from projkern.utils.markdown import table

from ..documents import Document, labels, models_of, variants_of
from ..measures import SWEEP_IMAGES
from . import paper
from .statistics import difference, spread
from .tables import (
    NOT_RUN,
    Cell,
    Claim,
    Models,
    claims_table,
    clearly_below,
    interval,
    losses_table,
    mean_and_deviation,
    not_above,
    sign_verdict,
)
from .trainings import costs

SHOWN_AT = (0.5, 1.0, 1.5, 2.0)
SPLITS = ("halves", "mod 2")


def table3(document: Document) -> str:
    """Source size against the operator's inner width r (appendix D.1)."""
    cells = [
        Cell(name, models_of(document, name), loss, f"{name.partition(' ')[0]} from M_1, r = 8")
        for name, loss in paper.TABLE_3.items()
    ]
    parts = [losses_table(cells, "M_1 with r = 8"), claims_table(table3_claims(document)), costs(document)]
    return "\n\n".join(parts)


def table3_claims(document: Document) -> list[Claim]:
    """Larger sources are better at about the same size of operator (r s constant); more r helps small sources."""

    def claim(model: str, better: str, worse: str, why: str) -> Claim:
        a, b = (models_of(document, f"{model} from {source}") for source in (better, worse))
        return not_above(f"{why}: {model} from {better} is at or below that from {worse}", a, b)

    equal, wider = "A larger source is better, operators being about equal", "More r helps a small source"
    return [
        claim("P_1/4", "M_1, r = 8", "M_1/2, r = 16", equal),
        claim("P_1/8", "M_1, r = 8", "M_1/2, r = 16", equal),
        claim("P_1/8", "M_1/2, r = 16", "M_1/4, r = 32", equal),
        claim("P_1/4", "M_1/2, r = 16", "M_1/2, r = 8", wider),
        claim("P_1/8", "M_1/2, r = 16", "M_1/2, r = 8", wider),
        claim("P_1/8", "M_1/4, r = 16", "M_1/4, r = 8", wider),
        claim("P_1/8", "M_1/4, r = 32", "M_1/4, r = 16", wider),
    ]


def table4(document: Document) -> str:
    """Transfer between tasks of two parts of the classes (appendix D.2)."""
    cells = [
        Cell(f"{name}: {part}", _part(document, name, part), loss, f"all, {name.partition(', ')[2]}: {part}")
        for name, losses in paper.TABLE_4.items()
        for part, loss in losses.items()
    ]
    parts = [losses_table(cells, "all", digits=4), claims_table(table4_claims(document)), costs(document)]
    return "\n\n".join(parts)


def table4_claims(document: Document) -> list[Claim]:
    """More examples of C2 help C1, the more so in "mod 2"; fewer of C1 cost C2."""
    claims, gains = [], []
    for split in SPLITS:
        mixed, few = (_part(document, f"{data}, {split}", "C1") for data in ("1/8 and 1", "1/8"))
        gains.append(difference(mixed, few) if mixed and few else None)
        claims.append(not_above(f"{split}: all examples of C2 in place of 1/8 lower the loss on C1", mixed, few, 4))
    statement = "The loss on C1 falls further in mod 2 than in halves"
    halves, mod_2 = gains
    if halves is None or mod_2 is None:
        claims.append(Claim(statement, NOT_RUN))
    else:
        more = mod_2 - halves
        claims.append(Claim(statement, sign_verdict(more), f"difference {interval(more, 4)}"))
    for split in SPLITS:
        all_, mixed = (_part(document, f"{data}, {split}", "C2") for data in ("all", "1/8 and 1"))
        claims.append(not_above(f"{split}: 1/8 of C1 in place of all raises the loss on C2", all_, mixed, 4))
    return claims


def _part(document: Document, label: str, part: str) -> Models:
    """The model's figures on one part of the classes, as its label splits them."""
    split = label.partition(", ")[2]
    models = models_of(document, label)
    return {seed: {"parameters": m["parameters"]} | m["by_part"][f"{split}, {part}"] for seed, m in models.items()}


def figure4(document: Document) -> str:
    """Loss against the scale component of t, trained on [0, 1] (appendix D.3)."""
    lines = []
    for name in swept(document):
        at = by_scale(models_of(document, name))
        losses = (at.get(value, []) for value in SHOWN_AT)
        shown = [mean_and_deviation(spread(values)) if values else "" for values in losses]
        lines.append([with_tildes(name), str(len(models_of(document, name))), *shown])
    parts = [
        f"![Loss against t_scale](images/{picture(document)})",
        table(["model", "seeds", *(f"at {value:g}" for value in SHOWN_AT)], lines),
        claims_table(figure4_claims(document)),
        f"The trainings are Table 1's. Each loss is of {SWEEP_IMAGES} held-out images.",
    ]
    return "\n\n".join(parts)


def picture(document: Document) -> str:
    """Name of the file that holds the plot."""
    return f"figure4_{document['size']}.png"


def swept(document: Document) -> list[str]:
    """The models with losses against the scale; of a co-trained P̃, one for each size."""
    names = [name for name in labels(document) if name != "P~"] + [f"P~_{s}" for s in paper.SCALES[1:]]
    return [name for name in names if any("by_scale" in model for model in models_of(document, name).values())]


def by_scale(models: Models) -> dict[float, list[float]]:
    """Losses of all seeds at each value of t_scale."""
    losses: dict[float, list[float]] = {}
    for model in models.values():
        for value, loss, _ in model["by_scale"]:
            losses.setdefault(value, []).append(loss)
    return losses


def figure4_claims(document: Document) -> list[Claim]:
    """Beyond the trained range P_1/2 generalises better than M̃_1/2, and smaller projected models worse than P_1/2."""

    def above_1(name: str) -> dict[int, dict[str, float]]:
        models = models_of(document, name)
        losses = {seed: [loss for value, loss, _ in m.get("by_scale", []) if value > 1] for seed, m in models.items()}
        return {seed: {"loss": spread(values).mean} for seed, values in losses.items() if values}

    def rise(name: str) -> dict[int, dict[str, float]]:
        models = models_of(document, name)
        at = {seed: {value: loss for value, loss, _ in m.get("by_scale", [])} for seed, m in models.items()}
        return {seed: {"loss": values[2.0] - values[1.0]} for seed, values in at.items() if {1.0, 2.0} <= values.keys()}

    claims = []
    projected, rivals = ([model, *variants_of(document, model)] for model in ("P_1/2", "M~_1/2"))
    for model, rival in product(projected, rivals):
        statement = f"{model} is below {with_tildes(rival)}, mean loss over t_scale in (1, 2]; ranges do not overlap"
        claims.append(clearly_below(statement, above_1(model), above_1(rival)))
    for s in ("1/4", "1/8"):
        statement = f"From t_scale 1 to 2 the loss of P_{s} rises by more than that of P_1/2; ranges do not overlap"
        claims.append(clearly_below(statement, rise("P_1/2"), rise(f"P_{s}")))
    return claims
