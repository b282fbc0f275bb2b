"""``python -m projkern VERB`` in several ranks: ``rank_verbs.py N VERB OPTIONS``."""

from __future__ import annotations

import importlib
import sys
from functools import partial

from ranks import fork

from projkern.__main__ import main

if __name__ == "__main__":
    importlib.import_module("projkern.training.run")  # before the fork: what all ranks need
    ranks, *words = sys.argv[1:]
    sys.exit(max(abs(code or 0) for code in fork(int(ranks), partial(main, words))))
