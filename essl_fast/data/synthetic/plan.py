"""The plan of the demo world: which objects a scene has, where they move, which one sounds and when it is annotated.

Nothing here makes a pixel or a sample. The balance that makes the task fair is kept here: sounding classes are
equally frequent, the sounding object has each rank in size equally often among scenes with as many objects, and
places are drawn without regard to which object sounds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from essl_fast.common.errors import InputError
from essl_fast.data.synthetic.look import HEIGHT, LOOKS, WIDTH

CLASSES = tuple(sorted(LOOKS))
CODECS = ("h264", "hevc", "vp9", "av1", "mjpeg")
SPLITS = ("train", "test")
HALF_WINDOW = 1.5  # seconds of sound on each side of an annotated frame
SAFETY = 0.08  # seconds kept free at the end of the track: an encoder may drop part of its last block


@dataclass(frozen=True)
class WorldSettings:
    """What a world is made of: number of videos, seed, codec, seconds of each, frames a second."""

    train_videos: int = 320
    test_videos: int = 80
    seed: int = 0
    codec: str = "h264"
    seconds: float = 4.0
    fps: int = 12

    def __post_init__(self) -> None:
        if self.codec not in CODECS:
            raise InputError(f"demo world: unknown codec {self.codec!r}; choose one of {', '.join(CODECS)}")
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

    def fid_range(self) -> tuple[int, int]:
        """First and last frame number that has its whole sound window inside the track."""
        return math.ceil(HALF_WINDOW * self.fps), math.floor((self.seconds - HALF_WINDOW - SAFETY) * self.fps)


@dataclass(frozen=True)
class ObjectPlan:
    """One object: it sways about `centre` by up to `sway` pixels (x, y); `period` in seconds, `phase` in turns."""

    kind: str
    width: int
    height: int
    centre: tuple[float, float]
    sway: tuple[float, float]
    period: tuple[float, float]
    phase: tuple[float, float]
    pose_period: float

    def box(self, seconds: float) -> tuple[int, int, int, int]:
        """Half-open xyxy box in pixels of the 320x180 frame at this time; always inside the frame."""
        x, y = (
            round(c + s * math.sin(2 * math.pi * (seconds / t + p)) - side / 2)
            for c, s, t, p, side in zip(
                self.centre, self.sway, self.period, self.phase, (self.width, self.height), strict=True
            )
        )
        x, y = min(max(x, 0), WIDTH - self.width), min(max(y, 0), HEIGHT - self.height)
        return x, y, x + self.width, y + self.height

    def pose(self, seconds: float) -> int:
        return int(seconds / self.pose_period + self.phase[0]) & 1


@dataclass(frozen=True)
class ScenePlan:
    """One video. `objects` from back to front; `sounding` indexes them; `groups` are first and last annotated fids."""

    name: str
    split: str
    index: int
    settings: WorldSettings
    objects: tuple[ObjectPlan, ...]
    sounding: int
    groups: tuple[tuple[int, int], ...]
    rate: int
    channels: int

    @property
    def kind(self) -> str:
        """Class of the sounding object."""
        return self.objects[self.sounding].kind

    @property
    def frames(self) -> int:
        return round(self.settings.seconds * self.settings.fps)

    def time(self, fid: int) -> float:
        return fid / self.settings.fps

    def fids(self) -> list[int]:
        """Annotated frames, in order."""
        return [fid for start, end in self.groups for fid in range(start, end + 1)]

    def rng(self, what: str) -> np.random.Generator:
        """The generator of one side of this scene ("layout", "look", "sound"), independent of all others."""
        return _generator(self.settings.seed, self.split, self.index, what)


def _generator(seed: int, split: str, index: int, what: str) -> np.random.Generator:
    return np.random.default_rng([seed, SPLITS.index(split), index, ("order", "layout", "look", "sound").index(what)])


def _balanced(rng: np.random.Generator, count: int, values: int) -> np.ndarray:
    """`count` numbers below `values`, each as often as the others (give or take one), in random order."""
    return rng.permutation((np.arange(count) + rng.integers(values)) % values)


def _place(rng: np.random.Generator, number: int) -> list[dict]:
    """Places and movements of `number` objects, as arguments of ObjectPlan: anywhere in the frame, near-disjoint (the
    overlap that is allowed grows only while no place is found)."""
    low, high = {3: (68, 96), 4: (60, 88), 5: (56, 76)}[
        number
    ]  # sides on the 224 grid, where objects are learned and scored
    sizes = [
        (round(rng.uniform(low, high) * WIDTH / 224), round(rng.uniform(low, high) * HEIGHT / 224))
        for _ in range(number)
    ]
    sways = [(rng.uniform(3, 14), rng.uniform(2, 7)) for _ in range(number)]
    allowed = 0.04
    while len(centres := _try_places(rng, sizes, sways, allowed)) < number:
        allowed += 0.004
    return [
        {
            "width": size[0],
            "height": size[1],
            "centre": centre,
            "sway": sway,
            "period": (rng.uniform(2.5, 6), rng.uniform(2.5, 6)),
            "phase": (float(rng.random()), float(rng.random())),
            "pose_period": rng.uniform(0.25, 0.7),
        }
        for size, sway, centre in zip(sizes, sways, centres, strict=True)
    ]


def _try_places(
    rng: np.random.Generator, sizes: list[tuple[int, int]], sways: list[tuple[float, float]], allowed: float
) -> list[tuple[float, float]]:
    """Centres one after another, each uniform over where the object stays inside the frame; fewer than asked where
    one got stuck. Two objects may share at most `allowed` of the smaller one's area."""
    centres: list[tuple[float, float]] = []
    for (w, h), (sx, sy) in zip(sizes, sways, strict=True):
        for _ in range(40):
            x, y = rng.uniform(w / 2 + sx, WIDTH - w / 2 - sx), rng.uniform(h / 2 + sy, HEIGHT - h / 2 - sy)
            shared = (
                max(0.0, (w + v) / 2 - abs(x - a)) * max(0.0, (h + u) / 2 - abs(y - b)) / min(w * h, v * u)
                for (a, b), (v, u) in zip(centres, sizes, strict=False)
            )
            if all(share <= allowed for share in shared):
                centres.append((x, y))
                break
        else:
            break
    return centres


def _groups(rng: np.random.Generator, settings: WorldSettings) -> tuple[tuple[int, int], ...]:
    """One or two annotated stretches, apart, all of whose frames have their sound window inside the track."""
    first, last = settings.fid_range()
    parts = int(rng.integers(1, 3))
    edges = [first + (last + 1 - first) * i // parts for i in range(parts + 1)]
    groups = []
    for start, end in zip(edges, edges[1:], strict=False):
        start_fid = int(rng.integers(start, start + max((end - start) // 2, 1)))
        groups.append((start_fid, int(rng.integers(start_fid + 1, end))))
    return tuple(groups)


def _names(seed: int, count: int) -> list[str]:
    """Distinct video names of eight capital letters."""
    rng = np.random.default_rng([seed, len(SPLITS)])
    names: dict[str, None] = {}
    while len(names) < count:
        names["".join(chr(65 + letter) for letter in rng.integers(0, 26, 8))] = None
    return list(names)


def plan_world(settings: WorldSettings) -> list[ScenePlan]:
    """Everything but pixels and samples: a plan per video, train first. Deterministic; the codec plays no part."""
    names = iter(_names(settings.seed, settings.train_videos + settings.test_videos))
    plans = []
    for split, count in zip(SPLITS, (settings.train_videos, settings.test_videos), strict=True):
        order = _generator(settings.seed, split, 0, "order")
        kinds = _balanced(order, count, len(CLASSES))
        numbers = np.array([4, 4, 4, 3, 5])[_balanced(order, count, 5)]
        ranks = np.zeros(count, np.int64)  # of the sounding object's area among its scene's, 0 the smallest
        for number in (3, 4, 5):
            same = np.flatnonzero(numbers == number)
            ranks[same] = _balanced(order, len(same), number)
        for index in range(count):
            rng = _generator(settings.seed, split, index, "layout")
            places = _place(rng, int(numbers[index]))
            sounding = sorted(range(len(places)), key=lambda i, p=places: p[i]["width"] * p[i]["height"])[ranks[index]]
            others = [kind for i, kind in enumerate(CLASSES) if i != kinds[index]]
            present = [str(kind) for kind in rng.choice(others, len(places) - 1, replace=False)]
            present.insert(sounding, CLASSES[kinds[index]])
            objects = tuple(ObjectPlan(kind=kind, **place) for kind, place in zip(present, places, strict=True))
            groups = _groups(rng, settings)
            rate, channels = int(rng.choice([44100, 48000])), int(rng.integers(1, 3))
            plans.append(ScenePlan(next(names), split, index, settings, objects, sounding, groups, rate, channels))
    return plans
