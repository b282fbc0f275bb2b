"""``python -m projkern.explore``: a local page to move t by hand, and see the models that a trained run makes of it."""

from __future__ import annotations

import argparse
import os
import sys
import threading
from pathlib import Path

import torch

from .exploration.specimens import Specimens
from .training.checkpoint import CheckpointError
from .training.trained import TrainedRun

HOST = "127.0.0.1"  # for this machine's user alone


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python -m projkern.explore",
        description="Serve a local page: sliders for the task identifier t, the texture it means, and samples of the "
        "small models generated for it. Ctrl-C ends it.",
    )
    made.add_argument("run", type=Path, metavar="RUN", help="folder of a finished run of python -m projkern.train")
    made.add_argument("--port", type=int, default=7860, help="where the page is served (default: %(default)s)")
    made.add_argument("--images", type=int, default=8, help="samples of each model (default: %(default)s)")
    made.add_argument("--seed", type=int, default=0, help="of the first t and the samples (default: %(default)s)")
    return made


def main(argv: list[str] | None = None) -> int:
    """Run the command until Ctrl-C; returns its exit status."""
    options = parser().parse_args(argv)
    try:
        serve(options.run, options.port, options.images, options.seed)
    except KeyboardInterrupt:
        sys.stdout.flush()
        os._exit(0)  # now, and not when the drawing that may be on its way in another thread has come to its end
    except (ValueError, OSError, ImportError, CheckpointError) as error:
        print(f"projkern.explore: error: {error}", file=sys.stderr)
        return 1
    return 0


def serve(run: Path, port: int, images: int, seed: int) -> None:
    """Serve the page of a run until it is interrupted.

    Raises:
        ImportError: Gradio is not installed.
        ValueError: no finished run, no image, a seed out of its range, or a port that cannot be had.
        CheckpointError: the run's checkpoint is damaged.
    """
    try:
        from .exploration import page
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise ImportError("the page needs Gradio: pip install 'projkern[explore]'") from None
    if not 1 <= port <= 65535:
        raise ValueError(f"port must be from 1 to 65535; it was {port}")
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed must be at least 0 and below 2^32; it was {seed}")
    trained = TrainedRun.open(run, "cuda" if torch.cuda.is_available() else "cpu")
    made = page.build(Specimens(trained, images), seed)
    try:
        address = page.start(made, HOST, port)
    except OSError as error:
        raise ValueError(f"port must be a free one; it was {port}, which is in use ({error})") from None
    print(f"Serving {run} at {address} (Ctrl-C ends it)", flush=True)
    try:
        threading.Event().wait()
    finally:
        made.close(verbose=False)


if __name__ == "__main__":
    sys.exit(main())
