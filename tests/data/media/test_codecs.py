"""Every pair of a video and a sound codec that videos come in: a flash and a click at the same moment are found there.

The full product {H.264 with B-frames in open groups, HEVC with open groups, VP9 with hidden pictures, AV1, MJPEG} x
{constant, varying frame rate} x {AAC, Opus, MP3, FLAC} x {mono, stereo, 5.1} x {16, 44.1, 48 kHz}, but for what does
not exist: MP3 knows no 5.1, Opus no 44.1 kHz (it decodes to 48 kHz whatever it was made of, and so `decode_sound` gives
it). Containers take turns: MP4 and Matroska hold everything; QuickTime no Opus and no FLAC; WebM VP9 and AV1 with Opus.

The picture is right to the frame: the flash lasts one. The sound is right to the sample: where the file puts the click,
the decoded track has it, by cross-correlation; with FLAC it is the same numbers. One exception, of the container's: an
MP4 that counts time in 1/16,000 s places Opus's samples, of 1/48,000 s, to one sample.
"""

import itertools

import numpy as np
import pytest
import soxr

from essl_fast.data.media import audio, cut_clips, decode_clip, decode_frames, probe
from essl_fast.data.media.audio import decode_sound, sound_window, to_stored, window_span
from tests.tools.clips import VP9_HIDDEN, x264, x265
from tests.tools.media import join_tracks, make_sound, make_video

FPS, SECONDS, MOMENT = 25, 4, 2.0
WIDTH, HEIGHT = 96, 64
VIDEOS = {
    "h264": x264("open-gop=1"),
    "hevc": x265("open-gop=1:bframes=4:b-pyramid=1"),
    "vp9": VP9_HIDDEN,
    "av1": {"codec": "libsvtav1", "options": {"preset": "12", "svtav1-params": "lp=1", "g": "30"}},
    "mjpeg": {"codec": "mjpeg", "pix_fmt": "yuvj420p"},
}
SOUNDS = {"aac": "aac", "opus": "libopus", "mp3": "libmp3lame", "flac": "flac"}
RATES = (16_000, 44_100, 48_000)
CHANNELS = (1, 2, 6)


def stamps_of(rate: str) -> list[int]:
    """When frames are shown, in 1/25 s; one is at MOMENT."""
    if rate == "constant":
        return list(range(FPS * SECONDS))
    steps = np.random.default_rng(2).choice([1, 1, 2, 3], FPS * SECONDS)
    stamps = set(np.cumsum(steps) - steps[0]) | {round(MOMENT * FPS)}
    return sorted(int(stamp) for stamp in stamps if stamp < FPS * SECONDS)


def flash_at(place: int):
    noise = np.random.default_rng(0).integers(0, 60, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    return lambda number: np.roll(noise, 5 * number, 1) + np.uint8(180 * (number - 1 == place))


def burst(rate: int) -> np.ndarray:
    """A click of 20 ms that is like nothing but itself: float32 (rate / 50,)."""
    return np.random.default_rng(5).uniform(-0.8, 0.8, rate // 50).astype(np.float32)


def lag(sound: np.ndarray, click: np.ndarray, expected: int) -> int:
    """How many samples after `expected` the click is, looked for in the 0.1 s around it."""
    reach = 5 * len(click) // 2
    return int(np.argmax(np.correlate(sound[expected - reach : expected + reach + len(click)], click))) - reach


@pytest.fixture(scope="module")
def tracks(tmp_path_factory):
    """(codec, "constant" or "varying", container) and (codec, channels, rate, container) → a file of that track."""
    folder, made = tmp_path_factory.mktemp("tracks"), {}

    def get(*key):
        if key in made:
            return made[key]
        path = folder / ("_".join(map(str, key[:-1])) + f".{key[-1]}")
        if len(key) == 3:
            stamps = stamps_of(key[1])
            picture = flash_at(stamps.index(round(MOMENT * FPS)))
            make_video(path, fps=FPS, pts=stamps, ticks=FPS, picture=picture, sound=None, **VIDEOS[key[0]])
        else:
            codec, channels, rate, _ = key
            sound = np.zeros((channels, SECONDS * rate), np.float32)
            sound[:, round(MOMENT * rate) :][:, : rate // 50] = burst(rate)
            make_sound(path, sound, SOUNDS[codec], rate)
        return made.setdefault(key, path)

    return get


def containers(video: str, sound: str) -> list[str]:
    return (
        ["mp4", "mkv"]
        + ["mov"] * (video not in ("vp9", "av1") and sound not in ("opus", "flac"))
        + (["webm"] * (video in ("vp9", "av1") and sound == "opus"))
    )


def legal(sound: str, channels: int, rate: int) -> bool:
    return not (sound == "mp3" and channels == 6) and not (sound == "opus" and rate == 44_100)


@pytest.mark.parametrize("sound", SOUNDS)
@pytest.mark.parametrize("rate", ["constant", "varying"])
@pytest.mark.parametrize("video", VIDEOS)
def test_the_flash_and_the_click(tmp_path, tracks, monkeypatch, video, rate, sound):
    monkeypatch.setenv("SVT_LOG", "0")
    place = stamps_of(rate).index(round(MOMENT * FPS))
    turns = itertools.cycle(containers(video, sound))
    for channels, hz in itertools.product(CHANNELS, RATES):
        if not legal(sound, channels, hz):
            continue
        kind = next(turns)
        path = join_tracks(
            tmp_path / f"{channels}_{hz}.{kind}",
            tracks(video, rate, "mp4"),
            tracks(sound, channels, hz, kind if kind != "webm" else "mkv"),
        )
        found = probe(path)
        assert (found.codec, found.constant, bool(found.counted)) == (video, rate == "constant", False)
        assert len(found.pts) == len(stamps_of(rate))

        # The frame before, the flash, the frame after: asked for by number where the rate is constant, else by time.
        asked = [(place + 1 + step, stamps_of(rate)[place + step] / FPS) for step in (-1, 0, 1)]
        if rate == "varying":
            asked = [(1, time) for _, time in asked]
        frames = dict(decode_frames(path, asked, found))
        assert [frames[step].mean() > 120 for step in range(3)] == [False, True, False], path.name
        for index, clip in cut_clips(path, asked, found):
            np.testing.assert_array_equal(decode_clip(clip.data, clip.target), frames[index], path.name)

        track = decode_sound(path)
        assert track.rate == (48_000 if sound == "opus" else hz) and not track.damage and not track.holes
        click = soxr.resample(burst(hz), hz, track.rate, quality="HQ") if track.rate != hz else burst(hz)
        at = round(MOMENT * track.rate)
        coarse = sound == "opus" and hz == 16_000 and kind == "mp4"
        assert abs(lag(track.mono, click, at)) <= coarse, path.name
        if sound == "flac":
            np.testing.assert_allclose(track.mono[at : at + len(click)], click, rtol=0, atol=2**-15)
            assert not track.mono[:at].any() and not track.mono[at + len(click) :].any()
        window = sound_window(track.mono, track.rate, MOMENT)
        offset, length = window_span(MOMENT, track.rate)
        assert offset == at - round(1.5 * track.rate) and len(window) == length == 3 * track.rate
        stored = to_stored(window, track.rate)
        heard = burst(hz) if hz == 16_000 else soxr.resample(burst(hz), hz, audio.RATE, quality="HQ")
        assert lag(stored, heard, audio.SAMPLES // 2) == 0, path.name


def test_the_click_is_found_where_it_is():
    """The measure sees one sample, and a sound that a lossy codec has changed."""
    click = burst(16_000)
    for shift in (-1, 0, 1, 40):
        sound = np.random.default_rng(0).normal(0, 0.2, 16_000).astype(np.float32)
        sound[8_000 + shift :][: len(click)] += click
        assert lag(sound, click, 8_000) == shift


@pytest.mark.parametrize("sound, delay", [("aac", 1024), ("mp3", 1105)])
def test_avi_cannot_state_what_an_encoder_put_before_the_sound(tmp_path, sound, delay):
    """So the sound is as late as its encoder made it, in every player; the other containers state it."""
    click, whole = burst(16_000), np.zeros(SECONDS * 16_000, np.float32)
    whole[32_000:][: len(click)] = click
    path = make_video(tmp_path / "v.avi", sound=whole, sound_codec=SOUNDS[sound])
    assert lag(decode_sound(path).mono, click, 32_000 + delay) == 0
