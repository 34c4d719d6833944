"""The plan of the demo world: which objects a scene has, where they move, which one sounds and when it is annotated.

A scene has moving objects of different classes over a cluttered background: three to five of them, or one or two in an
easier world (`settings.OBJECTS`). One of them sounds. With two or more, only knowing which look belongs to which sound
tells which one it is, because the plan is balanced: all classes sound equally often; among scenes of as many objects,
the sounding object has each rank in size equally often; and places, movements and poses are drawn without regard to
which object sounds. Nothing here makes a pixel or a sample.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from essl_fast.data.synthetic.look import HEIGHT, LOOKS, WIDTH
from essl_fast.data.synthetic.settings import SPLITS, WorldSettings

CLASSES = tuple(sorted(LOOKS))


@dataclass(frozen=True)
class ObjectPlan:
    """One object, which sways around a point.

    Attributes:
        kind: its class.
        width, height: pixels of the 320x180 frame.
        centre: (x, y) in pixels, around which it sways.
        sway: (x, y) in pixels, how far at most.
        period: (x, y) in seconds.
        phase: (x, y) in turns.
        pose_period: seconds between two changes of pose.
    """

    kind: str
    width: int
    height: int
    centre: tuple[float, float]
    sway: tuple[float, float]
    period: tuple[float, float]
    phase: tuple[float, float]
    pose_period: float

    def box(self, seconds: float) -> tuple[int, int, int, int]:
        """The box at a time: xyxy, half-open, in pixels of the 320x180 frame, always inside the frame."""
        x, y = (
            round(c + s * math.sin(2 * math.pi * (seconds / t + p)) - side / 2)
            for c, s, t, p, side in zip(
                self.centre, self.sway, self.period, self.phase, (self.width, self.height), strict=True
            )
        )
        x, y = min(max(x, 0), WIDTH - self.width), min(max(y, 0), HEIGHT - self.height)
        return x, y, x + self.width, y + self.height

    def pose(self, seconds: float) -> int:
        """The pose at a time, 0 or 1."""
        return int(seconds / self.pose_period + self.phase[0]) & 1


@dataclass(frozen=True)
class ScenePlan:
    """One video.

    Attributes:
        name: of the video, eight capital letters.
        split: "train" or "test".
        index: of the video in its split.
        settings: of the world.
        objects: from back to front.
        sounding: index of the object that sounds; where several do, of the one that gives the video its class.
        groups: first and last fid of each annotated stretch.
        rate: of the sound, Hz.
        channels: of the sound, 1 or 2.
    """

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
    def sources(self) -> tuple[int, ...]:
        """Indices of all objects that sound, `sounding` first."""
        others = range(len(self.objects)) if self.settings.objects == "both" else ()
        return self.sounding, *(index for index in others if index != self.sounding)

    @property
    def frames(self) -> int:
        """Number of frames."""
        return round(self.settings.seconds * self.settings.fps)

    def time(self, fid: int) -> float:
        """Seconds at which a frame is annotated."""
        return fid / self.settings.fps

    def fids(self) -> list[int]:
        """Annotated frames, in order."""
        return [fid for start, end in self.groups for fid in range(start, end + 1)]

    def rng(self, what: str) -> np.random.Generator:
        """The random generator of one aspect of this scene ("layout", "look", "sound"), independent of all others."""
        return _generator(self.settings.seed, self.split, self.index, what)


def _generator(seed: int, split: str, index: int, what: str) -> np.random.Generator:
    return np.random.default_rng([seed, SPLITS.index(split), index, ("order", "layout", "look", "sound").index(what)])


def _balanced(rng: np.random.Generator, count: int, values: int) -> np.ndarray:
    """`count` numbers below `values` in random order; how often they occur differs by at most one."""
    return rng.permutation((np.arange(count) + rng.integers(values)) % values)


def _place(rng: np.random.Generator, number: int) -> list[dict]:
    """Places and movements of `number` objects, as arguments of ObjectPlan.

    They are anywhere in the frame and hardly overlap: the overlap that is allowed grows only while no place is found.
    """
    # Sides on the 224 grid, on which objects are learned and scored.
    low, high = {1: (56, 96), 2: (56, 96), 3: (68, 96), 4: (60, 88), 5: (56, 76)}[number]
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
    """Centres of the objects, each drawn uniformly from where the object stays inside the frame.

    Two objects may share at most `allowed` of the smaller one's area. The list ends early at an object for which no
    place was found.
    """
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
    """One or two separate annotated stretches. The 3 s of sound around each of their frames are inside the track."""
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
    """The plans of all videos, training first. A function of the settings; the codec has no influence."""
    names = iter(_names(settings.seed, settings.train_videos + settings.test_videos))
    plans = []
    for split, count in zip(SPLITS, (settings.train_videos, settings.test_videos), strict=True):
        order = _generator(settings.seed, split, 0, "order")
        kinds = _balanced(order, count, len(CLASSES))
        choice = np.array({"one": [1], "two": [2], "both": [2], "several": [4, 4, 4, 3, 5]}[settings.objects])
        numbers = choice[_balanced(order, count, len(choice))]
        ranks = np.zeros(count, np.int64)  # of the sounding object's area in its scene; 0 is the smallest
        for number in sorted(set(choice.tolist())):
            same = np.flatnonzero(numbers == number)
            ranks[same] = _balanced(order, len(same), number)
        for index in range(count):
            rng = _generator(settings.seed, split, index, "layout")
            places = _place(rng, int(numbers[index]))
            areas = [place["width"] * place["height"] for place in places]
            sounding = sorted(range(len(places)), key=areas.__getitem__)[ranks[index]]
            others = [kind for i, kind in enumerate(CLASSES) if i != kinds[index]]
            present = [str(kind) for kind in rng.choice(others, len(places) - 1, replace=False)]
            present.insert(sounding, CLASSES[kinds[index]])
            objects = tuple(ObjectPlan(kind=kind, **place) for kind, place in zip(present, places, strict=True))
            groups = _groups(rng, settings)
            rate, channels = int(rng.choice([44100, 48000])), int(rng.integers(1, 3))
            plans.append(ScenePlan(next(names), split, index, settings, objects, sounding, groups, rate, channels))
    return plans
