"""Colours: one rule for PyAV and for NVDEC, whose conversion by DALI is played by `tests.tools.dali`."""

import av
import numpy as np
import pytest
from av.video.reformatter import VideoReformatter

from essl_fast.data.media import Clip, MediaError, colours, cut_clips, decode_clip, decode_frames, nvdec_clips, probe
from essl_fast.data.media.display import upright
from essl_fast.data.media.mp4 import read_index
from tests.tools.clips import requests_of, x264, x265
from tests.tools.dali import corrected, gpu_rgb
from tests.tools.media import make_video

MATRICES = {"BT.601": 6, "BT.709": 1, "BT.2020": 9, "SMPTE 240M": 7, "FCC": 4}


def waves(strength: float, width: int = 320, height: int = 192) -> np.ndarray:
    """RGB uint8 (height, width, 3): smooth colours. Beyond 80, some leave what Y'CbCr can hold."""
    y, x = np.mgrid[:height, :width]
    levels = [128 + strength * np.sin(x / 40 + 2.1 * c) * np.cos(y / 30 + 2 * c) for c in range(3)]
    return np.clip(np.stack(levels, -1), 0, 255).astype(np.uint8)


def stored(picture: np.ndarray, matrix: int, full: bool) -> av.VideoFrame:
    """A picture as a decoder of a tagged video gives it."""
    frame = VideoReformatter().reformat(
        av.VideoFrame.from_ndarray(picture, format="rgb24"),
        format="yuv420p",
        dst_colorspace=colours._SWSCALE[matrix],
        dst_color_range=2 if full else 1,
    )
    frame.colorspace, frame.color_range = matrix, 2 if full else 1
    return frame


def apart(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.abs(one.astype(int) - other)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("matrix", MATRICES.values(), ids=MATRICES)
def test_what_nvdec_gives_becomes_what_pyav_gives(matrix, full):
    """On average 1.6 levels apart, at most 6: what is left is swscale's rounding and DALI's smoother chroma. Where DALI
    clips saturated colours, up to 18. Without the correction it is 4 to 7 on average for all but BT.601 and FCC."""
    turn = colours.correction(matrix, full)
    for strength, mean, most in [(80, 1.7, 6), (140, 2, 18)]:
        frame = stored(waves(strength), matrix, full)
        ours, theirs = gpu_rgb(frame, full), upright(frame)
        found = apart(corrected(ours, turn), theirs)
        assert found.mean() < mean and found.max() <= most
        assert nvdec_clips.same_picture(*map(nvdec_clips.check_value, (corrected(ours, turn), theirs)))
    if matrix in (1, 7, 9):
        assert apart(ours, theirs).mean() > 4


def test_the_matrices_are_their_standards():
    """Reference values by the formula of H.273, 8.3: white, black, and red of full strength."""
    for matrix in MATRICES.values():
        for full, white, black in [(False, 235, 16), (True, 255, 0)]:
            turn, shift = colours.to_rgb(matrix, full)
            assert np.allclose(turn @ [white, 128, 128] + shift, 255) and np.allclose(
                turn @ [black, 128, 128] + shift, 0
            )
    red, blue = 0.2126, 0.0722
    signal = np.array([red, -red / (2 * (1 - blue)), 0.5])  # Y', Cb, Cr of (1, 0, 0)
    turn, shift = colours.to_rgb(1, False)
    assert np.allclose(turn @ (signal * [219, 224, 224] + [16, 128, 128]) + shift, [255, 0, 0])
    assert colours.correction(6, False) is colours.correction(5, True) is colours.IDENTITY


@pytest.mark.parametrize(
    "stated, height, matrix", [(2, 719, 6), (2, 720, 1), (0, 1080, 1), (3, 90, 6), (6, 1080, 6), (1, 90, 1), (9, 90, 9)]
)
def test_which_matrix(stated, height, matrix):
    assert colours.matrix_of(stated, height) == matrix


@pytest.mark.parametrize("stated", [8, 14, 200])
def test_other_colours_are_refused(stated):
    with pytest.raises(MediaError, match=f"matrix {stated} of H.273, which is not read; convert the video first"):
        colours.matrix_of(stated, 90)


def test_a_video_with_other_colours_is_named(tmp_path):
    path = make_video(tmp_path / "v.mp4", seconds=1, sound=None, **x264("colormatrix=YCgCo"))
    with pytest.raises(MediaError, match="unreadable: v.mp4: its colours are stored by matrix 8"):
        probe(path)


# name of the file, options of the encoder, rows, matrix, full range
KINDS = [
    ("untagged.mp4", x264(), 96, 6, False),
    ("untagged_hd.mp4", x264(), 720, 1, False),
    ("bt709.mp4", x264("colormatrix=bt709"), 96, 1, False),
    ("bt709_full.mkv", x264("colormatrix=bt709:fullrange=on"), 96, 1, True),
    ("bt601_hd.mp4", x264("colormatrix=smpte170m"), 720, 6, False),
    ("bt2020.mkv", x265("colormatrix=bt2020nc:range=limited"), 96, 9, False),
    ("pq.mp4", x265("colormatrix=bt2020nc:transfer=smpte2084:colorprim=bt2020:range=limited"), 96, 9, False),
    ("vp9.webm", {"codec": "libvpx-vp9", "options": {"deadline": "realtime", "cpu-used": "8"}}, 96, 6, False),
]


@pytest.mark.parametrize("name, how, rows, matrix, full", KINDS, ids=[kind[0] for kind in KINDS])
def test_jpeg_and_clip_have_the_colours_of_the_file(tmp_path, name, how, rows, matrix, full):
    """PyAV from the video, PyAV from a clip, and NVDEC from a clip: one rule."""
    path = make_video(
        tmp_path / name,
        seconds=0.3,
        sound=None,
        picture=lambda number: waves(70, rows * 16 // 9 // 16 * 16, rows),
        **how,
    )
    found = probe(path)
    (clip,) = (clip for _, clip in cut_clips(path, requests_of(found)[1:2], found))
    assert isinstance(clip, Clip)
    ((_, of_video),) = decode_frames(path, requests_of(found)[1:2], found)
    np.testing.assert_array_equal(decode_clip(clip.data, clip.target), of_video)
    with av.open(str(path)) as file:
        frame = next(frame for number, frame in enumerate(file.decode(video=0)) if number == 1)
        frame.colorspace, frame.color_range = matrix, 2 if full else 1
        np.testing.assert_array_equal(VideoReformatter().reformat(frame, format="rgb24").to_ndarray(), of_video)
        fit = nvdec_clips.fit(clip.data)
        assert fit.why == "" and np.array_equal(fit.turn, colours.correction(matrix, full))
        assert apart(corrected(gpu_rgb(frame, full), fit.turn), of_video).mean() < 2
    colour = read_index(clip.data).colour
    assert colour is None or colour[2] == matrix
    assert (colour is not None) or not colours.differs(matrix), "a clip says its matrix where it is not BT.601"


def test_what_only_the_container_states_counts(tmp_path):
    """VP9 of WebM files often states its matrix in the container alone."""
    path = make_video(tmp_path / "v.mp4", seconds=1, sound=None, codec="libvpx-vp9", picture=lambda number: waves(70))
    plain = next(decode_frames(path, [(2, 0.1)]))[1]
    data = path.read_bytes()
    at = data.index(b"vpcC") + 4 + 4 + 3  # version and flags; profile, level, depth: then primaries, transfer, matrix
    path.write_bytes(data[: at + 2] + b"\1" + data[at + 3 :])
    if b"colr" in data:
        at = data.index(b"colr") + 8
        path.write_bytes(path.read_bytes()[: at + 4] + b"\0\1" + path.read_bytes()[at + 6 :])
    found = probe(path)
    tagged = next(decode_frames(path, [(2, 0.1)], found))[1]
    (clip,) = (clip for _, clip in cut_clips(path, [(2, 0.1)], found))
    np.testing.assert_array_equal(decode_clip(clip.data, clip.target), tagged)
    assert apart(tagged, plain).mean() > 3
    assert np.array_equal(nvdec_clips.fit(clip.data).turn, colours.correction(1, False))
