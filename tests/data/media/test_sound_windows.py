"""Sound around one moment after another: as `prepare` stores it, and what happens at a track's ends."""

import numpy as np
import pytest

from essl_fast.data.media import MediaError, open_windows, sound_length
from essl_fast.data.media.audio import decode_sound, sound_window, to_pcm16, to_stored
from tests.tools.media import damage_sound, make_sound, make_video


def noise(seconds: float, rate: int, channels: int = 1) -> np.ndarray:
    return np.random.default_rng(0).uniform(-0.5, 0.5, (channels, round(seconds * rate))).astype(np.float32)


@pytest.mark.parametrize("name, codec, rate", [("v.mp4", "aac", 44_100), ("v.mkv", "pcm_s16le", 16_000)])
def test_inside_the_track_windows_are_those_of_prepare(tmp_path, name, codec, rate):
    path = make_video(tmp_path / name, seconds=7, sound=noise(7, rate, 2), sound_codec=codec, rate=rate)
    whole = decode_sound(path)
    with open_windows(path) as windows:
        for time in (1.5, 1.501, 2.3, 2.3, 4.77, 5.49):
            expected = to_pcm16(to_stored(sound_window(whole.mono, whole.rate, time), whole.rate))
            found = windows.around(time)
            assert np.array_equal(found.pcm, expected) and found.end - found.begin == pytest.approx(3)
            assert found.begin == pytest.approx(time - 1.5, abs=1e-4)
        assert not windows.faults
    assert sound_length(path) == len(whole.mono) / rate


def test_at_its_ends_the_track_gives_its_first_and_last_seconds(tmp_path):
    path = make_sound(tmp_path / "a.wav", noise(5, 16_000), "pcm_s16le", 16_000)
    mono = decode_sound(path).mono
    with open_windows(path) as windows:
        spans = {time: windows.around(time) for time in (0.0, 1.4, 1.5, 3.6, 4.999, 5.0)}
        assert windows.around(5.01) is None and windows.around(60.0) is None
    assert [spans[time].begin for time in spans] == [0, 0, 0, 2, 2, 2]
    assert np.array_equal(spans[0.0].pcm, to_pcm16(mono[:48_000]))
    assert np.array_equal(spans[5.0].pcm, to_pcm16(mono[-48_000:]))


def test_a_short_track_is_repeated_as_for_training(tmp_path):
    path = make_sound(tmp_path / "a.wav", noise(1, 16_000), "pcm_s16le", 16_000)
    with open_windows(path) as windows:
        found = windows.around(0.5)
    assert np.array_equal(found.pcm, to_pcm16(to_stored(decode_sound(path).mono, 16_000)))
    assert (found.begin, found.end) == (0, 1) and not found.silent


def test_a_track_of_less_than_a_sample_at_16_khz_is_empty(tmp_path):
    path = make_sound(tmp_path / "a.wav", np.ones((1, 1), np.float32), "pcm_s16le", 48_000)
    with pytest.raises(MediaError, match="the track is empty"), open_windows(path):
        pass
    with pytest.raises(MediaError, match="the track is empty"):
        decode_sound(path)


def test_silence_is_known(tmp_path):
    path = make_sound(tmp_path / "a.wav", np.zeros((1, 64_000), np.float32), "pcm_s16le", 16_000)
    with open_windows(path) as windows:
        assert windows.around(2).silent


def test_memory_holds_a_window(tmp_path):
    path = make_sound(tmp_path / "a.wav", noise(40, 16_000), "pcm_s16le", 16_000)
    with open_windows(path) as windows:
        for time in np.arange(0, 40, 0.5):
            windows.around(float(time))
            assert sum(len(part) for _, part in windows._held) < 5 * 16_000


def test_what_cannot_be_decoded_is_told(tmp_path):
    path = make_video(tmp_path / "v.mp4", seconds=6, sound=noise(6, 16_000), rate=16_000)
    begin = damage_sound(path, 2.0)
    with open_windows(path) as windows:
        for time in (1.0, 2.0, 3.0, 4.0):
            windows.around(time)
        (fault,) = windows.faults
    assert f"{begin:.1f}" in fault and "cannot be decoded" in fault


def test_no_track(tmp_path):
    path = make_video(tmp_path / "v.mp4", seconds=1, sound=None)
    with pytest.raises(MediaError, match="no audio track"), open_windows(path):
        pass
