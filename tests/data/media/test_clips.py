"""Clips: every frame comes out of its clip bit for bit as out of the file, and nothing else is in the clip."""

import io
import struct
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import av
import numpy as np
import pytest

from essl_fast.data import media
from essl_fast.data.media import clips
from essl_fast.data.media.clips import NO_CLIP, Clip, can_copy, cut_clips, decode_clip
from essl_fast.data.media.display import upright
from essl_fast.data.media.video import MediaError, decode_frames, probe
from tests.data.media.test_media import Adrift, Astray
from tests.tools.media import (
    irregular,
    make_video,
    noisy,
    number_of,
    rewrite_header,
    set_edits,
    set_matrix,
)


def x264(params: str = "", **options) -> dict:
    params = f"keyint=12:scenecut=0:b-adapt=0:{params}".rstrip(":")
    return {"options": {"preset": "veryfast", "bf": "3", "x264-params": params, **options}}


def x265(params: str, preset: str = "ultrafast") -> dict:
    fixed = "log-level=none:pools=none:frame-threads=1:keyint=12:scenecut=0:b-adapt=0"
    return {"codec": "libx265", "options": {"preset": preset, "x265-params": f"{fixed}:{params}"}}


STREAMS = {
    "h264.mp4": x264(),
    "h264_no_b_frames.mov": x264(bf="0"),
    "h264_b_pyramid.mkv": x264("b-pyramid=normal:ref=5", bf="8"),
    "h264_open.mp4": x264("open-gop=1"),
    "h264_open_b_pyramid.mkv": x264("open-gop=1:b-pyramid=normal:ref=4", bf="5"),
    "h264_interlaced.mp4": x264("interlaced=1"),
    "h264_stripes.mp4": x264("intra-refresh=1", bf="0"),
    "hevc.mp4": x265("open-gop=0:bframes=4:b-pyramid=1"),
    "hevc_open.mp4": x265("open-gop=1:bframes=4:b-pyramid=1:ref=4"),  # RASL pictures
    "hevc_radl.mkv": x265("open-gop=0:radl=2:bframes=4"),
    "hevc_layers.mp4": x265("temporal-layers=3:open-gop=1:bframes=7:b-pyramid=1", "fast"),
    "hevc_10_bit.mp4": {**x265("bframes=4"), "pix_fmt": "yuv420p10le"},
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"deadline": "good", "cpu-used": "5", "lag-in-frames": "12"}},
    "vp9_hidden.mp4": {
        "codec": "libvpx-vp9",
        "options": {  # with alternate reference pictures, never shown themselves
            "deadline": "realtime",
            "cpu-used": "7",
            "auto-alt-ref": "1",
            "lag-in-frames": "16",
            "g": "60",
            "b": "200k",
        },
    },
    "av1.mp4": {"codec": "libsvtav1", "options": {"preset": "12", "svtav1-params": "lp=1"}},
    "av1_long.mkv": {"codec": "libsvtav1", "options": {"preset": "12", "svtav1-params": "lp=1", "g": "33"}},
    "mjpeg.mov": {"codec": "mjpeg", "pix_fmt": "yuvj420p"},
    "mjpeg_422.mkv": {"codec": "mjpeg", "pix_fmt": "yuvj422p"},
}


@pytest.fixture
def quiet(monkeypatch):
    monkeypatch.setenv("SVT_LOG", "0")


def requests_of(found) -> list[tuple[int, float]]:
    """One for each frame, in the order of showing."""
    return [(fid, float((int(tick) - found.start) * found.time_base)) for fid, tick in enumerate(found.pts, 1)]


def shown(clip: Clip) -> np.ndarray:
    return decode_clip(clip.data, clip.target)


def every_frame(path) -> list[np.ndarray]:
    """FFmpeg's, decoded from the first to the last."""
    with av.open(str(path)) as file:
        return [upright(frame) for frame in file.decode(video=0)]


def check_all(path, **probed) -> list[Clip]:
    """Clips of all frames of a sound file, each compared with a decoder that reads the whole file."""
    found, every = probe(path), every_frame(path)
    requests = requests_of(found)
    assert len(found.pts) == len(every) > 10 and can_copy(found) is None
    for name, value in probed.items():
        assert getattr(found, name) == value
    cut = list(cut_clips(path, requests, found))
    assert [index for index, _ in cut] == list(range(len(every)))
    for index, clip in cut:
        np.testing.assert_array_equal(shown(clip), every[index], f"frame {index + 1} of {len(every)}")
    for index, frame in decode_frames(path, requests, found):
        np.testing.assert_array_equal(frame, every[index])
    return [clip for _, clip in cut]


@pytest.mark.parametrize("rate", ["constant", "varying"])
@pytest.mark.parametrize("name", STREAMS)
def test_every_frame_of_every_kind_of_stream(tmp_path, name, rate, quiet):
    timing = {"seconds": 4} if rate == "constant" else {"pts": irregular(40), "ticks": 30}
    path = make_video(tmp_path / name, picture=noisy, sound=None, **timing, **STREAMS[name])
    cut = check_all(path, constant=rate == "constant", codec=name.split(".")[0].split("_")[0])
    with av.open(str(path)) as file:
        sizes = {bytes(packet): packet.size for packet in file.demux(video=0)}
    for clip in cut[::3]:
        with av.open(io.BytesIO(clip.data)) as file:  # as others read it: FFmpeg, DALI
            packets = [packet for packet in file.demux(video=0) if packet.size]
            assert {bytes(packet) for packet in packets} <= sizes.keys() and packets[0].is_keyframe
            assert len(clip.data) < sum(packet.size for packet in packets) + 1024
        with av.open(io.BytesIO(clip.data)) as file:
            frames, count = list(file.decode(video=0)), file.streams.video[0].frames
        assert len(frames) == len(packets) == count
        ticks = [frame.pts for frame in frames]
        assert ticks[0] == 0 and len(set(np.diff(ticks))) <= 1
        np.testing.assert_array_equal(upright(frames[clip.target]), shown(clip))


@pytest.mark.parametrize(
    "name, share",
    [
        ("h264.mp4", 0.75),
        ("h264_open.mp4", 0.75),
        ("hevc.mp4", 0.75),
        ("hevc_layers.mp4", 0.75),
        ("h264_no_b_frames.mov", 1),
    ],
)
def test_pictures_that_nobody_refers_to_stay_out(tmp_path, name, share):
    path = make_video(tmp_path / name, seconds=6, picture=noisy, sound=None, **STREAMS[name])
    found = probe(path)
    pictures = needed = 0
    for index, clip in cut_clips(path, requests_of(found), found):
        with av.open(io.BytesIO(clip.data)) as file:
            pictures += file.streams.video[0].frames
        with av.open(str(path)) as file:  # all packets from the key frame to the frame's
            ticks = [packet.pts for packet in file.demux(video=0) if packet.size]
        key = max(tick for tick in found.keys if tick <= found.pts[index])
        span = ticks[ticks.index(key) : ticks.index(found.pts[index]) + 1]
        needed += sum(tick >= key for tick in span)
    assert pictures <= share * needed and (share < 1 or pictures == needed)


def test_a_picture_that_a_higher_layer_may_refer_to_stays(tmp_path):
    path = make_video(tmp_path / "v.mp4", sound=None, **STREAMS["hevc.mp4"])
    with av.open(str(path)) as file:
        header = clips._Header.of(file, probe(path))
    packets = [
        clips._Packet(tick, tick == 0, b"12345", layer, needed)
        for tick, layer, needed in ((0, 0, True), (8, 0, False), (4, 1, False), (6, 1, False))
    ]

    def reel(packets, *ticks):
        cut = header.reel(packets, ticks, range(len(ticks)))
        return cut.data.count(b"12345"), cut.targets

    assert reel(packets, 6) == (3, (1,)) and reel(packets[:2], 8) == (2, (1,))
    assert reel(packets, 4, 6) == (4, (1, 2)) and reel(packets, 0, 8) == (2, (0, 1))
    flat = [packet._replace(layer=0) for packet in packets]
    assert reel(flat, 6) == (2, (1,)) and reel(flat, 4, 6) == (3, (1, 2))


def test_what_a_clip_holds_depends_on_its_frame_alone(tmp_path):
    path = make_video(tmp_path / "v.mp4", seconds=6, picture=noisy, **STREAMS["h264_open.mp4"])
    requests = [(7, 0), (41, 0), (7, 0.3), (99, 0), (12, 0), (0, 0)]
    got = list(cut_clips(path, requests))
    assert [index for index, _ in got] == [3, 5, 0, 2, 4, 1]  # in the order of showing, what cannot be first
    got = dict(got)
    assert got[0] is got[2] and {got[3].reason, got[5].reason} == {media.PAST_END}
    for index in (0, 1, 4):
        assert list(cut_clips(path, [requests[index]])) == [(0, got[index])]
    expected = {index: error for index, error in decode_frames(path, requests) if isinstance(error, MediaError)}
    assert {index: str(error) for index, error in expected.items()} == {3: str(got[3]), 5: str(got[5])}
    mvhd = got[0].data.index(b"mvhd") + 8
    assert got[0].data[mvhd : mvhd + 8] == bytes(8)  # no time of creation


class Counted:
    """A container that counts the packets read and the seeks."""

    def __init__(self, container, seen):
        self.container, self.seen = container, seen

    def __getattr__(self, name):
        return getattr(self.container, name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.container.close()

    def seek(self, *args, **how):
        self.seen["seeks"] += 1
        self.container.seek(*args, **how)

    def demux(self, stream):
        for packet in self.container.demux(stream):
            self.seen["packets"] += 1
            yield packet


@pytest.mark.parametrize("name", ["v.mp4", "v.mkv"])
def test_one_pass_and_no_reading_of_what_nobody_wants(tmp_path, monkeypatch, name):
    path = make_video(tmp_path / name, seconds=60, **STREAMS["h264.mp4"])
    found, real, seen = probe(path), media.open_file, {"seeks": 0, "packets": 0}
    monkeypatch.setattr(media, "open_file", lambda path: Counted(real(path), seen))
    assert sum(1 for _ in cut_clips(path, requests_of(found), found)) == 600
    assert seen["seeks"] == 0 and seen["packets"] <= 601
    seen["packets"] = 0
    got = {index: number_of(shown(clip)) for index, clip in cut_clips(path, [(590, 0), (5, 0), (305, 0)], found)}
    assert got == {0: 590, 1: 5, 2: 305}
    assert seen["seeks"] == 2 and seen["packets"] <= 60


def test_a_seek_that_leads_past_the_frame_falls_back(tmp_path, monkeypatch):
    path, real, sought = make_video(tmp_path / "v.mkv", seconds=40, **STREAMS["h264.mp4"]), media.open_file, []
    found = probe(path)
    monkeypatch.setattr(media, "open_file", lambda path: Astray(real(path), sought))
    got = {index: number_of(shown(clip)) for index, clip in cut_clips(path, [(250, 0), (390, 0), (4, 0)], found)}
    assert got == {0: 250, 1: 390, 2: 4} and len(sought) == 1


def test_a_seek_that_fails_falls_back(tmp_path, monkeypatch):
    path, real, sought = make_video(tmp_path / "v.mkv", seconds=40, **STREAMS["h264.mp4"]), media.open_file, []
    found = probe(path)
    monkeypatch.setattr(media, "open_file", lambda path: Adrift(real(path), sought))
    got = {index: number_of(shown(clip)) for index, clip in cut_clips(path, [(250, 0), (390, 0), (4, 0)], found)}
    assert got == {0: 250, 1: 390, 2: 4} and len(sought) == 1


def test_key_frames_too_far_apart(tmp_path, monkeypatch):
    path = make_video(tmp_path / "v.mp4", seconds=6, sound=None, options={"preset": "veryfast", "g": "30", "bf": "0"})
    found = probe(path)
    monkeypatch.setattr(clips, "_MOST_PACKETS", 20)
    got = dict(cut_clips(path, requests_of(found), found))
    for index, clip in got.items():
        if index % 30 < 20:
            assert number_of(shown(clip)) == index + 1
        else:
            assert clip.reason == NO_CLIP and "v.mp4: its key frames are too far apart (21 packets" in clip.detail
    monkeypatch.setattr(clips, "_MOST_PACKETS", 600)
    monkeypatch.setattr(clips, "_MOST_BYTES", 1000)
    assert NO_CLIP in {getattr(clip, "reason", "") for _, clip in cut_clips(path, requests_of(found), found)}


@pytest.mark.parametrize(
    "name, kind, why",
    [
        ("v.webm", {"codec": "libvpx"}, "its codec vp8 is none of h264, hevc, vp9, av1, mjpeg"),
        ("v.mp4", {"codec": "mpeg4"}, "its codec mpeg4 is none of"),
        ("v.avi", {}, "its times do not tell which packet is which frame"),
    ],
)
def test_videos_that_are_not_cut(tmp_path, name, kind, why):
    path = make_video(tmp_path / name, sound=None, **kind)
    assert can_copy(path).startswith(f"{name}: {why}")
    got = dict(cut_clips(path, [(3, 0), (99, 0)]))
    assert got[0].reason == NO_CLIP and why in got[0].detail and got[1].reason == media.PAST_END


def test_what_clips_cannot_say(tmp_path):
    path = make_video(tmp_path / "v.mp4", sound=None)
    mirrored = set_matrix(path, -1, 0, 0, 1)
    assert can_copy(mirrored) == "v.mp4: it asks players to mirror it"
    path = make_video(tmp_path / "w.mp4", sound=None)
    assert "which packet is which frame" in can_copy(set_edits(path, [(1, 0.2), (1.5, 2.3)]))
    with pytest.raises(MediaError, match="no video stream|unreadable"):
        can_copy(tmp_path / "none.mp4")


@pytest.mark.parametrize("matrix, quarters", [((0, 1, -1, 0), 3), ((-1, 0, 0, -1), 2), ((0, -1, 1, 0), 1)])
@pytest.mark.parametrize("name", ["h264.mp4", "hevc.mp4", "mjpeg.mov"])
def test_turned_videos(tmp_path, name, matrix, quarters):
    path = set_matrix(make_video(tmp_path / name, picture=noisy, sound=None, **STREAMS[name]), *matrix)
    cut = check_all(path)
    assert {clip.quarters for clip in cut} == {quarters}
    with av.open(io.BytesIO(cut[9].data)) as file:  # NVDEC gives it lying
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
    """Rows that fill the last macroblock, cut off by the sample entry alone."""
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
        header = clips._Header.of(file, found)
        split = av.bitstream.BitStreamFilterContext("vp9_superframe_split", file.streams.video[0])
        for packet in file.demux(video=0):
            for part in split.filter(packet) if packet.size else []:
                packets.append(clips._Packet(len(packets), packet.is_keyframe, bytes(part), 0, True))
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
        header = clips._Header.of(file, found)
        packets = [bytes(packet) for packet in file.demux(video=0) if packet.size]
    packets.insert(15, b"\x88")  # the picture in slot 0
    packets = [clips._Packet(place, place % 10 == 0, data, 0, True) for place, data in enumerate(packets[:21])]
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
        header = clips._Header.of(file, probe(path))
    packet = clips._Packet(0, True, b"12345", 0, True)
    assert "two pictures at the same time" in header.reel([packet, packet], [0], [0]).detail


def test_each_request_is_answered_where_two_frames_have_one_time(tmp_path):
    """As in damaged headers; such a frame is nobody's to find by its packet, and those behind it are not lost."""
    path = make_video(tmp_path / "v.mp4", seconds=2, picture=noisy, sound=None, **STREAMS["h264.mp4"])
    sound = probe(path)
    ticks = sound.pts.copy()
    ticks[5] = ticks[4]
    found = replace(sound, pts=ticks, constant=True)
    cut = dict(cut_clips(path, requests_of(sound), found))
    assert sorted(cut) == list(range(20))
    assert [index for index, clip in cut.items() if isinstance(clip, MediaError)] == [4, 5]
    assert cut[4].reason == cut[5].reason == NO_CLIP
    answers = [some for some, _ in clips.cut_reels(found, list(range(20)), 7)]
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


def test_decoding_in_threads(tmp_path):
    path = make_video(tmp_path / "v.mp4", picture=noisy, sound=None, **STREAMS["h264.mp4"])
    cut = [clip for _, clip in cut_clips(path, [(fid, 0) for fid in range(1, 41)])]
    with ThreadPoolExecutor(4) as pool:
        for frame, expected in zip(pool.map(shown, cut), every_frame(path), strict=True):
            np.testing.assert_array_equal(frame, expected)
