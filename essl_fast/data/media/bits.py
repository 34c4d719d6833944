"""Reads the headers of video streams bit by bit."""

from __future__ import annotations


class Bits:
    """The bits of some bytes, the highest of each first. IndexError past their end."""

    def __init__(self, data: bytes):
        self._value, self._left = int.from_bytes(data), 8 * len(data)

    def bits(self, count: int) -> int:
        """The next bits, as an unsigned number."""
        self._left -= count
        if self._left < 0:
            raise IndexError
        return self._value >> self._left & (1 << count) - 1

    def ue(self) -> int:
        """The next Exp-Golomb code (H.264, 9.1)."""
        zeros = 0
        while not self.bits(1):
            zeros += 1
        return (1 << zeros) - 1 + self.bits(zeros)

    def skip_ue(self, count: int) -> None:
        for _ in range(count):
            self.ue()

    def se(self) -> int:
        """The next signed Exp-Golomb code (H.264, 9.1.1)."""
        code = self.ue()
        return (code + 1) // 2 if code & 1 else -(code // 2)


def unescaped(unit: bytes) -> bytes:
    """A NAL unit of H.264 or HEVC without the bytes that keep start codes out of it."""
    return unit.replace(b"\0\0\3", b"\0\0")
