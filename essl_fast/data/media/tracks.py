"""Which sound track of a file belongs to its picture."""

from __future__ import annotations

from av.audio.stream import AudioStream
from av.container import InputContainer
from av.stream import Disposition, Stream

_ASIDE = Disposition.comment | Disposition.visual_impaired | Disposition.descriptions | Disposition.karaoke

_WORDS = ("commentary", "audio description", "descriptive", "described video")  # in the names of such tracks


def choose_sound(container: InputContainer) -> tuple[AudioStream | None, str]:
    """The sound track that is used: of the tracks in the picture's programme (broadcasts hold several) the default one;
    where none or several are marked so, the first that is no commentary.

    Returns:
        (the track, or None if there is none; "" or, if the file has several, which one it is and why).
    """
    every = list(container.streams.audio)
    video = container.streams.best("video")
    own = [track for track in every if _is_of_programme(container, track, video)] if len(every) > 1 and video else every
    if not own:
        return None, ""
    default = [track for track in own if track.disposition & Disposition.default]
    plain = [track for track in own if not _is_aside(track)]
    if len(default) == 1:
        taken, why = default[0], "the default one"
    else:
        taken, why = (plain or own)[0], "the first that is no commentary" if plain else "the first"
    if len(own) < len(every):
        why += " of the picture's programme" if len(own) > 1 else ""
        why = "the one of the picture's programme" if len(own) == 1 else why
    return taken, f"track {every.index(taken) + 1} of {len(every)}, {why}" if len(every) > 1 else ""


def _is_of_programme(container: InputContainer, track: AudioStream, video: Stream) -> bool:
    """Whether a sound track is in the picture's programme; True if the file has no programmes."""
    best = container.streams.best
    return best("video", related=track) is video and best("audio", related=track) is best("audio", related=video)


def _is_aside(track: AudioStream) -> bool:
    named = " ".join(track.metadata.get(name, "") for name in ("title", "handler_name")).lower()  # the second in MP4
    return bool(track.disposition & _ASIDE) or any(word in named for word in _WORDS)
