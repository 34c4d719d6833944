"""The rows of SemiPL's tables, and the shipped config that each one trains.

    Li et al.: SemiPL: A Semi-supervised Method for Event Sound Source Localization, arXiv 2404.19615
    table 1     how batch size and the head's learning rate change SSPL with PCM
    table 2     LSS, SSPL and SemiPL, with and without PCM

`essl_fast.report.paper` holds what is published. A row without a published figure (LSS, semi-supervised: the paper has
no such row) has a dash in the tables, unless a file of the user's gives one (see `published`).
"""

from collections.abc import Iterable
from typing import NamedTuple

from essl_fast.report import paper

PARTS = ("table1", "table2", "figures", "fractions")  # what can be reproduced
_PUBLISHED = {row.name: row for row in paper.ROWS if row.data == "Chaotic World"}
_PRINTED = {  # name of a row -> its name in `paper`
    "batch128_lr3e-5": "SSPL, batch 128, head 3e-5",
    "batch64_lr5e-5": "SSPL, batch 64, head 5e-5",
    "batch128_lr5e-5": "SSPL, batch 128, head 5e-5",
    "lss": "LSS",
    "sspl_wo_pcm": "SSPL without PCM",
    "sspl_w_pcm": "SSPL with PCM",
    "semipl_wo_pcm": "SemiPL",
    "semipl_w_pcm": "SemiPL",
}


class Row(NamedTuple):
    """A line of a table.

    name: unique among all rows. label: as the tables show it. config: name of a shipped config. same_as: name of a row
    with the same settings, whose runs serve this one as well. settings: names and values of further settings of its own
    (a sweep's).
    """

    name: str
    label: str
    config: str
    same_as: str = ""
    settings: tuple[tuple[str, str], ...] = ()

    @property
    def run(self) -> str:
        """The name under which its runs are kept."""
        return self.same_as or self.name

    @property
    def published(self) -> paper.Row | None:
        """The published result on Chaotic World, if it is known."""
        return _PUBLISHED.get(_PRINTED.get(self.name, ""))


TABLES: dict[str, tuple[str, tuple[Row, ...]]] = {
    "table1": (
        "Table 1: batch size and the head's learning rate (SSPL with PCM)",
        (
            Row("batch128_lr3e-5", "batch 128, head 3e-5", "paper/table1_batch128_lr3e-5"),
            Row("batch64_lr5e-5", "batch 64, head 5e-5", "paper/table1_batch64_lr5e-5"),
            Row("batch128_lr5e-5", "batch 128, head 5e-5", "paper/table1_batch128_lr5e-5"),
        ),
    ),
    "table2": (
        "Table 2: methods",
        (
            Row("lss", "LSS", "paper/table2_lss"),
            Row("lss_semi", "LSS, semi-supervised", "paper/table2_lss_semi"),
            Row("sspl_wo_pcm", "SSPL without PCM", "paper/table2_sspl_wo_pcm"),
            Row("sspl_w_pcm", "SSPL with PCM", "paper/table2_sspl_w_pcm", same_as="batch64_lr5e-5"),
            Row("semipl_wo_pcm", "SemiPL without PCM", "paper/table2_semipl_wo_pcm"),
            Row("semipl_w_pcm", "SemiPL with PCM", "paper/table2_semipl_w_pcm"),
        ),
    ),
}

FRACTIONS = (0.0, 0.1, 0.5, 1.0)  # of the labels; not in the paper: how many labels does SemiPL need?


def fraction_rows() -> tuple[Row, ...]:
    """SemiPL without PCM, with different shares of the labels."""
    return tuple(
        Row(
            f"labels_{share:g}",
            f"{100 * share:g}% of the labels",
            "paper/table2_semipl_wo_pcm",
            same_as="semipl_wo_pcm" if share == 1 else "",
        )
        for share in FRACTIONS
    )


def fraction_of(row: Row) -> float | None:
    """The share of labels that a row of :func:`fraction_rows` trains with; None for a row of the paper."""
    return float(row.name.removeprefix("labels_")) if row.name.startswith("labels_") else None


def rows_of(parts: Iterable[str]) -> dict[str, Row]:
    """The rows to train for some of PARTS, by the name of their runs, each once."""
    tables = {name: rows for name, (_, rows) in TABLES.items()} | {"fractions": fraction_rows()}
    tables["figures"] = (*tables["table1"], *tables["table2"])
    named = {row.name: row for rows in tables.values() for row in rows}
    return {row.run: named[row.run] for part in parts for row in tables[part]}
