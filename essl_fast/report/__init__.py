"""One or several runs as an HTML page of charts, galleries and tables; figures as PNG files."""

from essl_fast.common.lazy import lazy_exports

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
