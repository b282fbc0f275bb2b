"""The page docs/reproduction.md, made from the stored results and the words of ``words/``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from projkern.utils.files import write_text
from projkern.utils.markdown import table, wrap

from ..documents import EXPERIMENTS, SIZES, Document, read_results
from ..plans import ON_TOKENS
from .comparison import section as comparison
from .deviations import deviations, left_open
from .figures import draw_figure4
from .further import figure4, picture, table3, table4
from .trainings import distinct, step_parts
from .variants import generators, lengths, rates, recipes
from .words import title, words

Results = dict[str, dict[str, Document]]
"""By size and experiment."""

DATA = {"synthmnist": "--mnist DIR", "tokens": "--collections TRAIN VALIDATION --embeddings FILE"}
"""Options of the command that say where the data are."""

SECTIONS: dict[str, Callable[[Document], str]] = {
    "table1": comparison,
    "table2": comparison,
    "table3": table3,
    "table4": table4,
    "figure4": figure4,
    "generators": generators,
    "recipes": recipes,
    "lengths": lengths,
    "rates": rates,
    "token_rates": rates,
}


def write_page(results: Path, page: Path) -> None:
    """Write the page, with its pictures in ``images/`` beside it.

    Args:
        results: the folder of SIZE/EXPERIMENT.json.
        page: the file, replaced if it is there.

    Raises:
        InputError: results that cannot be read or do not belong together (see ``read_results``); nothing is written.
        OSError: it cannot be written.
    """
    stored = read_results(results)
    text = render(stored)
    images = page.parent / "images"
    images.mkdir(parents=True, exist_ok=True)
    for experiments in stored.values():
        if "figure4" in experiments:
            document = experiments["figure4"]
            draw_figure4(images / picture(document), document)
    write_text(page, wrap(text))


def render(results: Results) -> str:
    """The page as Markdown, from what ``read_results`` gives."""
    parts = [words("head", status=_status(results))]
    for experiment in EXPERIMENTS:
        parts += [words(experiment), *_at_each_size(results, experiment, SECTIONS[experiment])]
    parts += [words("time"), *_at_each_size(results, "table1", step_parts), words("deviations")]
    for size in SIZES:
        if size in results:
            parts += [f"### {size}", deviations(results[size])]
    parts.append(left_open(results))
    return "\n\n".join(parts) + "\n"


def _at_each_size(results: Results, experiment: str, show: Callable[[Document], str]) -> list[str]:
    parts, missing = [], []
    for size in SIZES:
        document = results.get(size, {}).get(experiment)
        if document is not None and document["results"]:
            parts += [f"### {size}", show(document)]
        else:
            data = DATA["tokens" if experiment in ON_TOKENS else "synthmnist"]
            missing.append(f"{size} (`python -m projkern.reproduce {experiment} --size {size} {data}`)")
    return [*parts, *([f"Not run: {', '.join(missing)}."] if missing else [])]


def _status(results: Results) -> str:
    """How much of each experiment is stored."""
    rows = []
    for experiment in EXPERIMENTS:
        documents = [results.get(size, {}).get(experiment) for size in SIZES]
        counts = [0 if document is None else len(distinct(document)) for document in documents]
        shown = [f"{count} training{'s' * (count > 1)}" if count else "not run" for count in counts]
        if experiment == "figure4":
            shown = [f"{count} of Table 1's" if count else "not run" for count in counts]
        rows.append([title(experiment), *shown])
    return table(["", *SIZES], rows)
