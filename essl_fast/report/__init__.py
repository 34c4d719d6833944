"""One or several runs as an HTML page of charts, galleries and tables; figures as PNG files."""

from typing import TYPE_CHECKING

from essl_fast.common.lazy import lazy_exports

if TYPE_CHECKING:
    from essl_fast.report import figures as figures
    from essl_fast.report import gallery as gallery
    from essl_fast.report import paper as paper
    from essl_fast.report.runs import RESULTS as RESULTS
    from essl_fast.report.style import CSS as CSS
    from essl_fast.report.writing import write_report as write_report

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "CSS": "style",
        "RESULTS": "runs",
        "figures": "",
        "gallery": "",
        "paper": "",
        "write_report": "writing",
    },
)
