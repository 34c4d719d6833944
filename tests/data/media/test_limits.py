"""Files that say they are enormous: refused by their headers, with a reason, before memory is taken."""

import resource
import struct
import subprocess
import sys
import time

import av
import pytest

from essl_fast.data import media
from essl_fast.data.media import audio, limits
from tests.tools.media import clicks, join_tracks, make_sound, make_video, noisy, row, write_annotations
from tests.tools.prepare import left_out, run


def test_the_limits_themselves():
    assert not limits.picture(16_384, 16_384) and "16384 x 16385" in limits.picture(16_384, 16_385)
    assert limits.picture(20_000, 10) and limits.picture(-1, 10)
    assert not limits.length(86_400) and limits.length(86_401) and limits.length(0, limits.FRAMES + 1)
    assert not limits.sound(768_000, 64) and limits.sound(768_001, 1) and limits.sound(999, 1)
    assert limits.sound(8000, 65)
    assert limits.sound(48_000, 1, limits.SAMPLES + 1)


def test_a_header_that_takes_long_to_read_is_read_once(tmp_path, monkeypatch):
    path, real, opened = make_video(tmp_path / "v.mp4", seconds=1), av.open, []

    def slow(*given, **how):
        opened.append(given)
        end = time.thread_time() + 0.3
        while time.thread_time() < end:
            pass
        return real(*given, **how)

    monkeypatch.setattr(limits, "HEADER_SECONDS", 0.2)
    monkeypatch.setattr(av, "open", slow)
    for ask in (media.probe, audio.decode_sound, media.can_copy):
        with pytest.raises(media.MediaError, match=r"beyond the decoding limits: v.mp4: its header takes 0.\d s"):
            ask(path)
    assert len(opened) == 3
    monkeypatch.setattr(limits, "HEADER_SECONDS", 20.0)
    assert len(media.probe(path).pts) == 10


def bomb(path, width: int, height: int):
    """A Motion JPEG video whose header and pictures say that they are of this size."""
    make_video(path, codec="mjpeg", pix_fmt="yuvj420p", seconds=1, sound=clicks(1, 16_000), sound_codec="pcm_s16le")
    data, size = path.read_bytes(), struct.pack(">HH", 90, 160)
    assert data.count(size) > 5
    data = data.replace(size, struct.pack(">HH", height, width))
    little = struct.pack("<ii", 160, 90)
    assert data.count(little)
    path.write_bytes(data.replace(little, struct.pack("<ii", width, height)))
    return path


def test_a_video_of_an_enormous_size_is_refused_by_its_header(tmp_path):
    path = bomb(tmp_path / "huge.avi", 65_500, 65_500)  # FFmpeg refuses that itself, frame by frame
    assert all(isinstance(frame, media.MediaError) for _, frame in media.decode_frames(path, [(1, 0.0), (9, 0.8)]))
    path = bomb(tmp_path / "v.avi", 16_400, 16_000)
    for ask in (media.probe, lambda path: list(media.decode_frames(path, [(1, 0.0)])), media.can_copy):
        with pytest.raises(media.MediaError, match="beyond the decoding limits: v.avi: a picture of 16400 x 16000"):
            ask(path)


def test_a_picture_that_is_larger_than_the_header_said_is_not_decoded(tmp_path, monkeypatch):
    path = make_video(tmp_path / "v.mp4", seconds=1, sound=None)
    monkeypatch.setattr(limits, "DECODER", {"max_pixels": "14399"})  # its pictures have 14,400
    ((_, error),) = media.decode_frames(path, [(1, 0.0)])
    assert isinstance(error, media.MediaError)
    ((_, clip),) = media.cut_clips(path, [(1, 0.0)])
    with pytest.raises(media.MediaError):
        media.decode_clip(clip.data, clip.target)
    monkeypatch.setattr(limits, "DECODER", {"max_pixels": "40000"})  # decoders count their margins
    assert media.decode_clip(clip.data, clip.target).shape == (90, 160, 3)


def test_a_size_that_changes_on_the_way_stays_within_the_limit(tmp_path, monkeypatch):
    """Two Motion JPEG files behind one another: the second is larger than the header says."""
    small = make_video(tmp_path / "a.avi", codec="mjpeg", pix_fmt="yuvj420p", seconds=1, sound=None)
    large = make_video(
        tmp_path / "b.avi",
        codec="mjpeg",
        pix_fmt="yuvj420p",
        seconds=1,
        sound=None,
        picture=lambda n: noisy(n, 320, 192),
    )
    with av.open(str(tmp_path / "v.avi"), "w") as out, av.open(str(small)) as first, av.open(str(large)) as second:
        track = out.add_stream_from_template(first.streams[0], opaque=True)
        at = 0
        for source in (first, second):
            for packet in source.demux(video=0):
                if packet.size:
                    packet.stream, packet.pts, packet.dts, at = track, at, at, at + 1
                    out.mux(packet)
    sizes = {fid: frame.shape for fid, frame in media.decode_frames(tmp_path / "v.avi", [(3, 0.2), (15, 1.4)])}
    assert sizes == {0: (90, 160, 3), 1: (192, 320, 3)}
    monkeypatch.setattr(limits, "DECODER", {"max_pixels": "20000"})
    found = dict(media.decode_frames(tmp_path / "v.avi", [(3, 0.2), (15, 1.4)]))
    assert found[0].shape == (90, 160, 3) and isinstance(found[1], media.MediaError)


def test_a_video_that_says_it_lasts_for_days_is_refused(tmp_path, monkeypatch):
    path = make_video(tmp_path / "v.mp4", seconds=4)
    monkeypatch.setattr(limits, "SECONDS", 3)
    with pytest.raises(media.MediaError, match="it says that it lasts"):
        media.probe(path)
    monkeypatch.setattr(limits, "SECONDS", 5)
    monkeypatch.setattr(limits, "FRAMES", 39)
    with pytest.raises(media.MediaError, match="more than 39 frames"):
        media.probe(path)


@pytest.mark.parametrize("rate", [500, 999_999])
def test_an_absurd_rate_of_sound_is_refused(tmp_path, rate):
    path = make_sound(tmp_path / "s.wav", clicks(1, 8000), "pcm_s16le", 8000)
    data = path.read_bytes()
    at = data.index(b"fmt ") + 12
    path.write_bytes(data[:at] + struct.pack("<II", rate, 2 * rate) + data[at + 8 :])
    with pytest.raises(media.MediaError, match=f"beyond the decoding limits: s.wav: {rate:,} samples a second"):
        audio.decode_sound(path)


def test_a_sound_of_endless_length_is_refused(tmp_path, monkeypatch):
    path = make_sound(tmp_path / "s.wav", clicks(3, 8000), "pcm_s16le", 8000)
    monkeypatch.setattr(limits, "SAMPLES", 20_000)
    with pytest.raises(media.MediaError, match="at most 20,000 samples"):
        audio.decode_sound(path)


def test_prepare_leaves_a_bomb_out_and_says_why(tmp_path):
    for name in ("a", "t"):
        make_video(tmp_path / "videos" / f"{name}.mp4", sound=clicks(4, 16_000, at=(2.0,)))
    bomb(tmp_path / "videos" / "b.avi", 16_400, 16_000)
    write_annotations(tmp_path / "notes", {"a": [row(21, 2.0)], "b": [row(21, 2.0)]}, {"t": [row(21, 2.0)]})
    assert len(run(tmp_path, tmp_path / "out", validation=0)) == 2
    (entry,) = left_out(tmp_path / "out")
    assert entry["video"] == "b" and entry["reason"] == media.LIMIT and "16400 x 16000" in entry["detail"]


@pytest.mark.slow
def test_a_worker_has_a_limit_of_memory():
    code = (
        "from essl_fast.data.media import limits\nlimits.hold_memory(1 << 30)\nlimits.hold_memory()\nbytearray(2 << 30)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert "MemoryError" in done.stderr
    code = code.replace("bytearray", "limits.release_memory()\nbytearray")  # where a GPU is used
    assert subprocess.run([sys.executable, "-c", code], timeout=300).returncode == 0
    assert resource.getrlimit(resource.RLIMIT_DATA)[0] == resource.RLIM_INFINITY  # only there


def test_a_tracks_streams_are_counted(tmp_path, monkeypatch):
    video = make_video(tmp_path / "v.mp4", seconds=1, sound=None)
    path = join_tracks(tmp_path / "w.mkv", video, video, video)
    monkeypatch.setattr(limits, "STREAMS", 2)
    with pytest.raises(media.MediaError, match="3 streams, at most 2"):
        media.probe(path)
