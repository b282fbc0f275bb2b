"""The processes of one training, as torchrun starts them: their rows of a batch, and what they agree on.

No other file knows of ranks. Without torchrun there is one process, and nothing here does anything.
"""

from __future__ import annotations

import gc
import hashlib
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..utils.command import Interrupted
from ..utils.errors import InputError, ProjkernError

Value = TypeVar("Value")
_FIRST_ERROR = "projkern: first error"
_BUCKET = 1 << 23
"""Numbers that travel together: small gradients share a message, large ones have their own."""


class RankError(ProjkernError, RuntimeError):
    """An error of one process, with the rank that it came from, or of the connection between them."""


@dataclass(frozen=True)
class Ranks:
    """The processes of a training; this one is number ``rank`` of ``size``.

    All of them call every method that takes part in an exchange, in the same order. Each raises RankError where another
    process has ended.
    """

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes the folder, the log and the progress bar."""
        return self.rank == 0

    def continued(self, resume: bool, overwrite: bool) -> dict[str, bool]:
        """How to open the folder: as it was asked, or resumed where torchrun has started the processes again."""
        is_restart = dist.is_torchelastic_launched() and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
        return {"resume": resume or is_restart, "overwrite": overwrite and not is_restart}

    def require_even(self, batch: int, each: int, source_batch: int | None = None) -> None:
        """Raise InputError unless the tasks of a batch, each with ``each`` rows, can be dealt evenly."""
        for name, rows in (("batch_size", batch), ("source_batch", source_batch or batch)):
            if rows % (each * self.size):
                raise InputError(
                    f"{name} must be a multiple of {each} rows a task times {self.size} ranks; it was {rows}"
                )

    def share(self, rows: Tensor, each: int) -> Tensor:
        """This process's rows of a batch.

        Args:
            rows: (B, ...); tasks lie side by side.
            each: k, the rows of a task.

        Returns:
            (B / R, ...): tasks r, r + R, ..., so that the first rows of all processes are the first of the batch.
        """
        return rows if self.size == 1 else rows.unflatten(0, (-1, each))[self.rank :: self.size].flatten(0, 1)

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace each gradient by its mean over the processes, which have gradients of the same parameters."""
        if self.size > 1:
            self._average([p.grad for p in parameters if p.grad is not None])

    def average(self, values: Tensor) -> Tensor:
        """The mean over the processes."""
        if self.size > 1:
            values = values.clone()
            self._average([values])
        return values

    def any(self, flag: bool) -> bool:
        """Whether it is true of any process."""
        if self.size == 1:
            return flag
        flags = torch.tensor(int(flag))
        with _connected():
            dist.all_reduce(flags, dist.ReduceOp.MAX)
        return bool(flags)

    def from_main(self, value: Value) -> Value:
        """The main process's value."""
        if self.size == 1:
            return value
        values = [value]
        with _connected():
            dist.broadcast_object_list(values, device=torch.device("cpu"))
        return values[0]

    def all(self, value: Value) -> list[Value]:
        """The value of each process."""
        values = [value] * self.size
        if self.size > 1:
            with _connected():
                dist.all_gather_object(values, value)
        return values

    def broadcast(self, module: nn.Module) -> None:
        """Give all processes the main one's parameters and buffers."""
        if self.size > 1:
            with _connected(), torch.no_grad():
                for tensor in module.state_dict().values():
                    dist.broadcast(tensor, 0)

    def require_same(self, name: str, *values: Any) -> None:
        """Raise InputError, which names the first rank that differs, unless all processes have these values."""
        if self.size == 1:
            return
        parts = (v.detach().cpu().numpy().tobytes() if isinstance(v, Tensor) else repr(v).encode() for v in values)
        hashes = self.all(hashlib.sha256(b"\0".join(parts)).hexdigest())
        for rank, digest in enumerate(hashes):
            if digest != hashes[0]:
                raise InputError(f"{name} must be the same on all ranks; on rank {rank} it is not that of rank 0")

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """A block that the main process runs before the others, which find what it has written."""
        if self.size > 1 and not self.is_main:
            self.any(False)
        yield
        if self.size > 1 and self.is_main:
            self.any(False)

    @contextmanager
    def on_main(self, context: AbstractContextManager[None]) -> Iterator[None]:
        """A context that the main process alone enters, between what all do before and the block."""
        self.any(False)
        with context if self.is_main else nullcontext():
            self.any(False)
            yield

    def finish(self) -> None:
        """End the work in common: all but the main process end here, with exit status 0."""
        if self.size == 1:
            return
        gc.collect()
        self.any(False)
        dist.destroy_process_group()
        if not self.is_main:
            sys.exit(0)

    def _average(self, tensors: list[Tensor]) -> None:
        with _connected(), torch.no_grad():
            for bucket in _buckets(tensors):
                flat = bucket[0].view(-1) if len(bucket) == 1 and bucket[0].is_contiguous() else _flat(bucket)
                dist.all_reduce(flat)
                flat /= self.size
                if flat.data_ptr() != bucket[0].data_ptr():
                    for tensor, mean in zip(bucket, flat.split([t.numel() for t in bucket])):
                        tensor.copy_(mean.view_as(tensor))


def current() -> Ranks:
    """The processes of the training that this one belongs to."""
    if not dist.is_available() or not dist.is_initialized():
        return Ranks()
    return Ranks(dist.get_rank(), dist.get_world_size())


@contextmanager
def processes() -> Iterator[Ranks]:
    """The processes that torchrun has started, connected for as long as the block runs; else this one alone.

    The first of them that raises an error reports it, with its rank; the others end silently. All but the main one
    print nothing.
    """
    if "WORLD_SIZE" not in os.environ or dist.is_initialized():
        yield current()
        return
    ranks, store = Ranks(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])), _store()
    has_cards = torch.cuda.is_available()
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if has_cards else "gloo",
        store=store,
        rank=ranks.rank,
        world_size=ranks.size,
        device_id=_card() if has_cards else None,
    )
    try:
        with nullcontext() if ranks.is_main else redirect_stdout(StringIO()):
            yield ranks
    except (Interrupted, KeyboardInterrupt):
        if not ranks.is_main:
            sys.exit(130)
        raise
    except Exception as error:
        if ranks.size == 1:
            raise
        if not _is_first(store, ranks):
            sys.exit(1)
        if isinstance(error, (ProjkernError, OSError, MemoryError)):
            raise RankError(f"rank {ranks.rank} of {ranks.size}: {error}") from error
        raise


def local_device(name: str) -> str:
    """The device that a setting names, on this process: of several cards of a machine, the one of its local rank.

    Raises:
        InputError: a machine with fewer cards than processes.
    """
    if "LOCAL_RANK" not in os.environ or name not in ("auto", "cuda") or not torch.cuda.is_available():
        return name
    return str(_card())


def _card() -> torch.device:
    rank, cards = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if rank >= cards:
        raise InputError(f"ranks of a machine must each have a CUDA card; local rank {rank} has none of the {cards}")
    torch.cuda.set_device(rank)
    return torch.device("cuda", rank)


def _store() -> dist.Store:
    """What the processes find each other by, apart from that of those before a restart."""
    environment = os.environ
    is_host = environment["RANK"] == "0" and environment.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    port = int(environment["MASTER_PORT"])
    store = dist.TCPStore(environment["MASTER_ADDR"], port, is_master=is_host, wait_for_workers=False)
    return dist.PrefixStore(f"attempt {environment.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def _is_first(store: dist.Store, ranks: Ranks) -> bool:
    """Whether no other process has reported an error before."""
    try:
        return store.compare_set(_FIRST_ERROR, "", str(ranks.rank)) == str(ranks.rank).encode()
    except RuntimeError:  # the process that holds the store has ended
        return False


@contextmanager
def _connected() -> Iterator[None]:
    """Turn a lost connection into an error that a user can read."""
    try:
        yield
    except RuntimeError as error:
        raise RankError("the connection to another rank is lost; its own message says why") from error


def _buckets(tensors: list[Tensor]) -> Iterator[list[Tensor]]:
    """Tensors of one type, up to so many numbers in each list."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        size = sum(t.numel() for t in bucket)
        if bucket and (size + tensor.numel() > _BUCKET or tensor.dtype != bucket[0].dtype):
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket


def _flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])
