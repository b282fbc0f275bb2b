"""``python -m projkern.env``: versions, the backends that can run here, and the build of the kernels."""

import argparse
import sys

from .utils import command


def parser() -> argparse.ArgumentParser:
    """The command line: no options but ``--help``."""
    return command.parser("env", "Print versions, the backends that can run here, and how the kernels were built.")


def describe(options: argparse.Namespace) -> str:
    """Versions, backends and the build of the compiled kernels, a line each."""
    import platform

    import torch

    from .kernels import dispatch
    from .utils.version import __version__

    lines = [
        f"projkern   {__version__}",
        f"python     {platform.python_version()} on {platform.platform()}",
        f"torch      {torch.__version__}, {torch.get_num_threads()} threads",
        f"CUDA card  {torch.cuda.get_device_name() if torch.cuda.is_available() else 'none'}",
    ]
    lines += [f"backend    {name}: {dispatch.why_unavailable(name) or 'ready'}" for name in dispatch.BACKENDS]
    for library, info in dispatch.build_info().items():
        lines += [f"{library:<11}{key}: {value}" for key, value in info.items()]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    return command.run(parser(), argv, describe)


if __name__ == "__main__":
    sys.exit(main())
