"""Pools in shares: two ranks that exchange rows give the streamed batches, and together decode each pair once."""

import itertools
from collections import Counter

import numpy as np
import pytest
import torch

from essl_fast.common.errors import InputError
from essl_fast.data.loading import Exchange, Loader, Order, Pools, SoundLayout, bytes_per_pair
from essl_fast.data.loading.memory import GB
from essl_fast.data.loading.shared_pool import SharedPool
from essl_fast.data.shards import Manifest, Shards, read_index
from essl_fast.runtime import distributed
from tests.data.shards.test_shards import write_folder
from tests.tools.ranks import run_ranks

SIDE, PAIRS = 24, 31


def make(root, world, pools, **settings):
    given = {"batch_size": 4, "side": SIDE, "shuffle": True, "threads": 1, "prefetch": 2, "seed": 3, "epochs": 6}
    ranks = {"rank": world.rank, "world_size": world.size}
    return Loader(Manifest.load(root), "train", pools=pools, **(given | ranks | settings))


def batches(loader, count):
    """The next batches by value: index, frames, sound; bytes, so that they travel between processes."""

    def forever():
        while True:
            yield from loader

    found = []
    for raw in itertools.islice(forever(), count):
        assert raw.frames.shape[0] == len(raw.rows), "a batch of an exchange brings its own frames"
        parts = raw.index, raw.frames[raw.rows], raw.sound
        found.append(tuple(part.numpy().tobytes() for part in parts))
    return found


def pools_of(exchange, **settings):
    return Pools("always", 1, "cpu", "always", exchange, **settings)


def rank_of_two(world, whole, damaged):
    """Run everything that needs two processes, in one go; what happened, by name."""
    exchange, found, reads = Exchange(world.rank, world.size, torch.device("cpu")), {}, Counter()
    real = Shards.read

    def read(self, positions, *rest):
        reads.update(positions.tolist())
        return real(self, positions, *rest)

    Shards.read = read
    for last_batch in ("keep", "drop"):
        with make(whole, world, None, last_batch=last_batch) as loader:
            streamed = batches(loader, 5 * len(loader))
        reads.clear()
        with make(whole, world, pools_of(exchange), last_batch=last_batch) as loader:
            assert isinstance(loader.pool, SharedPool) and len(loader.pool.frames) == 16
            assert not loader.held and not loader.streams
            first = batches(loader, len(loader) - 1)
            assert loader.pool._expected is None, "the first epoch's batches need no exchange"
            second = batches(loader, 3)
            ahead = loader.pool._expected is not None
            rest = batches(loader, 4 * len(loader) - 2)
            found[last_batch] = (first + second + rest == streamed, dict(reads), ahead)
    # Begun within an epoch, by a loader that streamed before; and gone back to.
    with make(whole, world, None) as loader:
        streamed = batches(loader, 14)
    with make(whole, world, None) as loader:
        begun = batches(loader, 2)
        state = loader.state_dict()
    reads.clear()
    with make(whole, world, pools_of(exchange)) as loader:
        loader.load_state_dict(state)
        again = begun + batches(loader, 12) == streamed
        loader.seek(1, 1)
        back = batches(loader, 3) == streamed[5:8]
    found["resumed"] = (again, back, dict(reads))
    # Pairs that do not decode: found by the rank they belong to, left out by all.
    told = {}
    with make(damaged, world, None, on_error="skip", max_errors=0.5, least=0) as loader:
        streamed = batches(loader, 12)
    with make(
        damaged,
        world,
        pools_of(exchange),
        on_error="skip",
        max_errors=0.5,
        least=0,
        on_fault=lambda row, reason: told.setdefault(row, reason),
    ) as loader:
        found["skipped"] = (batches(loader, 12) == streamed, loader.lost, sorted(told))
    # A budget: the smallest rank's, whole or in shares or streamed.
    size, found["budget"] = bytes_per_pair(SIDE), []
    for pairs in (PAIRS, PAIRS - 1, 16, 15):
        roomy = Pools("auto", (pairs if world.leads else PAIRS) * size / GB, "cpu", "auto", exchange)
        pool = make(whole, world, roomy).pool
        found["budget"].append((type(pool).__name__, roomy.notes))
    Shards.read = real
    return found


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    whole = write_folder(tmp_path_factory.mktemp("whole"), train=PAIRS, val=0, test=0)
    damaged = tmp_path_factory.mktemp("damaged")
    write_folder(damaged, train=PAIRS, val=0, test=0)
    spoil(damaged, (3, 8, 20))
    return run_ranks(2, rank_of_two, whole, damaged)


def spoil(root, pairs):
    """Write garbage over these pairs' JPEG files, in place."""
    first = 0
    for path in sorted(root.glob("train-*.idx")):
        index = read_index(path)
        with open(path.with_suffix(".tar"), "r+b") as file:
            for pair in set(pairs) & set(range(first, first + len(index.stems))):
                file.seek(int(index.visual_offset[pair - first]))
                file.write(bytes(int(index.visual_size[pair - first])))
        first += len(index.stems)


@pytest.mark.slow
@pytest.mark.parametrize("last_batch", ["keep", "drop"])
def test_two_ranks_give_the_streamed_batches_and_decode_each_pair_once(ranks, last_batch):
    reads = Counter()
    for found in ranks:
        equal, mine, ahead = found[last_batch]
        assert equal, "not the streamed batches"
        assert ahead or last_batch == "drop", "the next step's rows are not on their way"
        reads.update(mine)
        assert len(mine) <= 16
    assert set(reads.values()) == {1} and len(reads) == PAIRS


@pytest.mark.slow
def test_a_pool_that_is_begun_within_an_epoch(ranks):
    reads = Counter()
    for found in ranks:
        again, back, mine = found["resumed"]
        assert again and back
        reads.update(mine)
    assert set(reads.values()) == {1} and len(reads) == PAIRS


@pytest.mark.slow
def test_ranks_hear_of_pairs_that_another_lost(ranks):
    for found in ranks:
        equal, lost, told = found["skipped"]
        assert equal and lost == 3 and told == [3, 8, 20]


@pytest.mark.slow
def test_the_way_is_chosen_by_the_smallest_budget(ranks):
    for found in ranks:
        names, notes = zip(*found["budget"], strict=True)
        assert names == ("Pool", "SharedPool", "SharedPool", "NoneType")
        assert notes[0] == [] and len(notes[1]) == len(notes[3]) == 1
        assert notes[1][0].startswith(
            "train at side 24 is kept in shares, 16 pairs on each of 2 processes, which exchange them in every step: "
            "whole, it needs 0.00303 GB for 31 pairs, and 0.00293 GB of the budget are left"
        )
        assert notes[3][0].startswith("train at side 24 is streamed, not kept: that needs 0.00156 GB for 16 pairs in ")


def test_without_an_exchange_only_a_fixed_order_is_shared():
    def take(shuffle, shared="auto", resident="always", gb=1.0):
        order = Order(9, 2, shuffle=shuffle, rank=1, world_size=3)
        return Pools(resident, gb, "cpu", shared).take("some", "all", order, 8)

    assert type(take(True)).__name__ == "Pool" and len(take(True).frames) == 9
    pool = take(False)
    assert isinstance(pool, SharedPool) and len(pool.frames) == 3 and pool.held
    steps = list(pool.steps(Order(9, 2, shuffle=False, rank=1, world_size=3), 0))
    assert [step.batch.tolist() for step in steps] == [[1, 4], [7]]
    assert all((step.batch == step.required).all() and not step.exchanges for step in steps)
    with pytest.raises(InputError, match="needs 0.000289 GB for 3 pairs in each of 3 processes, and 0.00028 GB of"):
        take(False, gb=0.00028)


@pytest.mark.parametrize("world_size", [1, 2, 5])
def test_shares_are_a_partition_and_needs_cover_every_batch(world_size):
    """For any first epoch: each pair belongs to one rank, which keeps it before any rank's batch needs it."""
    n = 47
    pools, orders = [], []
    for rank in range(world_size):
        orders.append(Order(n, 4, seed=1, last_batch="drop", rank=rank, world_size=world_size))
        pools.append(SharedPool(n, 1, SoundLayout((1,), torch.uint8), "cpu", rank, world_size, None))
        pools[-1].assign(orders[-1], 2)
    belongs = np.stack([~pool.kept_elsewhere() for pool in pools])
    assert (belongs.sum(axis=0) == 1).all()
    for pool in pools:
        mine = np.flatnonzero(~pool.kept_elsewhere())
        assert sorted(pool.rows_of(mine).tolist()) == list(range(len(mine))) and len(mine) <= len(pool.frames)
    for epoch in (2, 3):
        for steps in zip(*(pool.steps(order, epoch) for pool, order in zip(pools, orders, strict=True)), strict=True):
            batches = sorted(np.concatenate([step.batch for step in steps]).tolist())
            assert batches == sorted(np.concatenate([step.required for step in steps]).tolist())
            assert epoch != 2 or not any(step.exchanges for step in steps)
    for pool, order, kept in zip(pools, orders, belongs, strict=True):
        pool.assign(order, 3)  # a later epoch's order moves no pair
        assert (~pool.kept_elsewhere() == kept).all()


def test_the_world_of_one_has_no_shares():
    pools = Pools("always", 1, "cpu", "always")
    pool = pools.take("some", "all", Order(4, 2, world_size=distributed.ALONE.size), 8)
    assert not isinstance(pool, SharedPool)


def begun_within_an_epoch(world, damaged):
    exchange = Exchange(world.rank, world.size, torch.device("cpu"))
    lost = {"on_error": "skip", "max_errors": 0.5, "least": 0}
    found = []
    for step in (1, 2, 3):
        with make(damaged, world, None, **lost) as loader:
            loader.seek(0, step)
            streamed = batches(loader, 9)
        with make(damaged, world, pools_of(exchange), **lost) as loader:
            loader.seek(0, step)
            found.append(batches(loader, 9) == streamed)
    return found


@pytest.mark.slow
def test_a_shared_pool_that_is_begun_within_an_epoch_leaves_lost_pairs_out(tmp_path):
    write_folder(tmp_path, train=PAIRS, val=0, test=0)
    spoil(tmp_path, (3, 8, 20, 25))
    assert run_ranks(2, begun_within_an_epoch, tmp_path) == [[True] * 3] * 2
