"""What the frames of clips look like: the means of each over 8 x 8 fields, as PyAV decodes it."""

from __future__ import annotations

import numpy as np

from essl_fast.data.shards.manifest import Manifest


class ClipChecks:
    """The check values of some pairs, which are named by their position, from 0. `prepare --verify` leaves them in the
    folder; others are put here when they become known."""

    def __init__(self, manifest: Manifest, rows: np.ndarray, crc: np.ndarray, is_clip: np.ndarray):
        """
        Args:
            rows: (n,) int64, the pairs' rows in the manifest.
            crc: (n,) uint32, the CRC-32 of each.
            is_clip: (n,) bool.
        """
        some = bool(is_clip.any())
        self._means = np.zeros((len(rows) if some else 0, 8, 8, 3), np.uint8)  # 192 bytes a pair
        self._known = np.zeros(len(rows), bool)
        held = manifest.clip_checks() if some else None
        if held is not None:
            mine = held[rows]
            self._known = (mine["crc"] == crc) & is_clip & mine["known"]
            self._means[self._known] = mine["means"][self._known]

    def of(self, position: int) -> np.ndarray | None:
        """(8, 8, 3) uint8; None if it is not known."""
        return self._means[position] if self._known[position] else None

    def put(self, position: int, means: np.ndarray) -> None:
        """Keep the check value (8, 8, 3) uint8 of a clip."""
        self._means[position], self._known[position] = means, True
