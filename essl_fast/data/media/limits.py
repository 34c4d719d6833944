"""How large a media file may be, and which kinds are read at all. Headers are checked, before anything is allocated.

| what                                                    | most                                  |
| ------------------------------------------------------- | ------------------------------------- |
| a picture's side; its pixels                            | `SIDE` 16,384; `PIXELS` 2^28          |
| a video's length; its frames                            | `SECONDS` 24 h; `FRAMES` 2^24         |
| a sound's channels; samples a second; samples kept      | `CHANNELS` 64; `RATES`; `SAMPLES` 2^30 |
| streams in a file                                       | `STREAMS` 100                         |
| CPU time that reading a file's header takes             | `HEADER_SECONDS` 2                    |
| memory of a worker of `prepare`, unless it uses a GPU   | `WORKER_MEMORY` 16 GiB                |

`prepare` leaves out a file beyond a limit and reports the reason; in training such a file is an error. The limits are
far above every data set that this package is for. A larger file has to be scaled or cut first.

FFmpeg chooses a reader by the content of a file, not by its name, and some readers open other files and addresses that
the content names (playlists, lists of files to join). So only the formats in `CONTAINERS` and the protocol `file` are
allowed.
"""

from __future__ import annotations

import contextlib
import resource

SIDE, PIXELS = 16_384, 1 << 28  # of a picture
SECONDS, FRAMES = 24 * 3600, 1 << 24  # of a video
CHANNELS, RATES, SAMPLES = 64, (1_000, 768_000), 1 << 30  # 2^30 samples: 6 h at 48 kHz, 4 GiB
STREAMS = 100
HEADER_SECONDS = 2.0  # of one core; some damaged files of 60 KB take more, a day of video some tenths
WORKER_MEMORY = 16 << 30  # bytes; a frame of 2^28 pixels takes 0.4 GB in 4:2:0 and 0.8 GB in RGB

CONTAINERS = ("mov", "mp4", "matroska", "webm", "avi", "mpegts", "mpeg", "flv", "asf", "ogg", "wav", "flac", "mp3")
DEMUXER = {"format_whitelist": ",".join(CONTAINERS), "protocol_whitelist": "file"}  # options for FFmpeg
DECODER = {"max_pixels": str(PIXELS)}  # a decoder then also refuses a picture that grows on the way


def picture(width: int, height: int) -> str:
    """Why a picture of this size in pixels is not decoded; "" if it is."""
    if width < 0 or height < 0 or max(width, height) > SIDE or width * height > PIXELS:
        return f"a picture of {width} x {height}: at most {SIDE:,} on a side and {PIXELS:,} pixels are decoded"
    return ""


def length(seconds: float, frames: int = 0) -> str:
    """Why a video of this length, or of this number of frames, is not read; "" if it is."""
    if seconds > SECONDS:
        return f"it says that it lasts {seconds / 3600:,.0f} h: at most {SECONDS // 3600} h are read"
    return f"it has more than {FRAMES:,} frames" if frames > FRAMES else ""


def header(seconds: float) -> str:
    """Why a file whose header took this CPU time is not read further; "" if it is."""
    if seconds > HEADER_SECONDS:
        return f"its header takes {seconds:.1f} s of computing to read, at most {HEADER_SECONDS:g}: it is damaged"
    return ""


def sound(rate: int, channels: int, samples: int = 0) -> str:
    """Why a sound of `rate` Hz, or this number of its samples, is not decoded; "" if it is."""
    if not RATES[0] <= rate <= RATES[1]:
        return f"{rate:,} samples a second: {RATES[0]:,} to {RATES[1]:,} are decoded"
    if channels > CHANNELS:
        return f"{channels} channels: at most {CHANNELS} are decoded"
    return f"{samples / rate / 3600:.1f} h of sound: at most {SAMPLES:,} samples are kept" if samples > SAMPLES else ""


def hold_memory(most: int = WORKER_MEMORY) -> None:
    """Limit this process's own memory to `most` bytes: then an allocation fails, and not the whole machine.

    A lower limit that is already set stays.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    held = [limit for limit in (most, soft, hard) if limit != resource.RLIM_INFINITY]
    with contextlib.suppress(ValueError, OSError):  # a system that does not know this limit
        resource.setrlimit(resource.RLIMIT_DATA, (min(held), hard))


def release_memory() -> None:
    """Undo `hold_memory` before a GPU is used: memory that CUDA reserves counts, and its amount is not known before."""
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))
