"""Finding a video's file, and what is known of it without decoding."""

import pickle

import pytest
from av import open as av_open

from essl_fast.data.media import MediaError, find_video, limits, names, probe
from essl_fast.data.media.audio import decode_sound
from essl_fast.data.media.glancing import check_sound, glance
from tests.tools.media import make_video


def test_files_without_a_track(tmp_path):
    silent = make_video(tmp_path / "silent.mp4", sound=None)
    assert not probe(silent).audio
    with pytest.raises(MediaError, match="no audio track: silent.mp4 has none"):
        decode_sound(silent)
    blind = tmp_path / "blind.mp4"
    with av_open(str(blind), "w") as file, av_open(str(make_video(tmp_path / "both.mp4"))) as both:
        stream = file.add_stream_from_template(both.streams.audio[0])
        for packet in both.demux(audio=0):
            if packet.dts is not None:
                packet.stream = stream
                file.mux(packet)
    with pytest.raises(MediaError, match="no video stream: blind.mp4 has none"):
        probe(blind)


def test_find_video(tmp_path):
    (tmp_path / "a.MOV").touch()
    (tmp_path / "b.webm").touch()
    (tmp_path / "b.mp4").touch()
    assert find_video(tmp_path, "a").name == "a.MOV"
    assert find_video(tmp_path, "b").name == "b.mp4"
    with pytest.raises(MediaError, match="video file missing: c{.mp4,.mkv,.webm,.avi,.mov} is not in"):
        find_video(tmp_path, "c")


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    def refuses(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(names.os, "scandir", refuses)
    with pytest.raises(MediaError, match="a: .*[Pp]ermission denied"):
        find_video(tmp_path, "a")


def test_an_error_comes_whole_out_of_another_process():
    error = pickle.loads(pickle.dumps(MediaError("video file missing", "a.mp4 is not there")))
    assert (error.reason, error.detail, str(error)) == (
        "video file missing",
        "a.mp4 is not there",
        "video file missing: a.mp4 is not there",
    )


def test_headers_of_a_sound(tmp_path, monkeypatch):
    make_video(tmp_path / "silent.mp4", seconds=0.5, sound=None)
    with pytest.raises(MediaError, match="silent.mp4 has none"):
        check_sound(tmp_path / "silent.mp4")
    make_video(tmp_path / "whole.mp4", seconds=0.5)
    assert check_sound(tmp_path / "whole.mp4") is None
    monkeypatch.setattr(limits, "FRAMES", 3)
    with pytest.raises(MediaError, match="it has more than 3 frames"):
        glance(tmp_path / "whole.mp4")
