"""Which matrix turns the Y'CbCr of a video into RGB; and how to correct a decoder that always uses another one.

A stream may say its matrix and its range (ITU-T H.273, `MatrixCoefficients` and `VideoFullRangeFlag`). Everything here
follows one rule, on the CPU and on the GPU, for `prepare`, training and `localize`:

* a matrix that is stated is used: BT.601, BT.709, BT.2020, SMPTE 240M or FCC;
* where none is stated, pictures of at least `HD` rows (as stored, before they are turned) are BT.709, smaller ones
  BT.601, as players do;
* the range is limited (16 to 235), unless the stream or its pixel format (yuvj) says full.

Transfer functions and primaries are not converted. A video in PQ or HLG (HDR) or with BT.2020's primaries keeps its
code values, as FFmpeg and players without tone mapping show them: flatter and less saturated than on its own display.
Tone mapping depends on a display and on taste; who wants it applies it to the videos beforehand.

FFmpeg's swscale follows a stated matrix, and takes BT.601 for all others, so `display.upright` names the matrix. NVIDIA
DALI's GPU decoder converts every video by BT.601 (`itu_r_bt_601::ycbcr_to_rgb` and `jpeg::ycbcr_to_rgb`, in
dali/kernels/imgproc/color_manipulation), so `correction` maps its RGB to that of the right matrix.
"""

from __future__ import annotations

import functools

import numpy as np

from essl_fast.data.media.errors import UNREADABLE, MediaError

HD = 720  # rows of a picture from which on an unstated matrix is BT.709
BT601, BT709, BT2020 = 6, 1, 9  # H.273's numbers, which are FFmpeg's, too

# Matrix → share of red and of blue in luma (H.273, table 4).
_SHARES = {
    1: (0.2126, 0.0722),
    4: (0.30, 0.11),
    5: (0.299, 0.114),
    6: (0.299, 0.114),
    7: (0.212, 0.087),
    9: (0.2627, 0.0593),
    10: (0.2627, 0.0593),  # "constant luminance": players use the other form, too
}
_UNSTATED = (0, 2, 3)  # 0 is RGB, which says nothing of Y'CbCr
_SWSCALE = {1: 1, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9, 10: 9}  # swscale's names of the matrices, SWS_CS_...
# DALI 2.4: RGB from Y' - 16, Cb - 128, Cr - 128; and from full-range Y', Cb - 128, Cr - 128.
_DALI_LIMITED = np.array([[1.164, 0, 1.596], [1.164, -0.392, -0.813], [1.164, 2.017, 0]])
_DALI_FULL = np.array([[1, 0, 1.402], [1, -0.34413629, -0.71413629], [1, 1.772, 0]])
IDENTITY = np.eye(3, 4, dtype=np.float32)
IDENTITY.setflags(write=False)


def matrix_of(stated: int, height: int) -> int:
    """The matrix by which a picture becomes RGB.

    Args:
        stated: what its stream says, as H.273 numbers it.
        height: rows, before the picture is turned.

    Raises:
        MediaError: its colours are stored in a form that is none of Y'CbCr (YCgCo, ICtCp, ...).
    """
    if stated in _UNSTATED:
        return BT709 if height >= HD else BT601
    if stated not in _SHARES:
        raise MediaError(
            UNREADABLE,
            f"its colours are stored by matrix {stated} of H.273, which is not read; convert the video first "
            "(ffmpeg -i IN -vf scale=out_color_matrix=bt709 -colorspace bt709 -c:a copy OUT)",
        )
    return stated


def swscale_matrix(frame, container: int = 2) -> int | None:
    """What swscale has to take as the matrix of a decoded PyAV frame; None: it has none.

    Args:
        container: the matrix that the file states outside of the video stream. It counts where the stream states none.

    Raises:
        MediaError: as `matrix_of`.
    """
    if frame.format.is_rgb:
        return None
    return _SWSCALE[matrix_of(stated(int(frame.colorspace), container), frame.height)]


def stated(stream: int, container: int) -> int:
    """The matrix that a file states, in its video stream or else outside of it."""
    return container if stream in _UNSTATED else stream


def differs(matrix: int) -> bool:
    """Whether a matrix of `matrix_of` is another one than BT.601."""
    return _SHARES[matrix] != _SHARES[BT601]


def to_rgb(matrix: int, full: bool) -> tuple[np.ndarray, np.ndarray]:
    """A (3, 3) and b (3,), float64, so that A (Y', Cb, Cr) + b is RGB; all in levels of 8 bits, 0 to 255."""
    red, blue = _SHARES[matrix]
    green = 1 - red - blue
    luma, chroma = (1.0, 1.0) if full else (255 / 219, 255 / 224)
    cb, cr = 2 * (1 - blue) * chroma, 2 * (1 - red) * chroma
    turn = np.array([[luma, 0, cr], [luma, -cb * blue / green, -cr * red / green], [luma, cb, 0]])
    return turn, -turn @ [0 if full else 16, 128, 128]


@functools.cache
def correction(matrix: int, full: bool) -> np.ndarray:
    """(3, 4) float32: its product with (R, G, B, 1) of DALI's GPU decoder is the RGB by the right matrix.

    What DALI clipped to 0 or 255 stays lost: colours that BT.601 takes out of range are some levels off.

    Args:
        matrix: the right one, of `matrix_of`.
        full: whether the video stream says full range; DALI follows that.
    """
    if not differs(matrix):
        return IDENTITY
    ours, shift = to_rgb(matrix, full)
    turn = ours @ np.linalg.inv(_DALI_FULL if full else _DALI_LIMITED)
    found = np.column_stack([turn, shift + ours @ [0 if full else 16, 128, 128]]).astype(np.float32)
    found.setflags(write=False)
    return found
