"""Results as tables for the terminal."""

from rich.table import Table
from rich.text import Text

from essl_fast.evaluate import metrics
from essl_fast.evaluate.foreign import FOREIGN


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
        out = Table(title="does it listen? own sound against")
        for column in ("", "average precision, %", "max-F1, %", "at similarity"):
            out.add_column(column, justify="left" if not column else "right")
        for kind, found in extra["foreign"].items():
            figures = (f"{100 * found['average_precision']:.1f}", f"{100 * found['max_f1']:.1f}")
            out.add_row(FOREIGN[kind], *figures, "–" if found["threshold"] is None else f"{found['threshold']:.3f}")
        tables.append(out)
    return tables
