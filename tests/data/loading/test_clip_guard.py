"""What DALI makes of clips is held against PyAV. DALI's decoder for CPUs plays NVDEC; it knows VP9."""

import functools
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from essl_fast.common.errors import Notice
from essl_fast.data import shards
from essl_fast.data.loading import DecodeError, FrameDecoder, Loader, clip_guard, decoder, graph, resize_host
from essl_fast.data.media import TRUNCATED, MediaError, cut_clips, decode_clip, nvdec_clips, starts
from essl_fast.data.shards import Picture
from essl_fast.prepare.verifying import verify
from tests.data.loading.test_clip_loading import write
from tests.data.shards.test_shards import jpeg
from tests.tools.clips import STREAMS
from tests.tools.media import VP9, make_video, noisy

SIDE, CPU = 48, torch.device("cpu")


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """16 clips of VP9 that DALI decodes here."""
    path = make_video(tmp_path_factory.mktemp("v") / "v.webm", seconds=2, sound=None, picture=noisy, **VP9)
    return [clip for _, clip in cut_clips(path, [(fid, 0.0) for fid in range(1, 17)])]


@pytest.fixture(scope="module")
def pool():
    with ThreadPoolExecutor(2) as executor:
        yield executor


def pictures(clips, checks=None) -> list[Picture]:
    return [
        Picture(
            np.frombuffer(clip.data, np.uint8), clip.target, clip.quarters, position=at, check=checks and checks[at]
        )
        for at, clip in enumerate(clips)
    ]


@functools.cache
def expected(clip) -> np.ndarray:
    return resize_host(torch.from_numpy(decode_clip(clip.data, clip.target))[None], SIDE)[0].numpy()


def run(batches: list[list[Picture]], pool, remember=lambda at, value: None, size: int = 16) -> list[torch.Tensor]:
    """By the way of a GPU: DALI decodes the clips."""
    feed = iter(batches)
    made = FrameDecoder(
        lambda: next(feed), size, SIDE, CPU, 2, 2, pool, clips=True, clips_by_dali=True, remember=remember
    )
    try:
        return list(made)
    finally:
        made.close()


def unwritten(monkeypatch, places: set[int], memory=lambda shape: np.zeros(shape, np.uint8)):
    """DALI returns `memory` in place of the n-th clips of all that it gets, as where NVDEC gave nothing."""
    real, count = decoder.resize_into, [0]

    def resized(frames, at, images, executor, threads):
        for task in real(frames, at, images, executor, threads):
            task.result()
        for place in at:
            if count[0] in places:
                frames[place] = memory(frames[place].shape)
            count[0] += 1
        return []

    monkeypatch.setattr(decoder, "resize_into", resized)


def test_dali_decodes_the_clips_in_parts(clips, pool, monkeypatch):
    sizes = []
    real = graph.graph_input
    monkeypatch.setattr(decoder, "graph_input", lambda some, **how: sizes.append(len(some)) or real(some, **how))
    monkeypatch.setattr(decoder, "CLIPS_TOGETHER", 3)
    mixed = pictures(clips[:7])
    mixed[2:2] = [Picture(np.frombuffer(jpeg(1), np.uint8))]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first, second = run([mixed, pictures(clips[7:9])], pool)
    assert max(sizes) == 3 and sum(sizes) == 10
    for frame, clip in zip([*first[:2], *first[3:], *second], clips[:9], strict=True):
        assert np.abs(frame.numpy().astype(int) - expected(clip)).mean() < 2


MEMORY = {
    "zeros": lambda shape: np.zeros(shape, np.uint8),
    "noise": lambda shape: np.random.default_rng(0).integers(0, 256, shape, np.uint8),
    "another frame": lambda shape: np.roll(np.linspace(0, 255, np.prod(shape)).astype(np.uint8).reshape(shape), 9),
}


@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize("known", [False, True])
def test_memory_that_was_never_written_is_not_trained_on(clips, pool, monkeypatch, memory, known):
    unwritten(monkeypatch, {0, 5}, MEMORY[memory])
    values = [nvdec_clips.check_value(decode_clip(clip.data, clip.target)) for clip in clips]
    with pytest.warns(Notice, match=r"NVDEC cannot decode the clip of 0: it came back as another.* PyAV decodes"):
        (frames,) = run([pictures(clips[:8], values if known else None)], pool)
    for at, (frame, clip) in enumerate(zip(frames, clips, strict=False)):
        assert np.abs(frame.numpy().astype(int) - expected(clip)).mean() < (1e-9 if at in (0, 5) else 2)


def test_pyav_decodes_a_clip_once_beside_dali(clips, pool, monkeypatch):
    decoded, held = [], {}
    real = clip_guard.frame_of_clip
    monkeypatch.setattr(clip_guard, "frame_of_clip", lambda *what: decoded.append(1) or real(*what))
    run([pictures(clips[:4])], pool, held.__setitem__)
    assert len(decoded) == 4 and held.keys() == {0, 1, 2, 3}
    run([pictures(clips[:4], held)], pool)
    assert len(decoded) == 4


def test_what_dali_must_not_get_is_pyavs(tmp_path, clips, pool):
    """H.264, which DALI knows on no CPU: a clip of an earlier version, whose parser would find no parameter sets."""
    path = make_video(tmp_path / "v.mp4", seconds=2.4, picture=noisy, sound=None, **STREAMS["h264_open.mp4"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(starts, "as_first", lambda codec, data, settings: (data, ""))
        old = [clip for _, clip in cut_clips(path, [(20, 0.0), (23, 0.0)])]
    with pytest.warns(Notice, match="its parameter sets are not in its first packet") as told:
        both, alone = run([pictures([*old, *clips[:2]]), pictures(old)], pool)
    assert len(told) == 1
    for frames in (both, alone):
        assert all(np.array_equal(frame.numpy(), expected(clip)) for frame, clip in zip(frames, old, strict=False))


def test_a_clip_that_pyav_cannot_decode_is_a_fault(clips, pool, monkeypatch):
    """DALI may make something of a damaged clip; nothing says whether it is right."""
    real = clip_guard.frame_of_clip

    def broken(picture: Picture, side: int) -> np.ndarray:
        if picture.position == 1:
            raise MediaError(TRUNCATED, "a clip of 3 frames: broken")
        return real(picture, side)

    monkeypatch.setattr(clip_guard, "frame_of_clip", broken)
    feed = iter([pictures(clips[:3])])
    made = FrameDecoder(lambda: next(feed), 3, SIDE, CPU, 2, 2, pool, clips=True, clips_by_dali=True)
    with pytest.raises(DecodeError) as error:
        next(made)
    assert error.value.faults == {1: "video truncated or damaged: a clip of 3 frames: broken"}
    made.drop([1])
    assert len(next(made)) == 2
    made.close()


def test_verify_leaves_what_training_needs(clips, tmp_path):
    manifest = shards.Manifest.load(write(tmp_path / "p", [*clips[:3], jpeg(1), clips[4]]))
    assert manifest.clip_checks() is None
    verify(manifest)
    held = manifest.clip_checks()
    assert held["known"].tolist() == [True] * 3 + [False, True]
    with Loader(manifest, ["train"], batch_size=5, side=SIDE, shuffle=False, threads=1) as loader:
        read = loader._shards.read(np.arange(5), np.empty((5, 48_000), np.int16), ThreadPoolExecutor(1), 1)
    for picture, visual in zip(read, [*clips[:3], None, clips[4]], strict=True):
        if visual is None:
            assert picture.check is None
        else:
            assert np.array_equal(picture.check, nvdec_clips.check_value(decode_clip(visual.data, visual.target)))
    held = np.array(held)
    held["crc"][1] += 1  # of other pairs
    np.save(tmp_path / "p" / shards.CLIP_CHECKS, held)
    checks = [picture.check is None for picture in read_all(manifest)]
    assert checks == [False, True, False, True, False]
    (tmp_path / "p" / shards.CLIP_CHECKS).write_bytes(b"no array")
    assert all(picture.check is None for picture in read_all(manifest))


def read_all(manifest) -> list[Picture]:
    held = shards.Shards(manifest, ["train"])
    with ThreadPoolExecutor(1) as executor:
        return held.read(np.arange(len(held)), np.empty((len(held), 48_000), np.int16), executor, 1)


def test_check_values():
    rng = np.random.default_rng(0)
    frame = rng.integers(0, 256, (91, 163, 3), np.uint8)
    value = nvdec_clips.check_value(frame)
    assert value.shape == (8, 8, 3) and np.abs(value.mean((0, 1)) - frame.mean((0, 1))).max() < 2
    block = nvdec_clips.check_value(np.kron(rng.integers(0, 256, (8, 8, 3), np.uint8), np.ones((11, 20, 1), np.uint8)))
    assert nvdec_clips.same_picture(block, block) and not nvdec_clips.same_picture(block, np.roll(block, 1, 0))
    assert nvdec_clips.same_picture(np.full((8, 8, 3), 100, np.uint8), np.full((8, 8, 3), 104, np.uint8))
    assert not nvdec_clips.same_picture(np.full((8, 8, 3), 100, np.uint8), np.full((8, 8, 3), 105, np.uint8))
