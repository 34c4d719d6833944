"""What a run has to tell of its videos beside what it leaves out: parts note it, the manifest keeps it.

    clocks          video → why its pictures are counted (`media/clock.py`)
    sound_tracks    video → which of several sound tracks was taken
    boxes           why boxes seem to be drawn on frames of another size
    contradictions  video → by how much the numbers and times of its frames differ; `--strict` makes it an error
    numbering       why all frames of the data set may be numbered from 0 on

Frame `fid` is shown until frame `fid` + 1 is. Times within these bounds, and half a frame around them, agree with their
number; published times are fid / rate. If only some videos of a data set have those, the others' numbers count from 1
and theirs most likely from 0. If all have, they alone do not tell: a table that asks for frame 0 counts from 0, one
that asks for the last frame of a video from 1.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from statistics import median  # NumPy's would import its masked arrays, which takes 0.1 s

import numpy as np

from essl_fast.data import media

CLOCK, TRACK, SIZE = "clock", "track", "size"
APART, LATE, EXACT = "apart", "late", "exact"  # how the times of frames lie to their numbers
LAST = "last"  # the last frame is asked for
Note = list[str]  # kind, text

_FOLLOWED = "the picture follows the number, the sound the time"
_BY_TIME = "the picture and the sound follow the time"
_ADD = "if so, each picture is one frame early: add 1 to the numbers"
_ROUNDED = 0.051  # seconds; times may be rounded to tenths


def of_video(found: media.Probe, requests: Sequence[tuple[str, int, float]]) -> list[Note]:
    """The notes of a video. requests: (key, frame number, time in seconds) of its pairs."""
    notes = [[SIZE, f"{found.shown_size[0]}x{found.shown_size[1]}"]]
    notes += [[CLOCK, found.counted]] if found.counted else []
    notes += [[TRACK, found.track]] if found.track else []
    fids, times = np.array([fid for _, fid, _ in requests]), np.array([time for _, _, time in requests])
    known = fids >= 1
    if found.constant:
        notes += [[LAST, ""]] if (fids == len(found.pts)).any() else []
        known &= fids <= len(found.pts)  # others are left out
    if found.frame_rate and known.any():
        notes.append(_how_times_lie(found, fids[known], times[known]))
    return notes


def _how_times_lie(found: media.Probe, fids: np.ndarray, times: np.ndarray) -> Note:
    """How the times of frames lie to when the frames of their numbers are shown. fids, times: (n,)."""
    assert found.frame_rate  # the caller has looked
    step = 1 / found.frame_rate
    shown, until = _when_shown(found, fids), _when_shown(found, fids + 1)
    late = times - shown
    slack = max(step / 2, _ROUNDED)
    apart = (late < -slack) | (times > until + slack)
    if not apart.any():
        if found.constant and (step > 2.5 * _ROUNDED or np.ptp(late) < step / 2):  # else times are too coarse to tell
            usual = median(late.tolist())
            return [LATE if abs(usual - step) < step / 4 else EXACT if abs(usual) < step / 4 else "", ""]
        return ["", ""]
    worst = int(np.argmax(np.where(apart, np.abs(late), 0)))
    least, most = np.abs(late[apart]).min(), np.abs(late[apart]).max()
    by = f"by {most:.2f} s" if most - least < 0.01 else f"by {least:.2f} to {most:.2f} s"
    if found.constant:
        rate, guess, followed = "rate", _guess(found.frame_rate, fids, times), _FOLLOWED
    else:
        rate, guess, followed = "the rate varies, on average it is", _guess_of_varying(found, fids, times), _BY_TIME
    text = (
        f"numbers and times of frames contradict each other in {int(apart.sum())} of {len(fids)} pairs, {by}: frame "
        f"{fids[worst]} is shown at {shown[worst]:.2f} s ({rate} {found.frame_rate:.6g} a second), its time says "
        f"{times[worst]:.2f} s{guess}"
    )
    return [APART, f"{text}; {followed}"]


def _when_shown(found: media.Probe, fids: np.ndarray) -> np.ndarray:
    """float64 (n,), seconds at which the frames of these numbers (n,) are shown; at the mean rate after the last."""
    assert found.frame_rate
    shown = (found.pts - found.start) * float(found.time_base)
    last = len(shown)
    return shown[np.minimum(fids, last) - 1] + np.maximum(fids - last, 0) / found.frame_rate


def _guess(rate: float, fids: np.ndarray, times: np.ndarray) -> str:
    """What would explain the numbers, in words; "" if nothing simple does."""
    if np.ptp(times) > 0:
        slope = float(np.polyfit(times, fids, 1)[0])
        if slope > 0 and abs(slope / rate - 1) > 0.005:
            return f", as if numbered at a rate of {slope:.4g} a second"
    return f", as if numbered from {1 + round(median((fids - 1 - times * rate).tolist()))} on"


def _guess_of_varying(found: media.Probe, fids: np.ndarray, times: np.ndarray) -> str:
    """As `_guess`, where the rate varies: numbers from another one on, or those of a copy with a constant rate."""
    shown = (found.pts - found.start) * float(found.time_base)
    before = fids - np.searchsorted(shown, times + _ROUNDED / 10, "right")
    if np.ptp(before) <= 1:
        return f", as if numbered from {1 + round(median(before.tolist()))} on"
    if len(fids) < 3 or np.ptp(times) == 0:
        return ""
    slope, begin = np.polyfit(times, fids, 1)
    if slope > 0 and np.abs(slope * times + begin - fids).max() <= 1:
        return f", as if numbered at a constant rate of {slope:.4g} a second"
    return ""


def header(notes: Mapping[str, Sequence[Note]], doubt: str = "", zero: Collection[str] = ()) -> dict:
    """What the manifest says of them: only what there is.

    Args:
        notes: video → its notes.
        doubt: why boxes seem to be drawn on frames of another size, or "".
        zero: the videos whose frame 0 is asked for.
    """
    of: dict[str, dict[str, str]] = {kind: {} for kind in (CLOCK, TRACK, SIZE, APART, LATE, EXACT, LAST)}
    for video, told in sorted(notes.items()):
        for kind, text in told:
            if kind in of:
                of[kind][video] = text
    contradictions = dict(of[APART])
    if of[LATE] and of[EXACT]:
        few, many = (of[LATE], of[EXACT]) if len(of[LATE]) <= len(of[EXACT]) else (of[EXACT], of[LATE])
        where, base = ("one frame after", 0) if few is of[LATE] else ("exactly when", 1)
        text = (
            f"its times lie {where} the frames of their numbers are shown, unlike those of {len(many)} other videos, "
            f"as if its frames were numbered from {base} on; {_FOLLOWED}"
        )
        contradictions = dict(sorted((contradictions | dict.fromkeys(few, text)).items()))
    if doubt:
        sizes = Counter(of[SIZE].values()).most_common(3)
        videos = ", ".join(f"{size} ({count})" for size, count in sizes) or "none was read"
        doubt = f"{doubt}; sizes of the videos: {videos}. If the boxes were drawn on another size, give it as "
        doubt += "--annotation-size; preview.png shows some pairs with their boxes"
    said = {
        "boxes": doubt,
        "numbering": _numbering(of, zero),
        "clocks": of[CLOCK],
        "sound_tracks": of[TRACK],
        "contradictions": contradictions,
    }
    return {name: value for name, value in said.items() if value}


def _numbering(of: Mapping[str, Mapping[str, str]], zero: Collection[str]) -> str:
    """Why all frames of the data set may be numbered from 0 on, in words, or "". of: kind of note → videos."""
    late, exact, last = of[LATE], of[EXACT], of[LAST]
    if zero:
        where = f"frame 0 is asked for in {len(zero)} videos, the first is {min(zero)}"
        if late and not exact:
            where += f"; in all {len(late)} videos that can tell, the time of frame n is n / rate"
        if last:
            return f"{where}; yet in {len(last)} videos the last frame is asked for, which none has that counts from 0"
        return f"{where}: frames seem to be numbered from 0 on, and here they are from 1 on; {_ADD}"
    if late and not exact and not last:
        return (
            f"the time of frame n is n / rate in all {len(late)} videos that can tell, and no last frame is asked for; "
            f"frames are taken as numbered from 1 on, as in Chaotic World. Yours may be numbered from 0 on; {_ADD}"
        )
    return ""
