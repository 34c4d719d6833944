"""Video files → the frames that pairs need, decoded with PyAV (FFmpeg) and nothing else.

`decode_frames` starts at the last key frame before a wanted frame and seeks over stretches in which no frame is wanted:
for a 10-minute video with a key frame every 2 s and 20 annotated moments it decodes about a thirtieth of the frames.

A damaged video still gives the frames before the damage, and frames again from the next key frame on. Only damage that
FFmpeg notices counts: H.264 carries no checksum, and some noise decodes as well as a picture does.
"""

from __future__ import annotations

import functools
import math
from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from pathlib import Path

import av
import numpy as np

from essl_fast.data.media import opening
from essl_fast.data.media.display import upright
from essl_fast.data.media.errors import MediaError
from essl_fast.data.media.probing import Probe, Requests, damaged_frame, find_places, probe

_WORTH_A_SEEK = 8  # frames to skip; with fewer, decoding on costs less than a seek

_Decoded = tuple[int, Callable[[], np.ndarray]]  # a frame's place, and a function that makes its RGB array


def decode_frames(
    path: str | Path, requests: Requests, found: Probe | None = None
) -> Iterator[tuple[int, np.ndarray | MediaError]]:
    """Decode the requested frames in one forward pass, which ends at the last of them.

    Args:
        path: the video file.
        requests: (fid, time in seconds) of each frame; see `Probe.place`.
        found: `probe(path)`, if the caller has it.

    Yields:
        (index of the request, RGB uint8 (H, W, 3), upright), or (index, MediaError) where the file does not give that
        frame: once for every request; first the errors of frames that do not exist, then in the order of showing.

    Raises:
        MediaError: as `probe`.
    """
    found = found or probe(path)
    wanted, errors = find_places(found, requests)
    yield from errors
    left = sorted(wanted)
    if not left:
        return
    for place, rgb in decode_places(found, left):
        while left and left[0] < place:
            for index in wanted[left.pop(0)]:
                yield index, damaged_frame(found, requests[index][0])
        if left and left[0] == place:
            for index in wanted[left.pop(0)]:
                yield index, rgb()
        if not left:
            return
    for place in left:
        for index in wanted[place]:
            yield index, damaged_frame(found, requests[index][0])


def decode_all(found: Probe) -> Iterator[tuple[int, np.ndarray]]:
    """Decode every undamaged frame in one forward pass; a few frames are in memory at a time.

    Yields:
        (place in `found.pts`, RGB uint8 (H, W, 3), upright).

    Raises:
        MediaError: as `probe`.
    """
    left = deque(range(len(found.pts)))
    for place, rgb in decode_places(found, left):
        while left and left[0] < place:
            left.popleft()
        if left and left[0] == place:
            left.popleft()
            yield place, rgb()
        if not left:
            return


def decode_places(found: Probe, left: list[int] | deque[int]) -> Iterator[_Decoded]:
    """Undamaged frames in a forward pass that seeks toward `left[0]`: (place, function that makes the RGB array).

    The caller removes places from `left` as it takes frames. After a packet that the decoder refuses, no frame can be
    trusted up to the next key frame. The frames decoded before that packet are still inside the decoder, so a second
    run, which stops there, fetches them. Then a fresh decoder goes on at the key frame: the used one keeps traces of
    the error.
    """
    key = 0
    while True:
        bad = yield from _decode_run(found, left, key)
        if bad is None or found.counted or not left:
            return  # where frames are counted, the count is lost
        following = max(key + 1, int(np.searchsorted(found.keys, bad, "right")))
        if found.pts[left[0]] < (found.keys[following] if following < len(found.keys) else math.inf):
            yield from _decode_run(found, left, key, stop=bad)
        if following >= len(found.keys):
            return
        key = following


def _decode_run(
    found: Probe, left: list[int] | deque[int], key: int, stop: int | None = None
) -> Generator[_Decoded, None, int | None]:
    """Decode from the key frame at position `key` of `found.keys`. One function, since all of it is one loop's state.

    Returns:
        The tick of the packet or frame at which damage ends the run; None at the end of the file, or before the packet
        shown at tick `stop`.
    """
    with opening.open_file(found.path) as container:
        video = opening.video_stream(container, found.path)
        # One thread: prepare runs one process per video, and which frame an error belongs to must not depend on timing.
        video.codec_context.thread_count = 1
        # A damaged picture may be shown after pictures that refer to it, so this many frames are held back.
        lag = 4 if video.codec_context.has_b_frames and not found.counted else 0
        place_of = {} if found.counted else {int(pts): place for place, pts in enumerate(found.pts)}
        place, stated = found.place_of_key(key), int(video.codec_context.colorspace)
        count, waiting, seek, packets = 0, True, key > 0 and found.seekable, container.demux(video)
        held: deque[_Decoded] = deque()
        while True:
            if found.seekable and left and (later := found.key_before(left[0])) > key:
                if found.place_of_key(later) - place > _WORTH_A_SEEK:
                    key, seek = later, True
            if seek:
                try:
                    container.seek(int(found.keys[key]), stream=video, backward=True)
                except av.FFmpegError:  # the file's index is useless
                    return (yield from _decode_run(replace(found, seekable=False), left, key, stop))
                packets, waiting, seek, place = container.demux(video), True, False, found.place_of_key(key)
                held.clear()
            packet = opening.next_packet(packets)
            if packet is not None and packet.size and not found.counted:
                begin = found.keys[key]
                if waiting and found.seekable and packet.is_keyframe and (packet.pts is None or packet.pts > begin):
                    # The file's index led past the key frame: look for it from the start of the file.
                    return (yield from _decode_run(replace(found, seekable=False), left, key, stop))
                # A picture shown before the key frame may refer to pictures that were not decoded.
                if packet.pts is None or packet.pts < begin or (waiting and packet.pts != begin):
                    continue
            elif packet is not None and packet.size and waiting and not packet.is_keyframe:
                continue
            waiting = waiting and not (packet and packet.size)
            ended = packet is None or (stop is not None and packet.pts == stop)
            if packet is not None and not ended and packet.is_corrupt:
                return packet.pts
            try:
                frames = video.codec_context.decode(None) if packet is None or ended else packet.decode()
            except av.FFmpegError:
                if packet is not None and not ended:
                    return packet.pts
                frames = []  # the decoder was at its end already
            for frame in frames:
                if frame.is_corrupt:
                    return frame.pts
                place = count if found.counted else place if frame.pts is None else place_of.get(frame.pts, place)
                count += 1
                if found.counted or frame.pts in place_of:
                    held.append((place, functools.partial(upright, frame, colour=stated, crop=found.crop)))
            while len(held) > (0 if ended else lag):
                yield held.popleft()
            if ended:
                return None
