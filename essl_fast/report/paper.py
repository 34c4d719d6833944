"""Published results of the methods here, which reports and reproductions show beside their own.

A figure that is not published, or that this project has not seen in print, is None: it is not guessed.

Li et al. (arXiv 2404.19615) do not say whether the rows of their tables 1 and 2 are with or without the predictive
coding module. The README of the published code has the figures of one row, 47.70 and 44.14: that one is with it.
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


SETS = {name: "Chaotic World" for name in ("chaotic", "chaotic-h5")}  # a data set's name in a manifest -> in ROWS
CODE = "README of the published code (ly245422/SSPL)"
ENTRY = "the same at commit 116b0bb: entry to MMVRAC, track 4, ICME 2024"
TABLE1, TABLE2 = (f"SemiPL (arXiv 2404.19615), table {number}" for number in (1, 2))
OPEN = (
    "The paper does not say whether a row of its tables is with or without PCM; only 47.70 / 44.14 is known to be with."
)
NOT_SAID = "with or without PCM is not said"
ROWS = (
    Row("SSPL with PCM", "Chaotic World", 0.4770, 0.4414, CODE, "sspl_pcm"),
    Row("SSPL without PCM", "Chaotic World", 0.4112, 0.4260, CODE, "sspl"),
    Row("SSPL with PCM, challenge entry", "Chaotic World", 0.4309, 0.4288, ENTRY),
    Row("SSPL, batch 128, head 3e-5", "Chaotic World", 0.4102, 0.4223, f"{TABLE1}; {NOT_SAID}"),
    Row("SSPL, batch 64, head 5e-5", "Chaotic World", 0.4203, 0.4338, f"{TABLE1}; {NOT_SAID}"),
    Row("SSPL, batch 128, head 5e-5", "Chaotic World", 0.4770, 0.4414, TABLE1),
    Row("LSS", "Chaotic World", 0.2385, 0.3656, TABLE2, "lss"),
    Row("SemiPL", "Chaotic World", 0.3684, 0.4186, f"{TABLE2}; {NOT_SAID}", "semipl"),
    Row("SSPL", "Chaotic World", 0.4770, 0.4414, TABLE2, "sspl_pcm"),
)
