"""Which launch settings a kernel gets: this machine's measurement, a chip's pin, an older chip's, or the default."""

import json

import pytest
import torch

from essl_fast.kernels import tuning
from essl_fast.kernels.tuning import Config

GPU = torch.device("cuda", 0)
DEFAULT = Config({"ROWS": 1}, num_warps=1)


def entry(warps, rows=4):
    return {"blocks": {"ROWS": rows}, "num_warps": warps, "num_stages": 3}


@pytest.fixture
def table(tmp_path, monkeypatch):
    """Sets the pins, this machine's file and the chip; gives a function that picks for it."""

    def choose(pins, chip, measured=None, shape_class="small"):
        if measured is not None:
            path = tuning.measured_file(chip)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(measured if isinstance(measured, str) else json.dumps(measured))
        (tmp_path / "pinned.json").write_text(json.dumps(pins))
        monkeypatch.setattr(tuning, "chip_of", lambda device: chip)
        monkeypatch.setattr(tuning, "_picked", {})
        tuning._table.cache_clear()
        return tuning.pick("op", shape_class, GPU, lambda name: DEFAULT)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(tuning, "files", lambda package: tmp_path)
    yield choose
    tuning._table.cache_clear()


PINS = {"sm_80": {"op": {"small": entry(2)}}, "sm_90": {"op": {"small": entry(4)}, "other": {"small": entry(16)}}}


@pytest.mark.parametrize(
    "chip, shape_class, warps",
    [
        ("sm_90", "small", 4),  # its own pin
        ("sm_89", "small", 2),  # the nearest older chip's, not the newer's
        ("sm_100", "small", 4),  # 100 is newer than 90 as a number, not as a text
        ("sm_75", "small", 1),  # older than every pin: the default
        ("sm_90", "large", 1),  # a shape class without a pin
        ("cpu", "small", 1),  # the interpreter has no pins
    ],
)
def test_pins(table, chip, shape_class, warps):
    assert table(PINS, chip, shape_class=shape_class).num_warps == warps


def test_an_older_chip_serves_what_the_newer_one_has_no_pin_for(table):
    pins = {"sm_80": {"op": {"small": entry(2)}}, "sm_90": {"op": {"large": entry(4)}}}
    assert table(pins, "sm_90") == Config({"ROWS": 4}, num_warps=2, num_stages=3)


def test_what_was_measured_here_comes_first(table):
    measured = {"sm_90": {"op": {"small": entry(8)}}}
    assert table(PINS, "sm_90", measured).num_warps == 8
    assert table(PINS, "sm_90", measured, shape_class="large") == DEFAULT
    assert table(PINS, "sm_80").num_warps == 2  # another chip's file is not read


def test_a_broken_file_is_named(table):
    with pytest.raises(RuntimeError, match=r"sm_90\.json: not a readable table of kernel settings .*; delete it"):
        table(PINS, "sm_90", measured="{")


def test_remember_adds_to_the_file_and_takes_effect(table):
    assert table(PINS, "sm_90").num_warps == 4
    path = tuning.remember("sm_90", "op", "small", Config({"ROWS": 2}, num_warps=8, num_stages=1))
    assert path == tuning.measured_file("sm_90") and list(path.parent.iterdir()) == [path]
    assert tuning.pick("op", "small", GPU, lambda name: DEFAULT) == Config({"ROWS": 2}, 8, 1)
    tuning.remember("sm_90", "op", "large", Config({}, num_warps=16))
    assert tuning.pick("op", "small", GPU, lambda name: DEFAULT).num_warps == 8
    assert tuning.pick("op", "large", GPU, lambda name: DEFAULT).num_warps == 16


def test_a_forced_config_holds_while_its_block_runs(table):
    assert table(PINS, "sm_90").num_warps == 4
    with pytest.raises(ZeroDivisionError), tuning.forced("op", "small", Config(num_warps=32)):
        assert tuning.pick("op", "small", GPU, lambda name: DEFAULT).num_warps == 32
        assert tuning.pick("op", "large", GPU, lambda name: DEFAULT) == DEFAULT
        raise ZeroDivisionError
    assert tuning.pick("op", "small", GPU, lambda name: DEFAULT).num_warps == 4
    assert tuning.picked() == [("op", "large"), ("op", "small")]


def test_the_shipped_pins_are_settings():
    """Every pin names a chip by its number and makes a Config of positive powers of two."""
    tuning._table.cache_clear()
    for chip, ops in tuning._table(None).items():
        assert tuning._number(chip) >= 70
        for config in (Config(**entry) for classes in ops.values() for entry in classes.values()):
            assert config.num_warps in (1, 2, 4, 8, 16, 32) and config.num_stages >= 1


def test_launch_arguments():
    fused = {"enable_fp_fusion": True}  # said, since Triton's default changes
    assert Config({"A": 8, "B": 2}, 4, 3).arguments() == {"A": 8, "B": 2, "num_warps": 4, "num_stages": 3} | fused


def test_only_a_gpu_or_the_interpreter_runs_kernels(monkeypatch):
    tensor = torch.zeros(1)
    for interpreted, too, runs in ((True, True, True), (True, False, False), (False, True, False)):
        monkeypatch.setattr(tuning, "INTERPRETED", interpreted)
        monkeypatch.setattr(tuning, "CPU_TOO", too)
        assert tuning.runs_here(tensor) is runs
    assert not tuning.runs_here(tensor.to("meta"))


def test_chip_and_processors_of_the_interpreter():
    assert tuning.chip_of(torch.device("cpu")) == "cpu"
    assert tuning.processors_of(torch.device("cpu")) == 132
