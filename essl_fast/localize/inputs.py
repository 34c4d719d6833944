"""What is localized: a video, or a picture with the sound of another file; and which decoder reads the video."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from essl_fast.common.errors import InputError
from essl_fast.data import media
from essl_fast.data.media import nvdec
from essl_fast.data.media.audio import decode_sound
from essl_fast.data.media.footage import Footage, Still, Video, is_picture, read_picture

__all__ = ["open_input", "pick_decoder", "read_picture", "read_sound"]


def read_sound(path: str | Path) -> tuple[np.ndarray, int]:
    """The whole sound track of a file, float32 mono (n,) in [-1, 1], and its rate in Hz.

    Raises media.MediaError if the file has no track, or nothing of it can be decoded.
    """
    sound = decode_sound(path)
    return sound.mono, sound.rate


def open_input(given: Path, sound: Path | None) -> tuple[Footage, Path]:
    """The frames of a video or a picture, and the file whose sound belongs to them.

    Raises:
        InputError: a file is missing, or there is no sound.
        media.MediaError: a file cannot be decoded.
    """
    for path in filter(None, (given, sound)):
        if not path.is_file():
            raise InputError(f"there is no file {path}; give a video, or a picture and --sound FILE")
    if is_picture(given):
        if sound is None:
            raise InputError(f"{given} is a picture: give the sound that goes with it, --sound FILE")
        return Still(read_picture(given), media.sound_length(sound)), sound
    found = media.probe(given)
    if sound is None and not found.audio:
        raise InputError(f"{given} has no audio track; give its sound as a file of its own, --sound FILE")
    return Video(found), sound or given


def pick_decoder(decoder: str, footage: Footage, device: torch.device) -> tuple[bool, str]:
    """(whether DALI decodes the moments on `device`, the reason if it does not). The reason is "" if PyAV was chosen.

    decoder: one of options.DECODERS. Raises InputError if it is nvdec and NVDEC cannot decode this video.
    """
    if decoder == "pyav" or isinstance(footage, Still):
        return False, ""
    decoders, why = nvdec.detect() if device.type == "cuda" else ({}, f"the network runs on the {device.type}")
    why = why or nvdec.refusal(decoders, footage.found) or media.can_copy(footage.found) or ""
    if why and decoder == "nvdec":
        raise InputError(f"--decoder: nvdec cannot be used, since {why}; take pyav")
    return not why, why
