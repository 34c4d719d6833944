"""python -m benchmarks.moments: decoding a video's moments for `localize`, against PyAV and against a clip a moment.

    ours    data.loading.reels.from_dali: a group of pictures with all its moments at once, resized where it was decoded
    PyAV    data.loading.reels.from_pyav: one forward pass over the file, resized on the host
    clips   data.media.hardware.decode_frames: one clip for each moment, as `prepare --decoder nvdec`; not resized

On a GPU, NVDEC decodes ours and the clips, from H.264. Elsewhere DALI's CPU decoder decodes VP9, which compares the
ways to cut a video and says nothing about NVDEC. The video, 1920x1080 at 30 frames a second with a key frame every two
seconds, is made first, unless --video names another. Frames are compared with PyAV's before anything is timed.
"""

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch

from benchmarks import common
from essl_fast.data import media
from essl_fast.data.loading import reels
from essl_fast.data.media import hardware
from essl_fast.data.media.footage import Video
from essl_fast.localize import moment_places
from essl_fast.runtime.devices import pick_device

SIDE, FPS, GROUP = 224, 30, 60  # GROUP: frames from key frame to key frame
ALWAYS, ON_A_GPU = {"clips": 1.0}, {"clips": 1.0, "PyAV": 1.0}  # times as fast
APART = 2.0  # grey levels on average: what conversions to RGB differ by


def make_video(path: Path, seconds: float, width: int, height: int, codec: str) -> Path:
    """A picture that moves over the frame, smooth enough to be encoded fast."""
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
    picture = np.stack([127 + 100 * np.sin(rows / (40 + 9 * k) + columns / (60 - 7 * k)) for k in range(3)], -1)
    picture = picture.astype(np.uint8)
    options = {"deadline": "realtime", "cpu-used": "8"} if "vp9" in codec else {"preset": "veryfast"}
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=FPS, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.gop_size = GROUP
        stream.codec_context.time_base = Fraction(1, FPS)
        for number in range(max(1, round(seconds * FPS))):
            frame = av.VideoFrame.from_ndarray(np.roll(picture, 4 * number, 1), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return path


def check(video: Video, places: list[int], ours: Callable[[], Iterator]) -> str:
    """How near our frames are to PyAV's, in words; Mismatch if they are not the same frames, or DALI decoded none."""
    apart = 0.0
    for (at, mine), (place, other) in zip(ours(), reels.from_pyav(video, places, SIDE), strict=True):
        if at != place:
            raise common.Mismatch(f"the frame at {at} came in place of the one at {place}")
        apart = max(apart, float((mine.frame.cpu().float() - other.frame.float()).abs().mean()))
    if apart > APART:
        raise common.Mismatch(f"frames are apart from PyAV's by {apart:.2f} grey levels on average, allowed {APART:g}")
    return f"within {apart:.2f} grey levels on average"


def compare(video: Video, rate: float, device: torch.device) -> common.Comparison:
    places = moment_places(video.times, rate)
    requests = [(place + 1, float(video.times[place])) for place in places]

    def refuse(line: str) -> None:
        raise common.Mismatch(line)

    def ours() -> Iterator:
        return reels.from_dali(video, places, SIDE, device, refuse)

    def whole(run: Callable[[], Iterator]) -> Callable[[], None]:
        def once() -> None:
            for _ in run():
                pass
            if device.type == "cuda":
                torch.cuda.synchronize(device)

        return once

    rivals = {
        "PyAV": whole(lambda: reels.from_pyav(video, places, SIDE)),
        "clips": whole(lambda: hardware.decode_frames(video.found.path, requests, video.found)),
    }
    name = f"{video.found.codec} {video.found.width}x{video.found.height}, {rate:g} moments a second"
    goals = ON_A_GPU if device.type == "cuda" else ALWAYS
    return common.Comparison(name, whole(ours), rivals, lambda: check(video, places, ours), len(places), goals=goals)


def main(arguments: list[str] | None = None) -> int:
    parser = common.parser("benchmarks.moments", __doc__)
    parser.add_argument("--video", type=Path, help="this file (default: one made for it)")
    parser.add_argument("--length", type=float, default=20.0, help="seconds of the one that is made (default: 20)")
    parser.add_argument("--size", default="1920x1080", help="and its size (default: 1920x1080)")
    parser.add_argument("--rates", default="5,30", help="moments a second, comma-separated (default: 5,30)")
    parser.set_defaults(repeats=3, seconds=60.0)
    options = parser.parse_args(arguments)
    device = pick_device(options.device)
    torch.set_num_threads(options.threads or len(os.sched_getaffinity(0)))
    gpu = device.type == "cuda"
    hardware.BACKEND = "mixed" if gpu else "cpu"
    with tempfile.TemporaryDirectory(prefix="moments-") as work:
        path = options.video
        if path is None:
            width, height = map(int, options.size.split("x"))
            codec, name = ("libx264", "v.mp4") if gpu else ("libvpx-vp9", "v.webm")
            path = make_video(Path(work) / name, options.length, width, height, codec)
        video = Video(media.probe(path))
        # By the clock, also on a GPU: host, decoder and copies all count.
        results = [
            common.measure(compare(video, float(rate), device), torch.device("cpu"), options.repeats, options.seconds)
            for rate in options.rates.split(",")
        ]
    common.report("moments", results, options, device)
    return 0


if __name__ == "__main__":
    sys.exit(main())
