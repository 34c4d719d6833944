"""The rows of SemiPL's tables, and the shipped config that each one trains.

    Li et al.: SemiPL: A Semi-supervised Method for Event Sound Source Localization, arXiv 2404.19615
    table 1     how batch size and the head's learning rate change SSPL with PCM
    table 2     LSS, SSPL and SemiPL, with and without PCM

`essl_fast.report.paper` holds what is published; a row without a figure there has a dash in every table, unless a file
of the user's gives one (`read_published`).
"""

from pathlib import Path
from typing import NamedTuple

import yaml

from essl_fast.common.errors import InputError
from essl_fast.config.yamls import refuse_bombs
from essl_fast.report import paper

_PUBLISHED = {row.name: row for row in paper.ROWS if row.data == "Chaotic World"}


class Row(NamedTuple):
    """A line of a table. `config` is a shipped config's name; `same_as` names a row of the same settings, whose runs
    are this one's as well."""

    name: str
    label: str
    config: str
    same_as: str = ""

    @property
    def run(self) -> str:
        """Name of its runs."""
        return self.same_as or self.name

    @property
    def published(self) -> paper.Row | None:
        """What is published of it on Chaotic World, if it is known."""
        return _PUBLISHED.get(self.label)


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

FRACTIONS = (0.0, 0.1, 0.5, 1.0)  # not in the paper: how many labels SemiPL needs


def fraction_rows() -> tuple[Row, ...]:
    """SemiPL without PCM, with a share of the labels."""
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
    """The share of labels of a row of :func:`fraction_rows`; None for a row of the paper's."""
    return float(row.name.removeprefix("labels_")) if row.name.startswith("labels_") else None


def read_published(path: Path) -> dict[str, paper.Row]:
    """Published figures that a user has at hand, of rows by their names:

        source: SemiPL, arXiv 2404.19615, table 2      # where they stand; default: the file's name
        rows:
          lss: {success: 31.4, auc: 37.7}              # per cent; one of them will do

    InputError if the file is not like that.
    """
    try:
        told = yaml.safe_load(refuse_bombs(path.read_text()))
    except (OSError, ValueError, yaml.YAMLError) as error:
        what = " ".join(str(getattr(error, "strerror", None) or error).split())
        raise InputError(f"--published: {path} cannot be read ({what})") from error
    names = {row.name: row.label for _, rows in TABLES.values() for row in rows}
    if not isinstance(told, dict) or set(told) - {"source", "rows"} or not isinstance(told.get("rows"), dict):
        raise InputError(f"--published: {path} needs rows: with lines such as lss: {{success: 31.4, auc: 37.7}}")
    source, found = str(told.get("source", path.name)), {}
    for name, figures in told["rows"].items():
        if name not in names:
            raise InputError(f"--published: {path}: {name} is no row; rows are {', '.join(names)}")
        if not isinstance(figures, dict) or not figures or set(figures) - {"success", "auc"}:
            raise InputError(f"--published: {path}: {name} needs success and auc in per cent, got {figures!r}")
        for key, value in figures.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 100:
                raise InputError(f"--published: {path}: {key} of {name} must be from 0 to 100 per cent, got {value!r}")
        success, auc = (None if key not in figures else figures[key] / 100 for key in ("success", "auc"))
        found[name] = paper.Row(names[name], "Chaotic World", success, auc, source)
    return found
