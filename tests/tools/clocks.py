"""Files whose packets do not tell when a picture is shown, or tell it wrongly; the n-th picture shows n."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import av

from tests.tools.media import make_video

BFRAMES = {"options": {"bf": "3", "preset": "veryfast", "x264-params": "keyint=10:scenecut=0:b-adapt=0"}}
SKIPPING = [n for n in range(60) if n % 7 not in (3, 5)]  # in frames of 1/10 s: 43 pictures in 6 s
COARSE = [sum(1 + (place * place) % 5 // 3 for place in range(count)) for count in range(40)]  # steps of 1 and 2 ticks


def restamped(source: Path, path: Path, change: Callable[[object, int], None], keep=lambda place: True) -> Path:
    """A copy of a file; `change(packet, place)` may set the stamps of each packet of the video."""
    with av.open(str(source)) as file, av.open(str(path), "w") as out:
        tracks = {stream.index: out.add_stream_from_template(stream) for stream in file.streams}
        place = 0
        for packet in file.demux():
            if not packet.size or packet.dts is None:
                continue
            if packet.stream.type == "video":
                change(packet, place)
                place += 1
                if not keep(place - 1):
                    continue
            packet.stream = tracks[packet.stream.index]
            out.mux(packet)
    return path


def decoding_order(folder: Path, kind: str) -> Path:
    """Without composition offsets: packets are stamped in the order of decoding, pictures are shown in another one."""
    begin: list[int] = []

    def change(packet, place):
        begin.append(packet.dts)
        packet.dts -= begin[0]
        packet.pts = packet.dts

    return restamped(make_video(folder / "base.mp4", seconds=6, **BFRAMES), folder / f"plain.{kind}", change)


def doubled(folder: Path) -> Path:
    """Two pictures are stamped alike."""
    base = make_video(folder / "base.mp4", seconds=6, sound=None, options={"bf": "0"})
    last: list[int] = []

    def change(packet, place):
        last.append(packet.pts)
        if place == 21:
            packet.pts = packet.dts = last[-2]

    return restamped(base, folder / "doubled.mkv", change)


def amid(folder: Path, kind: str = "ts", skipped: int = 4) -> Path:
    """A recording that starts `skipped` pictures before its first key frame, which shows 11; the sound runs along."""
    base = make_video(folder / "base.mp4", seconds=6, **BFRAMES)
    begin = []
    with av.open(str(base)) as file, av.open(str(folder / f"amid.{kind}"), "w") as out:
        tracks = {stream.index: out.add_stream_from_template(stream) for stream in file.streams}
        for packet in file.demux():
            if not packet.size or packet.dts is None:
                continue
            if packet.stream.type == "video":
                begin.append(packet.dts)
                if len(begin) <= 10 - skipped:
                    continue
            elif float(packet.pts * packet.time_base) < 0.1 * (10 - skipped):
                continue
            packet.stream = tracks[packet.stream.index]
            out.mux(packet)
    return folder / f"amid.{kind}"


def amid_refresh(folder: Path, kind: str, skipped: int = 10) -> Path:
    """A recording without key frames that starts where a gradual refresh begins: its decoder gives 19 first."""
    refresh = {"bf": "0", "preset": "veryfast", "x264-params": "keyint=10:intra-refresh=1"}
    base = make_video(folder / "base.ts", seconds=6, sound=None, options=refresh)
    with av.open(str(base)) as file, av.open(str(folder / f"refresh.{kind}"), "w") as out:
        track = out.add_stream_from_template(file.streams.video[0])
        for place, packet in enumerate(packet for packet in file.demux(video=0) if packet.size):
            if place >= skipped:
                packet.stream = track
                out.mux(packet)
    return folder / f"refresh.{kind}"


def merged(one: Path, two: Path, path: Path) -> Path:
    """Two transport streams as the two programmes of one, packet by packet in turns; their tables must not collide."""
    packets = [
        [data[at : at + 188] for at in range(0, len(data), 188)] for data in (one.read_bytes(), two.read_bytes())
    ]
    tables = [next(packet for packet in some if _pid(packet) == 0) for some in packets]
    entries = b"".join(table[13:17] for table in tables)
    section = b"\0\xb0" + bytes([5 + len(entries) + 4]) + tables[0][8:13] + entries
    both = tables[0][:5] + section + struct.pack(">I", _crc(section))
    both += b"\xff" * (188 - len(both))
    rest = [[packet for packet in some if _pid(packet) not in (0, 17)] for some in packets]
    out = [both]
    for place in range(max(map(len, rest))):
        out += [some[place] for some in rest if place < len(some)]
        out += [both] if place % 20 == 0 else []
    path.write_bytes(b"".join(out))
    return path


def _pid(packet: bytes) -> int:
    return int.from_bytes(packet[1:3]) & 0x1FFF


def _crc(data: bytes) -> int:
    """CRC-32 of MPEG-2 sections (ISO/IEC 13818-1, Annex A)."""
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte << 24
        for _ in range(8):
            value = (value << 1 ^ (0x04C11DB7 if value >> 31 else 0)) & 0xFFFFFFFF
    return value
