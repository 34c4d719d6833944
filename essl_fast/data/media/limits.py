"""How large a media file may be, and which kinds are read at all: asked of its headers, before anything is allocated.

| what                                                    | most                                  |
| ------------------------------------------------------- | ------------------------------------- |
| a picture's side; its pixels                            | `SIDE` 16,384; `PIXELS` 2^28          |
| a video's length; its frames                            | `SECONDS` 24 h; `FRAMES` 2^24         |
| a sound's channels; samples a second; samples kept      | `CHANNELS` 64; `RATES`; `SAMPLES` 2^30 |
| streams in a file                                       | `STREAMS` 100                         |
| CPU time that reading a file's header takes             | `HEADER_SECONDS` 2                    |
| memory of a worker of `prepare`, unless it uses a GPU   | `WORKER_MEMORY` 16 GiB                |

A file beyond them is left out by `prepare`, with its reason, and an error in training. They are far above every data
set that this is for; a file that is larger all the same has to be scaled or cut before.

FFmpeg chooses a reader by a file's content, whatever its name, and some of its readers open other files and addresses
that the content names (playlists, lists of files to join). So only `CONTAINERS` are read, and of protocols only `file`.
"""

from __future__ import annotations

import contextlib
import resource

SIDE, PIXELS = 16_384, 1 << 28
SECONDS, FRAMES = 24 * 3600, 1 << 24
CHANNELS, RATES, SAMPLES = 64, (1_000, 768_000), 1 << 30  # 2^30 samples: 6 h at 48 kHz, 4 GiB
STREAMS = 100
HEADER_SECONDS = 2.0  # of one core; FFmpeg takes more for some damaged files of 60 KB, and tenths for a day of video
WORKER_MEMORY = 16 << 30  # bytes of a worker's own; a frame of 2^28 pixels in 4:2:0 takes 0.4 GB, its RGB 0.8 GB

CONTAINERS = ("mov", "mp4", "matroska", "webm", "avi", "mpegts", "mpeg", "flv", "asf", "ogg", "wav", "flac", "mp3")
DEMUXER = {"format_whitelist": ",".join(CONTAINERS), "protocol_whitelist": "file"}  # options of FFmpeg's
DECODER = {"max_pixels": str(PIXELS)}  # a decoder then refuses a picture that grows on the way, too


def picture(width: int, height: int) -> str:
    """Why a picture of so many pixels is not decoded, "" if it is."""
    if width < 0 or height < 0 or max(width, height) > SIDE or width * height > PIXELS:
        return f"a picture of {width} x {height}: at most {SIDE:,} on a side and {PIXELS:,} pixels are decoded"
    return ""


def length(seconds: float, frames: int = 0) -> str:
    """Why a video of this length, or of so many frames, is not read, "" if it is."""
    if seconds > SECONDS:
        return f"it says that it lasts {seconds / 3600:,.0f} h: at most {SECONDS // 3600} h are read"
    return f"it has more than {FRAMES:,} frames" if frames > FRAMES else ""


def header(seconds: float) -> str:
    """Why a file whose header took so much CPU time to read is not read further, "" if it is."""
    if seconds > HEADER_SECONDS:
        return f"its header takes {seconds:.1f} s of computing to read, at most {HEADER_SECONDS:g}: it is damaged"
    return ""


def sound(rate: int, channels: int, samples: int = 0) -> str:
    """Why a sound of `rate` Hz is not decoded, or not so many samples of it, "" if it is."""
    if not RATES[0] <= rate <= RATES[1]:
        return f"{rate:,} samples a second: {RATES[0]:,} to {RATES[1]:,} are decoded"
    if channels > CHANNELS:
        return f"{channels} channels: at most {CHANNELS} are decoded"
    return f"{samples / rate / 3600:.1f} h of sound: at most {SAMPLES:,} samples are kept" if samples > SAMPLES else ""


def hold_memory(most: int = WORKER_MEMORY) -> None:
    """Let this process have no more memory of its own: what asks for more fails, not the machine. Linux counts all of
    it; a lower limit that is there already stays."""
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    held = [limit for limit in (most, soft, hard) if limit != resource.RLIM_INFINITY]
    with contextlib.suppress(ValueError, OSError):  # where the system does not know this limit
        resource.setrlimit(resource.RLIMIT_DATA, (min(held), hard))


def release_memory() -> None:
    """The end of `hold_memory`, before a GPU is used: what CUDA reserves counts as this process's own, and nobody
    knows beforehand how much that is."""
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))
