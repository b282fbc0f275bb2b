"""Short trainings of two ranks of which something goes wrong on one; ``rank_faults.py OUT`` does all, each in a fork.

OUT/FAULT/          the folder of a training; OUT/FAULT.log: what its ranks print
OUT/statuses.json   the exit statuses of the ranks, by fault
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import signal
import sys
from functools import partial
from pathlib import Path

import torch
from ranks import fork
from torch import Tensor, nn

from projkern.training import checkpoint, distributed
from projkern.training.loop import Job, train
from projkern.training.metrics import Metrics
from projkern.training.presets import DEBUG
from projkern.training.run import run
from projkern.utils import command

STEPS, AT = 6, 3
FAULTS = ("nan", "full-disk", "killed", "bug", "settings")


def go_wrong(fault: str, rank: int, loss: Tensor) -> Tensor:
    print(f"dropout {nn.functional.dropout(torch.ones(20)).tolist()}", file=sys.stderr, flush=True)
    if fault == "nan" and rank == 1:
        return loss * torch.nan
    if fault == "bug" and rank == 1:
        raise TypeError("this is no that")
    if fault == "killed" and rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "full-disk" and rank == 0:

        def refuse(*arguments: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        checkpoint.write_tensors = refuse
    return loss


def work(fault: str, out: Path, options: argparse.Namespace) -> str:
    if fault == "settings":
        run(out, DEBUG.replace(seed=int(os.environ["RANK"])))
    with distributed.processes("cpu") as ranks:
        torch.manual_seed(0)
        module = nn.Linear(3, 1)
        optimizer = torch.optim.AdamW(module.parameters(), lr=0.1)

        def update(step: int) -> tuple[dict[str, Tensor], Tensor]:
            loss = module(torch.full((2, 3), 1.0 + step + ranks.rank)).square().mean()
            if step == AT:
                loss = go_wrong(fault, ranks.rank, loss)
            loss.backward()
            ranks.average_gradients(module.parameters())
            norm = nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            return {"loss": loss}, norm

        job = Job("faulty", STEPS, module, [optimizer], lambda step: 1.0, update, "rows", 4, 0, 1, 1)
        out.mkdir(exist_ok=True)
        train(job, out / "checkpoint", Metrics(out))
        ranks.finish()
    return f"weights {module.weight.tolist()}"


def main(out: Path) -> None:
    statuses = {}
    for fault in FAULTS:
        job = partial(command.run, argparse.ArgumentParser("faulty"), [], partial(work, fault, out / fault))
        statuses[fault] = fork(2, job, out / f"{fault}.log")
    (out / "statuses.json").write_text(json.dumps(statuses))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
