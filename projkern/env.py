"""``python -m projkern.env``: what is installed, what was built, and which backends can run here."""

from __future__ import annotations

import platform
import sys

import torch

from . import __version__
from .kernels import backends, cuda, native


def report() -> str:
    """Versions, backends and the build of the compiled kernels, a line each."""
    lines = [
        f"projkern   {__version__}",
        f"python     {platform.python_version()} on {platform.platform()}",
        f"torch      {torch.__version__}, {torch.get_num_threads()} threads",
        f"CUDA card  {torch.cuda.get_device_name() if torch.cuda.is_available() else 'none'}",
    ]
    for name in backends.NAMES[:-1]:
        lines.append(f"backend    {name}: {backends.why_unavailable(name) or 'ready'}")
    if native.is_available():
        lines += [f"native     {key}: {value}" for key, value in native.build_info().items()]
    if cuda.is_built():
        lines += [f"cuda       {key}: {value}" for key, value in cuda.build_info().items()]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Print the report; takes no arguments but ``--help``."""
    arguments = sys.argv[1:] if argv is None else argv
    if arguments in (["--help"], ["-h"]):
        print(__doc__)
        return 0
    print(report())
    return 0


if __name__ == "__main__":
    sys.exit(main())
