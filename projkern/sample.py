"""``python -m projkern.sample``: images drawn from a trained run's models or from one generated model."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from .data import TASK_DIM, texture
from .models.decode import Decoder
from .options import add_scale_and_tasks, seed
from .sampling import check_draws, sample
from .signals import terminate_as_interrupt
from .training.checkpoint import CheckpointError
from .training.data import draw_run_tasks, read_run_tasks
from .training.trained import TrainedRun

EXAMPLES = """
examples:
  python -m projkern.sample runs/quick --scale 1/4 --random 8          one image for each of eight random tasks
  python -m projkern.sample runs/quick --scale 1/4 --t task.json --images 8 --top-p 0.9
  python -m projkern.sample model --images 8 --temperature 0.8         of what projkern.project wrote
"""
FROM_A_RUN = ("scale", "t", "random", "form")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python -m projkern.sample",
        description="Draw images, each for its own task, into one picture beside what the tasks mean.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("path", type=Path, help="folder of a trained run, or of a model in GPT-2's format")
    run = made.add_argument_group("of a run")
    add_scale_and_tasks(run, required=False)
    run.add_argument(
        "--form",
        choices=("auto", "materialised", "factored"),
        help="whether to write each task's weights, or read the source at each token (default: auto, by measured time)",
    )
    made.add_argument("--images", type=int, metavar="N", help="images of each task (default: 1; of a model: 8)")
    made.add_argument("--temperature", type=float, default=1.0, help="0 takes the likeliest colour (default: 1)")
    made.add_argument("--top-k", type=int, metavar="K", help="draw from the K likeliest colours")
    made.add_argument("--top-p", type=float, metavar="P", help="draw from the likeliest colours, of probability P")
    made.add_argument("--seed", type=seed, default=0, help="of the draws and of --random (default: 0)")
    made.add_argument("--out", type=Path, default=Path("samples.png"), help="the picture (default: samples.png)")
    made.add_argument("--overwrite", action="store_true", help="replace --out if it is there")
    return made


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    options = parser().parse_args(argv)
    terminate_as_interrupt()
    try:
        check(options)
        said = draw(options)
    except KeyboardInterrupt:
        print("\nstopped; nothing was written", file=sys.stderr)
        return 130
    except (ValueError, OSError, ImportError, CheckpointError, MemoryError) as error:
        print(f"projkern.sample: error: {error}", file=sys.stderr)
        return 1
    print(said)
    return 0


def check(options: argparse.Namespace) -> None:
    """Raise for what can be known to fail before anything is read."""
    check_draws(options.temperature, options.top_k, options.top_p)
    if options.images is not None and options.images < 1:
        raise ValueError(f"--images must be at least 1; it was {options.images}")
    if options.out.exists() and not options.overwrite:
        raise FileExistsError(f"{options.out} exists; give --overwrite to replace it, or another --out")
    if not options.out.parent.is_dir() or options.out.is_dir():
        raise ValueError(f"--out must be a file in a folder that exists; it was {options.out}")


class Asked(NamedTuple):
    """What the options ask for."""

    decoder: Decoder
    images_of: Callable[[Tensor], Tensor]  # tokens (B, T) -> images (B, 3, S, S)
    meant: Tensor | None  # (U, 3, S, S): what each task means, where that is known
    tasks: int  # U; the decoder's sequences are as many for each


def draw(options: argparse.Namespace) -> str:
    """Draw what the options ask for, and write the picture; returns the line to end with."""
    from .pictures import beside_tasks

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    is_model = _is_model(options.path)
    asked = (_of_model if is_model else _of_run)(options, device)
    drawn = sample(
        asked.decoder,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        seed=options.seed,
    )
    images = asked.images_of(drawn.tokens).cpu()
    beside_tasks(
        options.out,
        images.unflatten(0, (asked.tasks, -1)),
        asked.meant,
        options.path.resolve().name + ("" if is_model else f", s = {options.scale}"),
    )
    return (
        f"Wrote {len(images)} image{'' if len(images) == 1 else 's'} to {options.out}: "
        f"{drawn.tokens_per_second:,.0f} tokens per second, {drawn.seconds:.1f} s."
    )


def _is_model(folder: Path) -> bool:
    """Whether it holds a model in another library's format; a folder that is neither is left to say so as a run."""
    try:
        return "model_type" in json.loads((folder / "config.json").read_text())
    except (OSError, ValueError, TypeError):
        return False


def _of_run(options: argparse.Namespace, device: torch.device) -> Asked:
    run = TrainedRun.open(options.path, device)
    if options.scale is None:
        known = ", ".join(map(str, run.config.scales))
        raise ValueError(f"--scale must be given for a run; {options.path} has {known}")
    if options.t is None and options.random is None:
        raise ValueError("--t or --random must be given for a run")
    tokens = None
    if options.t is not None:
        t = read_run_tasks(run.config, options.t).view(-1, run.config.task_dim)
    else:
        t, tokens = draw_run_tasks(run.config, options.random, options.seed)
    meant = None if tokens is None else run.decode(tokens.to(device))
    if run.config.data is None:
        meant = texture(t, run.config.image_size)
    rows = t.repeat_interleave(options.images or 1, 0).to(device)
    return Asked(run.operator(options.scale).decoder(rows, form=options.form or "auto"), run.decode, meant, len(t))


def _of_model(options: argparse.Namespace, device: torch.device) -> Asked:
    from .exchange import gpt2  # transformers takes seconds to import

    given = [f"--{name}" for name in FROM_A_RUN if getattr(options, name) is not None]
    if given:
        raise ValueError(f"{', '.join(given)} must be left out for a model, which was made for one task already")
    found = gpt2.load(options.path)
    if found.palette is None:
        raise ValueError(
            f"{options.path} must hold a palette, the colours of its tokens; it holds none. If it comes from a run on "
            "tokenised images, sample that run: it holds their tokenizer"
        )
    decoder = found.model.to(device).decoder(options.images or 8)
    size = math.isqrt(decoder.positions)
    if size**2 != decoder.positions:
        raise ValueError(f"{options.path} must hold a model of square images; it has {decoder.positions} positions")
    t = (found.provenance or {}).get("t")
    known = t is not None and len(t) == TASK_DIM
    meant = texture(torch.tensor([t]), size) if known else None
    return Asked(decoder, found.palette.to(device).decode, meant, 1)


if __name__ == "__main__":
    sys.exit(main())
