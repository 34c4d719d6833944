"""Which clips NVDEC may get: what their headers say, and that PyAV decodes the others."""

import numpy as np
import pytest

from essl_fast.data.media import MediaError, colours, nvdec_clips
from essl_fast.data.media.headers import StreamHeader
from essl_fast.data.media.nvdec_clips import Fit

HEADER = StreamHeader(160, 96, False, 1, False, True)


@pytest.fixture
def header(monkeypatch):
    """The stream's header is what a test says."""

    def says(found):
        nvdec_clips._fit_stream.cache_clear()
        monkeypatch.setattr(nvdec_clips, "stream_header", lambda *_: found)

    yield says
    nvdec_clips._fit_stream.cache_clear()


def fit(codec="h264", size=(160, 96), container=(2, 0)) -> Fit:
    return nvdec_clips._fit_stream(codec, b"", b"", size, container)


@pytest.mark.parametrize(
    ("found", "codec", "size", "container", "why"),
    [
        (HEADER, "h264", (161, 96), (2, 0), "its size 161x96 is odd"),
        (None, "h264", (160, 96), (2, 0), "its stream header cannot be read"),
        (HEADER._replace(halved=False), "hevc", (160, 96), (2, 0), "its chroma is not 4:2:0"),
        (
            HEADER._replace(full=True),
            "vp9",
            (160, 96),
            (2, 0),
            "it is in full range, which its video stream does not tell",
        ),
        (HEADER._replace(full=None), "h264", (160, 96), (2, 2), "it is in full range, which its video stream does not"),
        (None, "av1", (160, 96), (2, 2), "it is in full range, which its video stream does not tell NVDEC"),
        (HEADER, "h264", (160, 96), (2, 0), ""),
        (HEADER._replace(full=True), "hevc", (160, 96), (2, 0), ""),
        (HEADER._replace(full=None), "hevc", (160, 96), (2, 2), ""),  # the file's word does not count there
        (None, "av1", (160, 96), (2, 0), ""),
        (None, "mjpeg", (161, 97), (2, 0), ""),
    ],
)
def test_what_keeps_a_clip_from_nvdec(header, found, codec, size, container, why):
    header(found)
    answer = fit(codec, size, container)
    assert answer.why.startswith(why) and bool(answer.why) == bool(why)
    if answer.why or codec == "mjpeg":
        assert np.array_equal(answer.turn, colours.IDENTITY)


def test_colours_that_nobody_decodes(header, monkeypatch):
    def refuses(*_):
        raise MediaError("colours", "its matrix is unknown")

    header(HEADER)
    monkeypatch.setattr(colours, "matrix_of", refuses)
    assert fit() == Fit("its matrix is unknown", colours.IDENTITY)


def test_what_is_no_clip():
    assert nvdec_clips.clip_size(b"no clip at all") is None
    with pytest.raises(MediaError):
        nvdec_clips.fit(b"no clip at all")
