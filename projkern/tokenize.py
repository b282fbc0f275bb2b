"""``python -m projkern.tokenize``: real images as tokens, each with its task identifier."""

import argparse
import sys
from pathlib import Path

from .tokenization.config import TokenizeConfig
from .utils import command
from .utils.settings import add_options, given_options, require_unchanged

DEFAULTS = TokenizeConfig()
EXAMPLES = """
images are one of
  DIR/class/*.jpg              a folder of class folders; both are sorted, the label is the index of the class
  FILE.npz                     JPEG files end to end: jpeg, offsets, labels and optionally names
  DIR/*.npz or FILE.npz        the downsampled ImageNet: data (n, 3 S S) uint8, labels from 1

--embeddings has a row for each image, in the order of the images.

examples:
  python -m projkern.tokenize --train imagenet/train --validation imagenet/val --embeddings simclr.npz --out tokens
  python -m projkern.tokenize --train train.npz --validation val.npz --encoder timm:resnet50 --size 32 --out tokens
  python -m projkern.tokenize --out tokens --resume            go on after an interruption
"""


def parser() -> argparse.ArgumentParser:
    """The command line: one option for each setting."""
    parser = command.parser(
        "tokenize",
        "Train a VQ-VAE on images and write them as tokens, each with its t, for projkern.train --data.",
        EXAMPLES,
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the tokens go")
    command.add_state(parser, "continue what --out holds, with its own settings", "replace what is in --out")
    command.add_device(parser)
    add_options(parser, DEFAULTS)
    return parser


def tokenize(options: argparse.Namespace) -> str:
    """Tokenise the images that the options name."""
    from .tokenization.run import run

    changes = given_options(options, DEFAULTS)
    if options.resume:
        config = TokenizeConfig.read(options.out)
        require_unchanged(config, changes, f"{options.out}/config.json")
    else:
        config = TokenizeConfig(**changes)
    contents = run(options.out, config, resume=options.resume, overwrite=options.overwrite, device=options.device)
    counts, share = contents["counts"], contents["tokenizer"]["validation"]["usage"]
    return (
        f"Wrote {counts['train']:,} training and {counts['validation']:,} validation images, each "
        f"{contents['grid'] ** 2} tokens, to {options.out} ({share:.0%} of {contents['vocabulary']} codes used); "
        f"see {options.out}/report.md."
    )


def when_stopped(options: argparse.Namespace) -> str:
    if not (options.out / "config.json").exists():
        return "Nothing was begun"
    return f"To go on: python -m projkern.tokenize --out {options.out} --resume"


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    return command.run(parser(), argv, tokenize, when_stopped)


if __name__ == "__main__":
    sys.exit(main())
