"""What the first slice of an H.264 picture tells: is it one field of a picture, may it be shown before earlier ones.

ITU-T H.264: 7.3.1 (NAL units), 7.3.2.1.1 (sequence parameter sets), 7.3.3 (slice headers).
"""

from __future__ import annotations

from collections.abc import Iterator

from essl_fast.data.media.packets import length_size

_SLICES, _SETTINGS = (1, 2, 5), 7  # types of NAL units: slices that begin a picture; sequence parameter sets
_B = (1, 6)  # slice types whose pictures may be shown before pictures that were decoded earlier
_CHROMA = (100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135)  # profiles that state the chroma format
_HEADER = 48  # bytes of a slice that are looked at


class SliceReader:
    """Reads the packets of one H.264 stream, in either layout: as in MP4, or with start codes.

    Attributes:
        fields: a packet so far held a single field of a picture.
        whole: no picture of the stream is coded as fields, as far as is known.
        reorders: a packet so far may be shown before one that was decoded earlier.
    """

    def __init__(self, settings: bytes | None):
        """settings: the stream's avcC box or its parameter sets with start codes; None if it has none."""
        self.fields = self.reorders = False
        self._length = length_size("h264", settings)
        self._frame_bits, self.whole, self._planes = 0, True, False
        for unit in _stored_settings(settings or b"") if self._length else _units(settings or b"", 0):
            self._learn(unit)

    def read(self, packet) -> None:
        """Look at the next packet (bytes-like). Damaged packets tell nothing."""
        view = memoryview(packet)
        size = self._length
        if self.whole and size and len(view) > size + 1 and view[size] & 31 in _SLICES and view[size + 1] & 128:
            self.reorders = self.reorders or _is_b(view[size + 1])  # most packets: a microsecond each
            return
        for unit in _units(view, size):
            kind = unit[0] & 31
            if kind == _SETTINGS:
                self._learn(unit)
            elif kind in _SLICES:
                self._look(unit)
                return

    def _learn(self, unit) -> None:
        """Take from a sequence parameter set what is needed to read slice headers."""
        if not unit or unit[0] & 31 != _SETTINGS:
            return
        try:
            bits = _Bits(bytes(unit[1:]))
            profile = bits.take(8)
            bits.take(16)
            bits.number()
            self._planes = _skip_chroma(bits) if profile in _CHROMA else False
            self._frame_bits = bits.number() + 4
            order = bits.number()
            if order == 0:
                bits.number()
            elif order == 1:
                bits.take(1)
                bits.number(), bits.number()
                for _ in range(bits.number()):
                    bits.number()
            bits.number()
            bits.take(1)
            bits.number(), bits.number()
            self.whole = bool(bits.take(1))
        except IndexError:
            return  # a damaged set; the decoder will say so

    def _look(self, unit) -> None:
        try:
            bits = _Bits(bytes(unit[1:_HEADER]))
            bits.number()
            self.reorders |= bits.number() in _B
            if not self.whole:
                bits.number()
                bits.take(2 * self._planes + self._frame_bits)
                self.fields |= bool(bits.take(1))
        except IndexError:
            return


def _is_b(first: int) -> bool:
    """Whether a slice is of type B, by the first byte of its header: macroblock 0 is the bit 1, the types 1 and 6 are
    the bits 010 and 00111."""
    return first >> 4 & 7 == 2 or first >> 2 & 31 == 7


def _skip_chroma(bits: _Bits) -> bool:
    """Pass over the chroma format and the scaling lists; whether colour planes are coded separately."""
    planes = False
    if (chroma := bits.number()) == 3:
        planes = bool(bits.take(1))
    bits.number(), bits.number()
    bits.take(1)
    if bits.take(1):
        for place in range(8 if chroma != 3 else 12):
            if bits.take(1):
                last = following = 8
                for _ in range(16 if place < 6 else 64):
                    if following:
                        code = bits.number()
                        following = (last + (code + 1 >> 1) * (1 if code & 1 else -1)) % 256
                    last = following or last
    return planes


class _Bits:
    """Reads the bits of a NAL unit's payload. IndexError past its end."""

    def __init__(self, data: bytes):
        data = data.replace(b"\0\0\3", b"\0\0")  # the bytes that keep start codes out of the payload
        self._value, self._left = int.from_bytes(data), 8 * len(data)

    def take(self, count: int) -> int:
        """The next bits, as an unsigned number."""
        self._left -= count
        if self._left < 0:
            raise IndexError
        return self._value >> self._left & (1 << count) - 1

    def number(self) -> int:
        """The next Exp-Golomb code, ue(v)."""
        zeros = 0
        while not self.take(1):
            zeros += 1
        return (1 << zeros) - 1 + self.take(zeros)


def _stored_settings(box: bytes) -> Iterator[memoryview]:
    """The sequence parameter sets of an avcC box (ISO/IEC 14496-15, 5.3.3.1)."""
    at = 6
    for _ in range(box[5] & 31 if len(box) > 5 else 0):
        size = int.from_bytes(box[at : at + 2])
        yield memoryview(box)[at + 2 : at + 2 + size]
        at += 2 + size


def _units(data, length: int) -> Iterator[memoryview]:
    """The NAL units of a packet. length: bytes of the field before each; 0: they have start codes."""
    view = memoryview(data)
    if length:
        at = 0
        while at + length < len(view):
            begin = at + length
            at = begin + int.from_bytes(view[at:begin])
            if at > begin:
                yield view[begin:at]
        return
    data = bytes(view)
    at = data.find(b"\0\0\1")
    while 0 <= at < len(data) - 3:
        following = data.find(b"\0\0\1", at + 3)
        yield view[at + 3 : following if following >= 0 else len(data)]
        at = following
