"""From videos and annotations to shards: every file is read once."""

from essl_fast.common.lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "PreparedDifferently": "folder",
        "prepare": "run",
        "prepare_dataset": "run",
        "print_summary": "reporting",
        "reporter": "reporting",
        "verify": "verifying",
    },
)
