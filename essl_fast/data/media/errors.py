"""What can be wrong with a media file: one error class, and the reasons that reports count."""

from __future__ import annotations

MISSING = "video file missing"
UNREADABLE = "video file unreadable"
NO_VIDEO = "no video stream"
NO_SOUND = "no audio track"
WINDOW = "sound window leaves the audio track"
PAST_END = "frame past the end of the video"
TRUNCATED = "video truncated or damaged"
SOUND_TRUNCATED = "sound truncated or damaged"
LIMIT = "beyond the decoding limits"  # those of `limits`
OWN_FAULT = "error in the program, not in the file"
NO_CLIP = "no clip can be cut for this frame"  # the pair is then stored as JPEG


def as_text(text: str) -> str:
    """`text` as UTF-8 can hold it: bytes of a file name that are not UTF-8 become escapes such as ``\\udcff``."""
    return text.encode(errors="backslashreplace").decode()


class MediaError(ValueError):
    """A media file cannot give what a caller asked for.

    Attributes:
        reason: a short fixed phrase that can be counted: a constant of this module, `nvdec.FAILED` or
            `stills.BAD_PICTURE`.
        detail: what exactly is wrong; it names the file.
    """

    def __init__(self, reason: str, detail: str):
        detail = as_text(detail)
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail

    def __reduce__(self):
        return MediaError, (self.reason, self.detail)
