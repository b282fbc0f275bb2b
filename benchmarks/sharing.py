"""Memory and traffic of ranks that share a compression: ``python -m benchmarks.sharing OUT.json``.

Steps of a Llama of random numbers, to half its width, by 1, 2 and 4 ranks on this machine: the highest memory of each
rank's process, and the bytes that the kernel sends for it in a step, beside the formulas of docs/scale.md.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import transformers

from projkern.compression.config import CompressConfig
from projkern.compression.plan import Plan
from projkern.compression.projected import ProjectedModel
from projkern.compression.training import CLIP, make_optimizers
from projkern.models.huggingface.axes import Sizes
from projkern.models.huggingface.causal import PretrainedFolder
from projkern.models.huggingface.stored import open_stored
from projkern.training import distributed

from .compare import write_result
from .machine import machine_of
from .streaming import write_source

RANKS, STEPS, WINDOWS = (1, 2, 4), 2, (4, 64)
SHAPE: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_attention_heads": 16,
    "num_hidden_layers": 8,
    "vocab_size": 8192,
}
_TCP_INFO, _BYTES_SENT = 232, 200
"""The size of struct tcp_info, and where tcpi_bytes_sent lies in it (linux/tcp.h)."""


def sent_bytes() -> int:
    """The bytes that this process has sent over the TCP connections that it has now, as the kernel counts them."""
    total = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            with socket.socket(fileno=os.dup(int(name))) as connection:
                info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO)
        except OSError:  # no TCP connection
            continue
        total += struct.unpack_from("Q", info, _BYTES_SENT)[0]
    return total


def peak_bytes() -> int:
    """The highest resident memory of this process so far."""
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def step_in_a_rank(source: Path, out: Path) -> None:
    """Make steps as one of torchrun's processes, and store what they took."""
    torch.set_num_threads(1)
    with distributed.processes("cpu") as ranks:
        folder, libraries = PretrainedFolder.open(source), peak_bytes()
        model = open_stored(folder, torch.device("cpu"), torch.bfloat16)
        assert model is not None
        sizes = Sizes(SHAPE["hidden_size"] // 2, SHAPE["intermediate_size"] // 2, SHAPE["num_hidden_layers"])
        projected = ProjectedModel(model, Plan.of(model, sizes), ranks=ranks)
        optimizers = make_optimizers(projected, CompressConfig(), 1e-4)
        tokens = ranks.share(torch.arange(WINDOWS[0] * WINDOWS[1]).view(WINDOWS), 1)
        for _ in range(STEPS):
            ranks.wait()
            time.sleep(0.5)  # until the kernel has sent what it was given
            before = sent_bytes()
            projected.materialise()
            projected.small(tokens, labels=tokens, use_cache=False).loss.backward()
            projected.average_gradients()
            projected.clip_gradients(CLIP)
            projected.backward(lambda block: [optimizer.step() for optimizer in optimizers[block]])  # type: ignore[arg-type, return-value]
            ranks.wait()
            time.sleep(0.5)
            sent = sent_bytes() - before
        numbers = sum(p.numel() for p in projected.small.parameters())
        result = {"peak": peak_bytes(), "libraries": libraries, "sent": sent, "small": numbers}
        (out / f"{ranks.rank}.json").write_text(json.dumps(result), encoding="utf-8")
        ranks.finish()


def measure(source: Path, size: int) -> list[dict[str, int]]:
    """What each of so many ranks took."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={size}"]
    with tempfile.TemporaryDirectory() as name:
        command = [*torchrun, "-m", "benchmarks.sharing", name, "--of", str(source)]
        subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"})
        return [json.loads((Path(name) / f"{rank}.json").read_text("utf-8")) for rank in range(size)]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sharing", description=__doc__)
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--of", type=Path, metavar="SOURCE", help=argparse.SUPPRESS)  # in a rank
    options = parser.parse_args()
    if options.of is not None:
        step_in_a_rank(options.of, options.out)
        return 0
    with tempfile.TemporaryDirectory(dir=options.out.parent) as name:
        source, config = Path(name) / "source", transformers.LlamaConfig(**SHAPE, dtype=torch.bfloat16)
        write_source(source, config)
        ranks = {str(size): measure(source, size) for size in RANKS}
    machine = machine_of("cpu").describe() | {"threads": 1}
    write_result(options.out, {"machine": machine, "source": SHAPE, "ranks": ranks})
    return 0


if __name__ == "__main__":
    sys.exit(main())
