"""The order: which pairs a rank sees at which step, whatever delivers them."""

import itertools

import numpy as np
import pytest

from essl_fast.common.errors import InputError
from essl_fast.data.loading import LoaderSettings, Order
from essl_fast.data.loading.order import only_new

ORDER = [2, 4, 7, 3, 5, 1, 8, 9, 0, 6]


def test_order_and_batches_for_many_sizes():
    for n, world_size, batch_size in itertools.product((3, 7, 16, 50), (1, 2, 3), (2, 4, 8)):
        ranks = [Order(n, batch_size, seed=1, rank=rank, world_size=world_size) for rank in range(world_size)]
        assert sorted(itertools.chain(*(batch for order in ranks for batch in order.batches(2)))) == list(range(n))
        for order in ranks:
            batches = order.batches(2)
            assert len(batches) == order.steps == ranks[0].steps
            assert {0 < len(batch) <= batch_size for batch in batches} == {True}
            assert np.array_equal(np.concatenate(batches), order.permutation(2)[order.rank :: world_size])


def test_a_full_step_holds_the_same_pairs_on_any_number_of_ranks():
    one = Order(50, 12, seed=4, last_batch="drop").batches(1)
    three = [Order(50, 4, seed=4, last_batch="drop", rank=rank, world_size=3).batches(1) for rank in range(3)]
    for step, batch in enumerate(one):
        assert set(batch) == {row for rank in three for row in rank[step]}


def test_a_global_batch_is_shared_out_over_any_number_of_ranks():
    """The pairs of each step are those of one rank, in parts that differ by one pair at most."""
    for last_batch, size, n in itertools.product(("keep", "drop"), (5, 7, 8), (19, 31, 40)):
        settings = {"seed": 4, "last_batch": last_batch, "global_batch": size}
        alone = Order(n, size, **settings)
        whole = alone.batches(2)
        assert [len(batch) for batch in whole[:-1]] == [size] * (alone.steps - 1)
        np.testing.assert_array_equal(np.concatenate(whole), alone.permutation(2)[: sum(map(len, whole))])
        for ranks in range(2, 6):
            if last_batch == "keep" and 0 < n % size < ranks:
                continue
            every = Order(n, -(-size // ranks), **settings, world_size=ranks).all_batches(2)
            for rank in range(ranks):
                mine = Order(n, -(-size // ranks), **settings, world_size=ranks, rank=rank)
                assert mine.steps == alone.steps == len(every)
                np.testing.assert_array_equal(np.concatenate(mine.batches(2)), np.concatenate([s[rank] for s in every]))
            for step, batch in zip(every, whole, strict=True):
                assert sorted(np.concatenate(step)) == sorted(batch)
                sizes = [len(part) for part in step]
                assert min(sizes) >= 1 and max(sizes) - min(sizes) <= 1


def test_ranks_take_steps_by_turns():
    """Five steps an update, on three ranks: each step is one rank's whole, and the pairs are those of one process."""
    settings = {"seed": 4, "last_batch": "drop", "global_batch": 3}
    alone = Order(50, 3, **settings).batches(2)
    ranks = [Order(50, 3, **settings, turns=5, rank=rank, world_size=3) for rank in range(3)]
    assert len(alone) == 16 and {order.steps for order in ranks} == {16}
    owners = [0, 1, 2, 0, 1] * 3 + [0]
    for rank, order in enumerate(ranks):
        for step, batch in enumerate(order.batches(2)):
            assert batch.tolist() == (alone[step].tolist() if owners[step] == rank else [])
        assert [[batch.tolist() for batch in step] for step in order.all_batches(2)] == [
            [alone[step].tolist() if owner == rank else [] for rank in range(3)] for step, owner in enumerate(owners)
        ]
    for wrong in ({"turns": 2}, {"last_batch": "keep"}, {"global_batch": 0}, {"batch_size": 2}):
        with pytest.raises(InputError, match="turns are of a|is more than batch_size 2 on each of 1 rank$"):
            given = {"batch_size": 3, "world_size": 3, "global_batch": 3, "turns": 5, "last_batch": "drop"} | wrong
            LoaderSettings(device="cpu", **given)


@pytest.mark.parametrize(
    ("order", "message"),
    [
        (Order(19, 1, global_batch=3, world_size=4), "4 ranks cannot share batches of 3 pairs .data.global_batch"),
        (
            Order(19, 9, global_batch=20, last_batch="drop", world_size=3),
            "19 pairs do not fill one batch of 20 over all",
        ),
        (
            Order(19, 2, global_batch=8, world_size=4),
            "leave a last batch of 3, which 4 ranks cannot share: use 3 ranks at",
        ),
        (
            Order(17, 4, global_batch=8, world_size=2),
            "a last batch of 1, .*: use 1 rank at most, .*--data.last_batch drop",
        ),
    ],
)
def test_a_global_batch_that_cannot_be_shared(order, message):
    with pytest.raises(InputError, match=message):
        _ = order.steps


def test_the_order_never_changes():
    """Checkpoints and resident pools rely on it over versions of this package and of NumPy."""
    assert Order(10, 4, seed=7).permutation(3).tolist() == ORDER
    assert np.concatenate(Order(10, 4, seed=7, rank=1, world_size=3).batches(3)).tolist() == ORDER[1::3]
    assert np.concatenate(Order(5, 2, seed=7, rank=1, world_size=2, shuffle=False).batches(3)).tolist() == [1, 3]
    assert Order(10, 4, seed=7).permutation(3).dtype == np.int64


@pytest.mark.parametrize("last_batch", ["keep", "drop"])
@pytest.mark.parametrize("shuffle", [True, False])
def test_every_rank_knows_all_ranks_batches(shuffle, last_batch):
    settings = {"seed": 2, "shuffle": shuffle, "last_batch": last_batch, "world_size": 3}
    every = Order(50, 4, **settings).all_batches(3)
    for rank in range(3):
        alone = Order(50, 4, **settings, rank=rank).batches(3)
        for step, batch in zip(every, alone, strict=True):
            np.testing.assert_array_equal(step[rank], batch)


def test_what_is_decoded_ahead_of_a_pool():
    """Each pair comes once, in the order in which batches first need it, wherever a run begins; then the plan ends."""
    order = Order(10, 4, seed=7)
    there = np.zeros(10, bool)
    there[[3, 8]] = True
    found = list(only_new(order.batches_from(3, 1), there, True))
    assert [part.tolist() for part in found[:2]] == [[5, 1, 9], [0, 6]]  # ORDER without its first four, 3 and 8
    assert sorted(np.concatenate(found).tolist()) == [0, 1, 2, 4, 5, 6, 7, 9] and there.sum() == 2
    assert list(only_new(order.batches_from(0, 0), np.ones(10, bool), True)) == []
    assert [len(batch) for batch in order.batches_from(0, 2, epochs=2)] == [2, 4, 4, 2]
    assert list(order.batches_from(2, 0, epochs=2)) == []
    # The last two are dropped in every epoch of a fixed order, so they never come.
    fixed = Order(10, 4, seed=7, shuffle=False, last_batch="drop").batches_from(0, 0)
    assert np.concatenate(list(only_new(fixed, np.zeros(10, bool), False))).tolist() == list(range(8))


def test_large_parts_are_cut():
    """A pool in shares may need more pairs for a step than a batch has."""
    parts = only_new(iter([np.arange(7), np.arange(10)]), np.zeros(10, bool), True, most=3)
    assert [part.tolist() for part in parts] == [[0, 1, 2], [3, 4, 5], [6], [7, 8, 9]]
