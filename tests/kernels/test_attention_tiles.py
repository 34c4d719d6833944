"""How the attention's kernels split their work: shape classes, tiles, programs and their samples."""

import math
import re

import numpy as np
import pytest
import torch

from essl_fast.kernels import attention, attention_backward, tuning
from essl_fast.kernels import attention_tiles as tiles

F32, BF16 = torch.float32, torch.bfloat16
LAST, FIRST = torch.channels_last, torch.contiguous_format


@pytest.mark.parametrize("text", ["", "c512", "c512-p196-64bit-last8-split1", "c512-p196-16bit-last8-split1-lone"])
def test_a_shape_class_that_is_none(text):
    with pytest.raises(ValueError, match=re.escape(repr(text))):
        tiles.parse(text)


def test_shape_classes(monkeypatch):
    monkeypatch.setattr(tuning, "processors_of", lambda device: 132)

    def named(shape, kind=BF16, layout=LAST):
        return tiles.shape_class(torch.empty(shape, dtype=kind).to(memory_format=layout))

    assert named((256, 512, 2, 2)) == "c512-p4-16bit-last8-split1"
    assert named((132, 512, 2, 2)) == "c512-p4-16bit-last8-split1-alone"
    assert named((64, 20, 7, 7), layout=FIRST) == "c20-p49-16bit-first1-split4"
    assert named((1, 12, 14, 14), F32, FIRST) == "c12-p196-32bit-first4-split13-alone"
    assert named((1, 12, 5, 6), BF16) == "c12-p30-16bit-last4-split2-alone"
    odd = torch.empty(1000, dtype=BF16)[1:]  # 2 bytes past a 16-byte address
    assert tiles.parse(tiles.shape_class(odd[:512].view(1, 2, 2, 128))).vector == 1
    assert tiles.parse(tiles.shape_class(odd[1:513].view(1, 2, 2, 128))).vector == 2


def test_every_launch_covers_its_map_and_fits_the_chip():
    """Over many shape classes: every position has one tile, every program a tile, warps and registers are in range."""
    generator = np.random.default_rng(0)
    for _ in range(300):
        channels, positions = int(generator.integers(1, 2049)), int(generator.integers(1, 1025))
        bits, first = int(generator.choice([16, 32])), bool(generator.integers(2))
        vector = math.gcd(128 // bits, positions if first else channels)
        splits, alone = int(generator.integers(1, 70)), generator.choice(["", "-alone"])
        text = f"c{channels}-p{positions}-{bits}bit-{'first' if first else 'last'}{vector}-split{splits}{alone}"
        for config in (*attention.candidates(text), *attention_backward.candidates(text)):
            tiling = tiles.tiling_of(text, config)
            assert tiling.size == tiling.groups * tiling.rows and tiling.chunks * tiling.columns == tiling.wide
            assert (tiling.tiles - 1) * tiling.size < positions <= tiling.tiles * tiling.size
            assert (tiling.splits - 1) * tiling.share < tiling.tiles <= tiling.splits * tiling.share
            assert tiling.splits <= splits and channels <= tiling.wide < 2 * channels
            powers = (tiling.groups, tiling.rows, tiling.columns, tiling.chunks, config.num_warps)
            assert all(n & (n - 1) == 0 < n for n in powers)
            assert config.num_warps <= 32 and tiling.size * tiling.wide <= 64 * 32 * config.num_warps


def test_programs_and_their_samples(monkeypatch):
    """All programs are on the chip at once, and none has two samples less than another."""
    features, audio = torch.empty(1, 512, 14, 14, dtype=BF16).to(memory_format=LAST), torch.empty(1, 512, dtype=BF16)

    def counted(batch, processors, warps=8, sound=BF16, text="c512-p196-16bit-last8-split1"):
        monkeypatch.setattr(tuning, "processors_of", lambda device: processors)
        config = tiles.config_of(text, 64, True, warps)
        maps = features.expand(batch, -1, -1, -1)
        return attention.programs_of(maps, audio.to(sound), tiles.tiling_of(text, config), config.num_warps)

    assert [counted(batch, 132) for batch in (1, 256, 264, 265, 512, 600, 1024)] == [1, 256, 264, 133, 256, 200, 256]
    assert counted(256, 108) == 128 and counted(512, 148) == 256  # an A100, a B200
    for batch in range(1, 700, 23):
        for processors in (108, 132, 148):
            programs = counted(batch, processors)
            turns = -(-batch // programs)
            assert programs <= 2 * processors and (turns - 1) * programs < batch <= turns * programs
    assert counted(600, 132, sound=F32) == 600  # the audio's row would lie in other threads than a tile's
    assert counted(600, 132, text="c512-p196-16bit-first4-split1") == 600
    assert counted(60, 132, text="c512-p196-16bit-last8-split4") == 60
