"""What media files hold: frames, sound, and clips, which are cut out of videos without decoding."""

from typing import TYPE_CHECKING

from essl_fast.common.lazy import lazy_exports

if TYPE_CHECKING:
    from essl_fast.data.media import audio as audio
    from essl_fast.data.media import blank as blank
    from essl_fast.data.media import colours as colours
    from essl_fast.data.media import footage as footage
    from essl_fast.data.media import hardware as hardware
    from essl_fast.data.media import jpeg as jpeg
    from essl_fast.data.media import nvdec as nvdec
    from essl_fast.data.media import nvdec_clips as nvdec_clips
    from essl_fast.data.media import stills as stills
    from essl_fast.data.media.clip_decoding import decode_clip as decode_clip
    from essl_fast.data.media.clips import Clip as Clip
    from essl_fast.data.media.clips import can_copy as can_copy
    from essl_fast.data.media.clips import cut_clips as cut_clips
    from essl_fast.data.media.clips import cut_reels as cut_reels
    from essl_fast.data.media.decoding import decode_frames as decode_frames
    from essl_fast.data.media.display import upright as upright
    from essl_fast.data.media.errors import LIMIT as LIMIT
    from essl_fast.data.media.errors import MISSING as MISSING
    from essl_fast.data.media.errors import NO_CLIP as NO_CLIP
    from essl_fast.data.media.errors import NO_SOUND as NO_SOUND
    from essl_fast.data.media.errors import NO_VIDEO as NO_VIDEO
    from essl_fast.data.media.errors import OWN_FAULT as OWN_FAULT
    from essl_fast.data.media.errors import PAST_END as PAST_END
    from essl_fast.data.media.errors import SOUND_TRUNCATED as SOUND_TRUNCATED
    from essl_fast.data.media.errors import TRUNCATED as TRUNCATED
    from essl_fast.data.media.errors import UNREADABLE as UNREADABLE
    from essl_fast.data.media.errors import WINDOW as WINDOW
    from essl_fast.data.media.errors import MediaError as MediaError
    from essl_fast.data.media.errors import as_text as as_text
    from essl_fast.data.media.glancing import check_sound as check_sound
    from essl_fast.data.media.glancing import glance as glance
    from essl_fast.data.media.groups import Reel as Reel
    from essl_fast.data.media.limits import hold_memory as hold_memory
    from essl_fast.data.media.limits import release_memory as release_memory
    from essl_fast.data.media.names import EXTENSIONS as EXTENSIONS
    from essl_fast.data.media.names import find_file as find_file
    from essl_fast.data.media.names import find_video as find_video
    from essl_fast.data.media.names import one_form as one_form
    from essl_fast.data.media.opening import unreadable as unreadable
    from essl_fast.data.media.probing import Probe as Probe
    from essl_fast.data.media.probing import find_places as find_places
    from essl_fast.data.media.probing import probe as probe
    from essl_fast.data.media.sound_windows import Window as Window
    from essl_fast.data.media.sound_windows import open_windows as open_windows
    from essl_fast.data.media.sound_windows import sound_length as sound_length
    from essl_fast.data.media.tracks import choose_sound as choose_sound
    from essl_fast.data.media.writing import video_file as video_file

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "Clip": "clips",
        "EXTENSIONS": "names",
        "LIMIT": "errors",
        "MISSING": "errors",
        "MediaError": "errors",
        "NO_CLIP": "errors",
        "NO_SOUND": "errors",
        "NO_VIDEO": "errors",
        "OWN_FAULT": "errors",
        "PAST_END": "errors",
        "Probe": "probing",
        "Reel": "groups",
        "SOUND_TRUNCATED": "errors",
        "TRUNCATED": "errors",
        "UNREADABLE": "errors",
        "WINDOW": "errors",
        "as_text": "errors",
        "audio": "",
        "blank": "",
        "can_copy": "clips",
        "colours": "",
        "check_sound": "glancing",
        "choose_sound": "tracks",
        "find_places": "probing",
        "cut_clips": "clips",
        "cut_reels": "clips",
        "decode_clip": "clip_decoding",
        "decode_frames": "decoding",
        "find_file": "names",
        "find_video": "names",
        "footage": "",
        "glance": "glancing",
        "hardware": "",
        "hold_memory": "limits",
        "jpeg": "",
        "nvdec": "",
        "nvdec_clips": "",
        "one_form": "names",
        "open_windows": "sound_windows",
        "probe": "probing",
        "release_memory": "limits",
        "sound_length": "sound_windows",
        "stills": "",
        "unreadable": "opening",
        "upright": "display",
        "video_file": "writing",
        "Window": "sound_windows",
    },
)
