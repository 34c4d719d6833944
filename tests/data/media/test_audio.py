"""Sound: where it starts, what its damage costs, and how it is stored."""

import numpy as np
import pytest
from av import open as av_open

from essl_fast.data import media
from essl_fast.data.media import audio, decode_frames
from essl_fast.data.media.audio import decode_sound
from essl_fast.prepare.parts import make_part
from essl_fast.prepare.tasks import Task
from tests.tools.media import clicks, damage_sound, make_video, number_of


def first_click(sound, rate):
    return int(np.argmax(np.abs(sound) > 0.3)) / rate


TRACKS = [
    ("v.mp4", "aac", 44_100),
    ("v.mkv", "aac", 16_000),
    ("v.webm", "libopus", 48_000),
    ("v.mov", "pcm_s16le", 22_050),
]


@pytest.mark.parametrize("name, codec, rate", TRACKS)
def test_sound_starts_at_time_zero(tmp_path, name, codec, rate):
    video = {"codec": "libvpx"} if name == "v.webm" else {}
    path = make_video(tmp_path / name, sound=clicks(4, rate, at=(2.0,)), sound_codec=codec, rate=rate, **video)
    sound = decode_sound(path)
    assert sound.rate == rate and sound.mono.dtype == np.float32 and not sound.damage
    assert len(sound.mono) / rate == pytest.approx(4, abs=0.07)  # a lossy codec fills its last block
    assert first_click(sound.mono, rate) == pytest.approx(2, abs=0.004)


def test_sound_that_starts_late_is_preceded_by_silence(tmp_path):
    path = make_video(tmp_path / "v.mkv", sound=clicks(3, 16_000, at=(1.0,)), sound_codec="pcm_s16le", sound_start=0.75)
    sound = decode_sound(path)
    assert len(sound.mono) == 60_000
    assert not sound.mono[: 12_000 - 16].any()  # Matroska rounds to milliseconds
    assert first_click(sound.mono, 16_000) == pytest.approx(1.75, abs=0.001)


def test_sound_and_frames_share_the_video_streams_clock(tmp_path):
    path = make_video(
        tmp_path / "v.mkv",
        pts=range(500, 4500, 100),
        ticks=1000,
        sound=clicks(4, 16_000, at=(2.0,)),
        sound_codec="pcm_s16le",
    )
    sound = decode_sound(path)
    assert first_click(sound.mono, 16_000) == pytest.approx(1.5, abs=0.001)
    ((_, frame),) = decode_frames(path, [(1, 0.0)])
    assert number_of(frame) == 1


def test_lossless_stereo_becomes_the_mean_of_its_channels(tmp_path):
    rng = np.random.default_rng(0)
    stereo = rng.uniform(-0.9, 0.9, (2, 48_000)).astype(np.float32)
    path = make_video(tmp_path / "v.mkv", sound=stereo, sound_codec="pcm_f32le")
    np.testing.assert_array_equal(decode_sound(path).mono, stereo.mean(0, dtype=np.float32))
    path = make_video(tmp_path / "w.mkv", sound=stereo, sound_codec="flac")
    assert np.abs(decode_sound(path).mono - stereo.mean(0)).max() < 2**-15


def test_sound_is_decoded_no_further_than_asked(tmp_path):
    path = make_video(tmp_path / "v.mp4", seconds=12)
    whole, part = decode_sound(path).mono, decode_sound(path, until=3.0).mono
    assert 48_000 < len(part) < 52_000 < len(whole)
    np.testing.assert_array_equal(part, whole[: len(part)])


def test_a_pause_between_packets_becomes_silence(tmp_path):
    whole = make_video(tmp_path / "v.mkv", seconds=6, sound=clicks(6, 16_000, at=(1.0, 5.0)), sound_codec="pcm_s16le")
    gap = tmp_path / "gap.mkv"
    with av_open(str(whole)) as source, av_open(str(gap), "w") as file:
        streams = {s.index: file.add_stream_from_template(s) for s in source.streams}
        for packet in source.demux():
            lost = packet.stream.type == "audio" and packet.pts is not None and 2000 <= packet.pts < 4000
            if packet.dts is not None and not lost:
                packet.stream = streams[packet.stream.index]
                file.mux(packet)
    sound = decode_sound(gap).mono
    assert len(sound) == 96_000 and not sound[35_000:60_000].any() and sound[:30_000].any()
    assert np.argmax(np.abs(sound[60_000:]) > 0.3) == pytest.approx(20_000, abs=16)


@pytest.mark.parametrize(
    "name, codec, rate, value",
    [
        ("v.mp4", "aac", 16_000, 255),
        ("v.mkv", "flac", 16_000, 255),
        ("v.mp4", "libmp3lame", 32_000, 255),
        ("v.mp4", "aac", 16_000, 0),
    ],
)
def test_a_damaged_packet_costs_only_the_windows_that_touch_it(tmp_path, name, codec, rate, value):
    tone = clicks(12, rate, at=(2.0, 10.0)) + 0.1 * np.random.default_rng(0).normal(size=12 * rate).astype(np.float32)
    path = make_video(tmp_path / name, seconds=12, sound=tone, sound_codec=codec, rate=rate)
    clean = decode_sound(path)
    begin = damage_sound(path, 6, value)
    sound = decode_sound(path)
    assert not sound.damage and len(sound.mono) == len(clean.mono) and sound.rate == rate
    ((start, end),) = sound.holes
    assert begin - 0.2 < start / rate <= begin + 0.01 and begin + 0.2 < end / rate < begin + 0.6
    np.testing.assert_array_equal(sound.mono[:start], clean.mono[:start])
    np.testing.assert_array_equal(sound.mono[end:], clean.mono[end:])
    length = audio.SECONDS / 2
    assert not sound.hole(start / rate - length - 0.01) and not sound.hole(end / rate + length + 0.01)
    for time in (start / rate - length + 0.01, begin, end / rate + length - 0.01):
        assert "cannot be decoded" in sound.hole(time)


def test_damaged_sound_costs_the_pairs_that_touch_it(tmp_path):
    sound = clicks(14, 16_000) + 0.1 * np.random.default_rng(0).normal(size=14 * 16_000).astype(np.float32)
    path = make_video(tmp_path / "a.mp4", seconds=14, sound=sound)
    damage_sound(path, 7)
    task = Task("a", str(path), tuple((f"a{second}", 10 * second + 1, second) for second in range(2, 13)))
    part = make_part(task, tmp_path / "parts")
    assert list(part["members"]) == [f"a{second}" for second in (2, 3, 4, 5, 9, 10, 11, 12)]
    assert [(key, reason) for key, reason, _ in part["left_out"]] == [
        (f"a{second}", media.SOUND_TRUNCATED) for second in (6, 7, 8)
    ]
    assert part["left_out"][0][2].startswith("a.mp4: 3 s around 6 s: the sound from 7.")


def test_window_rule():
    mono = np.arange(80_000, dtype=np.float32)
    assert audio.window_span(2.3, 44_100) == (35_279, 132_300)  # the exact product is 35,280
    assert audio.sound_window(mono, 16_000, 1.4999) is None
    np.testing.assert_array_equal(audio.sound_window(mono, 16_000, 1.5), mono[:48_000])
    np.testing.assert_array_equal(audio.sound_window(mono, 16_000, 3.5), mono[32_000:])
    assert audio.sound_window(mono, 16_000, 3.5001) is None


def test_stored_sound():
    pcm = audio.to_pcm16(np.array([0, 1, -1, 1.5, -2, 0.5 / 32768, 1.5 / 32768, -0.25], np.float32))
    assert pcm.dtype == np.int16
    assert pcm.tolist() == [0, 32767, -32768, 32767, -32768, 0, 2, -8192]
    assert audio.fit_length(np.arange(5), 8).tolist() == [1, 2, 3, 4, 0, 1, 2, 3]
    assert audio.fit_length(np.arange(9), 4).tolist() == [2, 3, 4, 5]
    for rate in (8_000, 16_000, 22_050, 44_100, 48_000, 96_000):
        time = np.arange(3 * rate) / rate
        stored = audio.to_stored(np.sin(2 * np.pi * 440 * time).astype(np.float32), rate)
        assert stored.shape == (48_000,) and stored.dtype == np.float32
        expected = np.sin(2 * np.pi * 440 * np.arange(48_000) / 16_000)
        assert np.abs(stored - expected)[500:-500].max() < 1e-3
