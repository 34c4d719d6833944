"""One training run: the loop, the step, what keeps it safe, and what it leaves behind."""

from essl_fast.common.lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "Fault": "faults",
        "Trainer": "trainer",
        "forbidden": "trainer",
    },
)
