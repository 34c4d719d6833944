"""Memory that a tensor leaves behind serves the next one, and never two at a time."""

import gc
import mmap
import threading
from collections import deque

import pytest
import torch

from essl_fast.kernels import recycling

SHAPE = (3, recycling.LEAST // 4)


@pytest.fixture(autouse=True)
def none_waiting():
    gc.collect()  # what other tests left would come back at any time
    recycling._waiting.clear()
    yield
    recycling._waiting.clear()


def test_memory_comes_back_when_the_last_view_is_gone():
    first = recycling.empty(SHAPE, torch.float32)
    assert first.shape == SHAPE and first.dtype == torch.float32 and first.is_contiguous()
    address, row = first.data_ptr(), first[1]
    row.fill_(7)
    del first
    second = recycling.empty(SHAPE, torch.float32)  # the row still lives
    assert second.data_ptr() != address
    second.fill_(1)
    assert (row == 7).all()
    del row
    gc.collect()
    third = recycling.empty((SHAPE[1], 6), torch.bfloat16)  # as many bytes
    assert third.data_ptr() == address and second.data_ptr() != address


def test_autograd_keeps_what_it_saved():
    x = recycling.empty(SHAPE, torch.float32).fill_(3).requires_grad_()
    loss = x.square().sum()
    address = x.data_ptr()
    del x
    assert recycling.empty(SHAPE, torch.float32).data_ptr() != address
    loss.backward()


def test_small_ones_are_pytorchs_and_few_blocks_wait():
    assert recycling.empty((4,), torch.float32).numel() == 4
    held = [recycling.empty((recycling.LEAST + n,), torch.uint8) for n in range(recycling.KEPT + 3)]
    del held
    assert len(recycling._waiting) == recycling.KEPT


def test_a_block_may_come_back_while_another_is_looked_for(monkeypatch):
    """As by a garbage collection, which any allocation may start."""
    late = mmap.mmap(-1, recycling.LEAST)

    class Collected(deque):
        def __iter__(self):
            each = super().__iter__()
            if late not in self:
                recycling._give_back(late)
            return each

    monkeypatch.setattr(recycling, "_waiting", Collected())
    recycling.empty((recycling.LEAST,), torch.uint8).fill_(1)


def test_threads_get_memory_of_their_own():
    wrong = []

    def work(value):
        for _ in range(200):
            mine = recycling.empty(SHAPE, torch.int32)
            mine[:, ::4096] = value
            if not (mine[:, ::4096] == value).all():
                wrong.append(value)

    threads = [threading.Thread(target=work, args=(value,)) for value in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
