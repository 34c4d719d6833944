"""Makes one pair out of whole files: a picture file and a sound file, or the middle of a short video.

The sound is the 3 s in the middle of the file, as in the published code of SSPL: the sound is resampled to 16 kHz,
repeated if it is too short, and its middle 48,000 samples are taken.

A JPEG file goes into the shard byte for byte if every decoder shows it correctly: 8 bits, grey or YCbCr, not turned by
its Exif orientation. Every other picture (PNG, WebP, BMP, ...; CMYK or RGB inside a JPEG; 16 bits; a photograph that
has to be turned) is decoded, turned upright, and stored as JPEG of quality 95, 4:4:4, like the frames of videos. Every
picture is decoded once here, so that a damaged one is left out now and does not stop training.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from essl_fast.data.media import audio
from essl_fast.data.media.errors import MISSING, SOUND_TRUNCATED, MediaError
from essl_fast.data.media.jpeg import JPEG, MOST_PIXELS, jpeg_size
from essl_fast.data.media.probing import Probe

BAD_PICTURE = "picture unreadable"  # a MediaError.reason
_ORIENTATION = 0x0112  # the Exif tag
_LARGEST = 64 << 20  # bytes of a picture file
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP")  # Pillow starts other programs to read some other formats


def picture_file(path: Path) -> bytes:
    """The picture as the bytes of a JPEG file that every decoder shows upright and in the same colours.

    Raises:
        MediaError: the file is missing, too large, or cannot be decoded.
    """
    try:
        if (size := path.stat().st_size) > _LARGEST:
            raise MediaError(BAD_PICTURE, f"{path.name}: {size / 1e6:.0f} MB; pictures may have 67")
        data = path.read_bytes()
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            if image.width * image.height > MOST_PIXELS:
                raise MediaError(BAD_PICTURE, f"{path.name}: {image.width} x {image.height} pixels are too many")
            image.load()  # the whole file: one that breaks off raises OSError
            if _as_it_is(image, data):
                return data
            shown = _eight_bits(ImageOps.exif_transpose(image)).convert("RGB")
    except FileNotFoundError:
        raise MediaError(MISSING, f"{path.name} is gone") from None
    except UnidentifiedImageError:  # its text names an object in memory, not the file
        raise MediaError(BAD_PICTURE, f"{path.name}: no kind of picture that is known") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        if isinstance(error, MediaError):
            raise
        what = str(error).replace(str(path), path.name)
        raise MediaError(BAD_PICTURE, f"{path.name}: {what or type(error).__name__}") from error
    return _encoded(shown)


def as_jpeg(frame: np.ndarray) -> bytes:
    """A frame, RGB uint8 (H, W, 3), as it is stored."""
    return _encoded(Image.fromarray(frame))


def _encoded(picture: Image.Image) -> bytes:
    stored = io.BytesIO()
    picture.save(stored, "JPEG", **JPEG)
    return stored.getvalue()


def check_picture(path: Path) -> None:
    """MediaError if a picture file is missing, or its header is none of a picture that is read."""
    try:
        with Image.open(path, formats=_FORMATS) as image:
            if image.width * image.height > MOST_PIXELS:
                raise MediaError(BAD_PICTURE, f"{path.name}: {image.width} x {image.height} pixels are too many")
    except FileNotFoundError:
        raise MediaError(MISSING, f"{path.name} is gone") from None
    except UnidentifiedImageError:
        raise MediaError(BAD_PICTURE, f"{path.name}: no kind of picture that is known") from None
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise MediaError(BAD_PICTURE, f"{path.name}: {error}") from error


def _as_it_is(image: Image.Image, data: bytes) -> bool:
    """Whether the file `data`, opened as `image`, can be stored unchanged."""
    if image.format != "JPEG" or image.mode not in ("RGB", "L"):
        return False
    layers = image.layer  # type: ignore[attr-defined]  # Pillow's JPEG reader has it
    named = bytes(layer[0] for layer in layers) == b"RGB"  # libjpeg's rule where there is no Adobe segment
    if image.mode == "RGB" and (image.info.get("adobe_transform") == 0 or named):
        return False  # some decoders take RGB without a transform for YCbCr
    if image.getexif().get(_ORIENTATION, 1) != 1:
        return False
    try:
        jpeg_size(np.frombuffer(data, np.uint8))
    except ValueError:
        return False  # Pillow reads this kind of JPEG, the loader does not
    return True


def _eight_bits(image: Image.Image) -> Image.Image:
    """A grey picture of 16 bits reduced to its upper 8, since Pillow would clip it; any other picture unchanged."""
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    return image


def middle_sound(path: Path, alone: bool = True, zero: float | None = None) -> np.ndarray:
    """The 3 s in the middle of a file's sound, float32 (48000,) at 16 kHz; a shorter sound is repeated.

    Args:
        path: the file.
        alone, zero: as in `audio.decode_sound`.

    Raises:
        MediaError: as `audio.decode_sound`; also if the track is damaged anywhere, since its middle is then unknown.
    """
    sound = audio.decode_sound(path, alone=alone, zero=zero)
    if sound.damage or sound.holes or sound.broken:
        begin = min((*sound.holes, *sound.broken), default=(0, 0))[0] / sound.rate
        why = sound.damage or f"{path.name}: the sound from {begin:.2f} s on cannot be decoded"
        raise MediaError(SOUND_TRUNCATED, why)
    return audio.to_stored(sound.mono, sound.rate)


def middle_frame(found: Probe) -> tuple[int, float]:
    """The frame in the middle of a video: its number, from 1, and its time in seconds."""
    place = len(found.pts) // 2
    return place + 1, float((int(found.pts[place]) - found.start) * found.time_base)
