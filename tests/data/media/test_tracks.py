"""Several sound tracks, several programmes: the sound of the picture."""

import numpy as np
import pytest
from av.stream import Disposition

from essl_fast.data.media import open_windows, probe
from essl_fast.data.media.audio import decode_sound
from tests.tools.clocks import merged
from tests.tools.sounds import RATE, several, two_programmes


def pitch(path) -> int:
    """Of a file's sound, to 100 Hz."""
    mono = decode_sound(path).mono[:RATE]
    found = round(float(np.argmax(np.abs(np.fft.rfft(mono)))) / 100) * 100
    with open_windows(path) as windows:
        assert round(float(np.argmax(np.abs(np.fft.rfft(windows.around(1.5).pcm)))) / 300) * 100 == found
    return found


NONE, DEFAULT, COMMENT = Disposition(0), Disposition.default, Disposition.comment
TRACKS = {
    "two defaults": ([(300, DEFAULT, "", 1), (500, DEFAULT, "", 2)], 300, "track 1 of 2, the first that is no comm"),
    "the second": ([(300, NONE, "", 2), (500, DEFAULT, "", 1)], 500, "track 2 of 2, the default one"),
    "none": ([(300, NONE, "", 1), (500, NONE, "", 2)], 300, "track 1 of 2"),
    "commentary first": ([(300, COMMENT, "", 2), (500, NONE, "", 1)], 500, "track 2 of 2, the first that is no comm"),
    "so called": ([(300, NONE, "Director's Commentary", 1), (500, NONE, "", 1)], 500, "track 2 of 2"),
    "described": (
        [(300, NONE, "Audio Description", 1), (500, NONE, "", 1)],
        500,
        "track 2 of 2, the first that is no c",
    ),
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
    ours, theirs = two_programmes(tmp_path)
    for order, size, hertz in (((ours, theirs), (160, 90), 300), ((theirs, ours), (32, 32), 500)):
        path = merged(*order, tmp_path / "both.ts")
        found = probe(path)
        assert (found.width, found.height) == size and len(found.pts) == 40
        assert pitch(path) == hertz and found.track.endswith("of 2, the one of the picture's programme")
