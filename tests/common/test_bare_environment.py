"""Every command does its work with an empty environment but for PATH: no HOME, no USER, no locale, no terminal."""

import json
import os
import subprocess
import sys

import pytest

from essl_fast.common.files import PACKAGE
from tests.common.test_commands import COMMANDS
from tests.tools.media import clicks, make_video, row, write_annotations
from tests.tools.processes import measured

pytestmark = pytest.mark.slow  # a process for each command


@pytest.fixture(scope="module")
def place(tiny, tmp_path_factory):
    """Data, a video, and a run of one epoch, all of it made by commands under the empty environment."""
    place = tmp_path_factory.mktemp("bare")
    make_video(place / "videos" / "a.mp4", sound=clicks(4, 16_000, at=(2.0,)))
    make_video(place / "videos" / "t.mp4", sound=clicks(4, 16_000, at=(2.0,)))
    write_annotations(place / "notes", {"a": [row(16, 1.5)]}, {"t": [row(21, 2.0)]})
    (place / "data").symlink_to(tiny[1])
    run(place, "train", *TRAIN)
    return place


TRAIN = "--config demo --data.root data --out run --epochs 1 --overlays 2 --baselines false --data.batch_size 5".split()
WORK = {  # command -> its arguments; exit codes that are right; a file that it leaves
    "train": ("--resume run", {0}, "run/summary.json"),
    "evaluate": ("run --json result.json", {0}, "result.json"),
    "localize": ("videos/a.mp4 --checkpoint run --rate 1 --out localized", {0}, "localized/a.overlay.mp4"),
    "report": ("run --out page.html", {0}, "page.html"),
    "export": ("run --to sspl --out files", {0, 2}, ""),  # the published code has no such network
    "app": ("--checkpoint nothing", {2}, ""),
    "replay": ("run/last.pt", {2}, ""),
    "prepare": ("--videos videos --annotations notes --validation 0 --visual jpeg --out prepared", {0}, "prepared"),
    "pretrain": ("--seed none", {2}, ""),
    "reproduce": ("table1 --reduced --data data --seeds 1 1", {2}, ""),
    "doctor": ("--config demo --data data --json", {0}, ""),
    "data.synthetic": ("--out world --train-videos 1 --test-videos 1 --seconds 6 --workers 1", {0}, "world/world.json"),
}


def run(place, name, *arguments) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-m", f"essl_fast.{name}".rstrip("."), *arguments],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(PACKAGE.parent), **measured()},  # where it is not installed
        cwd=place,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("name", [*COMMANDS, "data.synthetic"])
def test_a_command_works_with_nothing_but_a_path(place, name):
    words, codes, left = WORK[name]
    code, out, err = run(place, name, *words.split())
    assert code in codes and "Traceback" not in err and "Warning" not in err, err
    assert not code or err.count("\n") == 1 and err.startswith(f"python -m essl_fast.{name}: error: ")
    assert (place / left).exists()
    if name == "doctor":
        assert json.loads(out)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ([], 0, "  train      "),
        (["--version"], 0, "essl_fast "),
        (["evaluate", "run"], 0, "cIoU"),
        (["trian"], 2, "there is no command 'trian'; did you mean train?"),
    ],
)
def test_the_program_of_all_commands_works_with_nothing_but_a_path(place, words, code, said):
    found, out, err = run(place, "", *words)
    assert found == code and said in (err if code else out)
    assert err.count("\n") == bool(code)
