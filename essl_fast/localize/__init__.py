"""Where in a video its sound comes from, moment by moment, as a video, a contact sheet and JSON."""

from typing import TYPE_CHECKING

from essl_fast.common.lazy import lazy_exports

if TYPE_CHECKING:
    from essl_fast.localize.command import localize as localize
    from essl_fast.localize.drawing import Overlay as Overlay
    from essl_fast.localize.drawing import contact_sheet as contact_sheet
    from essl_fast.localize.finder import SoundFinder as SoundFinder
    from essl_fast.localize.finder import stored_frame as stored_frame
    from essl_fast.localize.heat import heat_of as heat_of
    from essl_fast.localize.inputs import read_picture as read_picture
    from essl_fast.localize.inputs import read_sound as read_sound
    from essl_fast.localize.moments import Localization as Localization
    from essl_fast.localize.moments import Moment as Moment
    from essl_fast.localize.moments import Region as Region
    from essl_fast.localize.moments import find_moments as find_moments
    from essl_fast.localize.moments import moment_places as moment_places

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "Localization": "moments",
        "Moment": "moments",
        "Overlay": "drawing",
        "Region": "moments",
        "SoundFinder": "finder",
        "contact_sheet": "drawing",
        "find_moments": "moments",
        "heat_of": "heat",
        "localize": "command",
        "moment_places": "moments",
        "read_picture": "inputs",
        "read_sound": "inputs",
        "stored_frame": "finder",
    },
)
