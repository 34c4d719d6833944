"""Where the time of a training step goes, and how far each stage is from the least that it could take."""

from essl_fast.common.lazy import lazy_exports

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
