"""Prepared pairs hold the right sound beside the right picture, as clips and as JPEG files."""

import shutil

import numpy as np
import pytest
from av.stream import Disposition

from essl_fast.prepare import compare, prepare, reporter
from tests.prepare.test_right_pairs import QUIET, pairs_of, picture_of
from tests.tools.clocks import merged
from tests.tools.crops import cropped_matroska, cropped_mp4
from tests.tools.media import make_video, number_of, row, write_annotations
from tests.tools.prepare import left_out
from tests.tools.sounds import PACED, error_of, paced, pitch_of, several, tone, two_programmes

ASKED = [(fid, (fid - 1) / 10) for fid in (21, 48, 66)]


def both_forms(folder, path, asked):
    """(manifest, pairs by key) of a video, as JPEG and as clips; nothing is left out, and `compare` finds nothing."""
    videos = folder / "videos"
    make_video(videos / "z.mp4")
    shutil.move(path, videos / f"v{path.suffix if path.suffix != '.ts' else '.mkv'}")
    notes = write_annotations(folder / "notes", {"v": [row(*one) for one in asked]}, {"z": [row(21, 2.0)]})
    for visual in ("jpeg", "clip"):
        manifest = prepare(videos, notes, folder / visual, visual=visual, **QUIET)
        found = pairs_of(manifest)
        assert not left_out(folder / visual) and len(found) == len(asked) + 1
        assert all(number_of(picture_of(found[f"v_{fid:06d}"])) == fid for fid, _ in asked)
        assert compare(manifest, videos, reporter(False)) == (len(found), 0)
        yield manifest, found


@pytest.mark.slow
@pytest.mark.parametrize("name", PACED)
def test_a_clock_that_runs_fast_or_slow(tmp_path, name):
    path, sound = paced(tmp_path, PACED[name])
    for _, found in both_forms(tmp_path, path, ASKED):
        for fid, time in ASKED:
            window = np.frombuffer(found[f"v_{fid:06d}"]["s16"], "<i2") / np.float32(32768)
            assert error_of(window, time, sound, lambda at: at * PACED[name]) <= 0.02


def test_the_track_that_is_taken_is_in_the_manifest(tmp_path):
    tracks = (300, Disposition.comment, "", 2), (500, Disposition(0), "", 1)
    path = several(tmp_path / "v.mkv", *tracks)
    for manifest, found in both_forms(tmp_path, path, ASKED[:1]):
        assert pitch_of(np.frombuffer(found["v_000021"]["s16"], "<i2")) == 500
        assert manifest.header["sound_tracks"] == {"v": "track 2 of 2, the first that is no commentary"}


def test_the_sound_of_the_pictures_programme(tmp_path):
    path = merged(*two_programmes(tmp_path), tmp_path / "both.ts")
    for manifest, found in both_forms(tmp_path, path, ASKED[:1]):
        assert pitch_of(np.frombuffer(found["v_000021"]["s16"], "<i2")) == 300
        assert manifest.header["sound_tracks"] == {"v": "track 1 of 2, the one of the picture's programme"}


@pytest.mark.parametrize("make, name", [(cropped_matroska, "v.mkv"), (cropped_mp4, "v.mp4")])
def test_boxes_lie_in_the_cropped_picture(tmp_path, make, name):
    path = make(tmp_path / name, sound=tone(300))
    for manifest, found in both_forms(tmp_path, path, ASKED[:1]):
        pair = found["v_000021"]
        assert "jpg" in pair and picture_of(pair).shape == (90, 160, 3), "no clip: a decoder would show all of it"
        assert manifest.boxes[manifest.rows("train")[0]].tolist() == [[22, 22, 112, 112]]
