"""Fused beside every baseline, and beside the machine's limits: ``python -m benchmarks.compare OUT.json``.

Measures the cells of the documented tables (``roofline.standard``), the most telling first, or those that the options
name. OUT.json is written after each cell, and an interrupted measurement goes on. On a CUDA card (``--device cuda``)
times are the device's, by events; several sets of inputs are rotated, so that no cache serves them; compiled
baselines and our kernels are measured inside CUDA graphs too. ``measure.py`` has the protocol. ``--table`` prints a
stored result.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

from projkern.utils.device import keep_freed_memory
from projkern.utils.files import write_text

from .machine import machine_of
from .measure import Settings, measure
from .providers import backends
from .roofline import Cell, standard
from .tables import table

PROTOCOL = 2
"""How times are taken: results of different ones are not to be compared. 1 had no field for it, and kept no results."""


def write_result(path: Path, result: dict[str, Any]) -> None:
    """JSON with the samples of a provider on one line each, and as many digits as a clock has."""
    rounded = json.loads(json.dumps(result), parse_float=lambda text: float(f"{float(text):.6g}"))
    text = re.sub(r"\[[^\[\]{}]*\]", lambda match: " ".join(match[0].split()), json.dumps(rounded, indent=1))
    write_text(path, text + "\n")


def load(path: Path, machine: dict[str, Any]) -> dict[str, Any]:
    """A result to go on with; raises ValueError where it was measured on another machine, build or protocol."""
    stored = json.loads(path.read_text("utf-8"))
    if stored["machine"] != json.loads(json.dumps(machine)) or stored.get("protocol", 1) != PROTOCOL:
        raise ValueError(f"OUT must be a new file, or one of this machine, build and protocol; {path} is of another")
    return stored


def selected_cells(options: argparse.Namespace) -> list[Cell]:
    """The documented cells, or the product of what the options name."""
    named = (options.batches, options.groups, options.layers, options.width, options.weights, options.outputs)
    if all(value is None for value in named):
        return standard(options.device)
    return [
        Cell(options.layers or 24, options.width or 512, batch, group, weights, options.outputs or on_device)
        for on_device in ("float32" if options.device == "cpu" else "bfloat16",)
        for weights in options.weights or ["float32"]
        for batch in options.batches or [1, 8, 32]
        for group in options.groups or [2, 4, 8]
    ]


def parse(argv: list[str] | None) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__)
    parser.add_argument("out", type=Path, help="JSON file of the result; an interrupted measurement goes on")
    parser.add_argument("--table", action="store_true", help="only print the table of a stored result")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--batches", type=int, nargs="+")
    parser.add_argument("--groups", type=int, nargs="+")
    parser.add_argument("--layers", type=int, help="24 unless given")
    parser.add_argument("--width", type=int, help="512 unless given")
    dtypes = ["float32", "bfloat16"]
    parser.add_argument("--weights", choices=dtypes, nargs="+", help="dtypes of W: float32 unless given")
    parser.add_argument("--outputs", choices=dtypes, help="dtype of W_s: float32 on a CPU, bfloat16 on a card")
    parser.add_argument("--rounds", type=int, help="in which all providers take turns; 3 on a CPU, 5 on a card")
    parser.add_argument("--no-compile", action="store_true", help="leave the compiled baselines out")
    parser.add_argument("--slow", type=float, default=None, help="seconds; slower baselines are not measured")
    parser.add_argument("--cell-seconds", type=float, default=None, help="seconds a cell may take, roughly")
    parser.add_argument("--seconds", type=float, default=None, help="begin no cell that would end after as many")
    return parser, parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Returns 1 if any of our kernels was wrong, which is then not timed."""
    begin = time.monotonic()
    parser, options = parse(argv)
    if options.table:
        print(table(json.loads(options.out.read_text("utf-8"))))
        return 0
    on_card = options.device == "cuda"
    try:
        machine = machine_of(options.device)
        described = machine.describe()
        result = {"protocol": PROTOCOL, "machine": described, "cells": []}
        if options.out.exists():
            result = load(options.out, described)
    except (RuntimeError, ValueError) as error:
        parser.error(str(error))
    kernels = backends(options.device)
    if not kernels:
        parser.error(f"none of our kernels run on {options.device} here; python -m projkern.env says why")
    keep_freed_memory()
    settings = Settings(
        rounds=options.rounds or (5 if on_card else 3),
        compiled=not options.no_compile,
        slow=options.slow or (3.0 if on_card else 20.0),
        seconds=options.cell_seconds,
    )
    # A cell with a red provider is measured again: its kernels may have been mended.
    result["cells"] = [cell for cell in result["cells"] if not cell.get("red")]
    done = {Cell.from_json(cell) for cell in result["cells"]}
    longest = 0.0
    for cell in tqdm([cell for cell in selected_cells(options) if cell not in done], unit=" cells"):
        start = time.monotonic()
        if options.seconds is not None and start - begin + longest > options.seconds:
            print("The time is over; the same command goes on from here.", file=sys.stderr)
            break
        result["cells"].append(measure(cell, machine, settings, kernels))
        write_result(options.out, result)
        machine.clear()
        longest = max(longest, time.monotonic() - start)
    print(table(result))
    red = [(cell, name) for cell in result["cells"] for name in cell.get("red", ())]
    for cell, name in red:
        print(f"RED: {name} at B = {cell['batch']}, g = {cell['group']}: {cell['failed'][name]}", file=sys.stderr)
    return int(bool(red))


if __name__ == "__main__":
    sys.exit(main())
