"""The resident pool: the same batches as streaming, each pair decoded once, within a budget."""

import itertools
import threading
from collections import Counter

import numpy as np
import pytest
import torch

from essl_fast import kernels
from essl_fast.data.loading import Loader, Pools, bytes_per_pair
from essl_fast.data.loading.rows import gather_rows
from essl_fast.data.shards import Manifest, Shards
from tests.data.shards.test_shards import write_folder
from tests.tools.batches import assert_equal, batches, decoding_threads, plain

SIDE = 32


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return Manifest.load(write_folder(tmp_path_factory.mktemp("prepared"), train=31, val=5, test=0))


def make(manifest: Manifest, resident: bool, **settings) -> Loader:
    given = {"batch_size": 4, "side": SIDE, "shuffle": True, "threads": 1, "prefetch": 2, "seed": 3} | settings
    pools = Pools("always", 1, given.get("device", "cpu")) if resident else None
    return Loader(manifest, given.pop("splits", ("train",)), **({"pools": pools} | given))


@pytest.fixture
def reads(monkeypatch) -> Counter:
    """How often each position was read, since decoding follows reading."""
    counter, real = Counter(), Shards.read

    def read(self, positions, *rest):
        counter.update(positions.tolist())
        return real(self, positions, *rest)

    monkeypatch.setattr(Shards, "read", read)
    return counter


@pytest.mark.slow
@pytest.mark.parametrize("last_batch", ["keep", "drop"])
@pytest.mark.parametrize("world_size", [1, 3])
def test_resident_batches_are_the_streamed_ones(manifest, world_size, last_batch, reads):
    """On every rank: the same pairs in the same order, the same bits, and no pair decoded twice."""
    for rank in range(world_size):
        settings = {"rank": rank, "world_size": world_size, "last_batch": last_batch, "batch_size": 5}
        with make(manifest, False, **settings) as loader:
            expected = batches(loader, 5 * len(loader))
            assert loader.streams and not loader.held and loader.pool is None
        reads.clear()
        with make(manifest, True, **settings) as loader:
            assert loader.held and not loader.streams and loader.pool is not None
            assert_equal(batches(loader, 5 * len(loader)), expected)
        assert set(reads.values()) == {1}
        assert len(expected[0][0]) == 5 and loader.pool.present.sum() <= len(reads)


def test_log_mel_is_kept_in_place_of_the_samples(manifest):
    with make(manifest, False, sound=kernels.log_mel) as stream, make(manifest, True, sound=kernels.log_mel) as pool:
        expected, found = batches(stream, 20), batches(pool, 20)
    assert found[0][2].shape == (4, 3, 96, 64) and pool.pool.sound.dtype == torch.float32
    assert_equal(found, expected)


@pytest.mark.parametrize("threads", [1, 2])
def test_log_mel_knows_no_batch(threads):
    """A pool computes it once for each pair, in some batch: no row may depend on the others, to the bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        pcm = torch.randint(
            -(2**15), 2**15, (17, 48_000), dtype=torch.int16, generator=torch.Generator().manual_seed(1)
        )
        pcm[3], pcm[5] = 0, pcm[5] // 1000
        whole = kernels.log_mel(pcm)
        for size in (1, 2, 3, 16):
            assert torch.equal(torch.cat([kernels.log_mel(part) for part in pcm.split(size)]), whole)
        order = torch.randperm(17, generator=torch.Generator().manual_seed(2))
        assert torch.equal(kernels.log_mel(pcm[order]), whole[order])
    finally:
        torch.set_num_threads(before)


def test_the_first_epoch_fills_and_the_next_ones_only_read(manifest, reads):
    before = set(threading.enumerate())  # some may be ending
    loader = make(manifest, True)
    first = [plain(batch) for batch in loader]
    assert loader.pool.present.all() and reads == Counter(range(31))
    waited = loader.waited
    frames = [batch.frames for batch in loader]
    assert len(frames) == 8 and all(f.data_ptr() == loader.pool.frames.data_ptr() for f in frames)
    assert loader.waited == waited > 0 and reads == Counter(range(31))
    for thread in decoding_threads():
        thread.join(120)
    assert set(threading.enumerate()) <= before, "threads stay though nothing is left to decode"
    assert sorted(row for index, *_ in first for row in index.tolist()) == list(range(31))
    loader.close()


@pytest.mark.slow
@pytest.mark.parametrize("modes", list(itertools.product([True, False], repeat=2)))
@pytest.mark.parametrize("stop", [0, 3, 8, 11, 17])
def test_a_run_may_stop_and_go_on_in_either_mode(manifest, stop, modes, reads):
    """Eight batches are an epoch, so a pool that is begun within one has pairs of two epochs to fetch."""
    with make(manifest, False, prefetch=3) as loader:
        whole = batches(loader, 28)
    with make(manifest, modes[0], prefetch=3) as loader:
        first = batches(loader, stop)
        state = loader.state_dict()
    reads.clear()
    with make(manifest, modes[1], prefetch=3) as loader:
        loader.load_state_dict(state)
        second = batches(loader, 28 - stop)
    assert_equal(first + second, whole)
    assert not modes[1] or set(reads.values()) == {1}


def test_going_back_finds_what_is_there(manifest, reads):
    with make(manifest, True) as loader:
        whole = batches(loader, 6)
        loader.seek(0, 0)
        reads.clear()
        assert_equal(batches(loader, 6), whole)
        loader.close()
        assert not set(reads) & {row for index, *_ in whole for row in index.tolist()}


@pytest.mark.slow
def test_an_evaluation_decodes_once_and_no_further(manifest, reads):
    pools = Pools("always", 1, "cpu")
    passes = []
    for _ in range(3):
        with make(manifest, False, splits=("val",), shuffle=False, batch_size=2, epochs=1, pools=pools) as loader:
            passes.append([plain(batch) for batch in loader])
            with pytest.raises(RuntimeError, match="made for 1 epochs"):
                next(iter(loader))
    assert reads == Counter(range(5)) and not decoding_threads()
    assert [len(index) for index, *_ in passes[0]] == [2, 2, 1]
    assert_equal(passes[1], passes[0])
    assert_equal(passes[2], passes[0])
    reads.clear()
    with make(manifest, False, splits=("val",), shuffle=False, batch_size=2, epochs=1) as loader:
        assert_equal([plain(batch) for batch in loader], passes[0])
    assert reads == Counter(range(5)), "streaming decoded more than the one epoch"


def test_a_pool_that_an_evaluation_took_serves_training(manifest):
    pools = Pools("always", 1, "cpu")
    with torch.inference_mode(), make(manifest, False, pools=pools, sound=kernels.log_mel) as loader:
        batches(loader, 3)
    with make(manifest, False, pools=pools, sound=kernels.log_mel) as loader:
        for batch in loader:
            scale = torch.ones(3, 96, 64, requires_grad=True)
            (batch.sound * scale).sum().backward()  # autograd refuses what inference mode made
            assert scale.grad.isfinite().all()


def test_loaders_of_the_same_pairs_share_a_pool(manifest):
    pools = Pools("auto", 1, "cpu")
    one, other, larger, val = (
        make(manifest, False, pools=pools, **settings)
        for settings in ({}, {"batch_size": 7}, {"side": 48}, {"splits": ("val",)})
    )
    assert one.pool is other.pool and len({id(loader.pool) for loader in (one, larger, val)}) == 3
    assert make(manifest, False, pools=pools, sound=kernels.log_mel).pool is not one.pool
    with pytest.raises(ValueError, match="the pools are on meta"):
        make(manifest, False, pools=Pools("never", 0, "meta"))


@pytest.mark.parametrize("dtype", [torch.int16, torch.bfloat16, torch.float32])
def test_rows_are_gathered_whatever_their_type(dtype):
    table = torch.arange(5 * 6).view(5, 2, 3).to(dtype)
    rows = torch.tensor([4, 0, 4])
    found = gather_rows(table, rows)
    assert found.dtype == dtype and torch.equal(found, table[rows]) and gather_rows(table, rows[:0]).shape == (0, 2, 3)
    found.zero_()
    assert torch.equal(table, torch.arange(5 * 6).view(5, 2, 3).to(dtype)), "a batch is a copy"


def test_a_sound_function_must_keep_pairs_apart():
    with pytest.raises(ValueError, match="one pair"):
        bytes_per_pair(SIDE, lambda pcm: pcm.flatten())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("world_size", [1, 3])
def test_gpu_pool_gives_the_streamed_batches(manifest, world_size):
    for rank in range(world_size):
        settings = {"device": "cuda", "rank": rank, "world_size": world_size}
        with make(manifest, False, **settings) as stream, make(manifest, True, **settings) as resident:
            total = 4 * len(stream)
            assert_equal(batches(resident, total), batches(stream, total))
            assert resident.pool.frames.is_cuda and np.all(resident.pool.present) == (world_size == 1)
            if world_size == 1:  # nothing is left to decode: the host never waits for the GPU
                resident.seek(5)
                torch.cuda.set_sync_debug_mode("error")
                try:
                    assert len(list(resident)) == len(resident)
                finally:
                    torch.cuda.set_sync_debug_mode("default")
