"""Results as tables for the terminal."""

import math

from rich.table import Table
from rich.text import Text

from essl_fast.evaluate import class_aware, metrics
from essl_fast.evaluate.foreign import FOREIGN

LISTENING = (
    "deaf: finds the same, with one confidence for every sound; perfect: errs only where both sounds are of a class"
)


def table(title: str, results: dict[str, dict]) -> Table:
    """Success rate and AUC in per cent, one row per result."""
    out = Table(title=Text(title))
    for column in ("", "pairs", "success at cIoU 0.5, %", "AUC, %"):
        out.add_column(column, justify="left" if not column else "right")
    for name, result in results.items():
        figures = f"{100 * result['success_at_half']:.1f}", f"{100 * result['auc']:.1f}"
        out.add_row(Text(name), str(result["pairs"]), *figures)
    return out


def extra_tables(extra: dict) -> list[Table]:
    """Tables of what :meth:`Evaluation.extra` gives."""
    sizes = {f"{name}, from {metrics.SIZES[name]} pixels": found for name, found in extra["per_size"].items()}
    tables = [table("further metrics", {"area of the boxes as threshold": extra["ciou_adaptive"], **sizes})]
    if extra["foreign"]:
        out = Table(title="does it listen? own sound against", caption=LISTENING)
        for column in ("", "average precision, %", "max-F1, %", "at similarity"):
            out.add_column(column, justify="left" if not column else "right")
        for kind, found in extra["foreign"].items():
            at = "–" if found["threshold"] is None else f"{found['threshold']:.3f}"
            rows = {FOREIGN[kind]: found, "  a deaf model": found["deaf"], "  a perfect model": found["perfect"]}
            for name, one in rows.items():
                out.add_row(name, _percent(one["average_precision"]), _percent(one["max_f1"]), at * (one is found))
        tables.append(out)
    return [*tables, *_later_tables(extra)]


def _later_tables(extra: dict) -> list[Table]:
    """Tables of what only some data sets have, or that need a threshold from the validation split."""
    tables = []
    if guided := extra.get("guidance"):
        names = {"guided": "mixed with the object map", "object_map": "object map alone, without sound"}
        tables.append(table("object guidance", {names[name]: found for name, found in guided.items()}))
    if one := extra.get("universal"):
        out = _plain(
            f"at one threshold, similarity {one['threshold']:.3f}",
            ("", "pairs", "mean cIoU or pIA, %", "AUC or AOC, %"),
        )
        own = one["own"]
        out.add_row("own sound: cIoU, AUC", str(own["pairs"]), _percent(own["mean_ciou"]), _percent(own["auc"]))
        for kind, found in one["negatives"].items():
            name = f"{FOREIGN.get(kind, kind)}: pIA, AOC"
            out.add_row(Text(name), str(found["pairs"]), _percent(found["pia"]), _percent(found["aoc"]))
        out.add_row("both: F_LOC, F_AUC", "", _percent(one["f_loc"]), _percent(one["f_auc"]))
        tables.append(out)
    if found := extra.get("class_aware"):
        out = _plain(f"class-aware, {found['pairs']} pairs: every class that sounds in its own place", ("", "%"))
        out.add_row("mean CIoU", _percent(found["mean"]))
        out.add_row("success at CIoU 0.5", _percent(found["success_at_half"]))
        out.add_row(f"success at CIoU {class_aware.EARLIER}", _percent(found["success_at_earlier"]))
        out.add_row("AUC", _percent(found["auc"]))
        out.add_row("every class at cIoU 0.5", _percent(found["all_found"]))
        tables.append(out)
    rows = []
    if found := extra.get("negatives"):
        rows.append(("average precision against the set's negatives", found["average_precision"]))
        rows.append(("max-F1 against them", found["max_f1"]))
    if found := extra.get("masks"):
        rows += [("mIoU with masks", found["mean_iou"]), ("F with masks", found["f"])]
    if found := extra.get("interactive"):
        rows.append((f"interactive IoU, {found['frames']} frames", found["iiou"]))
        rows.append(("interactive AUC", found["iauc"]))
    rows.append(("LocAcc: cIoU 0.5 with the map's upper half", extra["loc_acc"]))
    out = _plain("metrics of later papers", ("", "%"))
    for name, share in rows:
        out.add_row(Text(name), "–" if share is None else _percent(share))
    return [*tables, out]


def _plain(title: str, columns: tuple[str, ...]) -> Table:
    out = Table(title=Text(title))
    for column in columns:
        out.add_column(column, justify="left" if not column else "right")
    return out


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def trust(min_score: float | None) -> str:
    """What :meth:`Evaluation.trusted_from` found, as a line."""
    if min_score is None:
        return "the model is wrong more often than right, however large the similarity"
    least = f"{math.floor(min_score * 1e4) / 1e4:.4f}"
    return f"a similarity below {least} is wrong more often than right: localize --min-score {least}"
