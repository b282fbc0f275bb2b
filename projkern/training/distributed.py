"""The processes of one training, as torchrun starts them: their rows of a batch, and what they agree on.

No other file but ``sharded.py`` knows of ranks. Without torchrun there is one process, and nothing here does anything.
"""

from __future__ import annotations

import gc
import hashlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass
from datetime import timedelta
from io import StringIO
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.distributed.nn.functional  # first imported later, its default arguments would hold the group for ever
from torch import Tensor, nn

from ..utils.command import Interrupted
from ..utils.config import Config
from ..utils.errors import InputError, ProjkernError

Value = TypeVar("Value")
Settings = TypeVar("Settings", bound=Config)
LONGEST_WAIT = timedelta(days=1)
"""For another process, which may tokenise a large text; a process that has ended is noticed at once."""
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

    @property
    def is_restart(self) -> bool:
        """Whether torchrun has started the processes again, after one of them ended."""
        return self.any(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0")

    def require_even(self, batch: int, each: int, source_batch: int | None = None) -> None:
        """Raise InputError unless the tasks of a batch, each with ``each`` rows, can be dealt evenly."""
        if self.size == 1:
            return
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
        """Replace each gradient by its mean over the processes, which have gradients of the same parameters.

        Those of shards are means already.
        """
        if self.size > 1:
            self._average([p.grad for p in parameters if p.grad is not None and not _is_shard(p)])

    def whole(self, tensor: Tensor) -> Tensor:
        """The whole tensor where each process has a shard of it."""
        if self.size == 1 or not _is_shard(tensor):
            return tensor
        with _connected():
            return tensor.full_tensor()  # type: ignore[attr-defined, no-any-return]

    def average(self, values: Tensor) -> Tensor:
        """The mean over the processes."""
        if self.size > 1:
            values = values.clone()
            self._average([values])
        return values

    def wait(self) -> None:
        """Return once all processes are here."""
        self.any(False)

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

    def gather(self, value: Value) -> list[Value]:
        """The value of each process."""
        values = [value] * self.size
        if self.size > 1:
            with _connected():
                dist.all_gather_object(values, value)
        return values

    def broadcast(self, tensors: Iterable[Tensor], owner: int = 0) -> None:
        """Give all processes what one of them has in these tensors."""
        if self.size > 1:
            with _connected(), torch.no_grad():
                for tensor in tensors:
                    dist.broadcast(tensor, owner)

    def reduce(self, tensor: Tensor, owner: int) -> None:
        """Give one process the mean of a tensor over all; what the others have in it then means nothing."""
        if self.size > 1:
            with _connected(), torch.no_grad():
                dist.reduce(tensor, owner)
                if self.rank == owner:
                    tensor /= self.size

    def norm(self, norm: Tensor) -> Tensor:
        """The norm of all processes' numbers together, from that of each one's own."""
        return (self.average(norm.square()) * self.size).sqrt() if self.size > 1 else norm

    def require_same(self, name: str, make: Callable[[], Iterable[Any]]) -> None:
        """Raise InputError, which names the first rank that differs, unless ``make`` returns the same on all."""
        if self.size == 1:
            return
        parts = (v.detach().cpu().numpy().tobytes() if isinstance(v, Tensor) else repr(v).encode() for v in make())
        hashes = self.gather(hashlib.sha256(b"\0".join(parts)).hexdigest())
        for rank, digest in enumerate(hashes):
            if digest != hashes[0]:
                raise InputError(f"{name} must be the same on all ranks; on rank {rank} it is not that of rank 0")

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """A block that the main process runs before the others, which find what it has written."""
        if not self.is_main:
            self.wait()
        yield
        if self.is_main:
            self.wait()

    @contextmanager
    def on_main(self, context: AbstractContextManager[object]) -> Iterator[None]:
        """A context, a folder's lock, that the main process enters once all are here, and before any goes on."""
        self.wait()
        with context if self.is_main else nullcontext():
            self.wait()
            yield

    def finish(self) -> None:
        """End the work in common: all but the main process end here, with exit status 0."""
        global _current
        if _current is None:
            return
        gc.collect()
        self.wait()
        dist.destroy_process_group()
        _current = None
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


ALONE = Ranks()
"""The one process of a training without torchrun."""
_current: Ranks | None = None
"""The processes that ``processes`` has connected."""


def current() -> Ranks:
    """The processes of the training that this one belongs to."""
    return _current or ALONE


@contextmanager
def processes(device: str) -> Iterator[Ranks]:
    """The processes that torchrun has started, connected for as long as the block runs; else this one alone.

    The first of them that raises an error reports it, with its rank; the others end silently. All but the main one
    print nothing.

    Args:
        device: as in the settings.

    Raises:
        InputError: a machine with fewer cards than processes, or a card by number for several of them.
    """
    global _current
    if _current is not None or not os.environ.keys() >= {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}:
        yield current()
        return
    ranks, store = Ranks(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])), _store()
    try:
        _connect(ranks, store, device)
        _current = ranks
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
        if "gloo/transport" in str(error) and not isinstance(error, RankError):  # of FSDP's messages
            raise _lost_connection(error) from error
        if isinstance(error, (ProjkernError, OSError, MemoryError, torch.OutOfMemoryError)):
            raise RankError(f"rank {ranks.rank} of {ranks.size}: {error}") from error
        raise
    finally:
        _current = None


def run_together(
    work: Callable[[Path, Settings, Ranks, bool, bool], Value],
    out: Path,
    config: Settings,
    resume: bool,
    overwrite: bool,
) -> Value:
    """Do a job in all processes, with one folder and the same settings; after a restart it is resumed.

    Args:
        work: takes the folder, the settings, the processes, ``resume`` and ``overwrite``.
        out: the folder.
        config: the settings, among them "device".
        resume, overwrite: as the user has asked.
    """
    with processes(config.flat()["device"]) as ranks:
        is_restart = ranks.is_restart
        out = ranks.from_main(out)
        ranks.require_same("settings", lambda: [config.flat()])
        return work(out, config, ranks, resume or is_restart, overwrite and not is_restart)


def local_device(name: str) -> str:
    """The device that a setting names, on this process: of several cards of a machine, the one of its local rank."""
    return str(_card()) if current().size > 1 and _takes_cards(name) else name


def _takes_cards(device: str) -> bool:
    return device != "cpu" and torch.cuda.is_available()


def _connect(ranks: Ranks, store: dist.Store, device: str) -> None:
    if ranks.size > 1 and device.startswith("cuda:"):
        raise InputError(
            f"device must be auto, cpu or cuda for {ranks.size} ranks, which take a card each; it was {device}"
        )
    has_cards = _takes_cards(device)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if has_cards else "gloo",
        store=store,
        rank=ranks.rank,
        world_size=ranks.size,
        timeout=LONGEST_WAIT,
        device_id=_card() if has_cards else None,
    )


def _card() -> torch.device:
    rank, cards = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if rank >= cards:
        raise InputError(f"ranks of a machine must each have a CUDA card; local rank {rank} has none of the {cards}")
    torch.cuda.set_device(rank)
    return torch.device("cuda", rank)


def _store() -> dist.Store:
    """What the processes find each other by. torchrun's own outlives a restart: there, each has a part of its own."""
    is_torchrun_s = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    is_host = os.environ["RANK"] == "0" and not is_torchrun_s
    port = int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(os.environ["MASTER_ADDR"], port, is_master=is_host, wait_for_workers=False)
    if not is_torchrun_s:
        return store
    return dist.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


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
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise _lost_connection(error) from error


def _lost_connection(error: Exception) -> RankError:
    reason = str(error).partition("\n")[0]
    return RankError(f"the connection to another rank is lost; its own message says why ({reason})")


def _is_shard(tensor: Tensor) -> bool:
    module = sys.modules.get("torch.distributed.tensor")  # it takes a second to import; without it there are none
    return module is not None and isinstance(tensor, module.DTensor)


def _buckets(tensors: list[Tensor]) -> Iterator[list[Tensor]]:
    """Tensors of one type, up to so many numbers in each list."""
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        if bucket and (size + tensor.numel() > _BUCKET or tensor.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.numel()
    if bucket:
        yield bucket


def _flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])
