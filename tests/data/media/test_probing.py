"""Finding a video's file, and what is known of it without decoding."""

import pytest
from av import open as av_open

from essl_fast.data.media import MediaError, find_video, probe
from essl_fast.data.media.audio import decode_sound
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
