"""Parameter sets with every optional part, written here as the standards' syntax tables have them."""

import pytest

from essl_fast.data.media.bits import Bits
from essl_fast.data.media.headers import StreamHeader, _hevc, _vp9, h264_sequence


class Writer:
    """Bits, one after the other."""

    def __init__(self):
        self.text = ""

    def u(self, *pairs: tuple[int, int]) -> "Writer":
        """Unsigned numbers, each as (bits, value)."""
        self.text += "".join(f"{value:0{bits}b}" for bits, value in pairs)
        return self

    def ue(self, *values: int) -> "Writer":
        """Exp-Golomb codes (H.264, 9.1)."""
        for value in values:
            code = f"{value + 1:b}"
            self.text += "0" * (len(code) - 1) + code
        return self

    def se(self, *values: int) -> "Writer":
        """Signed ones (9.1.1)."""
        return self.ue(*(2 * value - 1 if value > 0 else -2 * value for value in values))

    def done(self) -> bytes:
        """The bytes, with the bit that ends a unit."""
        text = self.text + "1"
        text += "0" * (-len(text) % 8)
        return int(text, 2).to_bytes(len(text) // 8)


def signal(to: Writer, full: int, matrix: int) -> Writer:
    """Usability information (E.1.1): an aspect ratio, overscan, and the colours."""
    to.u((1, 1), (8, 255), (16, 4), (16, 3), (1, 1), (1, 0))
    return to.u((1, 1), (3, 5), (1, full), (1, 1), (8, 9), (8, 16), (8, matrix))


def test_a_hevc_set_with_every_part():
    to = Writer().u((16, 0x4201), (4, 0), (3, 2), (1, 1), (8, 1), (32, 1 << 30), (48, 0), (8, 93))
    to.u((1, 1), (1, 1), (1, 0), (1, 1))  # of two layers more: profile and level, level alone
    to.u(*[(2, 0)] * 6, (88, 0), (8, 90), (8, 60))
    to.ue(0, 3).u((1, 0)).ue(1920, 1088)  # 4:4:4
    to.u((1, 1)).ue(0, 0, 0, 4)  # cropped
    to.ue(2, 2, 4).u((1, 1)).ue(*[1] * 9)  # 10 bits; 8 bits of picture order; buffers of each layer
    to.ue(0, 3, 0, 3, 0, 0).u((1, 1), (1, 1))  # scaling lists
    for size in range(4):
        for number in range(2 if size == 3 else 6):
            if number % 2:
                to.u((1, 0)).ue(number)  # as another list
                continue
            to.u((1, 1))
            if size > 1:
                to.se(-4)
            to.se(*([3, -3] * 32)[: 16 if size == 0 else 64])
    to.u((1, 1), (1, 0), (1, 1), (4, 7), (4, 7)).ue(0, 1).u((1, 1))  # unlike partitions; samples of PCM
    to.ue(3)  # sets of reference pictures
    to.ue(2, 1).ue(0).u((1, 1)).ue(1).u((1, 1)).ue(0).u((1, 0))  # two before, one behind
    to.u((1, 1), (1, 0)).ue(0)  # from the first: of its 3 and the picture itself, all but one are kept
    to.u((1, 1), (1, 0), (1, 0), (1, 0), (1, 1), (1, 1))
    to.u((1, 0)).ue(1, 0).ue(0).u((1, 1))
    to.u((1, 1)).ue(2).u((8, 17), (1, 1), (8, 33), (1, 0))  # long-term ones
    to.u((1, 1), (1, 1), (1, 1))
    assert _hevc(Bits(signal(to, 1, 9).done())) == StreamHeader(1920, 1088, True, 9, False, False)


@pytest.mark.parametrize("chroma", [1, 3])
@pytest.mark.parametrize("order", [0, 1, 2])
def test_an_h264_set_with_every_part(chroma, order):
    to = Writer().u((8, 0x67), (8, 244), (16, 0x0028)).ue(0, chroma)
    if chroma == 3:
        to.u((1, 1))  # planes one by one
    to.ue(2, 2).u((1, 0), (1, 1))  # scaling lists
    for number in range(12 if chroma == 3 else 8):
        to.u((1, number % 3 != 1))
        if number % 3 == 0:
            to.se(*[1] * (16 if number < 6 else 64))
        elif number % 3 == 2:
            to.se(-8)  # the default list: nothing follows
    to.ue(4, order)
    if order == 0:
        to.ue(2)
    elif order == 1:
        to.u((1, 0)).se(-2, 3).ue(2).se(1, -1)
    to.ue(4).u((1, 0)).ue(119, 33).u((1, 0), (1, 1), (1, 1), (1, 1)).ue(0, 0, 0, 4).u((1, 1))
    found = h264_sequence(signal(to, 1, 1).done())
    assert found.header == StreamHeader(1920, 1088, True, 1, True, chroma == 1)
    assert (found.planes, found.number_bits, found.order_kind) == (chroma == 3, 8, order)
    assert found.order_bits == (6 if order == 0 else 0)


def vp9(profile: int, space: int, full: int = 0) -> bytes:
    to = Writer().u((2, 2), (1, profile & 1), (1, profile >> 1))
    to.u(*[(1, 0)] * (profile == 3), (1, 0), (1, 0), (1, 1), (1, 0), (24, 0x498342), *[(1, 0)] * (profile >= 2))
    to.u((3, space), *([(1, full)] if space != 7 else []))
    if profile & 1:
        to.u(*([(2, 0), (1, 0)] if space != 7 else [(1, 0)]))  # which samples of chroma; a bit that is 0
    return to.u((16, 639), (16, 359)).done()


@pytest.mark.parametrize("profile", range(4))
def test_vp9_of_every_profile(profile):
    halved = not profile & 1
    assert _vp9(Bits(vp9(profile, 2, 1))) == StreamHeader(640, 360, True, 1, False, halved)
    assert _vp9(Bits(vp9(profile, 5))) == StreamHeader(640, 360, False, 9, False, halved)
    if not halved:  # RGB has no smaller chroma
        assert _vp9(Bits(vp9(profile, 7))) == StreamHeader(640, 360, True, 0, False, False)


def test_what_is_no_key_frame_of_vp9():
    with pytest.raises(ValueError, match="no frame of VP9"):
        _vp9(Bits(b"\x40" + vp9(0, 2)[1:]))
    with pytest.raises(ValueError, match="no key frame"):
        _vp9(Bits(bytes([vp9(0, 2)[0] | 4]) + vp9(0, 2)[1:]))
