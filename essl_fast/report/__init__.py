"""A run, or several, as one HTML page: charts, galleries, figures."""

from essl_fast.common.lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "figures": "",
        "gallery": "",
        "paper": "",
        "runs": "",
        "style": "",
        "write_report": "writing",
        "writing": "",
    },
)
