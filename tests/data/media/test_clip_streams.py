"""Clips of unusual streams: turned, edited, with hidden or repeated pictures, or with settings that change."""

import io
import struct
from dataclasses import replace

import av
import numpy as np
import pytest

from essl_fast.data import media
from essl_fast.data.media import NO_CLIP, Clip, MediaError, can_copy, cut_clips, decode_frames, probe
from essl_fast.data.media.groups import make_reel
from essl_fast.data.media.mp4 import ClipHeader
from essl_fast.data.media.packets import Packet
from tests.tools.clips import STREAMS, check_all, every_frame, requests_of, shown, x264
from tests.tools.media import make_video, noisy, number_of, rewrite_header, set_edits, set_matrix


@pytest.mark.parametrize("matrix, quarters", [((0, 1, -1, 0), 3), ((-1, 0, 0, -1), 2), ((0, -1, 1, 0), 1)])
@pytest.mark.parametrize("name", ["h264.mp4", "hevc.mp4", "mjpeg.mov"])
def test_turned_videos(tmp_path, name, matrix, quarters):
    path = set_matrix(make_video(tmp_path / name, picture=noisy, sound=None, **STREAMS[name]), *matrix)
    cut = check_all(path)
    assert {clip.quarters for clip in cut} == {quarters}
    with av.open(io.BytesIO(cut[9].data)) as file:  # NVDEC does not turn it
        lying = list(file.decode(video=0))[cut[9].target].to_ndarray(format="rgb24")
    np.testing.assert_array_equal(np.rot90(lying, quarters), shown(cut[9]))


@pytest.mark.parametrize("name", ["h264.mp4", "h264_open.mp4", "hevc_open.mp4"])
@pytest.mark.parametrize("edits", [[(3, 0.75)], [(0.5, None), (4, 0.2)]])
def test_edit_lists(tmp_path, name, edits):
    path = make_video(tmp_path / name, picture=noisy, sound=None, **STREAMS[name])
    check_all(set_edits(path, edits))


@pytest.mark.parametrize("name", ["v.mkv", "v.mp4"])
def test_colours_that_only_the_file_states(tmp_path, name):
    plain = make_video(tmp_path / "plain.mp4", picture=noisy, sound=None, **STREAMS["h264_open.mp4"])
    path = tmp_path / name
    with av.open(str(plain)) as source, av.open(str(path), "w") as file:
        stream = file.add_stream_from_template(source.streams.video[0])
        context = stream.codec_context
        context.color_primaries = context.color_trc = context.colorspace = 1  # BT.709
        context.color_range = 2  # full
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                file.mux(packet)
    cut = check_all(path)
    assert np.abs(every_frame(plain)[0].astype(int) - shown(cut[0])).max() > 10  # it matters


def test_a_size_that_only_the_file_states(tmp_path):
    """The sample entry alone says that the rows which fill the last macroblock are cut off."""
    path = make_video(tmp_path / "v.mp4", picture=noisy, sound=None, **STREAMS["h264.mp4"])
    low = lambda kind, box: box[:42] + struct.pack(">H", 90) + box[44:] if kind == b"stsd" else box  # noqa: E731
    cut = check_all(rewrite_header(path, low))
    assert shown(cut[0]).shape == (90, 160, 3)


def without_reordering(settings: bytes) -> bytes:
    """avcC whose SPS lost its VUI, and so how many pictures wait for others; of the same size."""
    size = int.from_bytes(settings[6:8])
    bits = "".join(f"{byte:08b}" for byte in settings[8 : 8 + size].replace(b"\0\0\3", b"\0\0"))
    at = 32

    def number() -> int:
        nonlocal at
        zeros = bits.index("1", at) - at
        at += 2 * zeros + 1
        return int(bits[at - zeros - 1 : at], 2) - 1

    number()  # seq_parameter_set_id
    if settings[9] >= 100:
        assert (number(), number(), number()) == (1, 0, 0)  # 4:2:0, 8 bit
        at += 2
    number()
    assert number() == 0  # pic_order_cnt_type
    number(), number()
    at += 1
    number(), number()
    at += 1 if bits[at] == "1" else 2  # frame_mbs_only_flag
    at += 1
    if bits[at] == "1":
        at += 1
        number(), number(), number(), number()
    else:
        at += 1
    assert bits[at] == "1"  # vui_parameters_present_flag
    kept = bits[:at] + "01"
    kept += "0" * (-len(kept) % 8)
    sps = bytes(int(kept[place : place + 8], 2) for place in range(0, len(kept), 8))
    return settings[:8] + sps + bytes(size - len(sps)) + settings[8 + size :]


def test_a_stream_that_does_not_say_how_many_pictures_wait(tmp_path):
    """A decoder that guesses gives pictures out too early, and drops those that should have been before them."""
    path = make_video(tmp_path / "v.mkv", picture=noisy, sound=None, **x264("b-pyramid=normal", bf="5"))
    with av.open(str(path)) as file:
        settings = file.streams.video[0].codec_context.extradata
    data = path.read_bytes()
    assert data.count(settings) == 1
    path.write_bytes(data.replace(settings, without_reordering(settings)))
    check_all(path)


def test_hidden_pictures_in_packets_of_their_own(tmp_path):
    """FFmpeg's muxers put them in one packet with the next; other writers need not."""
    whole = make_video(tmp_path / "v.mp4", seconds=6, picture=noisy, sound=None, **STREAMS["vp9_hidden.mp4"])
    found, packets = probe(whole), []
    with av.open(str(whole)) as file:
        header = ClipHeader.of(file, found)
        split = av.bitstream.BitStreamFilterContext("vp9_superframe_split", file.streams.video[0])
        for packet in file.demux(video=0):
            for part in split.filter(packet) if packet.size else []:
                packets.append(Packet(len(packets), packet.is_keyframe, bytes(part), 0, True))
    assert len(packets) > 60
    path = tmp_path / "w.mp4"
    path.write_bytes(header.write(packets, list(range(len(packets)))))
    every, apart = every_frame(whole), probe(path)
    assert len(apart.pts) == len(every) == 60
    for fid in (2, 31, 60):  # the rate is not constant now: the frame goes by its time
        ((_, frame),) = decode_frames(path, [requests_of(apart)[fid - 1]])
        np.testing.assert_array_equal(frame, every[fid - 1])
    got = dict(cut_clips(path, requests_of(apart), apart))
    reasons = [getattr(clip, "reason", "") for _, clip in sorted(got.items())]
    assert NO_CLIP in reasons and "not shown" in got[reasons.index(NO_CLIP)].detail
    for index, clip in got.items():
        if isinstance(clip, Clip):
            np.testing.assert_array_equal(shown(clip), every[index])


def test_packets_that_show_a_picture_again(tmp_path):
    """DALI's NVDEC reader takes the pictures of later packets for theirs: frames from there on are no clips."""
    whole = make_video(
        tmp_path / "v.mp4",
        picture=noisy,
        sound=None,
        codec="libvpx-vp9",
        options={"deadline": "realtime", "cpu-used": "8"},
    )
    found = probe(whole)
    with av.open(str(whole)) as file:
        header = ClipHeader.of(file, found)
        packets = [bytes(packet) for packet in file.demux(video=0) if packet.size]
    packets.insert(15, b"\x88")  # the picture in slot 0
    packets = [Packet(place, place % 10 == 0, data, 0, True) for place, data in enumerate(packets[:21])]
    path = tmp_path / "w.mp4"
    path.write_bytes(header.write(packets, list(range(21))))
    every = every_frame(path)
    assert len(every) == 21 and np.array_equal(every[14], every[15])
    got = dict(cut_clips(path, [(fid, 0) for fid in range(1, 22)]))
    for index in range(15):
        np.testing.assert_array_equal(shown(got[index]), every[index])
    assert {got[index].reason for index in range(15, 20)} == {NO_CLIP} and "again" in got[17].detail


def test_a_stream_that_no_mp4_takes(tmp_path, monkeypatch):
    """A damaged header says 0 x 0 pixels, say, and FFmpeg's muxer refuses."""
    path, real = make_video(tmp_path / "v.mkv", seconds=1, sound=None, **STREAMS["h264.mp4"]), av.open
    found = probe(path)

    def refusing(file, mode="r", **how):
        if mode == "w":
            raise av.error.ArgumentError(22, "Invalid argument")
        return real(file, mode, **how)

    monkeypatch.setattr(av, "open", refusing)
    assert can_copy(found) == "v.mkv: its packets do not go into an MP4 (Invalid argument)"
    assert [clip.reason for _, clip in cut_clips(path, requests_of(found), found)] == [NO_CLIP] * 10


def test_two_pictures_at_the_same_time(tmp_path):
    path = make_video(tmp_path / "v.mp4", sound=None, **STREAMS["h264.mp4"])
    with av.open(str(path)) as file:
        header = ClipHeader.of(file, probe(path))
    packet = Packet(0, True, b"12345", 0, True)
    assert "two pictures at the same time" in make_reel(header, [packet, packet], [0], [0]).detail


def test_each_request_is_answered_where_two_frames_have_one_time(tmp_path):
    """As in damaged headers. Such a frame cannot be found by its packet; the frames after it must not be lost."""
    path = make_video(tmp_path / "v.mp4", seconds=2, picture=noisy, sound=None, **STREAMS["h264.mp4"])
    sound = probe(path)
    ticks = sound.pts.copy()
    ticks[5] = ticks[4]
    found = replace(sound, pts=ticks, constant=True)
    cut = dict(cut_clips(path, requests_of(sound), found))
    assert sorted(cut) == list(range(20))
    assert [index for index, clip in cut.items() if isinstance(clip, MediaError)] == [4, 5]
    assert cut[4].reason == cut[5].reason == NO_CLIP
    answers = [some for some, _ in media.cut_reels(found, list(range(20)), 7)]
    assert [place for some in answers for place in some] == list(range(20))


def test_settings_that_change_on_the_way(tmp_path):
    """A second sample description, as when two recordings are joined without encoding."""
    first = make_video(tmp_path / "a.mp4", seconds=2, picture=noisy, sound=None, **x264())
    second = make_video(tmp_path / "b.mp4", seconds=2, picture=noisy, sound=None, **x264("cabac=0:8x8dct=0:ref=1"))
    joined, entries, packets = tmp_path / "v.mp4", [], []
    for path in (first, second):
        rewrite_header(path, lambda kind, box: entries.append(box[8:]) or box if kind == b"stsd" else box)
        with av.open(str(path)) as file:
            packets += [
                (packet.dts, packet.pts, packet.is_keyframe, bytes(packet))
                for packet in file.demux(video=0)
                if packet.size
            ]
    with av.open(str(first)) as source, av.open(str(joined), "w") as file:
        stream = file.add_stream_from_template(source.streams.video[0])
        for place, (dts, pts, key, data) in enumerate(packets):
            packet = av.Packet(data)
            shift = 20 * 1024 * (place >= 20)
            packet.dts, packet.pts, packet.is_keyframe = dts + shift, pts + shift, key
            packet.stream, packet.time_base = stream, source.streams.video[0].time_base
            file.mux(packet)
    begin = joined.read_bytes().index(b"mdat") + 4
    offsets = [begin + sum(len(data) for *_, data in packets[:place]) for place in range(40)]
    change = {
        b"stsd": struct.pack(">2I", 0, 2) + entries[0] + entries[1],
        b"stsc": struct.pack(">8I", 0, 2, 1, 1, 1, 21, 1, 2),
        b"stco": struct.pack(">42I", 0, 40, *offsets),
    }
    rewrite_header(joined, lambda kind, box: change.get(kind, box))
    every, found = every_frame(joined), probe(joined)
    assert [number_of(frame) for frame in every] == [*range(1, 21), *range(1, 21)]
    for index, clip in cut_clips(joined, requests_of(found), found):
        if index < 20:
            np.testing.assert_array_equal(shown(clip), every[index])
        else:
            assert clip.reason == NO_CLIP and "settings change" in clip.detail
    ((_, late),) = cut_clips(joined, [(33, 0)], found)
    assert late.reason == NO_CLIP
