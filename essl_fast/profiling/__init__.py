"""Where the time of a training step goes, and how far each stage is from the least that it could take."""

from typing import TYPE_CHECKING

from essl_fast.common.lazy import lazy_exports

if TYPE_CHECKING:
    from essl_fast.profiling.explain import ProfiledRun as ProfiledRun
    from essl_fast.profiling.explain import largest_gaps as largest_gaps
    from essl_fast.profiling.floors import measure_ceilings as measure_ceilings
    from essl_fast.profiling.floors import step_flop as step_flop
    from essl_fast.profiling.profile import StepProfile as StepProfile

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "ProfiledRun": "explain",
        "StepProfile": "profile",
        "largest_gaps": "explain",
        "measure_ceilings": "floors",
        "step_flop": "floors",
    },
)
