"""Which packets a clip needs: a group of pictures is collected, and reels are made of it.

A frame is decoded from the last key frame that is shown at or before it, and the pictures that it refers to come before
it in the file. So a clip holds the packets from that key frame to the frame's own, without

* pictures shown before the key frame (the leading pictures of an open group): they may refer to pictures that the clip
  lacks, and nothing shown after the key frame refers to them;
* pictures that no other picture of the clip refers to, where the headers of the packets say so (`packets.layer_of`):
  with the usual B-frames of H.264 and HEVC that is half of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from essl_fast.data.media.errors import NO_CLIP, MediaError
from essl_fast.data.media.mp4 import ClipHeader
from essl_fast.data.media.packets import Packet

_MOST_PACKETS = 600  # from a key frame to a frame: 20 s at 30 frames per second
_MOST_BYTES = 64 << 20


@dataclass(frozen=True)
class Reel:
    """A clip of several frames of one group of pictures.

    Attributes:
        data: an MP4 file with one video stream and no sound.
        places: the frames' positions in the video (`Probe.pts`), ascending.
        targets: the same frames' positions, from 0, among those that decode from `data`, in the order of showing.
        quarters: counterclockwise quarter turns that make a decoded frame upright.
    """

    data: bytes
    places: tuple[int, ...]
    targets: tuple[int, ...]
    quarters: int = 0


# Places of a video, and their reel; or one place with the reason why it has none, or None where the file is damaged.
Answer = tuple[tuple[int, ...], Reel | MediaError | None]


@dataclass
class Group:
    """The wanted places that are decoded from the key frame shown at `begin`, and the packets read so far."""

    begin: int
    left: dict[int, int] = field(default_factory=dict)  # tick → place: what has no answer yet, ascending
    packets: list[Packet] = field(default_factory=list)
    size: int = 0  # bytes of the packets
    coming: dict[int, tuple[int, ...]] = field(default_factory=dict)  # tick whose packet is to come → its reel's ticks

    def want(self, ticks: dict[int, int], together: int) -> None:
        """Ask for more frames: tick → place, ascending, all after those asked for before; `together` make a reel."""
        self.left |= ticks
        for first in range(0, len(ticks), together):
            reel = tuple(ticks)[first : first + together]
            self.coming |= dict.fromkeys(reel, reel)

    def take(self, packet: Packet, trouble: str, header: ClipHeader) -> Iterator[Answer]:
        """Add the next packet and yield the answers that it completes. trouble: "" or why no clip may hold it."""
        if packet.pts is None or packet.pts < self.begin:
            return  # a leading picture
        count, size = len(self.packets) + 1, self.size + len(packet.data)
        if count > _MOST_PACKETS or size > _MOST_BYTES:
            held = f"{count} packets, {size / 2**20:.1f} MB"
            trouble = trouble or f"its key frames are too far apart ({held} and more)"
        if trouble:
            yield from self.end(MediaError(NO_CLIP, f"{header.name}: {trouble}"), header)
            return
        self.packets.append(packet)
        self.size = size
        reel = self.coming.pop(packet.pts, ())
        if reel and not any(tick in self.coming for tick in reel):
            yield from self._answer(reel, header)

    def end(self, why: MediaError | None, header: ClipHeader) -> Iterator[Answer]:
        """Answer what is left: `why` for frames whose packets have not come.

        The packets of an unfinished reel that have come make shorter reels: one for each run of wanted frames without
        a gap.
        """
        for reel in dict.fromkeys(self.coming.values()):
            for is_here, some in groupby(reel, lambda tick: tick not in self.coming):
                if is_here:
                    yield from self._answer(tuple(some), header)
        while self.left:
            yield (self.left.popitem()[1],), why

    def _answer(self, ticks: tuple[int, ...], header: ClipHeader) -> Iterator[Answer]:
        places = tuple(self.left.pop(tick) for tick in ticks)
        reel = make_reel(header, self.packets, ticks, places)
        if isinstance(reel, Reel):
            yield places, reel
        else:
            yield from (((place,), reel) for place in places)


def make_reel(
    header: ClipHeader, packets: list[Packet], ticks: Sequence[int], places: Sequence[int]
) -> Reel | MediaError:
    """The reel of the frames shown at `ticks`, ascending, out of the packets of their group up to the last of them.

    Returns:
        A Reel; or a MediaError with NO_CLIP if two packets are shown at the same time, so that the frames' positions
        are not known.
    """
    wanted, top = set(ticks), max(packet.layer for packet in packets)
    kept = [packet for packet in packets if packet.needed or packet.layer < top or packet.pts in wanted]
    rank = {pts: place for place, pts in enumerate(sorted(packet.pts for packet in kept))}
    if len(rank) < len(kept):
        return MediaError(NO_CLIP, f"{header.name}: it shows two pictures at the same time")
    data = header.write(kept, [rank[packet.pts] for packet in kept])
    return Reel(data, tuple(places), tuple(rank[tick] for tick in ticks), header.quarters)
