"""Frames by way of clips and DALI, as on NVDEC: played by DALI's decoder for CPUs, which knows VP9 and MJPEG."""

import numpy as np
import pytest

from essl_fast.common.errors import InputError
from essl_fast.data import media
from essl_fast.data.media import hardware, nvdec
from essl_fast.data.shards import Manifest, iterate
from essl_fast.prepare import prepare
from essl_fast.prepare.tasks import Task
from tests.tools.media import (
    MJPEG,
    VP9,
    clicks,
    make_video,
    number_of,
    numbered,
    row,
    set_matrix,
    truncate,
    write_annotations,
)
from tests.tools.prepare import hashes, left_out, workers_that

KNOWN = {"vp9": [16, 16, 4096, 4096]}


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    monkeypatch.setattr(hardware, "BACKEND", "cpu")
    yield
    hardware._pipeline.cache_clear()


def by_request(decode, path, requests):
    found = {}
    for index, frame in decode(path, requests):
        assert index not in found
        found[index] = frame
    return [found[index] for index in range(len(requests))]


@pytest.mark.parametrize("name, how", [("v.webm", VP9), ("v.mov", MJPEG)])
def test_the_frames_are_pyavs(tmp_path, name, how):
    path = make_video(tmp_path / name, seconds=4, **how)
    requests = [(fid, -1.0) for fid in [31, 1, *range(2, 30, 2), 40, 41, 12, 11, 31]]  # more than a batch
    theirs, ours = (by_request(decode, path, requests) for decode in (media.decode_frames, hardware.decode_frames))
    for (fid, _), mine, other in zip(requests, ours, theirs, strict=True):
        if fid == 41:
            assert mine.reason == other.reason == media.PAST_END
        else:
            assert number_of(mine) == fid and mine.shape == other.shape and mine.dtype == np.uint8
            assert np.abs(mine.astype(int) - other).mean() < 2


def test_a_turned_video_comes_out_upright(tmp_path):
    path = make_video(tmp_path / "v.mp4", seconds=1, **MJPEG)
    set_matrix(path, 0, 1, -1, 0)
    requests = [(7, 0), (3, 0)]  # DALI's frames: what a batch of one gives is never believed
    ours, theirs = (by_request(decode, path, requests) for decode in (hardware.decode_frames, media.decode_frames))
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.shape == other.shape == (160, 90, 3) and np.abs(mine.astype(int) - other).mean() < 2


def test_what_no_clip_can_be_of_is_pyavs(tmp_path):
    path = make_video(tmp_path / "v.avi", seconds=2, sound_codec="pcm_s16le", **MJPEG)  # its packets have no times
    requests = [(3, 0.0), (9, 0.0), (99, 0.0)]
    theirs, ours = (by_request(decode, path, requests) for decode in (media.decode_frames, hardware.decode_frames))
    np.testing.assert_array_equal(ours[:2], theirs[:2])
    assert ours[2].reason == theirs[2].reason == media.PAST_END


def test_a_decoder_that_fails_is_named_and_costs_no_other_video(tmp_path):
    """DALI's decoder for CPUs knows no H.264, as an NVDEC may not know what the driver said it does."""
    good, bad = make_video(tmp_path / "a.webm", seconds=1, **VP9), make_video(tmp_path / "b.mp4", seconds=1)
    ours = by_request(hardware.decode_frames, bad, [(1, 0), (5, 0)])
    assert [frame.reason for frame in ours] == [nvdec.FAILED] * 2
    assert ours[0].detail.startswith("b.mp4: ") and ours[0].detail.endswith("--decoder pyav, which decodes it")
    assert number_of(by_request(hardware.decode_frames, good, [(5, 0)])[0]) == 5


@pytest.mark.parametrize("memory", [0, 200, "noise", "earlier"])
def test_memory_that_was_never_written_is_no_frame(tmp_path, monkeypatch, memory):
    """DALI returns what lay in the memory of one clip. Each batch is decoded twice, in another order."""
    path = make_video(tmp_path / "v.webm", seconds=2, **VP9)
    requests = [(fid, -1.0) for fid in range(1, 8)]
    frames, held, batches = hardware._frames, {}, []

    def some_unwritten(clips):
        found = frames(clips)
        batches.append(len(clips))
        for at, clip in enumerate(clips):
            if clip.target == 4:
                if memory == "earlier":  # of the clip that had this memory before
                    found[at] = held.get(at, found[0])
                elif memory == "noise":
                    found[at] = np.random.default_rng(len(batches)).integers(0, 256, found[at].shape, np.uint8)
                else:
                    found[at] = np.full_like(found[at], memory)
            held[at] = found[at]
        return found

    monkeypatch.setattr(hardware, "_frames", some_unwritten)
    theirs, ours = (by_request(decode, path, requests) for decode in (media.decode_frames, hardware.decode_frames))
    assert batches == [7, 7]
    for number, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
        assert np.abs(mine.astype(int) - other).mean() < (1e-9 if number == 4 else 2)


def test_a_clip_that_nvdec_must_not_get_is_pyavs(tmp_path, monkeypatch):
    path = make_video(tmp_path / "v.webm", seconds=1, picture=lambda number: numbered(number, 161, 91), **VP9)
    monkeypatch.setattr(hardware, "_frames", lambda clips: pytest.fail("DALI got an odd size"))
    theirs, ours = (by_request(decode, path, [(3, 0.2)]) for decode in (media.decode_frames, hardware.decode_frames))
    np.testing.assert_array_equal(ours, theirs)


def test_damage_is_told_as_pyav_tells_it(tmp_path):
    path = make_video(tmp_path / "v.mkv", seconds=4, sound=None, **MJPEG)
    truncate(path, 0.5)
    requests = [(3, 0.0), (39, 0.0)]
    theirs, ours = (by_request(decode, path, requests) for decode in (media.decode_frames, hardware.decode_frames))
    assert number_of(ours[0]) == 3 and str(ours[1]) == str(theirs[1]) and ours[1].reason == media.TRUNCATED


@pytest.mark.slow
def test_prepare_with_a_gpus_decoder(tmp_path, monkeypatch, capsys):
    """VP9 is NVDEC's, MJPEG is PyAV's; the folder says so, and goes on like that on a machine without a GPU."""
    for name, how in (("a.webm", VP9), ("b.mov", MJPEG), ("t.webm", VP9)):
        make_video(tmp_path / "videos" / name, **({"sound": clicks(4, how.get("rate", 16_000), at=(2.0,))} | how))
    rows = [row(20, 2.0), row(22, 2.2)]
    write_annotations(tmp_path / "notes", {"a": rows, "b": rows}, {"t": rows})

    def make(out, **settings):
        asked = {"visual": "jpeg", "decoder": "nvdec", "workers": 1, "validation": 0, **settings}
        return prepare(tmp_path / "videos", tmp_path / "notes", tmp_path / out, **asked)

    def frames(manifest: Manifest):
        return {
            pair["key"]: pair["jpg"]
            for split in ("train", "test")
            for tar, _ in manifest.shards([split])
            for pair in iterate(tar)
        }

    monkeypatch.setattr(nvdec, "detect", lambda: ({}, "there is none"))
    with pytest.raises(InputError, match="decoder: nvdec cannot be used, since there is none; take pyav"):
        make("none")
    with pytest.raises(InputError, match="decoder nvdec is for visual jpeg"):
        make("none", visual="clip")
    plain = make("plain", decoder="auto")
    assert plain.header["settings"]["decoder"] == "auto" and plain.header["settings"]["decoders"] == {}
    monkeypatch.setattr(nvdec, "detect", lambda: (KNOWN, ""))
    calls = tmp_path / "calls"
    workers_that(
        monkeypatch,
        f"""
from essl_fast.data.media import hardware
hardware.BACKEND, decode = "cpu", hardware.decode_frames
def told(path, *more):
    open({str(calls)!r}, "a").write(Path(path).name + " ")
    return decode(path, *more)
hardware.decode_frames = told""",
    )
    manifest = make("out")
    assert sorted(calls.read_text().split()) == ["a.webm", "t.webm"]
    assert manifest.header["settings"]["decoders"] == KNOWN and not left_out(tmp_path / "out")
    ours, theirs = frames(manifest), frames(plain)
    assert ours.keys() == theirs.keys() and len(ours) == 6
    assert {key for key in ours if ours[key] != theirs[key]} <= {key for key in ours if key[0] in "at"}
    make("again", workers=2)
    assert hashes(tmp_path / "again") == hashes(tmp_path / "out")
    capsys.readouterr()
    monkeypatch.setattr(nvdec, "detect", lambda: pytest.fail("a folder that is begun does not ask again"))
    (tmp_path / "out/train-00000.tar").unlink()
    make("out")
    assert hashes(tmp_path / "again") == hashes(tmp_path / "out")
    assert Task("v", "v", (), False, KNOWN) != Task("v", "v", ())
