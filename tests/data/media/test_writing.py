"""The writer of videos: the same pictures give the same bytes."""

from fractions import Fraction

import numpy as np

from essl_fast.data.media import writing


def test_the_same_pictures_give_the_same_bytes(tmp_path):
    random = np.random.default_rng(0)
    pictures = random.integers(0, 256, (20, 9, 16, 3), np.uint8).repeat(10, 1).repeat(10, 2)
    written = set()
    for _ in range(30):
        for size in random.integers(1 << 10, 1 << 17, 40):  # memory that the encoder gets again, with something in it
            random.bytes(size)
        path = tmp_path / "v.mp4"
        with writing.video_file(path, 160, 90, Fraction(1, 10), 10.0, None) as writer:
            for tick, picture in enumerate(pictures):
                writer.add(picture, tick)
        written.add(path.read_bytes())
    assert len(written) == 1


def test_avx2_is_asked_for_where_the_processor_has_avx512_alone(tmp_path):
    both, alone = "flags\t\t: sse2 avx2 avx512f avx512bw\n", "flags\t\t: sse2 avx2\n"
    cases = {both: {"x264-params": "asm=avx2"}, alone: {}, "": {}}
    for number, (text, options) in enumerate(cases.items()):
        file = tmp_path / f"cpuinfo{number}"
        file.write_text("processor\t: 0\n" + text)
        assert writing._instructions(str(file)) == options
    assert writing._instructions(str(tmp_path / "none")) == {}
