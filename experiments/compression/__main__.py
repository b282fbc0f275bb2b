"""``python -m experiments.compression``: run the arms that the stored results lack, then write the tables."""

import argparse
import os
import sys
from pathlib import Path

from projkern.data.text import open_tokens, save_tokens, tokenise
from projkern.models.huggingface.causal import PretrainedFolder
from projkern.utils import command

from .arms import BUDGETS, COMMON
from .larger import RESULTS as FOLDER
from .page import PAGE, write_tables
from .sweep import run_arms

RESULTS = FOLDER / "stories.json"


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m experiments.compression", description=__doc__)
    parser.add_argument(
        "--source", type=Path, help="folder of the pretrained model; without it tables are written, no more"
    )
    parser.add_argument("--text", type=Path, help="training text, documents separated by blank lines")
    parser.add_argument("--held-out", type=Path, help="held-out text, likewise")
    parser.add_argument("--out", type=Path, default=Path("runs/compression"), help="folder of the token file")
    parser.add_argument("--results", type=Path, default=RESULTS, help="stored results (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: %(default)s)")
    parser.add_argument("--tokens", type=int, nargs="+", default=list(BUDGETS), help="budgets (default: all)")
    parser.add_argument("--only", default="", help="arms whose name contains this")
    return parser


def work(options: argparse.Namespace) -> str:
    if options.source is not None:
        tokens, held_out = _tokens(options)
        head = {"source": options.source.name, "held_out": held_out, "common": COMMON}
        run_arms(
            options.results,
            head,
            options.source,
            tokens,
            held_out,
            options.workers,
            lambda arm, budget: budget in options.tokens and options.only in arm.name,
        )
    write_tables(options.results)
    return f"Wrote the tables of {options.results} into {PAGE}."


def _tokens(options: argparse.Namespace) -> tuple[Path, int]:
    """The token file, training text first and whole held-out windows last, and how many these are."""
    path, length = options.out / "tokens.npy", int(COMMON["length"])
    options.out.mkdir(parents=True, exist_ok=True)
    source = PretrainedFolder.open(options.source)
    parts = []
    for name in ("text", "held_out"):
        part = options.out / f"{name}.npy"
        if not part.exists():
            file = getattr(options, name)
            tokenise([file], source.tokenizer(), source.config.vocab_size, part, at_blank_lines=True)
        ids = open_tokens(part)
        parts.append(ids[: len(ids) // length * length])
    save_tokens(path, parts, source.config.vocab_size)
    return path, len(parts[1]) // length


def main(argv: list[str] | None = None) -> int:
    return command.run(parser(), argv, work)


if __name__ == "__main__":
    sys.exit(main())
