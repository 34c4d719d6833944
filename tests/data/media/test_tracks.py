"""Several sound tracks, several programmes: the sound of the picture."""

from fractions import Fraction

import av
import numpy as np
import pytest
from av.stream import Disposition

from essl_fast.data.media import open_windows, probe
from essl_fast.data.media.audio import decode_sound
from tests.tools.clocks import merged
from tests.tools.media import make_video

RATE = 16_000


def tone(hertz: float, seconds: float = 4.0, channels: int = 1) -> np.ndarray:
    wave = 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * RATE)) / RATE)
    return np.repeat(wave[None].astype(np.float32), channels, 0)


def pitch(path) -> int:
    """Of a file's sound, to 100 Hz."""
    mono = decode_sound(path).mono[:RATE]
    found = round(float(np.argmax(np.abs(np.fft.rfft(mono)))) / 100) * 100
    with open_windows(path) as windows:
        assert round(float(np.argmax(np.abs(np.fft.rfft(windows.around(1.5).pcm)))) / 300) * 100 == found
    return found


def several(path, *tracks):
    """A video with a sound track for each (Hz, disposition, title, channels)."""
    base = make_video(path.with_name("base.mp4"), sound=None)
    with av.open(str(base)) as source, av.open(str(path), "w") as out:
        video = out.add_stream_from_template(source.streams.video[0])
        added = []
        for _, disposition, title, channels in tracks:
            track = out.add_stream("aac", rate=RATE, layout="stereo" if channels == 2 else "mono")
            track.disposition = disposition
            if title:
                track.metadata["title"] = title
            added.append(track)
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = video
                out.mux(packet)
        for (hertz, _, _, channels), track in zip(tracks, added, strict=True):
            for begin in range(0, 4 * RATE, 1024):
                part = np.ascontiguousarray(tone(hertz, channels=channels)[:, begin : begin + 1024])
                frame = av.AudioFrame.from_ndarray(part, format="fltp", layout=track.layout.name)
                frame.sample_rate, frame.pts, frame.time_base = RATE, begin, Fraction(1, RATE)
                out.mux(track.encode(frame))
            out.mux(track.encode(None))
    return path


NONE, DEFAULT, COMMENT = Disposition(0), Disposition.default, Disposition.comment
TRACKS = {
    "two defaults": ([(300, DEFAULT, "", 1), (500, DEFAULT, "", 2)], 300, "track 1 of 2, the first that is no comm"),
    "the second": ([(300, NONE, "", 2), (500, DEFAULT, "", 1)], 500, "track 2 of 2, the default one"),
    "none": ([(300, NONE, "", 1), (500, NONE, "", 2)], 300, "track 1 of 2"),
    "commentary first": ([(300, COMMENT, "", 2), (500, NONE, "", 1)], 500, "track 2 of 2, the first that is no comm"),
    "so called": ([(300, NONE, "Director's Commentary", 1), (500, NONE, "", 1)], 500, "track 2 of 2"),
    "only commentary": ([(300, COMMENT, "", 1), (500, COMMENT, "", 2)], 300, "track 1 of 2, the first"),
    "one": ([(300, NONE, "", 1)], 300, ""),
}


@pytest.mark.parametrize("name", TRACKS)
def test_which_track_is_taken(tmp_path, name):
    tracks, hertz, said = TRACKS[name]
    path = several(tmp_path / "v.mkv", *tracks)
    found = probe(path)
    assert pitch(path) == hertz and found.track.startswith(said) and bool(found.track) == bool(said)


def test_the_sound_of_the_pictures_programme(tmp_path):
    """A broadcast of two programmes, whose pictures differ in size; the other one's sound has more bits."""
    sound = {"sound_codec": "mp2", "rate": RATE}
    ours = make_video(tmp_path / "a.ts", sound=tone(300), **sound, options={"crf": "10"})
    theirs = make_video(
        tmp_path / "b.ts",
        sound=tone(500, channels=2),
        **sound,
        picture=lambda number: np.zeros((32, 32, 3), np.uint8),
        container={
            "mpegts_service_id": "2",
            "mpegts_start_pid": "512",
            "mpegts_pmt_start_pid": "4200",
        },
    )
    for order, size, hertz in (((ours, theirs), (160, 90), 300), ((theirs, ours), (32, 32), 500)):
        path = merged(*order, tmp_path / "both.ts")
        found = probe(path)
        assert (found.width, found.height) == size and len(found.pts) == 40
        assert pitch(path) == hertz and found.track.endswith("of 2, the one of the picture's programme")
