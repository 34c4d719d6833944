"""When a pool in shares sends the next step's rows ahead: only what is decoded, and only when losses were told."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from essl_fast.data.loading.shared_pool import SharedPool
from essl_fast.data.loading.sounds import SoundLayout
from essl_fast.data.loading.source import StepPlan

PAIRS = 8


class Line:
    """In place of an exchange: notes what is asked of it."""

    def __init__(self):
        self.sent, self.gathered = [], 0

    def gather(self, value):
        self.gathered += 1
        return [value, []]

    def send_rows(self, tables, going, coming, written):
        self.sent.append([rows.tolist() for rows in going])
        count = sum(coming)
        return SimpleNamespace(
            wait=lambda: [torch.zeros(count, *table.shape[1:], dtype=table.dtype) for table in tables]
        )


@pytest.fixture
def pool():
    """Rank 0 of two: it keeps the even positions, in the order of the rows 0 to 3."""
    pool = SharedPool(PAIRS, 1, SoundLayout((1,), torch.uint8), "cpu", 0, 2, Line())
    pool.assign(SimpleNamespace(permutation=lambda epoch: np.arange(PAIRS)), 0)
    return pool


def step_of(pool, number, mine, theirs):
    batches = [np.array(mine), np.array(theirs)]
    positions = np.concatenate(batches)
    exchanges = any(position % 2 for position in mine) or any(position % 2 == 0 for position in theirs)
    return StepPlan(0, number, batches[0], positions[positions % 2 == 0], batches, exchanges)


@pytest.fixture
def decoded():
    """A decoder that gives whatever this rank keeps, two at a time."""
    waiting = [np.array([0, 2]), np.array([4, 6])]

    def following(epoch, step):
        positions = waiting.pop(0)
        return SimpleNamespace(
            positions=positions, frames=torch.zeros(2, 1, 1, 3, dtype=torch.uint8), sound=torch.zeros(2, 1).byte()
        )

    skipped = SimpleNamespace(mask=np.zeros(PAIRS, bool), unshared=[], left_of=lambda positions: positions)
    return SimpleNamespace(next=following, skipped=skipped, skip=lambda faults: None)


def test_rows_are_sent_ahead_when_all_is_decoded_and_told(pool, decoded):
    first, second = step_of(pool, 0, [1, 3], [0, 2]), step_of(pool, 1, [0, 1], [2, 3])
    pool.contents(first, second, decoded)
    assert pool.exchange.gathered == 1  # the losses of what was decoded for the first step
    assert pool.exchange.sent == [[[], [0, 1]], [[0], [1]]]  # its rows, and at once those of the second
    pool.contents(second, None, decoded)
    assert len(pool.exchange.sent) == 2  # they were on their way


def test_no_row_is_sent_ahead_of_its_decoding(pool, decoded):
    first, second = step_of(pool, 0, [1, 3], [0, 2]), step_of(pool, 1, [5, 7], [4, 6])
    pool.contents(first, second, decoded)
    assert pool.exchange.sent == [[[], [0, 1]]]


def test_no_row_is_sent_ahead_of_the_losses(pool, decoded):
    """The first step exchanges nothing, so nobody was told what of it does not decode."""
    first, second = step_of(pool, 0, [0, 2], [1, 3]), step_of(pool, 1, [1, 3], [0, 2])
    pool.contents(first, second, decoded)
    assert pool.exchange.sent == [] and pool.exchange.gathered == 0
    pool.contents(second, None, decoded)
    assert pool.exchange.gathered == 1 and len(pool.exchange.sent) == 1
