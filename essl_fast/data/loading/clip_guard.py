"""What a GPU makes of clips is held against PyAV, so that no memory that was never written is trained on.

    clip ──nvdec_clips.fit──▶ NVDEC ──▶ frame ──its 8 x 8 means──▶ those that PyAV has? ──yes──▶ training
             │ no                                                        │ no
             └──────────────────────── PyAV ◀────────────────────────────┘  with a warning, once a reason

DALI returns a frame as decoded where NVDEC gave none (`starts` says how that comes about), and nothing in its answer
tells. The means that PyAV has are in the prepared folder if `prepare --verify` ran, which decodes everything anyway.
Where they are not, PyAV decodes a clip beside NVDEC the first time that it comes, in the threads of the executor.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from essl_fast.common.errors import Notice
from essl_fast.data.loading.host_frames import frame_of_clip
from essl_fast.data.media import MediaError, nvdec_clips
from essl_fast.data.media.colours import IDENTITY
from essl_fast.data.shards import Picture


class Plan(NamedTuple):
    """How a picture of a batch is decoded.

    Attributes:
        turn: (3, 4) float32, the correction of DALI's colours.
        frame: PyAV's frame (side, side, 3), if PyAV decodes the picture instead of DALI.
        witness: PyAV's frame, if it is decoded beside DALI's.
    """

    turn: np.ndarray = IDENTITY
    frame: Future | None = None
    witness: Future | None = None

    def cancel(self) -> None:
        """Decode nothing that has not begun."""
        for task in (self.frame, self.witness):
            if task is not None:
                task.cancel()


class ClipGuard:
    """Plans how clips are decoded and checks what came of it.

    Args:
        side: of the frames, pixels.
        by_dali: whether DALI decodes clips; else PyAV does.
        executor: runs PyAV.
        name: a pair's position → its name, for warnings.
        remember: called with (position, check value) of a clip when PyAV has decoded it.
    """

    def __init__(
        self,
        side: int,
        by_dali: bool,
        executor: Executor,
        name: Callable[[int], str],
        remember: Callable[[int, np.ndarray], None],
    ):
        self._side, self._by_dali, self._executor, self._name, self._remember = side, by_dali, executor, name, remember
        self._told: set[str] = set()

    def plan(self, picture: Picture) -> Plan:
        """How to decode an unaltered picture. MediaError if it is a clip that cannot even be looked into."""
        if picture.target is None:
            return Plan()
        if not self._by_dali:
            return Plan(frame=self._by_pyav(picture))
        fit = nvdec_clips.fit(picture.file)
        if fit.why:
            self._tell(picture, fit.why)
            return Plan(frame=self._by_pyav(picture))
        return Plan(fit.turn, witness=self._by_pyav(picture) if picture.check is None else None)

    def settle(self, pictures: list[Picture], plans: list[Plan], frames: torch.Tensor) -> dict[int, str]:
        """Put PyAV's frame in place of each of DALI's that is another picture.

        Args:
            frames: (B, side, side, 3) uint8, upright, on any device. Those with a `Plan.frame` are not looked at.

        Returns:
            place → reason of each clip that PyAV cannot decode either.
        """
        places = [i for i, picture in enumerate(pictures) if picture.target is not None and plans[i].frame is None]
        faults: dict[int, str] = {}
        if not places:
            return faults
        found = _check_values(frames if len(places) == len(frames) else frames[places])
        for place, value in zip(places, found, strict=True):
            picture, witness = pictures[place], plans[place].witness
            try:
                theirs = witness.result() if witness else None
                known = picture.check if theirs is None else nvdec_clips.check_value(theirs)
                assert known is not None  # one of the two is there for every clip
                if not nvdec_clips.same_picture(value, known):
                    self._tell(picture, "it came back as another picture, or as none")
                    theirs = frame_of_clip(picture, self._side) if theirs is None else theirs
                    frames[place] = torch.from_numpy(theirs)
            except (MediaError, ValueError) as error:
                faults[place] = str(error)
                continue
            if witness:
                self._remember(picture.position, known)
        return faults

    def _by_pyav(self, picture: Picture) -> Future:
        return self._executor.submit(frame_of_clip, picture, self._side)

    def _tell(self, picture: Picture, why: str) -> None:
        if why not in self._told:
            self._told.add(why)
            name = self._name(picture.position)
            warnings.warn(
                f"NVDEC cannot decode the clip of {name}: {why}. PyAV decodes it and others like it on the CPU; data "
                "prepared with --visual jpeg would need neither",
                Notice,
                stacklevel=2,
            )


def _check_values(frames: torch.Tensor) -> np.ndarray:
    """(n, 8, 8, 3) uint8 on the host, of frames (n, side, side, 3) uint8."""
    means = F.adaptive_avg_pool2d(frames.permute(0, 3, 1, 2).float(), nvdec_clips.SIDE)
    return means.round().byte().permute(0, 2, 3, 1).cpu().numpy()
