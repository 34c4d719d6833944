"""Finds out which videos the GPU decodes, if a run has to know."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from essl_fast.common.errors import InputError
from essl_fast.data.media import nvdec
from essl_fast.prepare.folder import PARTS
from essl_fast.prepare.journal import SETTINGS
from essl_fast.prepare.reporting import Reporter
from essl_fast.prepare.slices import slices_in


def choose_decoders(out: Path, settings: Mapping[str, Any], say: Reporter) -> nvdec.Decoders | None:
    """What the GPU decodes, if this run has to know; else None.

    With `visual: auto`, the videos that the GPU decodes become clips, if DALI uses a decoder again for their size. With
    `visual: jpeg` and a decoder other than pyav, NVDEC decodes their frames. The answer of an earlier run with the same
    settings, or of another part, is kept, even if it ran on a machine with another GPU: one folder must not be of two
    kinds.

    Raises:
        InputError: `decoder: nvdec` is asked for, and there is none.
    """
    if settings["visual"] != "auto" and settings["decoder"] == "pyav":
        return None
    of_parts = (folder / SETTINGS for folder in slices_in(out / PARTS).values())
    for path in (out / "manifest.json", out / PARTS / "shards" / SETTINGS, *of_parts):
        with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
            held = json.loads(path.read_bytes())
            known = dict(held.get("settings", held))
            decoders, _ = known.pop("decoders", None), known.pop("format", None)
            if known == json.loads(json.dumps(settings)) and isinstance(decoders, dict):
                return decoders
    decoders, why = nvdec.detect()
    if settings["visual"] == "jpeg":
        if not decoders and settings["decoder"] == "nvdec":
            raise InputError(f"decoder: nvdec cannot be used, since {why}; take pyav")
        say.line(f"NVDEC decodes {', '.join(decoders)}, PyAV the rest" if decoders else f"PyAV decodes, since {why}")
        return decoders
    able = f"this machine's GPU decodes {', '.join(decoders)}: frames of such videos become clips, others JPEG"
    say.line(able if decoders else f"frames become JPEG, since {why}; --visual clip copies clips nevertheless")
    return decoders
