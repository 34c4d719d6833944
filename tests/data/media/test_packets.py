"""What headers of packets tell, on hand-made ones; tests of clips and of decoding have real ones."""

import pytest

from essl_fast.data.media.packets import is_gradual, is_hidden, is_repeat, layer_of, lean_settings, length_size

AVCC, HVCC = bytes([1, 100, 0, 30, 0xFF, 0xE1]), bytes([1] * 21 + [0xF1])  # lengths of 4 and of 2 bytes


def h264(*units: bytes) -> bytes:
    return b"".join(len(unit).to_bytes(4) + unit for unit in units)


def hevc(*units: tuple[int, int]) -> bytes:
    """Units of (type, temporal layer)."""
    return b"".join(b"\0\x05" + bytes([kind << 1, layer + 1]) + b"abc" for kind, layer in units)


IDR, P, B, SEI, SPS = b"\x65ab", b"\x41ab", b"\x01ab", b"\x06\x05\x01\x00\x80", b"\x67ab"


@pytest.mark.parametrize(
    "units, needed",
    [
        ((IDR,), True),
        ((P,), True),
        ((B,), False),
        ((SEI, B), False),
        ((B, B), False),
        ((B, P), True),
        ((P, B), True),
        ((b"\x09\x10", B, b"\x0c\xff\x80"), False),
        ((SPS, B), True),
        ((SEI,), True),
        ((), True),
        ((b"", B), False),
    ],
)
def test_h264_pictures_that_others_refer_to(units, needed):
    assert layer_of("h264", h264(*units), AVCC) == (0, needed)


@pytest.mark.parametrize(
    "units, expected",
    [
        ([(0, 0)], (0, False)),
        ([(1, 0)], (0, True)),
        ([(0, 2)], (2, False)),
        ([(3, 1)], (1, True)),  # TRAIL, TSA
        ([(8, 0)], (0, False)),
        ([(9, 1)], (1, True)),
        ([(6, 1)], (1, False)),  # RASL, RADL
        ([(19, 0)], (0, True)),
        ([(21, 0)], (0, True)),  # IDR, CRA
        ([(35, 0), (39, 0), (0, 1), (40, 0)], (1, False)),
        ([(34, 0), (0, 1)], (1, True)),
        ([(0, 1), (1, 1)], (1, True)),
    ],
)
def test_hevc_layers(units, expected):
    assert layer_of("hevc", hevc(*units), HVCC) == expected


def test_what_cannot_be_read_may_be_needed():
    whole = h264(B)
    for data in (whole[:-1], whole + b"\0", b"", b"\0\0\0\x01", b"\0\0\0\xff" + B):
        assert layer_of("h264", data, AVCC) == (0, True)
    assert layer_of("h264", b"\0\0\0\1" + B, b"") == (0, True)  # start codes instead of lengths: no avcC
    assert layer_of("vp9", whole, AVCC) == layer_of("av1", whole, None) == (0, True)
    assert [length_size("h264", AVCC), length_size("hevc", HVCC)] == [4, 2]
    assert length_size("h264", b"\0\0\0\1\x67") == length_size("h264", None) == length_size("vp9", AVCC) == 0


@pytest.mark.parametrize(
    "sei, gradual",
    [
        (b"\x06\x06\x01\xc4\x80", False),  # Exp-Golomb 1...: recovered at once
        (b"\x06\x06\x01\x0c\x80", True),
        (b"\x06\x05\x02\xff\xff\x06\x01\x0c\x80", True),  # behind another message
        (b"\x06\x05\xff\x03" + bytes(258) + b"\x06\x01\x0c\x80", True),  # of 258 bytes
        (b"\x06\xff\x06\x01\x0c\x80", False),  # type 261
        (b"\x06\x05\x02\x06\x0c\x80", False),
        (b"\x06\x06", False),
        (b"\x06\xff\xff\xff", False),
    ],
)
def test_pictures_from_which_a_decoder_recovers_slowly(sei, gradual):
    assert is_gradual("h264", h264(b"\x09\x10", sei, P), AVCC) is gradual
    marked = b"".join(b"\0\0\1" + unit for unit in (b"\x09\x10", sei, P))  # as in a transport stream
    assert is_gradual("h264", marked, None) is gradual
    assert not is_gradual("hevc", h264(sei, P), HVCC) and not is_gradual("h264", h264(P, IDR), AVCC)


def test_a_packet_that_breaks_off_is_not_gradual():
    """Wherever it does: also in the middle of a message's type or size, which are as many bytes of 255 as it takes."""
    whole = h264(b"\x06" + b"\xff" * 9, P)
    for length in range(len(whole) + 1):
        assert not is_gradual("h264", whole[:length], AVCC)


@pytest.mark.parametrize(
    "codec, data, hidden",
    [
        ("vp8", b"\x10abc", False),
        ("vp8", b"\x00abc", True),
        ("vp9", b"\x86abc", False),
        ("vp9", b"\x84abc", True),
        ("vp9", b"\x88abc", False),  # shown, not, shown again
        ("vp9", b"\xb3abc", False),
        ("vp9", b"\xb0abc", True),
        ("vp9", b"\xb4abc", False),  # the same of profile 3
        ("vp9", b"\x84ab\xc1", False),  # a superframe
        ("h264", b"\x00abc", False),
    ],
)
def test_hidden_packets(codec, data, hidden):
    assert is_hidden(codec, data) is hidden


@pytest.mark.parametrize(
    "codec, data, repeat",
    [
        ("vp9", b"\x88", True),
        ("vp9", b"\x86abc", False),
        ("vp9", b"\xb4", True),
        ("vp9", b"\xb3", False),
        ("av1", b"\x88", False),
    ],
)
def test_packets_that_show_a_picture_again(codec, data, repeat):
    assert is_repeat(codec, data) is repeat


def test_what_an_encoder_says_about_itself_stays_out():
    def array(kind: int, *units: bytes) -> bytes:
        return bytes([0x80 | kind]) + len(units).to_bytes(2) + b"".join(len(unit).to_bytes(2) + unit for unit in units)

    def box(*arrays: bytes) -> bytes:
        return HVCC + bytes([len(arrays)]) + b"".join(arrays)

    sets, about = array(32, b"\x40\x01video"), array(39, b"\x4e\x01\x05\x03x26\x80")
    turned, mixed = array(39, b"\x4e\x01\x2f\x01a\x80"), array(39, b"\x4e\x01\x05\x00\x80", b"\x4e\x01\x2f\x01a\x80")
    assert lean_settings("hevc", box(sets, about, sets)) == box(sets, sets)
    for arrays in ((sets,), (sets, turned), (mixed, sets), ()):
        assert lean_settings("hevc", box(*arrays)) == box(*arrays)
    whole = box(sets, about)
    for size in range(len(whole)):
        assert lean_settings("hevc", whole[:size]) == whole[:size]
    assert lean_settings("h264", box(about)) == box(about)
