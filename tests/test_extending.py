"""docs/extending.md: its module trains, and every command takes it up again from the checkpoint alone."""

import json
import re
import subprocess
import sys

import pytest

from essl_fast import checkpoints
from tests import ROOT

PAGE = (ROOT / "docs" / "extending.md").read_text()
SMALL = "--data.batch_size 5 --device cpu --epochs 1 --eval_every 1 --overlays 0 --baselines false --model.out_dim 16"


def run(folder, *words, code=0):
    """Standard output of a command in a process of its own, started in ``folder``; standard error if it is to fail."""
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin", "HOME": str(folder)}
    command = [sys.executable, "-m", *map(str, words)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stderr if code else done.stdout


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    """A folder with the page's module, and a run of it in runs/mine, trained by the page's command."""
    folder = tmp_path_factory.mktemp("extending")
    module = next(block for block in re.findall(r"```python\n(.*?)```", PAGE, re.S) if "register_trunk" in block)
    (folder / "my_parts.py").write_text(module)
    shell = re.search(r"```bash\npython -m (essl_fast\.train .*?)\npython", PAGE, re.S)[1]
    words = shell.replace("\\\n", " ").replace("'", "").split()
    run(folder, words[0], "--config", "demo", *words[1:], *SMALL.split(), "--data.root", tiny[1])
    return folder


@pytest.mark.slow
def test_the_pages_module_trains(trained):
    lines = (trained / "runs" / "mine" / "losses.jsonl").read_text().splitlines()
    assert [set(json.loads(line)) for line in lines] == [{"loss"}]
    settings = checkpoints.load(trained / "runs" / "mine" / "best.pt")["config"]
    assert settings["imports"] == ["my_parts"] and settings["model"]["trunk"] == "patches"


@pytest.mark.slow
def test_evaluate_resume_and_localize_take_it_up_again(trained, tiny):
    assert "success at cIoU 0.5" in run(trained, "essl_fast.evaluate", "runs/mine", "--device", "cpu")
    video = tiny[0].videos / f"{tiny[0].test[0]}.mp4"
    made = ["--checkpoint", "runs/mine", "--out", "localized", "--device", "cpu", "--rate", "1", "--no-video"]
    run(trained, "essl_fast.localize", video, *made)
    assert list((trained / "localized").glob("*.moments.json"))
    run(trained, "essl_fast.train", "--resume", "runs/mine", "--epochs", "2")
    assert len((trained / "runs" / "mine" / "losses.jsonl").read_text().splitlines()) == 2


@pytest.mark.slow
def test_export_knows_it_and_says_why_it_cannot_be_exported(trained):
    told = run(trained, "essl_fast.export", "runs/mine", "--to", "sspl", "--out", "files", code=2)
    assert "Patches has no place in the published SSPL code" in told


@pytest.mark.slow
def test_without_the_module_one_line_says_what_is_missing(trained, tmp_path):
    told = run(tmp_path, "essl_fast.evaluate", trained / "runs" / "mine", "--device", "cpu", code=2)
    assert told.count("\n") == 1 and "my_parts cannot be imported" in told
