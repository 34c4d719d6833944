"""The clock of a file: the right picture at the right time where packets do not tell it, or tell it wrongly."""

from fractions import Fraction

import numpy as np
import pytest

from essl_fast.data import media
from essl_fast.data.media import MediaError, cut_clips, decode_clip, decode_frames, probe
from essl_fast.data.media.clock import is_constant
from essl_fast.data.media.footage import Video
from tests.tools.clocks import BFRAMES, COARSE, SKIPPING, amid, amid_refresh, decoding_order, doubled
from tests.tools.fields import field_coded, hevc_fields, reordered
from tests.tools.media import make_video, number_of


def skipping(folder, name, **options):
    return make_video(folder / name, pts=SKIPPING, ticks=10, **options)


EVEN, TEN = [place / 10 for place in range(60)], [tick / 10 for tick in SKIPPING]
KINDS = {  # name → (makes the file, when each picture is shown in seconds, a word of why it is counted or "")
    "no offsets.mp4": (lambda folder: decoding_order(folder, "mp4"), EVEN, "decoding"),
    "no offsets.mkv": (lambda folder: decoding_order(folder, "mkv"), EVEN, "decoding"),
    "fields.ts": (lambda folder: field_coded(folder / "f.ts"), EVEN[:20], "fields"),
    "fields.mp4": (lambda folder: field_coded(folder / "f.mp4"), EVEN[:20], "fields"),
    "fields.mkv": (lambda folder: field_coded(folder / "f.mkv"), EVEN[:20], "fields"),
    "fields.avi": (lambda folder: field_coded(folder / "f.avi"), EVEN[:20], "fields"),
    "fields and whole pictures.ts": (lambda folder: field_coded(folder / "f.ts", whole=3), EVEN[:20], "fields"),
    "fields and whole pictures.mp4": (lambda folder: field_coded(folder / "f.mp4", whole=3), EVEN[:20], "fields"),
    "fields and whole pictures.mkv": (lambda folder: field_coded(folder / "f.mkv", whole=3), EVEN[:20], "fields"),
    "HEVC fields.mp4": (lambda folder: hevc_fields(folder / "f.mp4", sound=None), EVEN[:40], ""),
    "HEVC fields.mkv": (lambda folder: hevc_fields(folder / "f.mkv", sound=None), EVEN[:40], ""),
    "HEVC fields.ts": (lambda folder: hevc_fields(folder / "f.ts", sound=None), EVEN[:40], ""),
    "P pictures.mp4": (lambda folder: reordered(folder / "p.mp4"), EVEN[:40], "decoding"),
    "P pictures.mkv": (lambda folder: reordered(folder / "p.mkv", held=None), EVEN[:40], "decoding"),
    "P pictures.ts": (lambda folder: reordered(folder / "p.ts"), EVEN[:40], "decoding"),
    "P pictures.avi": (lambda folder: reordered(folder / "p.avi"), EVEN[:40], "AVI"),
    "P pictures in order.mp4": (lambda folder: reordered(folder / "p.mp4", range(10)), EVEN[:40], ""),
    "dropped.avi": (lambda folder: skipping(folder, "d.avi", sound=None, **BFRAMES), TEN, "AVI"),
    "dropped, MPEG-4.avi": (
        lambda folder: skipping(folder, "d.avi", sound=None, codec="mpeg4", options={"bf": "2"}),
        TEN,
        "AVI",
    ),
    "dropped, MJPEG.avi": (
        lambda folder: skipping(folder, "d.avi", sound=None, codec="mjpeg", pix_fmt="yuvj420p"),
        TEN,
        "AVI",
    ),
    "skipping.mkv": (lambda folder: skipping(folder, "s.mkv", sound=None, **BFRAMES), TEN, ""),
    "skipping, MPEG-2.ts": (
        lambda folder: skipping(folder, "s.ts", sound=None, codec="mpeg2video", options={"bf": "2"}),
        TEN,
        "",
    ),
    "MPEG-4 in order.mp4": (
        lambda folder: make_video(folder / "m.mp4", seconds=6, sound=None, codec="mpeg4", options={"bf": "0"}),
        EVEN,
        "",
    ),
    "doubled.mkv": (doubled, [*EVEN[:21], 2.1, *EVEN[22:]], "two pictures"),
    "coarse.mp4": (
        lambda folder: make_video(folder / "c.mp4", pts=COARSE, ticks=10, sound=None, **BFRAMES),
        [tick / 10 for tick in COARSE],
        "",
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_picture_at_its_time(tmp_path, kind):
    make, times, why = KINDS[kind]
    path = make(tmp_path)
    found = probe(path)
    seconds = Video(found).times
    assert (why in found.counted) if why else not found.counted
    assert len(found.pts) == len(times) and not found.truncated
    assert seconds == pytest.approx(times, abs=0.06 if kind == "doubled.mkv" else 1.1e-3)
    asked = list(enumerate(times, 1))
    frames = dict(decode_frames(path, asked, found))
    assert [number_of(frames[index]) for index in range(len(times))] == list(range(1, len(times) + 1))
    assert dict(decode_frames(path, [(len(times) + 1, times[-1] + 9)], found))[0].reason == media.PAST_END
    some = asked[3:30:5]  # after seeks the pictures are those of the whole pass
    for index, frame in decode_frames(path, some, found):
        np.testing.assert_array_equal(frame, frames[some[index][0] - 1])
    for index, clip in cut_clips(path, asked, found):
        if isinstance(clip, MediaError):
            assert clip.reason == media.NO_CLIP and path.name in clip.detail
        else:
            np.testing.assert_array_equal(decode_clip(clip.data, clip.target), frames[index])
            assert not why


def test_settings_that_deny_a_change_of_order(tmp_path):
    """Then the decoder drops the pictures that come too late: those that it gives are counted."""
    path = reordered(tmp_path / "p.mp4", held=0)
    given = [1, 3, 5, 7, 9, 10]
    found = probe(path)
    assert len(found.pts) == 4 * len(given) and "decoding" in found.counted
    asked = [(place + 1, float(at)) for place, at in enumerate(Video(found).times)]
    frames = dict(decode_frames(path, asked, found))
    assert [number_of(frames[at]) for at in range(12)] == [*given, *(10 + n for n in given)]


@pytest.mark.parametrize("ticks", [10, 30, 1000, 90_000])
def test_the_same_times_are_varying_in_any_timescale(tmp_path, ticks):
    stamps = [tick * ticks // 10 for tick in COARSE]
    found = probe(make_video(tmp_path / "v.mp4", pts=stamps, ticks=ticks, sound=None, **BFRAMES))
    assert not found.constant and found.place(1, COARSE[17] / 10) == 17


@pytest.mark.parametrize(
    "rate, ticks", [(30_000 / 1001, 1000), (25, 600), (24_000 / 1001, 1000), (60, 90_000), (10, 10)]
)
@pytest.mark.parametrize("rounding", [np.floor, np.ceil, np.round])
def test_a_rate_is_constant_however_its_times_are_rounded(rate, ticks, rounding):
    stamps = rounding(np.arange(4000) * ticks / rate).astype(np.int64)
    assert is_constant(stamps, Fraction(1, ticks))
    stamps[2000:] += max(int(ticks / rate), 1)  # one frame is missing
    assert not is_constant(stamps, Fraction(1, ticks))


@pytest.mark.parametrize("kind", ["ts", "mkv"])
def test_a_start_amid_a_group_of_pictures(tmp_path, kind):
    """What cannot be decoded is lost; picture and sound of what follows belong together."""
    path = amid(tmp_path, kind)
    found = probe(path)
    assert len(found.pts) == 50 and found.start == found.pts[0]
    assert [number_of(frame) for _, frame in decode_frames(path, [(1, 0), (7, 0.6)], found)] == [11, 17]
    sound = media.audio.decode_sound(path, zero=found.zero)
    click = np.argmax(np.abs(sound.mono) > 0.3) / sound.rate  # it is at 2 s of the whole, where 21 is shown
    assert click == pytest.approx(1.0, abs=0.07)
    assert dict(decode_frames(path, [(round(click * 10) + 1, click)], found))[0].shape


@pytest.mark.parametrize("kind, skipped", [("ts", 10), ("mkv", 10), ("mp4", 7)])
def test_a_start_amid_a_gradual_refresh(tmp_path, kind, skipped):
    """The decoder gives nothing until every stripe was refreshed: its first picture is frame 1, at time 0."""
    path = amid_refresh(tmp_path, kind, skipped)
    found = probe(path)
    assert found.counted == "it starts amid a gradual refresh" and len(found.pts) == 42
    assert Video(found).times == pytest.approx(np.arange(42) / 10, abs=1.1e-3)
    asked = [(1, 0.0), (9, 0.8), (42, 4.1)]
    assert [number_of(frame) for _, frame in decode_frames(path, asked, found)] == [19, 27, 60]
    assert [clip.reason for _, clip in cut_clips(path, asked, found)] == [media.NO_CLIP] * 3
