"""A synthetic world of short videos in which one of several objects sounds."""

from essl_fast.common.lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "World": "world",
        "look": "",
        "make_world": "world",
        "plan": "",
        "sound": "",
        "world": "",
    },
)
