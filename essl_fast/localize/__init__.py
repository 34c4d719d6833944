"""Where in a video its sound comes from, moment by moment; and drawn."""

from essl_fast.common.lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "SoundFinder": "finder",
        "drawing": "",
        "finder": "",
        "localize": "moments",
        "moments": "",
    },
)
