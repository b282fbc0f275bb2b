"""Experiments of a second or two. As a program it is the command, with trainings of 60 steps."""

import dataclasses
import sys
from concurrent.futures import Executor, Future

import numpy as np

from experiments import plans, pool, sizes, step_cost
from projkern import reproduce

TINY = dataclasses.replace(
    sizes.MINI,
    base=sizes.MINI.base.replace(
        **{"side": 4, "vocab_size": 8, "n_layer": 1, "n_embd": 32, "rank": 2, "batch_size": 4, "warmup": 1},
        **{"source_steps": 4, "steps": 4, "log_every": 2, "checkpoint_every": 2, "eval_images": 8},
    ),
    brief=3,
    seeds=1,
    tokens={"source_steps": 3, "steps": 3},
    tokenizer={"size": 8, "codes": 16, "steps": 3, "batch": 4},
)
LABELS = ("M_1", "P_1/4", "M~_1/4")


def few(plan, seed):
    """Three rows of Table 1, one of which builds on another."""
    return (row for row in plans.table1(plan, seed) if row[0] in LABELS)


class Here(Executor):
    """In place of worker processes: each job runs at once, in this one."""

    def __init__(self, workers, context, begin, shared):
        pool._updates, pool._stop = shared

    def submit(self, work, *arguments):
        future = Future()
        try:
            future.set_result(work(*arguments))
        except Exception as error:
            future.set_exception(error)
        return future


def write_mnist(folder):
    """A folder of MNIST's four files, with a few digits of noise."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for split, n in (("train", 8), ("t10k", 4)):
        for name, array in (("images-idx3", rng.integers(0, 256, (n, 28, 28))), ("labels-idx1", np.arange(n))):
            header = np.array([0x0800 + array.ndim, *array.shape], ">u4").tobytes()
            (folder / f"{split}-{name}-ubyte").write_bytes(header + array.astype(np.uint8).tobytes())
    return folder


def with_steps(steps):
    """The tiny size, with longer trainings."""
    changes = {"source_steps": steps, "steps": steps, "checkpoint_every": 10}
    return dataclasses.replace(TINY, base=TINY.base.replace(**changes))


if __name__ in ("__main__", "__mp_main__"):  # the latter in the workers
    step_cost.WARM_UP = step_cost.STEPS = 1
if __name__ == "__main__":
    sizes.SIZES["mini"], plans.ON_SYNTHMNIST["table1"] = with_steps(60), few
    sys.exit(reproduce.main())
