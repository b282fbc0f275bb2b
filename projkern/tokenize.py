"""``python -m projkern.tokenize``: real images as tokens, each with its task identifier."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import typing
from pathlib import Path
from typing import Any

from .data.images import DamagedFile
from .options import require_unchanged
from .signals import terminate_as_interrupt
from .tokenizing import TokenizeConfig, run
from .training.checkpoint import CheckpointError
from .training.loop import Diverged

EXAMPLES = """
images are one of
  DIR/class/*.jpg              a folder of class folders; both are sorted, the label is the index of the class
  FILE.npz                     JPEG files end to end: jpeg, offsets, labels and, if it likes, names
  DIR/*.npz or FILE.npz        the downsampled ImageNet: data (n, 3 S S) uint8, labels from 1

--embeddings has a row for each image, in the order of the images.

examples:
  python -m projkern.tokenize --train imagenet/train --validation imagenet/val --embeddings simclr.npz --out tokens
  python -m projkern.tokenize --train train.npz --validation val.npz --encoder timm:resnet50 --size 32 --out tokens
  python -m projkern.tokenize --out tokens --resume            go on after an interruption
"""


def parser() -> argparse.ArgumentParser:
    """The command line: one option for each setting."""
    made = argparse.ArgumentParser(
        prog="python -m projkern.tokenize",
        description="Train a VQ-VAE on images and write them as tokens, each with its t, for projkern.train --data.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the tokens go")
    state = made.add_mutually_exclusive_group()
    state.add_argument("--resume", action="store_true", help="continue what was begun in --out, with its own settings")
    state.add_argument("--overwrite", action="store_true", help="replace what is in --out")
    settings = made.add_argument_group("settings")
    hints = typing.get_type_hints(TokenizeConfig)
    for field in dataclasses.fields(TokenizeConfig):
        kind: dict[str, Any] = {"metavar": "PATH"}
        if hints[field.name] in (int, float):
            kind = {"type": hints[field.name], "metavar": "N" if hints[field.name] is int else "RATE"}
        elif field.name == "encoder":
            kind = {"metavar": "ENCODER"}
        settings.add_argument(
            f"--{field.name.replace('_', '-')}",
            default=argparse.SUPPRESS,
            help=field.metadata["help"] + ("" if field.default is None else f" (default: {field.default})"),
            **kind,
        )
    return made


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    options = parser().parse_args(argv)
    names = [field.name for field in dataclasses.fields(TokenizeConfig)]
    given = {name: getattr(options, name) for name in names if hasattr(options, name)}
    terminate_as_interrupt()
    out = options.out
    try:
        if options.resume:
            config = TokenizeConfig.read(out)
            require_unchanged(config, given, out)
        else:
            config = TokenizeConfig(**given)
        made = run(out, config, resume=options.resume, overwrite=options.overwrite)
    except KeyboardInterrupt:
        begun = (out / "config.json").exists()
        said = f"stopped. To go on: python -m projkern.tokenize --out {out} --resume" if begun else "stopped"
        print(f"\n{said}", file=sys.stderr)
        return 130
    except (ValueError, OSError, ImportError, CheckpointError, DamagedFile, Diverged, MemoryError) as error:
        print(f"projkern.tokenize: error: {error}", file=sys.stderr)
        return 1
    tokens, counts, used = made["grid"] ** 2, made["counts"], made["tokenizer"]["validation"]["usage"]
    print(
        f"Wrote {counts['train']:,} training and {counts['validation']:,} validation images, each {tokens} tokens, "
        f"to {out} ({used:.0%} of {made['vocabulary']} codes used); see {out}/report.md."
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
