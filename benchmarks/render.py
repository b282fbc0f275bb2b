"""Write the stored results into the documentation: ``python -m benchmarks.render [--check]``.

A part between ``<!-- NAME -->`` and ``<!-- end of NAME -->`` is made from benchmarks/results/; nothing else is touched.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from projkern.evaluation.report import differences_table, equivalent_sizes, losses_table, speed_table
from projkern.models.names import SOURCE, with_tildes
from projkern.training import report
from projkern.utils import markdown

from . import predict, sampling_tables, scale, tables
from .tune_quick import BASE, CONTROL

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def stored(name: str) -> Any:
    return json.loads((RESULTS / name).read_text("utf-8"))


def quick() -> str:
    summary = stored("quick/summary.json")
    made_on = f"{summary['seconds']:.0f} s on {summary['device']}; torch {summary['versions']['torch']}, seed 0."
    return f"{report.table(summary)}\n\n{made_on}"


def projection(name: str = "cpu_projection.json", of: str = "float32") -> str:
    result = stored(name)
    return f"{tables.table(result)}\n\n{_machine(result['machine'])} Medians; {of}."


def step() -> str:
    result = stored("cpu_step.json")
    ratio = statistics.median(result["ratios"])
    return _steps(result) + (
        f"\n\nP_1/4 to M_1 + M_1/4: **{ratio:.3f}**, the median of {len(result['ratios'])} interleaved rounds. "
        + _machine(result["machine"])
    )


def _steps(result: dict[str, Any]) -> str:
    rows = ((with_tildes(n), f"{1e3 * statistics.median(values):.1f}") for n, values in result["seconds"].items())
    return markdown.table(("step of", "ms"), rows)


def learning_rates() -> str:
    rows = []
    results = stored("quick_learning_rates.json")
    for model in dict.fromkeys(r["model"] for r in results):
        sweep = [r for r in results if r["model"] == model]
        best = min(sweep, key=lambda r: r["losses"][model])
        for r in sorted(sweep, key=lambda r: list(r["rates"].values())):
            rates = ", ".join(f"{name} {value:g}" for name, value in r["rates"].items())
            loss = f"{r['losses'][model]:.3f}"
            rows.append((with_tildes(model), rates, f"**{loss}**" if r is best else loss))
    best_of = {
        model: min((r["losses"] for r in results if r["model"] == model), key=lambda losses, model=model: losses[model])
        for model in (str(SOURCE), "P_1/4", CONTROL)
    }
    pretrained, alone = best_of[str(SOURCE)][str(SOURCE)], best_of[CONTROL][CONTROL]
    tuned = best_of["P_1/4"]["source after co-training"]
    return markdown.table(("model", "learning rate", "loss, nats per token"), rows, left=2) + (
        f"\n\nWhat co-training does to the source: beside the best P_1/4 it goes from {pretrained:.3f} to {tuned:.3f}, "
        f"because it goes on learning. The same {BASE.schedule.steps} steps on its own loss alone take it to "
        f"{alone:.3f}; so carrying P_1/4 costs it {100 * (tuned / alone - 1):.1f} %."
    )


def three_scales() -> str:
    result = stored("three_scales/evaluation.json")
    sizes = equivalent_sizes(result).replace("](", "](../benchmarks/results/three_scales/")
    made_on = f"{result['images']} held-out images; {result['device']}, torch {result['versions']['torch']}."
    return "\n\n".join([losses_table(result), differences_table(result), sizes, speed_table(result), made_on])


def projecting() -> str:
    result = stored("cpu_projecting.json")
    rate = "models a second"
    head = ("source", "s", "best in torch", rate, f"fused, {rate}", "ratio", f"whole command, {rate}", f"disk, {rate}")
    rows = []
    for cell in result["cells"]:
        seconds = {name: statistics.median(values) for name, values in cell["seconds"].items()}
        fused, whole, disk = (seconds.pop(name) for name in ("fused", "whole", "disk"))
        best = min(seconds, key=lambda name: seconds[name])
        shape = f"{cell['preset']}: {cell['layers']} layers, d = {cell['width']}"
        rates = (f"{1 / seconds[best]:.1f}", f"{1 / fused:.1f}", f"**{seconds[best] / fused:.1f}**")
        rows.append((shape, cell["scale"], best, *rates, f"{1 / whole:.1f}", f"{1 / disk:.1f}"))
    rounds = len(cell["seconds"]["fused"])
    table = markdown.table(head, rows, left=3)
    return f"{table}\n\n{_machine(result['machine'])} Medians of {rounds} interleaved rounds; float32."


def streaming() -> str:
    result = stored("cpu_streaming.json")
    rows = []
    for verb in ("project", "compress"):
        if verb not in result:
            continue
        measured = result[verb]
        middle = {
            name: statistics.median(sample[name] for sample in measured["rounds"])
            for name in ("seconds", "write", "read", "peak", "anonymous")
        }
        disk = middle["write"] + middle["read"]
        rows.append(
            (
                f"`{verb}`",
                f"{measured['written'] / 1e9:.1f}",
                f"{middle['peak'] / 1e9:.2f} ({middle['anonymous'] / 1e9:.2f})",
                f"{middle['seconds']:.0f}",
                f"{middle['read']:.0f} + {middle['write']:.0f}",
                f"{middle['seconds'] / disk:.1f}",
            )
        )
    source = result["source"]
    head = ("command", "writes, GB", "memory, GB (anonymous)", "seconds", "disk: read + write, s", "ratio")
    return markdown.table(head, rows) + (
        f"\n\nA Llama of {source['bytes'] / 1e9:.1f} GB in bf16 ({source['layers']} layers, hidden size "
        f"{source['hidden_size']}, {source['vocab_size']} tokens; the largest parameter has "
        f"{source['largest_parameter'] / 1e6:.0f} million numbers). {_machine(result['machine'])} Medians of "
        + " and ".join(str(len(result[verb]["rounds"])) for verb in ("project", "compress") if verb in result)
        + " interleaved rounds, on a machine that had other work too."
    )


def sharing() -> str:
    """The highest of the ranks' memory, and what all of them send in a step."""
    result, rows = stored("cpu_sharing.json"), []
    for size, ranks in result["ranks"].items():
        count, small = int(size), ranks[0]["small"]
        expected = 4 * small * (count - 1) * (2 + 1 / count)
        sent = sum(rank["sent"] for rank in ranks)
        peak = max(rank["peak"] for rank in ranks)
        share = f"{sent / expected:.3f}" if sent else ""
        rows.append((size, f"{peak / 1e9:.2f}", f"{sent / 1e6:.0f}", f"{expected / 1e6:.0f}", share))
    head = ("ranks", "peak memory of a rank, GB", "sent by all in a step, MB", "formula, MB", "ratio")
    source, libraries = result["source"], result["ranks"]["1"][0]["libraries"]
    return markdown.table(head, rows) + (
        f"\n\nA Llama of {source['num_hidden_layers']} layers, hidden size {source['hidden_size']}, in bf16, to half "
        f"its width ({small / 1e6:.0f} million numbers), dense P, Muon; the libraries take {libraries / 1e9:.2f} GB. "
        + _machine(result["machine"])
    )


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
    measured = [json.loads(path.read_text("utf-8")) for path in sorted(results.glob(f"*/{name}"))]
    return "\n\n".join(f"{show(result)}\n\n{_card(result['machine'])}" for result in measured) or NOT_YET


def gpu_projection(results: Path = RESULTS) -> str:
    return _of_cards("projection.json", tables.table, results)


def gpu_step(results: Path = RESULTS) -> str:
    def show(result: dict[str, Any]) -> str:
        shape, scale, ratios = result["shape"], result["scale"], result["ratios"]
        return _steps(result) + (
            f"\n\nP_{scale} to M_1 + M_{scale}: **{statistics.median(ratios):.3f}**, the median of {len(ratios)} "
            f"interleaved rounds; {shape['layers']} layers, d = {shape['width']}, {shape['batch']} sequences of "
            f"{shape['tokens']} tokens, {result['dtype']} autocast."
        )

    return _of_cards("step.json", show, results)


def gpu_one_shot(results: Path = RESULTS) -> str:
    def show(result: dict[str, Any]) -> str:
        rows = []
        for backend, measured in result["backends"].items():
            for name, seconds in measured["seconds"].items():
                device, ready = (1e6 * statistics.median(seconds[kind]) for kind in ("device", "ready"))
                rows.append((backend, name, f"{device:.1f}", f"{ready:.1f}"))
        return markdown.table(("kernels", "from t to", "on the device, µs", "ready after, µs"), rows, left=2)

    return _of_cards("one_shot.json", show, results)


def _card(machine: dict[str, Any]) -> str:
    gpu = machine["gpu"]
    return (
        f"{gpu['name']}, driver {gpu['driver']}, CUDA {gpu['cuda']}; torch {machine['torch']}, triton {gpu['triton']}, "
        f"projkern {machine['projkern']}. Medians."
    )


PARTS = {
    "README.md": {"quick": quick, "projection": projection},
    "docs/kernels.md": {
        "projection": projection,
        "projection one thread": partial(projection, "cpu_projection_one_thread.json"),
        "projection bfloat16": partial(projection, "cpu_projection_bfloat16.json", "W, W_s and G in bfloat16"),
        "step": step,
    },
    "docs/training.md": {"learning rates": learning_rates},
    "docs/projecting.md": {"projecting": projecting},
    "docs/scale.md": {"sharing": sharing, "streaming": streaming, "on paper": scale.table},
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
    """A page with its generated parts rendered again; raises ValueError where one has no place."""
    text = (ROOT / page).read_text("utf-8")
    for name, make in (PARTS[page] | ANYWHERE).items():
        if name in ANYWHERE and f"<!-- {name} -->" not in text:
            continue
        text = markdown.with_part(text, name, make())
    return text


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.render", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a page and the JSON differ")
    options = parser.parse_args()
    stale = [page for page in PARTS if render(page) != (ROOT / page).read_text("utf-8")]
    for page in stale:
        if options.check:
            print(f"{page} differs from benchmarks/results; run python -m benchmarks.render", file=sys.stderr)
        else:
            (ROOT / page).write_text(render(page), "utf-8")
            print(f"wrote {page}")
    return int(options.check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
