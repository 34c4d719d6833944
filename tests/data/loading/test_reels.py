"""Frames of moments by way of reels and DALI, as on NVDEC: played by DALI's decoder for CPUs (VP9 and MJPEG)."""

import numpy as np
import pytest
import torch

from essl_fast.data.loading import reels
from essl_fast.data.media import MediaError, Reel, cut_reels, groups, probe
from essl_fast.data.media.footage import Still, Video
from tests.tools.media import MJPEG, VP9, make_video, noisy, number_of, numbered, set_matrix, truncate

CPU = torch.device("cpu")


def collect(moments) -> list[tuple[int, np.ndarray, np.ndarray] | tuple[int, MediaError]]:
    """(place, frame, whole picture) or (place, error) of each."""
    return [
        (place, shown) if isinstance(shown, MediaError) else (place, shown.frame.numpy().copy(), shown.whole())
        for place, shown in moments
    ]


def check(path, places, monkeypatch, said=None, **settings):
    """DALI's moments of a file beside PyAV's: the same places in the same order, the same pictures but for rounding."""
    for name, value in settings.items():
        monkeypatch.setattr(reels, name, value)
    video, lines = Video(probe(path)), []
    theirs = collect(reels.from_pyav(video, places, 224))
    ours = collect(reels.from_dali(video, places, 224, CPU, lines.append))
    assert [one[0] for one in ours] == [one[0] for one in theirs] == list(places)
    for mine, other in zip(ours, theirs, strict=True):
        if len(other) == 2:
            assert str(mine[1]) == str(other[1])
            continue
        assert mine[1].shape == (224, 224, 3) and mine[1].dtype == mine[2].dtype == np.uint8
        assert mine[2].shape == other[2].shape
        assert all(np.abs(a.astype(int) - b).mean() < 2 for a, b in zip(mine[1:], other[1:], strict=True))
    assert lines == [] if said is None else len(lines) == len(said) and all(map(str.__contains__, lines, said))
    return ours


@pytest.mark.parametrize("name, how", [("v.webm", VP9), ("v.mov", MJPEG)])
@pytest.mark.parametrize("settings", [{}, {"REELS": 2, "FRAME_BYTES": 3 * 160 * 90 * 3}, {"FRAME_BYTES": 1}])
def test_the_frames_are_pyavs(tmp_path, monkeypatch, name, how, settings):
    path = make_video(tmp_path / name, seconds=4, **how)
    for places in (range(40), [0, 3, 4, 17, 38, 39], [21]):
        ours = check(path, places, monkeypatch, **settings)
        assert [number_of(picture) for _, _, picture in ours] == [place + 1 for place in places]
        assert [number_of(frame) for _, frame, _ in ours] == [place + 1 for place in places]


def test_a_group_of_pictures_is_decoded_once(tmp_path, monkeypatch):
    path = make_video(tmp_path / "v.webm", seconds=4, **VP9)
    cut = list(cut_reels(probe(path), list(range(40)), 99))
    assert [len(places) for places, _ in cut] == [10, 10, 10, 10]
    runs = []
    pipeline = reels._pipeline

    def counted(source, *more):
        def told():
            files, targets, turns = source()
            runs.append([len(target) for target in targets])
            return files, targets, turns

        return pipeline(told, *more)

    monkeypatch.setattr(reels, "_pipeline", counted)
    check(path, range(40), monkeypatch, REELS=3)
    assert runs == [[10, 10, 10], [10]]
    runs.clear()
    check(path, range(40), monkeypatch, REELS=8, FRAME_BYTES=6 * 160 * 90 * 3)  # no more than these at a time
    assert runs == [[6, 4] * 4]


def test_a_turned_video_comes_out_upright(tmp_path, monkeypatch):
    path = set_matrix(make_video(tmp_path / "v.mp4", seconds=1, **MJPEG), 0, 1, -1, 0)
    ((_, _, picture),) = check(path, [7], monkeypatch)
    assert picture.shape == (160, 90, 3)


def test_what_no_reel_can_be_cut_of_is_pyavs(tmp_path, monkeypatch):
    path = make_video(tmp_path / "v.avi", seconds=2, sound_codec="pcm_s16le", **MJPEG)  # its packets have no times
    check(path, [0, 3, 19], monkeypatch)


def test_between_reels_as_well(tmp_path, monkeypatch):
    """Long groups: reels hold only their first packets, and PyAV decodes the rest."""
    path = make_video(tmp_path / "v.webm", seconds=4, **VP9 | {"options": {**VP9["options"], "g": "20"}})
    monkeypatch.setattr(groups, "_MOST_PACKETS", 7)
    cut = [reel for _, reel in cut_reels(probe(path), list(range(40)), 3)]
    assert {type(reel) for reel in cut} == {Reel, MediaError}
    check(path, range(40), monkeypatch, REELS=2, FRAME_BYTES=3 * 160 * 90 * 3)


def test_damage_is_told_as_pyav_tells_it(tmp_path, monkeypatch):
    path = make_video(tmp_path / "v.mkv", seconds=4, sound=None, **MJPEG)
    places = [place for place in range(0, 40, 3)]
    whole = Video(probe(path))
    truncate(path, 0.5)
    theirs, ours = (
        collect(moments) for moments in (reels.from_pyav(whole, places, 224), reels.from_dali(whole, places, 224, CPU))
    )
    assert [(one[0], type(one[1])) for one in ours] == [(one[0], type(one[1])) for one in theirs]
    assert isinstance(ours[-1][1], MediaError) and str(ours[-1][1]) == str(theirs[-1][1]) and len(ours[3]) == 3


@pytest.mark.parametrize("patience", [1, 3])
def test_where_the_decoder_fails_pyav_takes_over(tmp_path, monkeypatch, patience):
    """DALI's decoder for CPUs knows no H.264, as an NVDEC may not know what the driver said it does."""
    path = make_video(tmp_path / "v.mp4", seconds=8)
    said = ["Failed to create video decoder"] * patience
    check(path, range(80), monkeypatch, said, REELS=2, PATIENCE=patience)


def test_one_batch_that_fails_costs_no_other(tmp_path, monkeypatch):
    path = make_video(tmp_path / "v.webm", seconds=4, **VP9)
    cut = reels.cut_reels

    def damaged(*asked):
        for number, (places, reel) in enumerate(cut(*asked)):
            data = reel.data[:-300] + bytes(300) if number == 1 else reel.data
            yield places, Reel(data, reel.places, reel.targets, reel.quarters)

    monkeypatch.setattr(reels, "cut_reels", damaged)
    check(path, range(40), monkeypatch, ["DALI could not decode 10 frames from 1.00 s on ("], REELS=1)


@pytest.mark.parametrize("share", [0.85, 0.65, 0.5])
def test_every_moment_of_a_truncated_video_with_b_frames_is_answered(tmp_path, share):
    """Its reels have holes: a frame is there, and one shown before it is not."""
    path = make_video(tmp_path / "v.mkv", seconds=4, picture=noisy, sound=None, options={"bf": "3", "b-adapt": "0"})
    whole = Video(probe(path))
    truncate(path, share)
    theirs, ours = (
        collect(moments)
        for moments in (reels.from_pyav(whole, range(40), 224), reels.from_dali(whole, range(40), 224, CPU))
    )
    assert [(one[0], type(one[1])) for one in ours] == [(one[0], type(one[1])) for one in theirs]
    assert [one[0] for one in ours] == list(range(40)) and isinstance(ours[-1][1], MediaError)


def test_a_file_that_is_gone_is_named(tmp_path):
    path = make_video(tmp_path / "v.webm", seconds=1, **VP9)
    video = Video(probe(path))
    path.unlink()
    with pytest.raises(MediaError, match="v.webm"):
        list(reels.from_dali(video, [3], 224, CPU))


def test_a_still_picture(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    got = collect(reels.from_pyav(Still(picture, 0.3), [0, 2], 224))
    assert [place for place, *_ in got] == [0, 2] and all(np.array_equal(whole, picture) for *_, whole in got)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("codec", ["libx264", "libx265", "libvpx-vp9"])
def test_nvdec_gives_pyavs_frames(tmp_path, monkeypatch, codec):
    """Several batches of reels, with B-frames where the codec has them; frames and pictures within 2 grey levels."""
    options = {"x265-params": "log-level=none:bframes=3"} if codec == "libx265" else {"bf": "3"}
    path = make_video(
        tmp_path / "v.mkv",
        seconds=8,
        sound=None,
        codec=codec,
        picture=lambda n: numbered(n, 320, 180),
        options={} if codec == "libvpx-vp9" else options,
    )
    monkeypatch.setattr(reels, "REELS", 2)
    monkeypatch.setattr(reels, "FRAME_BYTES", 6 * 320 * 180 * 3)
    video, device, said = Video(probe(path)), torch.device("cuda", torch.cuda.current_device()), []
    places = list(range(0, 80, 2)) + [79]
    ours = [
        (place, shown.frame, shown.whole()) for place, shown in reels.from_dali(video, places, 224, device, said.append)
    ]
    theirs = collect(reels.from_pyav(video, places, 224))
    assert said == [] and [place for place, *_ in ours] == places
    for (_, frame, picture), (_, other, whole) in zip(ours, theirs, strict=True):
        assert frame.device == device and number_of(picture) == number_of(whole)
        assert np.abs(frame.cpu().numpy().astype(int) - other).mean() <= 2
        assert np.abs(picture.astype(int) - whole).mean() <= 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_what_pyav_decodes_in_nvdecs_place_lies_on_the_gpu_as_well(tmp_path, monkeypatch):
    """One reel holds garbage, and some frames are in no reel; the network takes all of them in one batch."""
    path = make_video(tmp_path / "v.mp4", seconds=4)
    cut = reels.cut_reels

    def damaged(*asked):
        for number, (places, reel) in enumerate(cut(*asked)):
            if number == 2:
                yield from (((place,), None) for place in places)
            else:
                data = reel.data[:-300] + bytes(300) if number == 1 else reel.data
                yield places, Reel(data, reel.places, reel.targets, reel.quarters)

    monkeypatch.setattr(reels, "cut_reels", damaged)
    monkeypatch.setattr(reels, "REELS", 1)
    video, device = Video(probe(path)), torch.device("cuda", torch.cuda.current_device())
    shown = list(reels.from_dali(video, range(40), 224, device))
    assert [place for place, _ in shown] == list(range(40)) and {one.frame.device for _, one in shown} == {device}
    assert [number_of(one.frame.cpu().numpy()) for _, one in shown] == list(range(1, 41))


def test_a_reel_that_nvdec_never_gave_is_pyavs(tmp_path, monkeypatch):
    """What lay in that memory does not reach the network."""
    path = make_video(tmp_path / "v.webm", seconds=3, **VP9)
    real, proven = reels._is_proven, []

    def unwritten(reel: Reel, frame: torch.Tensor) -> bool:
        proven.append(real(reel, frame) and not real(reel, torch.zeros_like(frame)))
        return proven[-1] and len(proven) != 2

    monkeypatch.setattr(reels, "_is_proven", unwritten)
    check(
        path, range(30), monkeypatch, ["v.webm, 1.00 s: NVDEC gave another picture than PyAV, or none; PyAV decodes 10"]
    )
    assert proven == [True] * 3


def test_a_reel_that_nvdec_must_not_get_is_pyavs(tmp_path, monkeypatch):
    odd = make_video(tmp_path / "v.webm", seconds=1, picture=lambda number: numbered(number, 161, 91), **VP9)
    monkeypatch.setattr(reels, "decode_reels", lambda *what: pytest.fail("DALI got an odd size"))
    check(odd, range(10), monkeypatch)
