"""Pictures do not depend on the environment, and names in them are text."""

import os
import subprocess
import sys
import warnings

import numpy as np
import pytest
from PIL import Image

from essl_fast.report import figures, plotting
from tests import ROOT

NAMES = [
    "Yelle - Ba$$in",
    "$",
    "$x",
    "a$b$c",
    "$\\frac$",
    "100% _{x}^y",
    "\\alpha $\\alpha$",
    "音楽 и жизнь",
    "🎺 trumpet",
    "مرحبا",
    "two\nlines",
    "\x00\x1b[31m",
    "bad \udcc3 byte",
    "x" * 500,
    "",
]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_any_name_can_be_drawn(tmp_path, name):
    rng = np.random.default_rng(0)
    frame, heat = rng.integers(0, 255, (32, 32, 3), np.uint8), rng.random((4, 4), np.float32)
    sample = {"frame": frame, "similarity": heat, "boxes": [(1, 1, 9, 9), (0, 0, 0, 0)], "title": name, "key": name}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figures.overlays(tmp_path / "a.png", [sample])
        figures.side_by_side(tmp_path / "b.png", {name: [{**sample, "ciou": 0.5}]})
    history = [{"epoch": 1, "losses": {name: 1.0}, "selection": {"success_at_half": 0.1, "auc": 0.2}}]
    figures.curves(tmp_path / "c.png", history, {name: {"curve": np.linspace(1, 0, 21), "auc": 0.5}})
    figures.success_by_epoch(tmp_path / "d.png", {name: [(1, 0.5)]}, "val")
    assert {path.name for path in tmp_path.iterdir()} == {"a.png", "b.png", "c.png", "d.png"}
    assert all(size_of(path)[0] > 100 for path in tmp_path.iterdir())


def size_of(path):
    with Image.open(path) as image:
        return image.size


DRAW = """
import os, sys
from essl_fast.report import plotting

before = dict(os.environ)


@plotting.drawing()
def draw(path):
    figure, axes = plotting.figure(1, 1, (2, 2))
    axes[0, 0].plot([1, 2], label="Ba$$in")
    axes[0, 0].legend()
    plotting.save(figure, path, 50)


draw(sys.argv[1])
changed = {name for name, _ in os.environ.items() ^ before.items()}
assert changed <= {"MPLCONFIGDIR"}, changed  # which matplotlib itself sets, where it finds no folder that it can write
"""
RC = {
    "usetex": "text.usetex: True\n",
    "backend": "backend: module://nowhere\n",
    "broken": "no such key: 3\nfont.size: many\n: : :\n",
    "font": "font.family: No Such Font\naxes.formatter.use_mathtext: True\n",
    "bytes": b"\xff\xfe\x00",
}


@pytest.mark.parametrize(
    ("environment", "rc"),
    [
        ({"MPLBACKEND": "module://matplotlib_inline.backend_inline"}, ""),
        ({"MPLBACKEND": "nonsense"}, ""),
        ({"MPLCONFIGDIR": "/proc/nowhere"}, ""),
        ({"HOME": "/nonexistent", "XDG_CONFIG_HOME": "", "XDG_CACHE_HOME": ""}, ""),
        ({"LC_ALL": "C", "PYTHONUTF8": "0"}, ""),
        *(({}, name) for name in RC),
    ],
)
def test_the_environment_changes_nothing(tmp_path, environment, rc):
    if rc:
        held = RC[rc] if isinstance(RC[rc], bytes) else RC[rc].encode()
        (tmp_path / "rc").write_bytes(held)
        environment = environment | {"MATPLOTLIBRC": str(tmp_path / "rc")}
    done = subprocess.run(
        [sys.executable, "-c", DRAW, str(tmp_path / "x.png")],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        timeout=300,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "") and size_of(tmp_path / "x.png") == (100, 100)


def test_the_users_own_settings_of_matplotlib_stay():
    matplotlib = plotting.load()
    with matplotlib.rc_context({"font.size": 33.0}):
        with plotting.drawing():
            assert matplotlib.rcParams["font.size"] == 10.0 and not matplotlib.rcParams["text.parse_math"]
        assert matplotlib.rcParams["font.size"] == 33.0 and matplotlib.rcParams["text.parse_math"]


def test_a_picture_is_whole_or_not_there(tmp_path):
    class Full:
        def savefig(self, file, **_):
            file.write(b"half of it")
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        plotting.save(Full(), tmp_path / "x.png", 50)
    assert not list(tmp_path.iterdir())
