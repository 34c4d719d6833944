"""Localizing files whose packets do not tell when a picture is shown, and what their overlays keep."""

import json
from fractions import Fraction

import av
import numpy as np
import pytest
from av.stream import Disposition

from essl_fast.data.media import decode_frames, probe
from essl_fast.data.media.audio import decode_sound
from essl_fast.data.media.footage import Video
from essl_fast.localize import SoundFinder, localize
from tests.localize.conftest import noise
from tests.tools.clocks import BFRAMES, COARSE, SKIPPING, amid, amid_refresh, decoding_order, merged
from tests.tools.crops import cropped_matroska, cropped_mp4
from tests.tools.fields import field_coded, hevc_fields, reordered
from tests.tools.media import join_tracks, make_sound, make_video, number_of, numbered
from tests.tools.sounds import PACED, error_of, paced, pitch_of, several, two_programmes


def _fields(folder):
    silent = field_coded(folder / "f.mkv", 30)
    return join_tracks(folder / "v.mkv", silent, make_sound(folder / "s.mkv", noise(3), "pcm_s16le", 16_000))


def _p_pictures(folder):
    silent = reordered(folder / "f.mp4", groups=3)
    return join_tracks(folder / "v.mkv", silent, make_sound(folder / "s.mkv", noise(3), "pcm_s16le", 16_000))


def _coarse(folder):
    return make_video(folder / "v.mp4", pts=COARSE, ticks=10, sound=noise(COARSE[-1] / 10), **BFRAMES)


def _dropped(folder):
    sound = {"sound": noise(6), "sound_codec": "pcm_s16le"}
    return make_video(folder / "v.avi", pts=SKIPPING, ticks=10, **sound, **BFRAMES)


def _refresh(folder):
    silent = amid_refresh(folder, "mkv")
    return join_tracks(folder / "v.mkv", silent, make_sound(folder / "s.mkv", noise(6), "pcm_s16le", 16_000))


KINDS = {  # name → (makes the file, when each picture is shown, the number that the first shows)
    "fields": (_fields, np.arange(30) / 10, 1),
    "HEVC fields": (lambda folder: hevc_fields(folder / "v.mp4", 3, sound=noise(3)), np.arange(30) / 10, 1),
    "P pictures": (_p_pictures, np.arange(30) / 10, 1),
    "dropped": (_dropped, np.array(SKIPPING) / 10, 1),
    "coarse": (_coarse, np.array(COARSE) / 10, 1),
    "no offsets": (lambda folder: decoding_order(folder, "mp4"), np.arange(60) / 10, 1),
    "amid": (amid, np.arange(50) / 10, 11),
    "amid a refresh": (_refresh, np.arange(42) / 10, 19),
}


@pytest.mark.parametrize("kind", KINDS)
def test_moments_and_overlay_of_the_whole_file(run, tmp_path, kind):
    make, times, first = KINDS[kind]
    path = make(tmp_path)
    found = localize(path, run, tmp_path / "out", rate=2, opacity=0.0)
    told = json.loads((tmp_path / "out" / f"{path.stem}.moments.json").read_text())
    moments = [(moment["frame"], moment["time"]) for moment in told["moments"]]
    expected = sorted(
        {int(np.searchsorted(times, at + 1e-3, "right")) - 1 for at in np.arange(0, times[-1] + 1e-3, 0.5)}
    )
    assert [frame for frame, _ in moments] == [place + 1 for place in expected]
    assert [time for _, time in moments] == pytest.approx(times[expected], abs=2e-3)
    assert not found.faults
    overlay = tmp_path / "out" / f"{path.stem}.overlay.mp4"
    assert Video(probe(overlay)).times == pytest.approx(times, abs=2e-3)
    asked = [(1, 0.0), (len(times), float(times[-1]))]
    numbers = []
    for _, frame in decode_frames(overlay, asked):
        plain = np.where((frame > 250).all(-1, keepdims=True), 128, frame)  # without the contour
        numbers.append(number_of(np.repeat(np.median(plain, axis=0, keepdims=True), 90, axis=0)))
    assert numbers == [first, len(times) + first - 1]
    window = decode_sound(path, zero=probe(path).zero)
    again = decode_sound(overlay)
    assert len(again.mono) / again.rate == pytest.approx(window.seconds, abs=0.15)


@pytest.mark.parametrize("make, name", [(cropped_matroska, "v.mkv"), (cropped_mp4, "v.mp4")])
def test_an_overlay_shows_what_players_show(run, tmp_path, make, name):
    """Cropping that the container asks for is done."""
    silent = make(tmp_path / name)
    sound = make_sound(tmp_path / "v.wav", noise(4), "pcm_s16le", 16_000)
    localize(silent, run, tmp_path / "out", sound=sound, rate=1, opacity=0.0)
    overlay = tmp_path / "out" / "v.overlay.mp4"
    found = probe(overlay)
    assert (found.width, found.height) == (160, 90) and len(found.pts) == 40
    ((_, frame),) = decode_frames(overlay, [(38, 3.7)])
    plain = np.where((frame > 250).all(-1, keepdims=True), 128, frame)  # without the contour
    assert number_of(np.repeat(np.median(plain, axis=0, keepdims=True), 90, axis=0)) == 38


def test_an_overlay_has_the_shape_of_the_videos_pixels(run, tmp_path):
    path = tmp_path / "v.mp4"
    base = make_video(tmp_path / "sound.mp4", seconds=1, sound=noise(1))
    with av.open(str(path), "w") as file, av.open(str(base)) as source:
        video = file.add_stream("libx264", rate=10)
        video.width, video.height, video.pix_fmt = 160, 128, "yuv420p"
        video.codec_context.sample_aspect_ratio = Fraction(64, 45)
        track = file.add_stream_from_template(source.streams.audio[0])
        for number in range(10):
            frame = av.VideoFrame.from_ndarray(numbered(number + 1, 160, 128), format="rgb24")
            frame.pts = number
            file.mux(video.encode(frame))
        file.mux(video.encode())
        for packet in source.demux(audio=0):
            if packet.size:
                packet.stream = track
                file.mux(packet)
    localize(path, run, tmp_path / "out", rate=2)
    with av.open(str(tmp_path / "out" / "v.overlay.mp4")) as file:
        video = file.streams.video[0]
        assert (video.width, video.height) == (160, 128)
        assert video.sample_aspect_ratio == Fraction(64, 45) and video.display_aspect_ratio == Fraction(16, 9)


def test_sound_that_is_encoded_again_keeps_its_stamps(run, tmp_path):
    """PCM at 40 ms a packet whose clock runs 3% fast: the overlay's sound is as long as the stamps say."""
    path = tmp_path / "v.mkv"
    base = make_video(tmp_path / "b.mp4", seconds=8, sound=None)
    with av.open(str(path), "w") as file, av.open(str(base)) as source:
        video = file.add_stream_from_template(source.streams.video[0])
        track = file.add_stream("pcm_s16le", rate=16_000, layout="mono")
        packets = [packet for packet in source.demux(video=0) if packet.size]
        for packet in packets:
            packet.stream = video
        pcm = (noise(8.3)[0] * 32767).astype(np.int16)
        for number in range(int(8 / 0.04)):
            frame = av.AudioFrame.from_ndarray(pcm[None, 660 * number :][:, :660], format="s16", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 16_000, 660 * number, Fraction(1, 16_000)
            for packet in track.encode(frame):
                packet.pts = packet.dts = 40 * number
                packet.time_base = Fraction(1, 1000)
                packets.append(packet)
        for packet in sorted(packets, key=lambda packet: float(packet.dts * packet.time_base)):
            file.mux(packet)
    assert decode_sound(path).seconds == pytest.approx(8, abs=0.05)
    localize(path, run, tmp_path / "out", rate=1)
    again = decode_sound(tmp_path / "out" / "v.overlay.mp4")
    assert len(again.mono) / again.rate == pytest.approx(8, abs=0.12)


@pytest.fixture
def heard(monkeypatch):
    """The sounds that the network gets, int16 (48000,) each, in the order of the moments."""
    given, real = [], SoundFinder.similarity

    def listen(finder, frames, pcm):
        given.extend(pcm)
        return real(finder, frames, pcm)

    monkeypatch.setattr(SoundFinder, "similarity", listen)
    return given


@pytest.mark.parametrize("name", PACED)
def test_moments_hear_a_sound_by_its_stamps(run, tmp_path, heard, name):
    path, sound = paced(tmp_path, PACED[name])
    moments = localize(path, run, tmp_path / "out", rate=1, video=False).moments
    inside = [(moment, pcm) for moment, pcm in zip(moments, heard, strict=True) if 1.6 < moment.time < 6.5]
    assert len(inside) == 5
    for moment, pcm in inside:
        assert moment.sound == pytest.approx((moment.time - 1.5, moment.time + 1.5), abs=0.02)
        assert error_of(pcm / np.float32(32768), moment.time, sound, lambda at: at * PACED[name]) <= 0.02


def test_the_track_that_is_heard_is_named(run, tmp_path, heard):
    several_tracks = several(tmp_path / "v.mkv", (300, Disposition.comment, "", 2), (500, Disposition(0), "", 1))
    programmes = merged(*two_programmes(tmp_path), tmp_path / "both.ts")
    for path, hertz, said in (
        (several_tracks, 500, "sound: track 2 of 2, the first that is no commentary"),
        (programmes, 300, "sound: track 1 of 2, the one of the picture's programme"),
    ):
        heard.clear()
        found = localize(path, run, tmp_path / "out", rate=1)
        assert found.notes[0] == said and {pitch_of(pcm) for pcm in heard} == {hertz}
        overlay = decode_sound(tmp_path / "out" / f"{path.stem}.overlay.mp4")
        assert overlay.rate == 16_000 and pitch_of(overlay.mono[8000:]) == hertz


def test_samples_that_are_no_numbers_are_told(run, tmp_path):
    sound = noise(6)
    sound[0, [48_200, 48_300, 48_400]] = np.nan, np.inf, 1e30
    path = make_video(tmp_path / "v.mkv", seconds=6, sound=sound, sound_codec="pcm_f32le")
    found = localize(path, run, tmp_path / "out", rate=1)
    assert len([fault for fault in found.faults if "no numbers" in fault]) == 1
    assert all(moment.similarity is not None for moment in found.moments)
    overlay = decode_sound(tmp_path / "out" / "v.overlay.mp4")  # whose encoder takes numbers only
    assert overlay.seconds == pytest.approx(6, abs=0.15) and np.isfinite(overlay.mono).all()
    assert np.abs(overlay.mono[5 * 16_000 :]).max() > 0.2
