"""``python -m projkern.train``: train a source, its baselines and projected models, and compare them."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
import typing
from pathlib import Path
from typing import Any

from .options import require_unchanged, scale
from .signals import terminate_as_interrupt
from .training.checkpoint import CheckpointError
from .training.config import PRESETS, QUICK, TrainConfig
from .training.data import with_settings_of_data
from .training.folder import read_config
from .training.loop import Diverged, Interrupted
from .training.run import run
from .training.source import with_shape_of_source

FOLDERS = ("mnist", "data", "source")
EXAMPLES = """
examples:
  python -m projkern.train                                  a small run: a table and a picture in minutes
  python -m projkern.train --scales 1/2 1/4 --joint         two sizes from one source
  python -m projkern.train --mnist DIR --out runs/mnist     MNIST's digits
  python -m projkern.train --out runs/mnist --resume        go on with an interrupted run
  python -m projkern.train --data tokens --out runs/photos  real images, as projkern.tokenize made tokens of them
  python -m projkern.train --source runs/mnist --scales 1/8   other sizes from the source of another run
"""


def parser() -> argparse.ArgumentParser:
    """The command line: one option for each field of a preset."""
    made = argparse.ArgumentParser(
        prog="python -m projkern.train",
        description="Train a source, its baselines and projected models, and compare them.",
        epilog="presets:\n" + "".join(f"  {name:<8}{what}\n" for name, (what, _) in PRESETS.items()) + EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--preset", choices=PRESETS, help="settings to start from (default: quick)")
    made.add_argument("--out", type=Path, help="the run's folder (default: a new one under runs/)")
    state = made.add_mutually_exclusive_group()
    state.add_argument("--resume", action="store_true", help="continue the run in --out with its own settings")
    state.add_argument("--overwrite", action="store_true", help="delete the run in --out and start again")
    settings = made.add_argument_group("settings (defaults of the quick preset)")
    hints = typing.get_type_hints(TrainConfig)
    for field in dataclasses.fields(TrainConfig):
        default = getattr(QUICK, field.name)
        kind: dict[str, Any]
        if hints[field.name] is bool:
            kind = {"action": argparse.BooleanOptionalAction}
        elif field.name == "scales":
            kind, default = {"type": scale, "nargs": "+", "metavar": "1/G"}, " ".join(map(str, default))
        elif field.name in FOLDERS:
            kind = {"metavar": "DIR"}
        else:
            plain = next(iter(typing.get_args(hints[field.name])), hints[field.name])  # of "float | None", float
            kind = {"type": plain, "metavar": plain.__name__.upper()}
        settings.add_argument(
            f"--{field.name.replace('_', '-')}",
            default=argparse.SUPPRESS,
            help=field.metadata["help"] + ("" if default is None else f" (default: {default})"),
            **kind,
        )
    return made


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    made = parser()
    options = made.parse_args(argv)
    given = {f.name: getattr(options, f.name) for f in dataclasses.fields(TrainConfig) if hasattr(options, f.name)}
    if "scales" in given:
        given["scales"] = tuple(given["scales"])
    if options.resume and options.out is None:
        made.error("--resume needs --out, the folder of the run to continue")
    if options.resume and options.preset is not None:
        made.error(f"--preset must be left out with --resume: a run keeps its settings; it was {options.preset}")
    terminate_as_interrupt()
    out = options.out or Path("runs") / time.strftime("%Y%m%d-%H%M%S")
    try:
        if options.resume:
            config = read_config(out)
            require_unchanged(config, given, out)
        else:
            if "source" in given:
                given = with_shape_of_source(given)
            if "data" in given:
                given = with_settings_of_data(given)
            config = dataclasses.replace(PRESETS[options.preset or "quick"][1], **given)
        summary = run(out, config, resume=options.resume, overwrite=options.overwrite)
    except (Interrupted, KeyboardInterrupt) as stop:
        if (out / "config.json").exists():
            said = f"{str(stop) or 'stopped'}. To go on: python -m projkern.train --out {out} --resume"
        else:
            said = "stopped before the run began"
        print(f"\n{said}", file=sys.stderr)
        return 130
    except (ValueError, OSError, ImportError, CheckpointError, Diverged, MemoryError) as error:
        print(f"projkern.train: error: {error}", file=sys.stderr)
        return 1
    from .training.report import table

    print(f"\n{table(summary)}\n\nWrote {out}/report.md, {out}/samples.png and {out}/summary.json.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
