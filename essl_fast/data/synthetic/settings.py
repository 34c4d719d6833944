"""What a demo world is made of. This file imports nothing heavy: the command's help needs it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from essl_fast.common.errors import InputError

CODECS = ("h264", "hevc", "vp9", "av1", "mjpeg")
SPLITS = ("train", "test")
OBJECTS = {  # setting -> what a frame shows; one of its objects sounds, but for "both"
    "one": "a single object, as most frames of Flickr-SoundNet and VGG-SS do",
    "two": "two objects of different classes",
    "both": "the same, and both of them sound",
    "several": "three to five objects of different classes",
}
HALF_WINDOW = 1.5  # seconds of sound on each side of an annotated frame
SAFETY = 0.08  # seconds kept free at the end of the track, since an encoder may drop part of its last block


@dataclass(frozen=True)
class WorldSettings:
    """What a world is made of.

    Attributes:
        train_videos, test_videos: how many videos.
        seed: of everything that is random.
        codec: one of CODECS.
        seconds: length of each video.
        fps: frames per second.
        objects: how many objects a frame shows, one of OBJECTS. The videos of "several" do not depend on the others.

    Raises:
        InputError: impossible settings.
    """

    train_videos: int = 320
    test_videos: int = 80
    seed: int = 0
    codec: str = "h264"
    seconds: float = 4.0
    fps: int = 12
    objects: str = "several"

    def __post_init__(self) -> None:
        if self.codec not in CODECS:
            raise InputError(f"demo world: unknown codec {self.codec!r}; choose one of {', '.join(CODECS)}")
        if self.objects not in OBJECTS:
            raise InputError(f"demo world: unknown objects {self.objects!r}; choose one of {', '.join(OBJECTS)}")
        if self.train_videos < 0 or self.test_videos < 0 or self.train_videos + self.test_videos < 1:
            raise InputError("demo world: train_videos and test_videos must not be negative, and not both 0")
        if not 4 <= self.fps <= 60:
            raise InputError(f"demo world: fps is {self.fps}; give 4 to 60")
        if self.seed < 0:
            raise InputError(f"demo world: seed is {self.seed}; give 0 or more")
        first, last = self.fid_range()
        if last - first < 5:
            raise InputError(
                f"demo world: {self.seconds} s at {self.fps} fps leave too few frames with "
                f"{HALF_WINDOW} s of sound on each side; give at least {2 * HALF_WINDOW + SAFETY + 6 / self.fps:.2f} s"
            )

    def record(self) -> dict:
        """Plain values for a world's files. Worlds of several objects are older than the choice: they leave it out."""
        values = asdict(self)
        if self.objects == "several":
            del values["objects"]
        return values

    def fid_range(self) -> tuple[int, int]:
        """Numbers of the first and the last frame whose 3 s of sound are inside the track."""
        return math.ceil(HALF_WINDOW * self.fps), math.floor((self.seconds - HALF_WINDOW - SAFETY) * self.fps)
