"""Sound by its stamps: packets that overlap, clocks that run fast or slow, samples that are no numbers."""

import numpy as np
import pytest

from essl_fast.data import media
from essl_fast.data.media import audio, open_windows, probe
from essl_fast.data.media.audio import decode_sound, to_pcm16, to_stored
from essl_fast.prepare.parts import make_part
from essl_fast.prepare.tasks import Task
from tests.tools.media import make_sound, make_video
from tests.tools.sounds import BLOCK, RATE, beeps, error_of, stamped

CLOCKS = {  # how long a second of samples lasts by the stamps
    "a capture device 0.1% fast": 0.999,
    "1% fast": 0.99,
    "0.5% slow": 1.005,
    "3% fast": 0.97,
    "4% slow": 1.04,
}


@pytest.mark.parametrize("name", CLOCKS)
def test_a_clock_that_runs_fast_or_slow(tmp_path, name):
    pace, sound = CLOCKS[name], beeps(44)
    stamps = [number * BLOCK / RATE * pace for number in range(len(sound) // BLOCK)]
    path = stamped(tmp_path / "a.mkv", sound, stamps)
    whole = decode_sound(path)
    assert whole.seconds == pytest.approx(44 * pace, abs=0.1)
    with open_windows(path) as windows:
        for time in (1.5, 8.0, 20.03, 39.5):
            window = whole.window(time)
            assert error_of(to_stored(window, RATE), time, sound, lambda at: at * pace) <= 0.02
            np.testing.assert_array_equal(windows.around(time).pcm, to_pcm16(to_stored(window, RATE)))
    part = decode_sound(path, until=21.53)
    np.testing.assert_array_equal(part.window(20.03), whole.window(20.03))
    assert whole.window(44 * pace - 1.4) is None


def test_packets_that_overlap(tmp_path):
    """Clips of 2 s, 33 blocks each, joined at every 2 s: what a player hears of a block ends where the next begins."""
    sound = beeps(24 * 2.112)
    stamps = [2 * clip + number * BLOCK / RATE for clip in range(24) for number in range(33)]
    path = stamped(tmp_path / "a.mkv", sound, np.maximum.accumulate(stamps))  # as a muxer must
    whole = decode_sound(path)
    assert whole.seconds == pytest.approx(48.1, abs=0.1)
    for time in (3.3, 17.1, 41.9):
        window = whole.window(time)
        for clip in range(24):
            for number in range(int(2.112 * clip * 10) + 2, int((2.112 * clip + 1.9) * 10)):
                due = 2 * clip + number / 10 - 2.112 * clip - (time - 1.5)
                if 0.1 < due < 2.8:
                    beep = sound[number * RATE // 10 :][:480]
                    begin = round((due - 0.05) * RATE)
                    lag = int(np.argmax(np.correlate(window[begin : begin + 2080], beep))) / RATE - 0.05
                    assert abs(lag) <= 0.02, (time, clip, number)


def test_stamps_that_jitter_leave_the_sound_as_it_is(tmp_path):
    sound = beeps(12)
    jitter = np.random.default_rng(0).uniform(-0.008, 0.008, len(sound) // BLOCK)
    jitter[0] = 0
    stamps = np.maximum.accumulate(np.arange(len(jitter)) * BLOCK / RATE + jitter)
    whole = decode_sound(stamped(tmp_path / "a.mkv", sound, stamps))
    pcm = (sound[: len(whole.mono)] * 32767).astype(np.int16)
    np.testing.assert_array_equal(whole.mono, pcm.astype(np.float32) / 32768)
    np.testing.assert_array_equal(whole.window(6.0), whole.mono[72_000:120_000])


def test_samples_that_are_no_numbers_are_damage(tmp_path):
    sound = np.random.default_rng(0).uniform(-0.5, 0.5, 14 * RATE).astype(np.float32)
    sound[7 * RATE + 100] = np.nan
    sound[7 * RATE + 200] = np.inf
    path = make_video(tmp_path / "a.mkv", seconds=14, sound=sound, sound_codec="pcm_f32le")
    whole = decode_sound(path)
    ((begin, end),) = {(begin // RATE, end // RATE) for begin, end in whole.broken}
    assert (begin, end) == (6, 7) or begin == 7
    assert np.isfinite(whole.mono).all() and not whole.hole(3.0) and "no numbers" in whole.hole(7.0)
    task = Task("a", str(path), tuple((f"a{second}", 10 * second + 1, second) for second in (2, 5, 7, 8, 9, 12)))
    part = make_part(task, tmp_path / "parts")
    assert list(part["members"]) == ["a2", "a5", "a9", "a12"]
    assert {(key, reason) for key, reason, _ in part["left_out"]} == {
        (key, media.SOUND_TRUNCATED) for key in ("a7", "a8")
    }
    with open_windows(path) as windows:
        assert windows.around(7.0).pcm.any()
        assert ["no numbers" in fault for fault in windows.faults] == [True]


def test_the_message_says_how_long_the_track_is(tmp_path):
    sound = np.random.default_rng(0).uniform(-0.5, 0.5, 20 * RATE).astype(np.float32)
    path = make_video(tmp_path / "a.mp4", seconds=20, sound=sound)
    assert probe(path).sound_end == pytest.approx(20, abs=0.1)
    part = make_part(Task("a", str(path), (("a1", 5, 0.4), ("a2", 31, 3.0))), tmp_path / "parts")
    ((key, reason, detail),) = part["left_out"]
    assert (key, reason) == ("a1", media.WINDOW)
    assert detail.startswith("a.mp4: 3 s around 0.4 s begin before 0 s, the track has 20.0")
    part = make_part(Task("a", str(path), (("a3", 196, 19.5),)), tmp_path / "parts")
    assert "end at 21 s, the track has 20.0" in part["left_out"][0][2]


def test_a_track_alone_keeps_its_first_sample(tmp_path):
    path = make_sound(tmp_path / "a.wav", beeps(4), "pcm_s16le", RATE)
    assert decode_sound(path, alone=True).window(1.5)[:480].any() and audio.SECONDS == 3
