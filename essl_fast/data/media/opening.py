"""Opens media files with FFmpeg, through PyAV, and checks a stream against the limits before it is decoded.

The other files call these functions as `opening.open_file(...)`, so that a test has one place to replace them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from time import thread_time
from typing import Any

import av
from av.container import InputContainer
from av.packet import Packet
from av.stream import Stream
from av.video.stream import VideoStream

from essl_fast.data.media import colours, limits
from essl_fast.data.media.errors import LIMIT, NO_VIDEO, UNREADABLE, MediaError

# A tag in another encoding than UTF-8 is no error, since nothing here reads tags. PyAV 19 has no such argument.
ANY_TAGS: dict[str, Any] = {"metadata_errors": "replace"} if int(av.__version__.partition(".")[0]) < 19 else {}


def open_file(path: Path) -> InputContainer:
    """Open a media file for reading. MediaError if FFmpeg cannot read it, or its header takes too long to read."""
    begin = thread_time()
    try:
        # The prefix names the protocol: without it, FFmpeg takes a path such as "concat:a" for another protocol.
        container = av.open(f"file:{path}", container_options=limits.DEMUXER, **ANY_TAGS)
    except (av.FFmpegError, OSError) as error:
        raise unreadable(path, error) from error
    if wrong := limits.header(thread_time() - begin):  # a file is opened several times: the first time tells
        container.close()
        raise MediaError(LIMIT, f"{path.name}: {wrong}")
    return container


def unreadable(path: Path, error: Exception) -> MediaError:
    """The MediaError for a file that cannot be opened or read because of `error`."""
    return MediaError(UNREADABLE, f"{path.name}: {error_text(error)}; it may be incomplete: fetch it again")


def error_text(error: Exception) -> str:
    """What an error of FFmpeg or of the system says, without its number and file name."""
    return getattr(error, "strerror", None) or str(error)


def video_stream(container: InputContainer, path: Path) -> VideoStream:
    """The video stream of an open file, with the decoder's limits set.

    Raises:
        MediaError: there is no video stream (a cover picture is none), no decoder for it, its colours are stored in a
            form that is not read, or it is beyond the limits.
    """
    video: Any = container.streams.best("video")
    if video is None or video.disposition & av.stream.Disposition.attached_pic:
        raise MediaError(NO_VIDEO, f"{path.name} has none")
    check_decoder(video, path)
    many = len(container.streams)
    wrong = f"it has {many} streams, at most {limits.STREAMS} are read" if many > limits.STREAMS else ""
    wrong = wrong or limits.picture(video.width, video.height)
    if wrong := wrong or limits.length((container.duration or 0) / av.time_base):
        raise MediaError(LIMIT, f"{path.name}: {wrong}")
    try:
        colours.matrix_of(int(video.codec_context.colorspace), video.height)
    except MediaError as error:
        raise MediaError(error.reason, f"{path.name}: {error.detail}") from None
    video.codec_context.options = limits.DECODER
    return video


def check_decoder(stream: Stream, path: Path) -> None:
    """MediaError if FFmpeg has no decoder for the stream."""
    if stream.codec_context is None:
        raise MediaError(UNREADABLE, f"{path.name}: FFmpeg has no decoder for its {stream.type} stream")


def next_packet(packets: Iterator[Packet]) -> Packet | None:
    """The next packet of a demuxer; None at the end, or where nothing more can be read."""
    try:
        return next(packets, None)
    except av.FFmpegError:
        return None


def read_only(container: InputContainer, stream: Stream) -> None:
    """Let demuxing skip the packets of all other streams; otherwise FFmpeg reads those as well."""
    for other in container.streams:
        if other is not stream:
            other.discard = av.stream.Discard.all
