"""``python -m projkern.compress``: a smaller model of the same class from a pretrained language model."""

import argparse
import sys
import time
from pathlib import Path

from .utils import command
from .utils.settings import add_options, given_options

EXAMPLES = """
examples:
  python -m projkern.compress MODEL --text book.txt notes.txt.gz --out small     half of the parameters
  python -m projkern.compress MODEL --text book.txt --keep 0.3 --tokens 20M --out small
  python -m projkern.compress MODEL --text book.txt --hidden-size 288 --intermediate-size 768 --out small
  python -m projkern.compress MODEL --generate 2M --out small                    no text: the model writes its own
  python -m projkern.compress --out small --resume                               go on after an interruption

MODEL is a checkpoint folder of a dense decoder that transformers builds in (Llama, Mistral, Qwen, Gemma, Phi, ...).
The result, small/model, is an ordinary checkpoint of the same class: AutoModelForCausalLM.from_pretrained reads it.
"""


def parser() -> argparse.ArgumentParser:
    """The command line: one option for each setting."""
    from .compression.config import CompressConfig

    parser = command.parser(
        "compress",
        "Compress a pretrained language model: project its weights to smaller ones and train the projections.",
        EXAMPLES,
    )
    parser.add_argument("model", nargs="?", metavar="MODEL", help="folder of the source")
    parser.add_argument("--out", type=Path, metavar="DIR", help="the result's folder (default: a new one under runs/)")
    command.add_state(parser, "continue what --out holds, with its own settings", "replace what is in --out")
    add_options(parser, CompressConfig())
    return parser


def compress_model(options: argparse.Namespace) -> str:
    """Compress what the options name; returns the table of losses, and where the files are."""
    from .compression.config import CompressConfig
    from .compression.report import table
    from .compression.run import resumed_config, run

    changes = given_options(options, CompressConfig())
    if options.resume:
        config = resumed_config(options.out, changes)
    else:
        config = CompressConfig().replace(**changes)
    summary = run(options.out, config, resume=options.resume, overwrite=options.overwrite)
    out = options.out
    return f"\n{table(summary)}\n\nWrote {out}/model, {out}/report.md and {out}/summary.json."


def when_stopped(options: argparse.Namespace) -> str:
    if not (options.out / "config.json").exists():
        return "Nothing was begun"
    return f"To go on: python -m projkern.compress --out {options.out} --resume"


def check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Complete the options, or end with status 2 where they contradict each other."""
    if options.resume and options.out is None:
        parser.error("--resume needs --out, the folder of the compression to continue")
    if not options.resume and options.model is None:
        parser.error("MODEL is needed, the folder of the source")
    if options.model is None:
        del options.model  # that of the run that is continued
    if not options.resume and not hasattr(options, "text") and not hasattr(options, "generate"):
        parser.error("--text FILE... is needed, or --generate N for text that the model writes itself")
    options.out = options.out or Path("runs") / time.strftime("%Y%m%d-%H%M%S")


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    return command.run(parser(), argv, compress_model, when_stopped, check)


if __name__ == "__main__":
    sys.exit(main())
else:
    from .compression.api import compress

    # As in project.py: let ``import projkern.compress`` bind the function that the package exports.
    sys.modules[__name__] = compress  # type: ignore[assignment]
