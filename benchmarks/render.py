"""Write the stored results into the documentation: ``python -m benchmarks.render [--check]``.

A part between ``<!-- NAME -->`` and ``<!-- end of NAME -->`` is made from benchmarks/results/; nothing else is touched.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from projkern.evaluation.report import differences_table, equivalent_sizes, losses_table, speed_table
from projkern.training.config import SOURCE_NAME
from projkern.training.report import pretty, table

from . import predict, sampling_tables, tables
from .tune_quick import BASE, CONTROL

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def stored(name: str) -> Any:
    return json.loads((RESULTS / name).read_text())


def quick() -> str:
    summary = stored("quick/summary.json")
    made_on = f"{summary['seconds']:.0f} s on {summary['device']}; torch {summary['versions']['torch']}, seed 0."
    return f"{table(summary)}\n\n{made_on}"


def projection() -> str:
    result = stored("cpu_projection.json")
    return f"{tables.table(result)}\n\n{_machine(result['machine'])} Medians; float32."


def step() -> str:
    result = stored("cpu_step.json")
    lines = ["| step of | ms |", "|---|---:|"]
    for name, values in result["seconds"].items():
        lines.append(f"| {pretty(name)} | {1e3 * statistics.median(values):.1f} |")
    ratio = statistics.median(result["ratios"])
    return "\n".join(lines) + (
        f"\n\nP_1/4 to M_1 + M_1/4: **{ratio:.3f}**, the median of {len(result['ratios'])} interleaved rounds. "
        + _machine(result["machine"])
    )


def learning_rates() -> str:
    lines = ["| model | learning rate | loss, nats per token |", "|---|---|---:|"]
    results = stored("quick_learning_rates.json")
    for model in dict.fromkeys(r["model"] for r in results):
        rows = [r for r in results if r["model"] == model]
        best = min(rows, key=lambda r: r["losses"][model])
        for r in sorted(rows, key=lambda r: list(r["rates"].values())):
            rates = ", ".join(f"{name} {value:g}" for name, value in r["rates"].items())
            loss = f"{r['losses'][model]:.3f}"
            lines.append(f"| {pretty(model)} | {rates} | {f'**{loss}**' if r is best else loss} |")
    best_of = {
        model: min((r["losses"] for r in results if r["model"] == model), key=lambda found, model=model: found[model])
        for model in (SOURCE_NAME, "P_1/4", CONTROL)
    }
    before, alone = best_of[SOURCE_NAME][SOURCE_NAME], best_of[CONTROL][CONTROL]
    after = best_of["P_1/4"]["source after co-training"]
    return "\n".join(lines) + (
        f"\n\nWhat co-training does to the source: beside the best P_1/4 it goes from {before:.3f} to {after:.3f}, "
        f"because it goes on learning. The same {BASE.steps} steps on its own loss alone take it to {alone:.3f}; so "
        f"carrying P_1/4 costs it {100 * (after / alone - 1):.1f} %."
    )


def three_scales() -> str:
    result = stored("three_scales/evaluation.json")
    sizes = equivalent_sizes(result).replace("](", "](../benchmarks/results/three_scales/")
    made_on = f"{result['images']} held-out images; {result['device']}, torch {result['versions']['torch']}."
    return "\n\n".join([losses_table(result), differences_table(result), sizes, speed_table(result), made_on])


def projecting() -> str:
    result = stored("cpu_projecting.json")
    lines = [
        "| source | s | dense, models a second | fused, models a second | ratio | whole command, models a second |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for cell in result["cells"]:
        dense, fused, whole = (statistics.median(cell["seconds"][name]) for name in ("dense", "fused", "whole"))
        shape = f"{cell['preset']}: {cell['layers']} layers, d = {cell['width']}"
        rates = f"{1 / dense:.1f} | {1 / fused:.1f} | **{dense / fused:.1f}** | {1 / whole:.1f}"
        lines.append(f"| {shape} | {cell['scale']} | {rates} |")
    rounds = len(cell["seconds"]["fused"])
    return "\n".join(lines) + f"\n\n{_machine(result['machine'])} Medians of {rounds} interleaved rounds; float32."


def _machine(machine: dict[str, Any]) -> str:
    return (
        f"{machine['cpu']}, {machine['threads']} thread{'s' * (machine['threads'] > 1)}, {machine['capability']}; "
        f"torch {machine['torch']}, "
        f"projkern {machine['projkern']} built by {machine['native']['compiler']}."
    )


def sampling(part: Callable[[dict[str, Any]], str]) -> Callable[[], str]:
    return lambda: part(stored("cpu_sampling.json"))


NOT_YET = "Not measured yet."


def _of_cards(name: str, show: Callable[[dict[str, Any]], str], results: Path = RESULTS) -> str:
    """What one kind of result says, for each card that has it; the machines are never mixed."""
    found = [json.loads(path.read_text()) for path in sorted(results.glob(f"*/{name}"))]
    return "\n\n".join(f"{show(result)}\n\n{_card(result['machine'])}" for result in found) or NOT_YET


def gpu_projection(results: Path = RESULTS) -> str:
    return _of_cards("projection.json", tables.table, results)


def gpu_step(results: Path = RESULTS) -> str:
    def show(result: dict[str, Any]) -> str:
        lines = ["| step of | ms |", "|---|---:|"]
        lines += [f"| {pretty(n)} | {1e3 * statistics.median(v):.1f} |" for n, v in result["seconds"].items()]
        shape, scale, ratios = result["shape"], result["scale"], result["ratios"]
        return "\n".join(lines) + (
            f"\n\nP_{scale} to M_1 + M_{scale}: **{statistics.median(ratios):.3f}**, the median of {len(ratios)} "
            f"interleaved rounds; {shape['layers']} layers, d = {shape['width']}, {shape['batch']} sequences of "
            f"{shape['tokens']} tokens, {result['dtype']} autocast."
        )

    return _of_cards("step.json", show, results)


def gpu_one_shot(results: Path = RESULTS) -> str:
    def show(result: dict[str, Any]) -> str:
        lines = ["| kernels | from t to | on the device, µs | ready after, µs |", "|---|---|--:|--:|"]
        for backend, found in result["backends"].items():
            for name, seconds in found["seconds"].items():
                device, ready = (1e6 * statistics.median(seconds[kind]) for kind in ("device", "ready"))
                lines.append(f"| {backend} | {name} | {device:.1f} | {ready:.1f} |")
        return "\n".join(lines)

    return _of_cards("one_shot.json", show, results)


def _card(machine: dict[str, Any]) -> str:
    gpu = machine["gpu"]
    return (
        f"{gpu['name']}, driver {gpu['driver']}, CUDA {gpu['cuda']}; torch {machine['torch']}, triton {gpu['triton']}, "
        f"projkern {machine['projkern']}. Medians."
    )


PARTS = {
    "README.md": {"quick": quick, "projection": projection},
    "docs/kernels.md": {"projection": projection, "step": step},
    "docs/training.md": {"learning rates": learning_rates},
    "docs/projecting.md": {"projecting": projecting},
    "docs/evaluation.md": {"three scales": three_scales},
    "docs/sampling.md": {
        "sampling models": sampling(sampling_tables.models),
        "sampling forms": sampling(sampling_tables.forms),
        "sampling one query": sampling(sampling_tables.one_query),
        "sampling sequences": sampling(sampling_tables.sequences),
    },
}
"""What each page must have a place for."""

ANYWHERE = {
    "gpu projection": gpu_projection,
    "gpu step": gpu_step,
    "gpu one shot": gpu_one_shot,
    "prediction": predict.table,
}
"""What a page may have a place for; where there is no result of a card, it says so."""


def render(page: str) -> str:
    """A page with its generated parts made anew; raises ValueError where one has no place."""
    text = (ROOT / page).read_text()
    for name, make in (PARTS[page] | ANYWHERE).items():
        if name in ANYWHERE and f"<!-- {name} -->" not in text:
            continue
        part = f"<!-- {name} -->\n\n{make()}\n\n<!-- end of {name} -->"
        text, places = re.subn(
            f"<!-- {name} -->.*?<!-- end of {name} -->", lambda _, part=part: part, text, flags=re.DOTALL
        )
        if places != 1:
            raise ValueError(f"{page} must have one place for '{name}'; it had {places}")
    return text


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.render", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a page and the JSON differ")
    options = parser.parse_args()
    stale = [page for page in PARTS if render(page) != (ROOT / page).read_text()]
    for page in stale:
        if options.check:
            print(f"{page} differs from benchmarks/results; run python -m benchmarks.render", file=sys.stderr)
        else:
            (ROOT / page).write_text(render(page))
            print(f"wrote {page}")
    return int(options.check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
