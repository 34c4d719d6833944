"""The moments of a video: frames with the 3 s of sound around them, and where in each frame the network finds it.

The moments go through the network in batches. Memory holds one batch of 224 x 224 frames and the few frames between
the decoder and it, whatever the length, the resolution and the rate of the video.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeGuard

import numpy as np
import torch

from essl_fast.config import SIZE
from essl_fast.data import media
from essl_fast.data.datasets import Truth, boxes_to_grid
from essl_fast.data.loading import reels
from essl_fast.data.media import Window, blank, open_windows
from essl_fast.data.media.footage import Footage, Video
from essl_fast.evaluate import metrics
from essl_fast.localize.drawing import shrink
from essl_fast.localize.finder import SoundFinder
from essl_fast.localize.heat import HeatScale, resize_map
from essl_fast.localize.regions import find_regions

THUMBS, THUMB_WIDTH = 12, 320  # pictures that are kept for the contact sheet, and their largest width in pixels
ROUNDED = 6e-4  # seconds: Matroska rounds the time of a frame to a millisecond


@dataclass(frozen=True)
class Region:
    """A part of a frame at or above the threshold.

    box: xyxy, half-open, in pixels of the video. score: the largest cosine of picture and sound in it, -1 to 1. share:
    its share of the picture's area.
    """

    box: tuple[int, int, int, int]
    score: float
    share: float


@dataclass
class Moment:
    """A frame, and the sound around it.

    Attributes:
        frame: number of the frame in the video, from 1.
        time: when it is shown, in seconds.
        sound: (begin, end) in seconds of the track that the network heard; None where there is no sound.
        similarity: cosine map, float32 (h, w); None where nothing was localized.
        score: the largest cosine of the map, -1 to 1; None where there is no map.
        shown: whether the map is drawn: it has a score of at least `min_score`.
        regions: the parts at or above the threshold, the hottest first; none where the map is not shown.
        why: why there is no map or no region; "" if there is one.
        truth: boxes of this frame, xyxy, in pixels of the video.
        ciou: the metric's score, if there are boxes and it has one. The metric scales each map by itself.
    """

    frame: int
    time: float
    sound: tuple[float, float] | None = None
    similarity: np.ndarray | None = None
    score: float | None = None
    shown: bool = False
    regions: list[Region] = field(default_factory=list)
    why: str = ""
    truth: list[tuple[float, ...]] = field(default_factory=list)
    ciou: float | None = None


@dataclass
class Localization:
    """What was found in a video.

    Attributes:
        width, height: of the video, in pixels.
        moments: in the order of time.
        faults: what could not be decoded, in words.
        pyav_helped: PyAV decoded frames that DALI could not.
        thumbs: up to THUMBS moments with their pictures, uint8 (h, w, 3), for the contact sheet.
        scale: the cosines of no and of full heat, over all moments that are shown; None if none is.
        min_score: moments with a smaller score are not shown; None if all are.
        notes: how far the model may be trusted, in words.
    """

    width: int
    height: int
    moments: list[Moment]
    faults: list[str]
    pyav_helped: bool = False
    thumbs: list[tuple[Moment, np.ndarray]] = field(default_factory=list)
    scale: HeatScale | None = None
    min_score: float | None = None
    notes: list[str] = field(default_factory=list)

    def heat(self, moment: Moment) -> np.ndarray | None:
        """What is drawn of a moment: float64 (224, 224) in [0, 1], scaled over the whole video; None for nothing."""
        if not moment.shown or moment.similarity is None or self.scale is None:
            return None
        return self.scale.heat(moment.similarity)


def moment_places(times: np.ndarray, rate: float) -> list[int]:
    """The frames on screen at 0, 1/rate, 2/rate, ... seconds, each once, as places in `times`.

    times: (n,) seconds when each frame is shown, ascending.
    """
    wanted = np.arange(math.floor((times[-1] + ROUNDED) * rate) + 1) / rate
    return np.unique(np.maximum(np.searchsorted(times, wanted + ROUNDED, "right") - 1, 0)).tolist()


def find_moments(
    finder: SoundFinder,
    footage: Footage,
    sound: Path,
    *,
    rate: float = 5.0,
    threshold: float = 0.5,
    min_score: float | None = None,
    batch: int = 0,
    truth: Truth | None = None,
    dali: bool = False,
    step: Callable[[int], None] = lambda count: None,
) -> Localization:
    """Localize the sound of `footage` at `rate` moments a second (at each frame, if it has fewer).

    Args:
        sound: the file with the track.
        threshold: of the heat, which is scaled over all moments.
        min_score: moments with a smaller score are not shown; None shows all.
        batch: moments per forward pass; 0 means 64 on a GPU and 8 on a CPU.
        truth: boxes to score the maps with.
        dali: decode on the finder's device with DALI; `inputs.pick_decoder` says whether that is possible.
        step: called with the number of moments done since its last call.

    Raises:
        media.MediaError: no frame, or nothing of the sound, can be decoded.
    """
    places = moment_places(footage.times, rate)
    moments = [Moment(place + 1, float(footage.times[place])) for place in places]
    found = Localization(0, 0, moments, [], min_score=min_score)
    kept = set(np.linspace(0, len(places) - 1, min(THUMBS, len(places))).round().astype(int).tolist())
    size = batch or (64 if finder.device.type == "cuda" else 8)
    waiting = _Batch(finder, size, lambda moment, similarity: _keep(moment, similarity, found))
    broken = None
    with open_windows(sound, footage.zero(sound)) as windows:
        pictures = _pictures(footage, places, finder.device, dali, found)
        for number, (moment, (place, picture)) in enumerate(zip(found.moments, pictures, strict=True)):
            assert place + 1 == moment.frame, (place, moment.frame)
            step(1)
            if isinstance(picture, media.MediaError):
                moment.why, broken = str(picture), picture
                found.faults.append(f"the frame at {moment.time:.2f} s: {picture}")
                continue
            if not found.width:
                found.height, found.width = picture.whole().shape[:2]
            moment.truth = _truth_of(moment, truth, footage.frame_rate, found)
            if number in kept or not found.thumbs:
                found.thumbs.append((moment, shrink(picture.whole(), THUMB_WIDTH)))
            window = windows.around(moment.time)
            if _is_heard(window, moment):
                waiting.add(moment, picture.frame, window.pcm)
        waiting.run()
        found.faults += windows.faults
    if not found.width:
        raise broken or media.MediaError(media.UNREADABLE, "no frame can be decoded")
    for moment in found.moments:  # only now is the scale known
        _find_regions(moment, found, threshold)
    return found


def _truth_of(moment: Moment, truth: Truth | None, rate: float, found: Localization) -> list[tuple[float, ...]]:
    """The boxes that belong to a moment's own frame, in pixels of the video. rate: frames per second."""
    if truth is None:
        return []
    boxes, own = truth.of(moment.frame, moment.time, rate, found.width, found.height)
    return list(boxes) if own else []


class _Batch:
    """Moments that wait until there are enough of them for a forward pass.

    Args:
        size: of a forward pass.
        done: called with each moment and its map, float32 (h, w); a picture of one colour has none.
    """

    def __init__(self, finder: SoundFinder, size: int, done: Callable[[Moment, np.ndarray], None]) -> None:
        self._finder, self._size, self._done = finder, size, done
        self._waiting: list[tuple[Moment, torch.Tensor, np.ndarray]] = []

    def add(self, moment: Moment, frame: torch.Tensor, pcm: np.ndarray) -> None:
        """A moment with its frame, uint8 (224, 224, 3), and sound, int16 (48000,); runs the network if it is due."""
        self._waiting.append((moment, frame, pcm))
        if len(self._waiting) == self._size:
            self.run()

    def run(self) -> None:
        """Send everything that waits through the network."""
        if not self._waiting:
            return
        moments, frames, pcm = zip(*self._waiting, strict=True)
        stacked = torch.stack(frames)
        maps, plain = self._finder.similarity(stacked, np.stack(pcm)), blank.are_plain(stacked).tolist()
        for moment, similarity, one_colour in zip(moments, maps, plain, strict=True):
            if one_colour:
                moment.why = "the picture is one colour"
            else:
                self._done(moment, similarity)
        self._waiting.clear()


def _pictures(
    footage: Footage, places: list[int], device: torch.device, dali: bool, found: Localization
) -> Iterator[tuple[int, reels.Shown | media.MediaError]]:
    """(place, the frame for the network and the whole picture, or why there is none) of each place, in order."""

    def note(fault: str) -> None:
        found.faults.append(fault)
        found.pyav_helped = True

    if dali:
        assert isinstance(footage, Video)  # or DALI would not decode it
        return reels.from_dali(footage, places, SIZE, device, note)
    return reels.from_pyav(footage, places, SIZE)


def _is_heard(window: Window | None, moment: Moment) -> TypeGuard[Window]:
    """Whether there is a sound that is not silent; notes in the moment which it is, or why there is none."""
    if window is None:
        moment.why = "the sound track has ended"
        return False
    moment.sound = round(window.begin, 4), round(window.end, 4)
    if window.silent:
        moment.why = "the sound is silent"
        return False
    return True


def _keep(moment: Moment, similarity: np.ndarray, found: Localization) -> None:
    """Note in the moment its map (h, w), and widen the scale by it if the map is to be shown."""
    if not np.isfinite(similarity).all():
        moment.why = "the network's map is not finite"
        return
    moment.similarity, moment.score = similarity, float(similarity.max())
    if found.min_score is not None and moment.score < found.min_score:
        moment.why = f"score {moment.score:.3f} is below {found.min_score:.3f}"
    elif similarity.max() <= similarity.min():
        moment.why = "the map is the same everywhere"
    else:
        moment.shown = True
        found.scale = HeatScale.of(similarity).over(found.scale)


def _find_regions(moment: Moment, found: Localization, threshold: float) -> None:
    """Note in the moment the regions in its heat and, with boxes, the metric's score of its map."""
    width, height = found.width, found.height
    heat = found.heat(moment)
    if moment.similarity is None:
        return
    if heat is not None:
        cosine = resize_map(moment.similarity)
        for region in find_regions(heat, threshold):
            x1, y1, x2, y2 = region.box
            box = x1 * width // SIZE, y1 * height // SIZE, -(-x2 * width // SIZE), -(-y2 * height // SIZE)
            moment.regions.append(Region(box, round(float(cosine[region.peak]), 4), round(region.area / SIZE**2, 6)))
        if not moment.regions:
            moment.why = "its heat stays below the threshold"
    if moment.truth:
        grid = torch.from_numpy(boxes_to_grid(moment.truth, width, height))[None]
        score = float(metrics.ciou(torch.from_numpy(moment.similarity)[None].float(), grid, threshold=threshold))
        moment.ciou = None if math.isnan(score) else round(score, 4)
