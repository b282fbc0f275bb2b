"""Memory of large results is used again, by one tensor at a time."""

from __future__ import annotations

import gc
import multiprocessing
import threading

import pytest
import torch

import projkern as pk
from projkern.kernels import memory

LIKE = torch.empty(0)
COUNT = memory.LARGE // 4
needs_madv_free = pytest.mark.skipif(memory._FREE is None, reason="the system has no MADV_FREE")


@pytest.fixture(autouse=True)
def kept(monkeypatch):
    monkeypatch.setattr(memory, "_kept", memory._Kept())
    yield memory._kept
    gc.collect()


@needs_madv_free
def test_memory_is_used_again_once_no_view_is_left():
    first = memory.new_empty(LIKE, (2, COUNT // 5 * 3)).fill_(1)
    place, view = first.data_ptr(), first[1, :3]
    del first
    second = memory.new_empty(LIKE, (COUNT,)).fill_(2)
    assert second.data_ptr() != place and view.tolist() == [1, 1, 1]
    del view
    assert memory.new_empty(LIKE, (COUNT // 5 * 6,)).data_ptr() == place
    assert memory.new_empty(LIKE, (2 * COUNT,), torch.bfloat16).data_ptr() == place  # a little smaller
    assert second.eq(2).all()


@needs_madv_free
def test_no_more_is_kept_than_was_in_use_at_once(kept):
    for size in range(1, 6):
        memory.new_empty(LIKE, (size * COUNT,))
        assert sum(map(len, kept._free)) <= size * memory.LARGE
    assert kept._in_use == 0


def test_small_results_and_other_devices_are_torchs_own(kept):
    assert memory.new_empty(LIKE, (COUNT - 1,)).shape == (COUNT - 1,)
    assert memory.new_empty(torch.empty(0, device="meta"), (COUNT,)).device.type == "meta"
    assert not kept._free


@needs_madv_free
def test_a_system_without_memory_gives_torchs_error(monkeypatch):
    def refuse(*arguments, **options):
        raise OSError("no memory")

    monkeypatch.setattr(memory.mmap, "mmap", refuse)
    assert memory.new_empty(LIKE, (COUNT,)).shape == (COUNT,)


@needs_madv_free
def test_a_fork_has_memory_of_its_own():
    tensor = memory.new_empty(LIKE, (COUNT,)).fill_(1)

    def write() -> None:
        tensor[0] = 2

    child = multiprocessing.get_context("fork").Process(target=write)
    child.start()
    child.join()
    assert child.exitcode == 0 and tensor.eq(1).all()


@needs_madv_free
def test_threads_never_share_a_block():
    wrong = []

    def work(number: int) -> None:
        for _ in range(10):
            tensor = memory.new_empty(LIKE, (COUNT,))
            tensor[:: 4096 // 4] = number
            if tensor[:: 4096 // 4].ne(number).any():
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@needs_madv_free
def test_results_and_gradients_of_a_loop_have_the_same_memory_in_each_step(kept):
    W = torch.randn(9, 1024, 1024, requires_grad=True)
    p, q = torch.ones(2, 9 * 1024), torch.ones(2, 9 * 1024)
    places = set()
    for _ in range(3):
        W.grad = None
        outputs = pk.project_layers([W], p, q, 1)
        torch.stack([w.sum() for w in outputs]).sum().backward()
        places.add((outputs[0].data_ptr(), W.grad.data_ptr()))
        assert W.grad.eq(2).all()
        del outputs
    assert len(places) == 1 and kept._most == W.nbytes + 2 * W.nbytes
