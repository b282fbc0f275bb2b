"""``python -m experiments.compression.larger MODEL``: pruning beside projection on a larger model, on its own text.

The defaults are for a model of about 135 million parameters and a quarter of an hour on one large card. The same
command goes on after an interruption.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from projkern.compression.config import OPTIMIZERS, CompressConfig, TuningConfig
from projkern.compression.run import TOKENS, run
from projkern.utils import command
from projkern.utils.files import SETTINGS, write_json
from projkern.utils.settings import count

from .page import LARGER, METHODS, PAGE, write_tables

RESULTS = Path("experiments/results/compression")


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m experiments.compression.larger", description=__doc__)
    parser.add_argument("model", type=Path, help="folder of the source")
    parser.add_argument("--keep", type=float, default=0.5, help="share of the parameters (default: %(default)s)")
    parser.add_argument("--generate", type=count, default=4_000_000, help="tokens that it writes (default: 4M)")
    parser.add_argument("--tokens", type=count, default=12_000_000, help="tokens of training (default: 12M)")
    parser.add_argument("--length", type=int, default=512, help="of a window (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=64, help="windows a step (default: %(default)s)")
    parser.add_argument("--held-out", type=int, default=256, help="windows (default: %(default)s)")
    parser.add_argument(
        "--optimizer", choices=OPTIMIZERS, default=TuningConfig.optimizer, help="of both (default: %(default)s)"
    )
    for method in METHODS:
        parser.add_argument(f"--{method}-lr", type=float, help=f"peak rate of {method} (default: the method's own)")
    parser.add_argument("--out", type=Path, default=Path("runs/larger"), help="of both runs (default: %(default)s)")
    return parser


def work(options: argparse.Namespace) -> str:
    names = ("keep", "tokens", "length", "batch_size", "held_out", "optimizer")
    base = CompressConfig().replace(
        model=str(options.model.resolve()), importance="activation", **{name: getattr(options, name) for name in names}
    )
    rows, text = [], options.out.resolve() / METHODS[0] / TOKENS
    for method in METHODS:
        source = {"generate": options.generate} if method == METHODS[0] else {"generate": None, "text": (str(text),)}
        folder = options.out / method
        config = base.replace(method=method, lr=getattr(options, f"{method}_lr"), **source)
        rows.append(run(folder, config, resume=(folder / SETTINGS).exists()))
        write_json(RESULTS / LARGER, {"model": options.model.name, "optimizer": options.optimizer, "rows": rows})
    write_tables(RESULTS / "stories.json")
    return f"Wrote {RESULTS / LARGER} and its table in {PAGE}."


def main(argv: list[str] | None = None) -> int:
    return command.run(parser(), argv, work)


if __name__ == "__main__":
    sys.exit(main())
