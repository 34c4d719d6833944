"""Where in a video its sound comes from, moment by moment, as a video, a contact sheet and JSON."""

from essl_fast.common.lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "Localization": "moments",
        "Moment": "moments",
        "Overlay": "drawing",
        "Region": "moments",
        "SoundFinder": "finder",
        "find_moments": "moments",
        "heat_of": "heat",
        "localize": "command",
        "moment_places": "moments",
        "read_picture": "inputs",
        "read_sound": "inputs",
        "stored_frame": "finder",
    },
)
