"""Published results of the methods here, which reports and reproductions show beside their own.

A figure that is not published, or that this project has not seen in print, is None: it is not guessed.
"""

from typing import NamedTuple


class Row(NamedTuple):
    """A published result on a test set."""

    name: str  # in the source
    data: str  # the data set
    success_at_half: float | None  # share of pairs with cIoU >= 0.5; the sources call it cIoU
    auc: float | None
    source: str  # where it is published
    config: str = ""  # the shipped config that does the same, if there is one


CODE = "README of the published code (ly245422/SSPL)"
ENTRY = "the same at commit 116b0bb: entry to MMVRAC, track 4, ICME 2024"
ROWS = (
    Row("SSPL with PCM", "Chaotic World", 0.4770, 0.4414, CODE, "sspl_pcm"),
    Row("SSPL without PCM", "Chaotic World", 0.4112, 0.4260, CODE, "sspl"),
    Row("SSPL with PCM, challenge entry", "Chaotic World", 0.4309, 0.4288, ENTRY),
)
