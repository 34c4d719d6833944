"""What the first slice of an H.264 picture tells: is it one field of a picture, is it shown before earlier ones.

ITU-T H.264: 7.3.1 (NAL units), 7.3.3 (slice headers), 8.2.1 (the order of pictures).
"""

from __future__ import annotations

from collections.abc import Iterator

from essl_fast.data.media.bits import Bits, unescaped
from essl_fast.data.media.headers import H264Sequence, h264_sequence, parameter_sets
from essl_fast.data.media.packets import length_size, marked_units

_SLICES, _IDR, _SETTINGS = (1, 2, 5), 5, 7  # types of NAL units: slices that begin a picture; parameter sets
_AS_DECODED = 2  # the kind of order in which pictures are shown as they are decoded
_HEADER = 32  # bytes of a slice that are looked at


class SliceReader:
    """Reads the packets of one H.264 stream, in either layout: as in MP4, or with start codes.

    Attributes:
        fields: a packet so far held a single field of a picture.
        whole: no picture of the stream is coded as fields, as far as is known.
        reorders: a packet so far may be shown before one that was decoded earlier.
        tells: packets beside key frames may change one of these.
    """

    def __init__(self, settings: bytes | None):
        """settings: the stream's avcC box or its parameter sets with start codes; None if it has none."""
        self.fields = self.reorders = False
        self.whole = self.tells = True
        self._length = length_size("h264", settings)
        self._sequence: H264Sequence | None = None
        self._set = b""  # the sequence parameter set, as it was read
        self._before = self._highest = 0  # the place in the order of showing of the last reference, and the highest one
        try:
            sets = list(parameter_sets("h264", settings or b"")) if self._length else _units(settings or b"", 0)
            for unit in sets:
                self._learn(bytes(unit))
        except (IndexError, ValueError):
            return  # a damaged box; the decoder will say so

    def read(self, packet) -> None:
        """Look at the next packet (bytes-like). Damaged packets tell nothing."""
        view, size = memoryview(packet), self._length
        if self.whole and size and len(view) > size and view[size] & 31 in _SLICES:
            self._look(bytes(view[size : size + _HEADER]))  # most packets begin with a slice
            return
        for unit in _units(view, size):
            kind = unit[0] & 31
            if kind == _SETTINGS:
                self._learn(bytes(unit))
            elif kind in _SLICES:
                self._look(bytes(unit[:_HEADER]))
                return

    def _learn(self, unit: bytes) -> None:
        """Take from a sequence parameter set what is needed to read slice headers."""
        if not unit or unit[0] & 31 != _SETTINGS or unit == self._set:
            return
        try:
            sequence = h264_sequence(unit)
        except (IndexError, ValueError):
            return  # a damaged set; the decoder will say so
        self._sequence, self._set = sequence, unit
        self.whole = not sequence.header.fields
        self.tells = not self.whole or sequence.order_kind != _AS_DECODED

    def _look(self, unit: bytes) -> None:
        """Look at a slice; `unit` holds its NAL unit's first bytes."""
        sequence, kind = self._sequence, unit[0] & 31
        if sequence is None:
            self.reorders = True  # it may: decoding tells
            return
        try:
            header = Bits(unescaped(unit))
            header.bits(8)
            header.skip_ue(3)
            header.bits(2 * sequence.planes + sequence.number_bits)
            if not self.whole and header.bits(1):
                self.fields = True
                header.bits(1)
            if sequence.order_kind:
                self.reorders |= sequence.order_kind != _AS_DECODED  # the other kind is rare: decoding tells
                return
            if kind == _IDR:
                header.ue()
                self._before = self._highest = 0
            place = self._place(header.bits(sequence.order_bits), 1 << sequence.order_bits)
        except IndexError:
            return
        self.reorders = self.reorders or place < self._highest
        self._highest = max(self._highest, place)
        if unit[0] & 0x60:
            self._before = place

    def _place(self, low: int, wrap: int) -> int:
        """The place in the order of showing whose lowest bits are `low`: near that of the last reference (8.2.1.1)."""
        place = self._before - self._before % wrap + low
        if self._before - place >= wrap // 2:
            return place + wrap
        return place - wrap if place - self._before > wrap // 2 else place


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
    for begin, end in marked_units(bytes(view)):
        yield view[begin:end]
