"""What a comparison of a stored pair with its video says of pictures and sounds that are not the video's."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from essl_fast.data import media, shards
from essl_fast.data.media import audio, stills
from essl_fast.prepare import against

RNG = np.random.default_rng(0)


def picture(shade: int) -> np.ndarray:
    y, x = np.mgrid[:64, :96]
    return np.stack([(x + shade) % 256, (2 * y + shade) % 256, (x + y) % 256], -1).astype(np.uint8)


def small(frame: np.ndarray) -> np.ndarray:
    return np.asarray(against.Image.fromarray(frame).convert("L").resize(against._SMALL), np.uint8)


PICTURES = [picture(shade) for shade in (0, 60, 120)]
SMALL = [small(each) for each in PICTURES]


@pytest.mark.parametrize(
    ("stored", "kind", "said"),
    [
        (PICTURES[1], shards.CLIP, ""),
        (PICTURES[1], shards.JPEG, ""),  # the bytes that would be stored
        (np.clip(PICTURES[1].astype(int) + 1, 0, 255).astype(np.uint8), shards.PNG, ""),  # rounded otherwise
        (PICTURES[1][:, :90], shards.CLIP, "it has 90x64 pixels instead of 96x64"),
        (PICTURES[2], shards.CLIP, "grey levels off frame 2; frame 3 is nearest to it"),
    ],
)
def test_pictures(stored, kind, said):
    data = stills.as_jpeg(PICTURES[1]) if kind == shards.JPEG else b""
    found = against._differs(stored, PICTURES[1], data, kind, SMALL, 1)
    assert found.endswith(said) and bool(found) == bool(said)


def noise(seconds: float) -> np.ndarray:
    return RNG.uniform(-0.5, 0.5, round(seconds * audio.RATE)).astype(np.float32)


def test_sounds():
    around = noise(audio.SECONDS + 2 * against._REACH)
    size, at = round(audio.SECONDS * audio.RATE), round(against._REACH * audio.RATE)
    assert against._heard_elsewhere(around, around[at : at + size]) == ""
    late = at + audio.RATE // 4
    assert against._heard_elsewhere(around, around[late : late + size]) == "it is what the video has 0.250 s later"
    early = at - audio.RATE // 2
    assert against._heard_elsewhere(around, around[early : early + size]) == "it is what the video has 0.500 s earlier"
    assert against._heard_elsewhere(around, noise(audio.SECONDS)) == "it is not in the video around its time"


@pytest.mark.parametrize("shift", [0.0, 0.3])
def test_a_sound_of_another_clock_is_looked_for_in_pieces(shift):
    """Between its pieces there is a little more in the video than was stored: no single shift fits all of it."""
    size = round(audio.SECONDS * audio.RATE) // against._PIECES
    around = noise(audio.SECONDS + 2 * against._REACH)
    begins = [round((against._REACH + shift) * audio.RATE) + number * (size + 40) for number in range(against._PIECES)]
    middle = 40 * (against._PIECES // 2)
    sound = np.concatenate([around[begin - middle : begin - middle + size] for begin in begins])
    found = against._heard_elsewhere(around, sound)
    assert found == "" if not shift else found.startswith("it is what the video has 0.") and found.endswith("later")


def test_which_frame_a_pair_means():
    even = [0.1 * number for number in range(10)]
    assert against._place(even, SimpleNamespace(fid=4, time=9.0)) == 3
    assert against._place(even, SimpleNamespace(fid=11, time=0.0)) is None
    uneven = [0.0, 0.1, 0.2, 0.7, 0.8]
    assert against._place(uneven, SimpleNamespace(fid=1, time=0.75)) == 3  # by its time
    assert against._place([0.0, None, 0.2], SimpleNamespace(fid=2, time=0.0)) == 1
    assert not against._rise([0.0, 0.2, 0.1]) and not against._rise([0.0, None]) and against._rise(even)


def test_a_frame_that_cannot_be_compared_is_a_difference(monkeypatch):
    pairs = [against._Pair(key=f"a_{n:06d}", fid=n, time=n / 10, row=n) for n in (1, 2, 9)]
    frames = [SimpleNamespace(number=number) for number in range(3)]
    monkeypatch.setattr(against, "_decoded", lambda path: iter(frames))
    monkeypatch.setattr(media, "upright", lambda frame, colour, crop: PICTURES[frame.number])
    stream = SimpleNamespace(codec_context=SimpleNamespace(colorspace=1))

    class Opened(SimpleNamespace):
        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

    opened = Opened(streams=SimpleNamespace(best=lambda kind: stream))
    monkeypatch.setattr(against.av, "open", lambda name: opened)
    monkeypatch.setattr(against, "read_pair", lambda manifest, row: (b"x", shards.PNG, 0, b""))

    def decode(data, kind, target):
        raise ValueError("its header is damaged")

    monkeypatch.setattr(against, "decode_frame", decode)
    found = list(against._pictures(None, SimpleNamespace(path=Path("a.mp4"), crop=()), pairs, [0.0, 0.1, 0.2], SMALL))
    assert [(one.key, one.detail) for one in found] == [
        ("a_000001", "the stored frame cannot be decoded: its header is damaged"),
        ("a_000002", "the stored frame cannot be decoded: its header is damaged"),
        ("a_000009", "the video has 3 frames, by decoding all of them"),
    ]


def test_packets_that_do_not_decode_are_passed_over(monkeypatch):
    def packet(*frames, error=None):
        def decode():
            if error:
                raise against.av.InvalidDataError(1, "damaged")
            return list(frames)

        return SimpleNamespace(decode=decode)

    whole, broken = SimpleNamespace(is_corrupt=False), SimpleNamespace(is_corrupt=True)

    class Opened(SimpleNamespace):
        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

    packets = [packet(whole), packet(error=True), packet(broken, whole)]
    opened = Opened(streams=SimpleNamespace(best=lambda kind: SimpleNamespace()), demux=lambda track: packets)
    monkeypatch.setattr(against.av, "open", lambda name: opened)
    assert list(against._decoded(Path("a.mp4"))) == [whole, whole]
    monkeypatch.setattr(media, "choose_sound", lambda container: (None, ""))
    mono, rate = against._laid_out(Path("a.mp4"), 0.0)
    assert len(mono) == 0 and rate == audio.RATE
