"""What the model of bytes and multiply-adds expects of a card, unmeasured: ``python -m benchmarks.predict``.

The longer of a part's least traffic over the speed of a large copy, and its least arithmetic over the rate of float32
multiply-adds (``roofline.py``). Nothing is executed. Kernels that combine rows on tensor cores may pass the arithmetic
limit; no kernel passes the one of memory, unless caches hold its data.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from .roofline import PARTS, Cell


@dataclass(frozen=True)
class Speeds:
    """A card's two rates, and where they are from."""

    name: str
    copy_bytes_per_second: float
    flops_per_second: float
    source: str


H200 = Speeds(
    "NVIDIA H200",
    4.3e12,
    67e12,
    "4.3 TB/s (taken for a large copy, bytes read and written; the datasheet has 4.8) and 67 TFLOP/s (the datasheet's, "
    "float32)",
)
TITLE = "PREDICTION, NOT MEASURED"


def predict(cell: Cell, speeds: Speeds = H200) -> dict[str, tuple[float, str]]:
    """Seconds of "forward", "backward" and "both", and what sets each of the first two."""
    floors = {part: cell.least_seconds(part, speeds.copy_bytes_per_second, speeds.flops_per_second) for part in PARTS}
    return {**floors, "both": (sum(seconds for seconds, _ in floors.values()), "")}


def table(weights: str = "float32", outputs: str = "bfloat16", speeds: Speeds = H200) -> str:
    """The predicted times of all 24 layers at d = 512 as Markdown."""
    lines = [
        f"**{TITLE}**: the least times on an {speeds.name} by the model of bytes and multiply-adds, at "
        f"{speeds.source}. 24 layers, d = 512, W in {weights}, W_s in {outputs}.",
        "",
        "| B | g | forward, ms | set by | backward, ms | set by | both, ms |",
        "|--:|--:|--:|---|--:|---|--:|",
    ]
    for batch in (1, 8, 32, 128):
        for group in (2, 4, 8):
            times = predict(Cell(24, 512, batch, group, weights, outputs), speeds)
            parts = " | ".join(f"{1e3 * times[part][0]:.3f} | {times[part][1]}" for part in PARTS)
            lines.append(f"| {batch} | {group} | {parts} | {1e3 * times['both'][0]:.3f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.predict", description=__doc__)
    parser.add_argument("--weights", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--outputs", choices=["float32", "bfloat16"], default="bfloat16")
    options = parser.parse_args()
    print(table(options.weights, options.outputs))


if __name__ == "__main__":
    main()
