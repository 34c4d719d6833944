"""What a run has to tell of its videos beside what it leaves out: parts note it, the manifest keeps it.

    clocks          video → why its pictures are counted (`media/clock.py`)
    sound_tracks    video → which of several sound tracks was taken
    boxes           why boxes seem to be drawn on frames of another size
    contradictions  video → by how much the numbers and times of its frames differ; `--strict` makes it an error

Frame `fid` of a constant rate is shown from (fid - 1) / rate to fid / rate. Times within these bounds, and half a frame
around them, agree with their number; published times are fid / rate. If only some videos of a data set have those, the
others' numbers count from 1 and theirs most likely from 0.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from essl_fast.data import media

CLOCK, TRACK, SIZE = "clock", "track", "size"
APART, LATE, EXACT = "apart", "late", "exact"  # how the times of frames lie to their numbers
Note = list[str]  # kind, text

_FOLLOWED = "the picture follows the number, the sound the time"
_ROUNDED = 0.051  # seconds; times may be rounded to tenths


def of_video(found: media.Probe, requests: Sequence[tuple[str, int, float]]) -> list[Note]:
    """The notes of a video. requests: (key, frame number, time in seconds) of its pairs."""
    notes = [[SIZE, f"{found.shown_size[0]}x{found.shown_size[1]}"]]
    notes += [[CLOCK, found.counted]] if found.counted else []
    notes += [[TRACK, found.track]] if found.track else []
    fids, times = np.array([fid for _, fid, _ in requests]), np.array([time for _, _, time in requests])
    inside = (fids >= 1) & (fids <= len(found.pts))
    if found.constant and found.frame_rate and inside.any():
        notes.append(_how_times_lie(found, fids[inside], times[inside]))
    return notes


def _how_times_lie(found: media.Probe, fids: np.ndarray, times: np.ndarray) -> Note:
    """How the times of frames lie to when the frames of their numbers are shown. fids, times: (n,)."""
    assert found.frame_rate  # the caller has looked
    step = 1 / found.frame_rate
    shown = (found.pts[fids - 1] - found.start) * float(found.time_base)
    late = times - shown
    slack = max(step / 2, _ROUNDED)
    apart = (late < -slack) | (late > step + slack)
    if not apart.any():
        if step > 2.5 * _ROUNDED or np.ptp(late) < step / 2:  # else times are too coarse to tell
            middle = float(np.median(late))
            return [LATE if abs(middle - step) < step / 4 else EXACT if abs(middle) < step / 4 else "", ""]
        return ["", ""]
    worst = int(np.argmax(np.abs(late)))
    least, most = np.abs(late[apart]).min(), np.abs(late[apart]).max()
    by = f"by {most:.2f} s" if most - least < 0.01 else f"by {least:.2f} to {most:.2f} s"
    text = (
        f"numbers and times of frames contradict each other in {int(apart.sum())} of {len(fids)} pairs, {by}: frame "
        f"{fids[worst]} is shown at {shown[worst]:.2f} s (rate {found.frame_rate:g} a second), its time says "
        f"{times[worst]:.2f} s{_guess(found.frame_rate, fids, times)}"
    )
    return [APART, f"{text}; {_FOLLOWED}"]


def _guess(rate: float, fids: np.ndarray, times: np.ndarray) -> str:
    """What would explain the numbers, in words; "" if nothing simple does."""
    if np.ptp(times) > 0:
        slope = float(np.polyfit(times, fids, 1)[0])
        if slope > 0 and abs(slope / rate - 1) > 0.005:
            return f", as if numbered at a rate of {slope:.4g} a second"
    return f", as if numbered from {1 + round(float(np.median(fids - 1 - times * rate)))} on"


def header(notes: Mapping[str, Sequence[Note]], doubt: str = "") -> dict:
    """What the manifest says of them: only what there is.

    Args:
        notes: video → its notes.
        doubt: why boxes seem to be drawn on frames of another size, or "".
    """
    of: dict[str, dict[str, str]] = {kind: {} for kind in (CLOCK, TRACK, SIZE, APART, LATE, EXACT)}
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
    said = {"boxes": doubt, "clocks": of[CLOCK], "sound_tracks": of[TRACK], "contradictions": contradictions}
    return {name: value for name, value in said.items() if value}
