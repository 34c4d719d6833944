"""What decoding clips needs of a GPU's memory is left to it before a pool takes its share."""

from dataclasses import replace

import pytest
import torch

from essl_fast.data import shards
from essl_fast.data.loading import Loader, Pools, bytes_per_pair, clip_memory, memory
from essl_fast.data.media import Clip, hardware, nvdec
from tests.data.loading.test_clip_loading import cut, write
from tests.data.shards.test_shards import jpeg
from tests.tools.media import make_video

SIDE, HD = 32, (1920, 1080)


def test_the_bytes_by_hand():
    """24 clips of 9 RGB frames; decoders of 20 pictures in 4:2:0: one an engine, or the 100 that DALI keeps."""
    assert hardware.decoding_memory(1280, 720, 7) == 24 * 9 * 1280 * 720 * 3 + 7 * 20 * 1280 * 720 * 3 // 2
    assert hardware.decoding_memory(*HD, 7) == 24 * 9 * 1920 * 1080 * 3 + 100 * 20 * 1920 * 1088 * 3 // 2
    assert 128 * 9 * 1920 * 1080 * 3 > 4 * 24 * 9 * 1920 * 1080 * 3, "what it was for a batch of 128 at once"


@pytest.fixture
def manifest(tmp_path) -> shards.Manifest:
    clips = cut(make_video(tmp_path / "a.mp4", seconds=2, sound=None), [3, 8, 17])
    return shards.Manifest.load(
        write(tmp_path / "prepared", [clips[0], jpeg(1), *clips[1:], Clip(b"\0\0\0\x18ftypdamaged", 0)])
    )


def test_a_folders_clips_are_looked_at(manifest, tmp_path, monkeypatch):
    monkeypatch.setattr(nvdec, "engines", lambda device: 7)
    device = torch.device("cuda", 0)
    held = shards.Shards(manifest, ["train"])
    assert held.clips.tolist() == [0, 2, 3, 4]
    assert clip_memory.clip_memory(held, device) == hardware.decoding_memory(160, 90, 7)
    pictures = shards.Manifest.load(write(tmp_path / "pictures", [jpeg(1), jpeg(2)]))
    assert clip_memory.clip_memory(shards.Shards(pictures, ["train"]), device) == 0


@pytest.mark.parametrize("given", [False, True])
def test_a_pool_gets_what_decoding_leaves(manifest, monkeypatch, given):
    """A budget that the user gave is not changed."""
    size, pairs = bytes_per_pair(SIDE), len(manifest)
    monkeypatch.setattr(memory, "host_memory", lambda: int(2 * (pairs + 1) * size))
    pools = Pools("auto", (pairs + 1) * size / memory.GB if given else 0, "cpu")
    for _ in range(3):  # once for the same pairs: each evaluation makes a loader
        pools.reserve("these", lambda: 2 * size)
    settings = {"batch_size": 2, "side": SIDE, "shuffle": False, "threads": 1}
    loader = Loader(manifest, ["train"], pools=pools, **settings)
    assert (loader.pool is not None) == given and len(pools.notes) == (not given)


def test_every_rank_leaves_as_much_as_the_one_that_leaves_most(monkeypatch):
    """Else one rank might have a pool, and wait for another one that streams."""
    monkeypatch.setattr(memory, "host_memory", lambda: 2000)

    class Exchange:
        def smallest(self, left: int) -> int:
            return min(left, 700)

    pools = Pools("auto", 0, "cpu", exchange=Exchange())
    pools._budget.left = 1000
    pools.reserve("these", lambda: 100)
    assert pools._budget.left == 700


def test_a_loader_on_a_gpu_reserves_first(manifest, monkeypatch):
    calls = []
    loader = Loader(manifest, ["train"], batch_size=2, side=SIDE, shuffle=False, threads=1)
    loader.settings = replace(loader.settings, device=torch.device("cuda", 0))

    class Asked:
        device = torch.device("cuda", 0)

        def reserve(self, pairs, size):
            calls.append(("reserve", size()))

        def take(self, *what):
            calls.append(("take",))

    monkeypatch.setattr(nvdec, "engines", lambda device: 7)
    loader._take(Asked())
    assert calls == [("reserve", hardware.decoding_memory(160, 90, 7)), ("take",)]
