"""python -m essl_fast.localize VIDEO --checkpoint RUN --out DIR: where in a video its sound comes from, by the moment.

DIR/<name>.overlay.mp4    the video with its sound: heat, a white contour at the threshold, ground truth in green
DIR/<name>.sheet.png      a contact sheet of up to 12 moments
DIR/<name>.moments.json   each moment with the boxes of its regions at or above the threshold, in the video's pixels

A moment is a frame with the 3 s of sound around it, as a pair is in training. In the first and the last 1.5 s these are
the first and the last 3 s of the track, whole: the network was trained on nothing else. A track below 3 s is repeated,
as for training. Where the track has ended, or holds nothing but one value, nothing is localized.

The file is decoded twice: once for the moments, which go through the network in batches, and once to draw, when the
heat of each moment is known and can fade into the next one's. So memory holds a batch of 224 x 224 frames and the few
frames between decoder and encoder, whatever the length, the resolution and the rate. On a GPU its video decoder (NVDEC,
by DALI) decodes the moments, and their frames stay there; what is drawn is needed on the host, and PyAV decodes it.
"""

from __future__ import annotations

import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from essl_fast.common.errors import InputError
from essl_fast.config.settings import SIZE
from essl_fast.data import media
from essl_fast.data.datasets.annotations import boxes_to_grid
from essl_fast.data.datasets.truth import Truth
from essl_fast.data.loading import reels
from essl_fast.data.media import clips, nvdec
from essl_fast.data.media.footage import Footage, Still, Video, is_picture, read_picture
from essl_fast.data.media.sound_windows import Window, open_windows, sound_length
from essl_fast.data.media.writing import video_file
from essl_fast.evaluate import metrics
from essl_fast.localize import drawing
from essl_fast.localize.finder import SoundFinder, heat_of, resize_map

SHEET, COLUMNS, THUMB = 12, 4, 320  # pictures of a contact sheet, in a row, and their width in pixels
MOST_LINES = 5  # of faults on the terminal
ROUNDED = 6e-4  # seconds: Matroska rounds the time of a frame to a millisecond
DECODERS = ("auto", "nvdec", "pyav")
BLENDERS = 4  # threads that blend, beside the one that decodes and the encoder's own
LEGEND = "heat: similarity with the sound; white: threshold; green: ground truth"


@dataclass(frozen=True)
class Region:
    """box: xyxy, half-open, in pixels of the video; score: the largest cosine of picture and sound in it, -1 to 1;
    share: of the picture that it covers."""

    box: tuple[int, int, int, int]
    score: float
    share: float


@dataclass
class Moment:
    """A frame, counted from 1, and the sound around it.

    time: seconds when it is shown. sound: seconds of the track that were heard, None where there is none. similarity:
    float32 (h, w) cosine map, None where nothing was localized, and `why`. truth: boxes of this frame, xyxy, pixels;
    ciou: with them, as the metric counts.
    """

    frame: int
    time: float
    sound: tuple[float, float] | None = None
    similarity: np.ndarray | None = None
    regions: list[Region] = field(default_factory=list)
    why: str = ""
    truth: list[tuple[float, ...]] = field(default_factory=list)
    ciou: float | None = None


@dataclass
class Localization:
    """What was found in a video of width x height pixels. faults: what could not be decoded, in words."""

    width: int
    height: int
    moments: list[Moment]
    faults: list[str]
    helped: bool = False  # PyAV decoded what DALI could not
    thumbs: list[tuple[Moment, np.ndarray]] = field(default_factory=list)

    def heats(self) -> Callable[[float], np.ndarray | None]:
        """A function: seconds, which must not decrease from call to call, to the heatmap (224, 224) of that time, None
        where nothing was localized. Between two moments it fades from one to the other."""
        known: dict[int, np.ndarray | None] = {}
        times, at = [moment.time for moment in self.moments], 0

        def heat_at(number: int) -> np.ndarray | None:
            if number not in known and number < len(self.moments):
                similarity = self.moments[number].similarity
                known[number] = None if similarity is None else heat_of(similarity).astype(np.float32)
            return known.get(number)

        def heat(now: float) -> np.ndarray | None:
            nonlocal at
            while at + 1 < len(times) and times[at + 1] <= now:
                known.pop(at, None)
                at += 1
            before, after = heat_at(at), heat_at(at + 1)
            if before is None or after is None:
                return before
            part = np.float32(max(now - times[at], 0) / (times[at + 1] - times[at]))
            return before + part * (after - before)

        return heat


def localize(
    finder: SoundFinder,
    footage: Footage,
    sound: Path,
    *,
    rate: float = 5.0,
    threshold: float = 0.5,
    batch: int = 0,
    truth: Truth | None = None,
    dali: bool = False,
    step: Callable[[int], None] = lambda count: None,
) -> Localization:
    """Localize the sound of `footage` at `rate` moments a second (at each frame, if that is more than it has).

    sound: the file with the track. threshold: of the min-max scaled map. batch: moments a forward pass; 0: 64 on a GPU,
    8 on a CPU. dali: decode on the finder's device by DALI (`pick_decoder` says whether that is possible). `step` is
    called with the number of moments done since its last call. Raises MediaError where nothing can be decoded.
    """
    batch = batch or (64 if finder.device.type == "cuda" else 8)
    places = moments_of(footage.times, rate)
    moments = [Moment(place + 1, float(footage.times[place])) for place in places]
    shown = set(np.linspace(0, len(moments) - 1, min(SHEET, len(moments))).round().astype(int).tolist())
    found = Localization(0, 0, moments, [])
    waiting: list[tuple[Moment, torch.Tensor, np.ndarray]] = []

    def say(fault: str) -> None:
        found.faults.append(fault)
        found.helped = True

    if dali:
        pictures = reels.from_dali(footage, places, SIZE, finder.device, say)
    else:
        pictures = reels.from_pyav(footage, places, SIZE)

    def run() -> None:
        kept, frames, pcm = zip(*waiting, strict=True)
        maps = finder.similarity(torch.stack(frames), np.stack(pcm))
        for moment, similarity in zip(kept, maps, strict=True):
            _conclude(moment, similarity, found, threshold)
        waiting.clear()

    broken = None
    with open_windows(sound) as windows:
        for number, (moment, (place, picture)) in enumerate(zip(moments, pictures, strict=True)):
            assert place + 1 == moment.frame, (place, moment.frame)
            step(1)
            if isinstance(picture, media.MediaError):
                moment.why, broken = str(picture), picture
                found.faults.append(f"the frame at {moment.time:.2f} s: {picture}")
                continue
            if not found.width:
                found.height, found.width = picture.whole().shape[:2]
            if truth is not None:
                boxes, own = truth.of(moment.frame, moment.time, footage.frame_rate, found.width, found.height)
                moment.truth = boxes if own else []
            if number in shown or not found.thumbs:
                found.thumbs.append((moment, drawing.shrink(picture.whole(), THUMB)))
            window = windows.around(moment.time)
            if heard := _hear(moment, window):
                waiting.append((moment, picture.frame, heard.pcm))
            if len(waiting) == batch:
                run()
        if waiting:
            run()
        found.faults += windows.faults
    if not found.width:
        raise broken or media.MediaError(media.UNREADABLE, "no frame can be decoded")
    return found


def pick_decoder(asked: str, footage: Footage, device: torch.device) -> tuple[bool, str]:
    """(whether DALI decodes the moments on `device`, if not why). asked: one of DECODERS. InputError where that is
    nvdec and it cannot be."""
    if asked == "pyav" or isinstance(footage, Still):
        return False, ""
    decoders, why = nvdec.detect() if device.type == "cuda" else ({}, f"the network runs on the {device.type}")
    why = why or nvdec.refusal(decoders, footage.found) or clips.can_copy(footage.found) or ""
    if why and asked == "nvdec":
        raise InputError(f"--decoder: nvdec cannot be used, since {why}; take pyav")
    return not why, why


def moments_of(times: np.ndarray, rate: float) -> list[int]:
    """Places of the frames on screen at 0, 1/rate, 2/rate, ... s, each once; times (n,) seconds, ascending."""
    asked = np.arange(math.floor((times[-1] + ROUNDED) * rate) + 1) / rate
    return np.unique(np.maximum(np.searchsorted(times, asked + ROUNDED, "right") - 1, 0)).tolist()


def _hear(moment: Moment, window: Window | None) -> Window | None:
    """The window, if there is something to hear in it; notes in the moment which it is, or why it is none."""
    if window is None:
        moment.why = "the sound track has ended"
        return None
    moment.sound = round(window.begin, 4), round(window.end, 4)
    if window.silent:
        moment.why = "the sound is silent"
        return None
    return window


def _conclude(moment: Moment, similarity: np.ndarray, found: Localization, threshold: float) -> None:
    """Note in the moment what its map (h, w) says."""
    if not np.isfinite(similarity).all():
        moment.why = "the network's map is not finite"
        return
    moment.similarity = similarity
    heat, cosine = heat_of(similarity), resize_map(similarity)
    width, height = found.width, found.height
    for region in drawing.regions(heat, threshold):
        x1, y1, x2, y2 = region.box
        box = x1 * width // SIZE, y1 * height // SIZE, -(-x2 * width // SIZE), -(-y2 * height // SIZE)
        moment.regions.append(Region(box, round(float(cosine[region.peak]), 4), round(region.area / SIZE**2, 6)))
    if not moment.regions:
        moment.why = "the map is the same everywhere"
    if moment.truth:
        grid = torch.from_numpy(boxes_to_grid(moment.truth, width, height))[None]
        score = float(metrics.ciou(torch.from_numpy(similarity)[None].float(), grid, threshold=threshold))
        moment.ciou = None if math.isnan(score) else round(score, 4)


def draw(
    path: Path,
    found: Localization,
    footage: Footage,
    sound: Path,
    *,
    threshold: float = 0.5,
    opacity: float = 0.6,
    truth: Truth | None = None,
    step: Callable[[int], None] = lambda count: None,
) -> int:
    """Write the overlay video; the number of frames that could not be decoded, which it leaves out.

    `step` is called with the number of frames done since its last call. Raises MediaError and OSError.
    """
    overlay = drawing.Overlay(found.width, found.height, threshold, opacity)
    heat, drawn = found.heats(), 0
    rate, ticks = footage.frame_rate, footage.ticks.tolist()
    workers = min(BLENDERS, len(os.sched_getaffinity(0)))
    waiting: deque[tuple[int, Future]] = deque()
    with (
        video_file(path, found.width, found.height, footage.time_base, rate, sound) as writer,
        ThreadPoolExecutor(workers) as pool,
    ):

        def write() -> None:
            tick, picture = waiting.popleft()
            writer.add(picture.result(), tick)
            step(1)

        for place, picture in footage.all():
            now = float(footage.times[place])
            boxes = truth.of(place + 1, now, rate, found.width, found.height)[0] if truth is not None else []
            picture = drawing.fit(picture, found.width, found.height)
            waiting.append((ticks[place], pool.submit(overlay.blend, picture, heat(now), boxes)))
            drawn += 1
            if len(waiting) > workers:
                write()
        while waiting:
            write()
    return len(ticks) - drawn


def sheet(found: Localization, threshold: float = 0.5, opacity: float = 0.6) -> bytes:
    """The contact sheet, as a PNG."""
    pictures, titles = [], []
    for moment, thumb in found.thumbs:
        height, width = thumb.shape[:2]
        heat = None if moment.similarity is None else heat_of(moment.similarity)
        x, y = width / found.width, height / found.height
        boxes = [(x1 * x, y1 * y, x2 * x, y2 * y) for x1, y1, x2, y2 in moment.truth]
        pictures.append(drawing.Overlay.of(thumb, threshold, opacity).blend(thumb, heat, boxes))
        score = f"score {moment.regions[0].score:.2f}" if moment.regions else moment.why or "no region"
        titles.append(f"{moment.time:.2f} s: {score}" + ("" if moment.ciou is None else f", cIoU {moment.ciou:.2f}"))
    return drawing.contact_sheet(pictures, titles, COLUMNS, LEGEND)


def as_json(found: Localization) -> Iterator[dict]:
    """The moments as plain values."""
    for moment in found.moments:
        told = {"time": round(moment.time, 6), "frame": moment.frame, "sound": moment.sound}
        told["regions"] = [asdict(region) for region in moment.regions]
        if moment.why:
            told["why"] = moment.why
        if moment.truth:
            told |= {"truth": moment.truth, "ciou": moment.ciou}
        yield told


class _Bars:
    """A bar for each of the two passes; in a pipe, a line at the end of each."""

    def __init__(self, console) -> None:
        self.console, self._begun, self._bar = console, 0.0, None

    def over(self, what: str, total: int) -> Callable[[int], None]:
        self.close()
        columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=self.console, disable=not self.console.is_terminal)
        self._bar.start()
        task, self._begun = self._bar.add_task(what, total=total), time.perf_counter()
        return lambda count: self._bar.update(task, advance=count)

    def line(self, text: str) -> None:
        """A line that stays, once the bar is full."""
        seconds = time.perf_counter() - self._begun
        self.close()
        self.console.print(f"{text} in {seconds:.1f} s", highlight=False, soft_wrap=True, markup=False)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def open_input(given: Path, sound: Path | None) -> tuple[Footage, Path]:
    """What is shown, and the file whose sound goes with it. InputError, or MediaError of an unreadable file."""
    for path in filter(None, (given, sound)):
        if not path.is_file():
            raise InputError(f"there is no file {path}; give a video, or a picture and --sound FILE")
    if is_picture(given):
        if sound is None:
            raise InputError(f"{given} is a picture: give the sound that goes with it, --sound FILE")
        return Still(read_picture(given), sound_length(sound)), sound
    found = media.probe(given)
    if sound is None and not found.audio:
        raise InputError(f"{given} has no audio track; give its sound as a file of its own, --sound FILE")
    return Video(found), sound or given


def prepare_folder(out: Path) -> None:
    """Make the folder that results go to. InputError if nothing can be written there."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        writable = os.access(out, os.W_OK | os.X_OK)
    except OSError as error:
        raise InputError(f"--out: {out} cannot be made ({error.strerror}); choose another folder") from error
    if not writable:
        raise InputError(f"--out: nothing may be written into {out}; change its permissions, or choose another folder")
