"""Where and how a program runs: devices, several processes, compiling, stages, stopping, the log of a run."""

from typing import TYPE_CHECKING

from essl_fast.common.lazy import lazy_exports

if TYPE_CHECKING:
    from essl_fast.runtime import compiling as compiling
    from essl_fast.runtime import devices as devices
    from essl_fast.runtime import distributed as distributed
    from essl_fast.runtime import provenance as provenance
    from essl_fast.runtime import runlog as runlog
    from essl_fast.runtime import stages as stages
    from essl_fast.runtime import stopping as stopping

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
