"""``python -m projkern VERB``, in which the last rank is killed once, after so many steps: ``killed.py VERB N ...``."""

from __future__ import annotations

import itertools
import os
import signal
import sys

from torch.optim.optimizer import register_optimizer_step_pre_hook

from projkern.__main__ import main


def die_at(count: int) -> None:
    """Have the last rank die when its optimizers have made so many steps, unless it is a restart."""
    is_last = os.environ["RANK"] == str(int(os.environ["WORLD_SIZE"]) - 1)
    if not is_last or os.environ["TORCHELASTIC_RESTART_COUNT"] != "0":
        return
    steps = itertools.count()

    def hook(*arguments: object) -> None:
        if next(steps) == count:
            os.kill(os.getpid(), signal.SIGKILL)

    register_optimizer_step_pre_hook(hook)


if __name__ == "__main__":
    verb, count, *options = sys.argv[1:]
    die_at(int(count))
    sys.exit(main([verb, *options]))
