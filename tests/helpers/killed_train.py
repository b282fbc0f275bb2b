"""``python -m projkern.train``, in which the last rank is killed once, in the middle: ``killed_train.py OPTIONS``."""

from __future__ import annotations

import itertools
import os
import signal
import sys

from projkern import train
from projkern.training.distributed import Ranks

AT = 150
"""Steps of all trainings before the kill."""


def main() -> int:
    average, steps = Ranks.average_gradients, itertools.count()

    def average_or_die(self, parameters):
        is_last = self.rank == self.size - 1 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
        if is_last and next(steps) == AT:
            os.kill(os.getpid(), signal.SIGKILL)
        average(self, parameters)

    Ranks.average_gradients = average_or_die
    return train.main()


if __name__ == "__main__":
    sys.exit(main())
