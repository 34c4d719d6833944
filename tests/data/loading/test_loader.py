"""The loader: what an epoch holds, in which order, over which ranks, and how it goes on after a checkpoint."""

import errno
import gc
import io
import itertools
import os
import pickle
import shutil
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from essl_fast.common.errors import InputError
from essl_fast.data.loading import Loader, decode_queue
from essl_fast.data.shards import Manifest, read_index
from tests.data.shards.test_shards import jpeg, sound, write_folder
from tests.tools.batches import decoding_threads

SIDE = 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("prepared"), train=50, val=5, test=0)


@pytest.fixture(scope="module")
def manifest(folder) -> Manifest:
    return Manifest.load(folder)


def make(manifest: Manifest, splits=("train",), **settings) -> Loader:
    return Loader(manifest, splits, **({"batch_size": 8, "side": SIDE, "shuffle": True, "threads": 1} | settings))


def indexes(loader: Loader, epochs: int = 1) -> list[list[list[int]]]:
    return [[batch.index.tolist() for batch in loader] for _ in range(epochs)]


@pytest.mark.slow
def test_a_folder_is_enough(folder, manifest):
    """A path, or a text, in place of the manifest; one split by its name."""
    given = {"batch_size": 8, "side": SIDE, "threads": 1}
    with Loader(manifest, **given) as expected:
        rows = indexes(expected)
    for named in (folder, str(folder), os.path.relpath(folder)):
        with Loader(named, "train", **given) as loader:
            assert indexes(loader) == rows
    with pytest.raises(InputError, match="nowhere"):
        Loader(str(folder / "nowhere"), **given)


@pytest.mark.slow
@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize(
    ("world_size", "batch_size"), [(1, 1), (1, 8), (1, 50), (1, 64), (3, 2), (3, 5), (3, 8), (3, 16)]
)
def test_each_pair_exactly_once_an_epoch(manifest, world_size, batch_size, shuffle):
    """50 pairs give 3 ranks 17, 17 and 16 pairs, which fill whole batches on no rank, or on one only."""
    ranks = []
    for rank in range(world_size):
        with make(manifest, rank=rank, world_size=world_size, batch_size=batch_size, shuffle=shuffle, seed=5) as loader:
            ranks.append(indexes(loader, epochs=3))
            assert {len(epoch) for epoch in ranks[-1]} == {len(loader)}
    for epoch in range(3):
        seen = Counter(
            itertools.chain.from_iterable(itertools.chain(*ranks[rank][epoch]) for rank in range(world_size))
        )
        assert seen == Counter(range(50))
        assert all(0 < len(batch) <= batch_size for rank in range(world_size) for batch in ranks[rank][epoch])
    assert len({len(epochs[0]) for epochs in ranks}) == 1, "ranks make different numbers of steps"
    assert (ranks[0][0] != ranks[0][1]) == (ranks[0][1] != ranks[0][2]) == shuffle


def test_what_a_batch_holds(manifest):
    with make(manifest, ("train", "val"), prefetch=1) as loader:
        batches = list(loader)  # kept until the end: nothing may be overwritten meanwhile
        assert loader.epoch == 1 and loader.step == 0 and loader.waited > 0
    assert sorted(row for batch in batches for row in batch.index.tolist()) == list(range(55))
    for frames, rows, pcm, index in batches:
        assert torch.equal(rows, torch.arange(len(index)))
        assert frames.dtype == torch.uint8 and frames.shape == (len(index), SIDE, SIDE, 3)
        assert pcm.dtype == torch.int16 and pcm.shape == (len(index), 48_000) and index.dtype == torch.int64
        for frame, samples, row in zip(frames, pcm, index.tolist(), strict=True):
            assert np.array_equal(samples.numpy(), sound(row))
            image = Image.open(io.BytesIO(jpeg(row))).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
            assert np.abs(np.asarray(image).astype(int) - frame.numpy()).max() <= 2


def test_in_order_without_shuffling(manifest):
    with make(manifest, "val", shuffle=False, batch_size=2) as loader:
        assert indexes(loader, 2) == [[[50, 51], [52, 53], [54]]] * 2


def test_drop_gives_full_batches_only(manifest):
    for rank in range(3):
        with make(manifest, last_batch="drop", rank=rank, world_size=3, batch_size=7) as loader:
            assert [len(batch.index) for batch in loader] == [7, 7] and len(loader) == 2


def test_the_seed_decides(manifest):
    runs = []
    for seed in (1, 1, 2):
        with make(manifest, seed=seed) as loader:
            runs.append(indexes(loader, 2))
    assert runs[0] == runs[1] != runs[2]


@pytest.mark.slow
@pytest.mark.parametrize("stop", [0, 1, 5, 7, 12])
@pytest.mark.parametrize("last_batch", ["keep", "drop"])
def test_a_state_continues_exactly(manifest, stop, last_batch):
    """Stopped after `stop` batches (7 or 6 an epoch), with batches decoded ahead, and followed into later epochs."""
    settings = {"seed": 3, "last_batch": last_batch, "prefetch": 3}
    total = 2 * 7 + 4

    def forever(loader):
        while True:
            yield from loader

    with make(manifest, **settings) as loader:
        whole = list(itertools.islice(forever(loader), total))
    with make(manifest, **settings) as loader:
        first = list(itertools.islice(forever(loader), stop))
        state = pickle.loads(pickle.dumps(loader.state_dict()))
    with make(manifest, **settings) as loader:
        loader.load_state_dict(state)
        second = list(itertools.islice(forever(loader), total - stop))
    for expected, actual in zip(whole, first + second, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(expected, actual, strict=True))


def test_a_state_at_the_end_of_an_epoch(manifest):
    """Taken after the last batch, inside the loop, it belongs to that epoch; taken after the loop, to the next."""
    with make(manifest) as loader:
        for _ in loader:
            inside = loader.state_dict()
        after = loader.state_dict()
    assert (inside["epoch"], inside["step"]) == (0, 7) and (after["epoch"], after["step"]) == (1, 0)
    with make(manifest) as loader:
        loader.load_state_dict(inside)
        assert list(loader) == [] and loader.state_dict() == after


@pytest.mark.slow
def test_load_state_dict_while_iterating(manifest):
    with make(manifest) as loader:
        whole = indexes(loader, 2)
        loader.seek(0, 2)
        assert indexes(loader) == [whole[0][2:]]
        assert next(iter(loader)).index.tolist() == whole[1][0] and (loader.epoch, loader.step) == (1, 1)
        with pytest.raises(InputError, match="no step 8 of epoch 0: an epoch has 7 steps"):
            loader.seek(0, 8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 4}, r"batch_size \(was 8, is 4\)"),
        ({"world_size": 2}, r"world_size \(was 1, is 2\)"),
        ({"seed": 9}, r"seed \(was 0, is 9\)"),
        ({"splits": ("train", "val")}, "the prepared data"),
        ({"side": 48}, r"side \(was 32, is 48\)"),
        ({"last_batch": "drop"}, r"last_batch \(was 'keep', is 'drop'\)"),
    ],
)
def test_a_state_of_other_settings_is_refused(manifest, change, message):
    state = make(manifest).state_dict()
    with pytest.raises(InputError, match=f"cannot continue exactly, since this changed: {message}"):
        make(manifest, **change).load_state_dict(state)


def test_a_state_of_other_data_or_version_is_refused(manifest, tmp_path):
    state = make(manifest).state_dict()
    other = Manifest.load(write_folder(tmp_path, train=50, val=5, test=0, pairs_per_shard=20))
    with pytest.raises(InputError, match="this changed: the prepared data"):
        make(other).load_state_dict(state)
    with pytest.raises(InputError, match="has version 0"):
        make(manifest).load_state_dict(state | {"version": 0})


def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def test_a_damaged_frame_is_named(folder, tmp_path):
    root = copy(folder, tmp_path)
    index = read_index(root / "train-00001.idx")
    with open(root / "train-00001.tar", "r+b") as file:
        file.seek(int(index.visual_offset[4]))
        file.write(bytes(200))
    loader = make(Manifest.load(root))
    with pytest.raises(
        InputError, match=r"frame of pair 'vidéo.2 a_000020' in shard .*train-00001.tar cannot be decoded"
    ):
        list(loader)
    assert not decoding_threads()


@pytest.mark.slow
def test_a_sound_read_by_itself_is_as_it_was_written(folder, tmp_path, monkeypatch):
    """The first read of a pair checks it. To read sound alone, the frame is read only for this check."""
    root, asked, real = copy(folder, tmp_path), [], os.preadv
    index = read_index(root / "train-00001.idx")
    with open(root / "train-00001.tar", "r+b") as file:  # a bit of the sound of pairs 20 and 21
        for at in (4, 5):
            file.seek(int(index.s16_offset[at]) + 50_000)
            byte = file.read(1)[0]
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte ^ 1]))

    def recording(file, buffers, offset):
        if threading.current_thread() is threading.main_thread():  # others read ahead
            asked.append(len(buffers))
        return real(file, buffers, offset)

    monkeypatch.setattr(os, "preadv", recording)
    loader = make(Manifest.load(root), ("train", "val"))
    for reads in ([3, 3, 3], [1, 1, 1]):
        asked.clear()
        found = loader.sound_of(np.array([52, 0, 19])).numpy()
        assert all((pcm == sound(row)).all() for pcm, row in zip(found, (52, 0, 19), strict=True))
        assert asked == reads
    with pytest.raises(InputError) as error:
        loader.sound_of(np.array([19, 20]))
    told = "pair 'vidéo.2 a_000020' in shard {} cannot be used (its bytes are not those that prepare wrote (CRC-32)): "
    assert str(error.value).startswith(told.format(root / "train-00001.tar"))
    assert f"prepare --verify --out {root}" in str(error.value)
    with make(Manifest.load(root), on_error="skip", max_errors=0.1) as skipping:
        found = skipping.sound_of(np.array([20, 3, 21])).numpy()  # 22's stands for both
        assert all((pcm == sound(row)).all() for pcm, row in zip(found, (22, 3, 22), strict=True))
        list(skipping)
        asked.clear()
        skipping.sound_of(np.array([7, 49]))
        assert asked == [1, 1]


@pytest.mark.slow
def test_a_shard_lost_or_cut_while_running_is_named(folder, tmp_path):
    root = copy(folder, tmp_path)
    loader = make(Manifest.load(root), shuffle=False)
    shard = root / "train-00002.tar"
    data = shard.read_bytes()
    shard.write_bytes(data[:200_000])
    with pytest.raises(InputError, match=r"train-00002.tar: the shard ends \d+ bytes early: run prepare again"):
        list(loader)
    delivered = loader.step
    shard.unlink()
    with pytest.raises(InputError, match=r"train-00002.tar cannot be read \(No such file or directory\): run prepare"):
        list(loader)
    shard.write_bytes(data)
    assert len(list(loader)) == 7 - delivered


@pytest.mark.slow
def test_a_read_that_is_cut_short_goes_on(manifest, monkeypatch):
    whole, real = list(make(manifest, shuffle=False)), os.preadv

    def short(file, buffers, offset):
        assert buffers
        return real(file, [memoryview(buffers[0]).cast("B")[:999]], offset)

    monkeypatch.setattr(os, "preadv", short)
    for one, other in zip(make(manifest, shuffle=False), whole, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(one, other, strict=True))


def test_a_disk_that_fails_is_not_a_damaged_shard(manifest, monkeypatch):
    monkeypatch.setattr(os, "preadv", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "Input/output error")))
    with pytest.raises(InputError, match=r"train-0000\d.tar cannot be read \(Input/output error\): .* --resume"):
        list(make(manifest))


def test_index_files_must_list_the_manifests_pairs(folder, tmp_path):
    root = copy(folder, tmp_path)
    shutil.copy(root / "train-00000.idx", root / "train-00001.idx")
    with pytest.raises(InputError, match="do not list the pairs of its manifest"):
        make(Manifest.load(root))


def test_waiting_counts_only_the_callers_time(manifest, monkeypatch):
    clock = itertools.count()  # of this module alone: threads of others look at the clock, too
    monkeypatch.setattr(decode_queue, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    with make(manifest) as loader:
        list(loader)
    assert loader.waited == 7  # one tick between the two readings of the clock for each batch


@pytest.mark.slow
def test_close_ends_the_threads_and_the_loader_can_go_on(manifest):
    before = set(threading.enumerate())  # some may be ending

    def more():
        return set(threading.enumerate()) - before

    loader = make(manifest, shuffle=False)
    assert next(iter(loader)).index.tolist() == list(range(8)) and more()
    loader.close()
    assert not more()
    assert next(iter(loader)).index.tolist() == list(range(8, 16)) and more()
    del loader
    gc.collect()
    assert not more()


@pytest.mark.slow
def test_a_program_may_end_without_close(folder):
    code = (
        "from essl_fast.data.loading import Loader; from essl_fast.data.shards import Manifest\n"
        f"loader = Loader(Manifest.load({str(folder)!r}), ['train'], batch_size=4, side=32, shuffle=True)\n"
        "batch = next(iter(loader)); print(len(batch.index))"
    )
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=300, env=os.environ
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "4\n", "")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gpu_gives_the_cpus_batches(manifest):
    with make(manifest) as ours, make(manifest, device="cuda") as theirs:
        for cpu, gpu in zip(itertools.chain(ours, ours), itertools.chain(theirs, theirs), strict=True):
            assert all(tensor.is_cuda for tensor in gpu)
            assert torch.equal(gpu.index.cpu(), cpu.index) and torch.equal(gpu.sound.cpu(), cpu.sound)
            assert (gpu.frames.cpu().int() - cpu.frames.int()).abs().float().mean() < 2
