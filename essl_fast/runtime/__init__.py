"""Where and how a program runs: devices, several processes, compiling, stages, stopping, the log of a run."""

from essl_fast.common.lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "compiling": "",
        "devices": "",
        "distributed": "",
        "provenance": "",
        "runlog": "",
        "stages": "",
        "stopping": "",
    },
)
