"""Makes the files of `tests/earlier/COMMIT/` with the code of that commit. Run once; kept to show how they came about.

    git worktree add /tmp/a0ddb3b a0ddb3b
    cd /tmp/a0ddb3b && ESSL_CUDA=0 python setup.py build_ext --inplace
    OMP_NUM_THREADS=1 PYTHONPATH=/tmp/a0ddb3b python CLONE/tests/earlier/make.py CLONE/tests/earlier/a0ddb3b

It works in /tmp/essl, since checkpoints and logs hold the absolute paths of data and run directory.

    data.tar.xz     world/videos, world/notes      four training videos and a test video, and their annotations
                    jpeg, clips                    prepared from these, with JPEG frames and with clips
    finished/       two epochs on jpeg, to their end
    interrupted/    of four epochs on clips stopped by Ctrl-C after the second step of the second epoch
    diverged/       a run on jpeg whose loss became infinite, with that step
    expected.json   what the commit's own code gives: batches, the runs resumed to their end, evaluation, replay
"""

import contextlib
import functools
import io
import json
import os
import platform
import shutil
import signal
import sys
import tarfile
from pathlib import Path

import numpy as np
import small
import torch
from essl_fast.data.loader import Loader

from essl_fast import checkpoint, evaluate, export, prepare, replay, train
from essl_fast.config import InputError
from essl_fast.data.shards import Manifest
from tests.data.media_tools import clicks, make_video, noisy, row, write_annotations

PLACE = Path("/tmp/essl")
VISUAL = {"jpeg": "jpeg", "clips": "clip"}
TRAIN = (
    "--config demo --device cpu --data.batch_size 3 --data.threads 1 --model.out_dim 16 --optim.warmup 0.5 "
    "--overlays 3 --eval_every 1 --checkpoint_keep 2"
).split()


def picture_of(video: int, shown: int) -> np.ndarray:
    """Frame `shown` of a video: 64 lines, so that little is to be kept."""
    return noisy(shown + 50 * video, 96, 64)


def make_world(root: Path) -> None:
    """Five videos of 3.6 s at 10 fps, a click at 2.0 s, noisy frames that show their number; 3 pairs each."""
    for number, name in enumerate("abcde"):
        how = {"sound": clicks(3.6, 16_000, at=(2.0,)), "options": {"crf": "34"}}  # small
        picture = functools.partial(picture_of, number)
        make_video(root / "videos" / f"{name}.mp4", seconds=3.6, picture=picture, **how)
    rows = [row(17, 1.6), row(19, 1.8, "[]"), row(21, 2.0, "[[100, 40, 260, 170]]", label="crash")]
    write_annotations(root / "notes", {name: rows for name in "abcd"}, {"e": rows})


def command(main, *arguments: object) -> tuple[list[str], list[str]]:
    """What a command of this commit prints: lines of stdout, lines of stderr."""
    said, warned = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(warned):
        code = main([str(argument) for argument in arguments])
    assert code in (0, None), said.getvalue() + warned.getvalue()
    return said.getvalue().splitlines(), warned.getvalue().splitlines()


def train_interrupted(out: Path) -> None:
    """Four epochs of three steps; Ctrl-C comes while last.pt is written in step 4, so that the run stops in step 5."""
    save = checkpoint.save

    def save_and_interrupt(path: Path, state: dict, keep: int = 1) -> None:
        save(path, state, keep)
        if path.name == "last.pt" and state["step"] == 4:
            os.kill(os.getpid(), signal.SIGINT)

    checkpoint.save = save_and_interrupt
    steps = ["--epochs", 4, "--checkpoint_steps", 1]
    with contextlib.suppress(KeyboardInterrupt):
        command(train.main, *TRAIN, *steps, "--data.root", PLACE / "clips", "--out", out)
    checkpoint.save = save
    assert checkpoint.load(out / "last.pt")["step"] == 5


def train_diverged(out: Path) -> None:
    """The learning rate is so high that the loss becomes infinite or NaN; the step is kept."""
    with contextlib.suppress(FloatingPointError):
        wild = ["--epochs", 2, "--optim.lr_trunk", "1e30"]
        command(train.main, *TRAIN, *wild, "--data.root", PLACE / "jpeg", "--out", out)
    assert list(out.glob("nonfinite-*.pt"))


def evaluated(path: Path) -> dict:
    """What the evaluate command finds for a checkpoint."""
    result = PLACE / "result.json"
    command(evaluate.main, path, "--device", "cpu", "--json", result)
    found = json.loads(result.read_text())
    result.unlink()
    return {name: found[name] for name in ("pairs", "success_at_half", "auc", "each")}


def resumed(run: Path, *more: object) -> dict:
    """What a copy of the run comes to when it is resumed to its end."""
    copy = Path(shutil.copytree(run, PLACE / "resumed"))
    command(train.main, "--resume", copy, *more)
    last = checkpoint.load(copy / "last.pt")
    summary = json.loads((copy / "summary.json").read_text())
    found = {
        "history": small.history(last),
        "weights": small.weights(last),
        "best": small.weights(checkpoint.load(copy / "best.pt")),
        "results": {name: summary[name] for name in ("test", "untrained", "centre_prior", "selected")},
    }
    shutil.rmtree(copy)
    return found


def verified(name: str) -> list[str]:
    """What the prepare command says about a copy of a prepared folder when it decodes all of it."""
    copy = Path(shutil.copytree(PLACE / name, PLACE / "verified"))
    said, _ = command(prepare.main, "--verify", "--out", copy)
    shutil.rmtree(copy)
    return said


def refused(main, *arguments: object) -> str:
    """The error of a command that cannot do what it is asked for."""
    try:
        command(main, *arguments)
    except InputError as error:
        return str(error)
    raise AssertionError("it went through")


def expectations() -> dict:
    """What this commit's code says about the files that it has made."""
    finished, interrupted = PLACE / "finished", PLACE / "interrupted"
    (step,) = (PLACE / "diverged").glob("nonfinite-*.pt")
    return {
        "probe": small.probe(),
        "batches": {
            name: small.batches(Loader(Manifest.load(PLACE / name), ["train"], **small.LOADED)) for name in VISUAL
        },
        "prepared": {name: command(prepare.main, *prepare_arguments(name))[1] for name in VISUAL},
        "verified": {name: verified(name) for name in VISUAL},
        "exported": refused(export.main, finished, "--to", "sspl", "--out", PLACE / "sspl"),
        "resumed": {"finished": resumed(finished, "--epochs", 4), "interrupted": resumed(interrupted)},
        "evaluated": {"finished": evaluated(finished / "best.pt"), "interrupted": evaluated(interrupted / "best.pt")},
        "replayed": command(replay.main, step, "--device", "cpu")[0],
    }


def prepare_arguments(name: str) -> list[object]:
    """Of the command that makes a prepared folder, or opens it."""
    places = ["--videos", PLACE / "world/videos", "--annotations", PLACE / "world/notes", "--out", PLACE / name]
    return [*places, "--validation", 0.25, "--pairs-per-shard", 5, "--visual", VISUAL[name], "--workers", 1]


def main(out: Path) -> None:
    torch.set_num_threads(1)
    platform.platform = lambda: "Linux"  # the names of the machine and its user do not belong into the repository
    for network, init in small.narrow():
        network.__init__ = init
    shutil.rmtree(PLACE, ignore_errors=True)
    make_world(PLACE / "world")
    for name in VISUAL:
        command(prepare.main, *prepare_arguments(name))
    command(train.main, *TRAIN, "--epochs", 2, "--data.root", PLACE / "jpeg", "--out", PLACE / "finished")
    train_interrupted(PLACE / "interrupted")
    train_diverged(PLACE / "diverged")
    for run in ("finished", "interrupted", "diverged"):
        for name in ("report.html", "curves.png", "overlays.png", ".lock"):  # pictures, which nothing reads
            (PLACE / run / name).unlink(missing_ok=True)
    for name in ("interrupted/last-1.pt", "diverged/last.pt", "diverged/last-1.pt"):  # nothing reads these either
        (PLACE / name).unlink(missing_ok=True)
    expected = expectations()
    out.mkdir(parents=True, exist_ok=True)
    with tarfile.open(out / "data.tar.xz", "w:xz", format=tarfile.PAX_FORMAT) as packed:
        for name in ("world", *VISUAL):
            packed.add(PLACE / name, name, filter=_anonymous)
    for run in ("finished", "interrupted", "diverged"):
        shutil.copytree(PLACE / run, out / run, dirs_exist_ok=True)
    (out / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member


if __name__ == "__main__":
    main(Path(sys.argv[1]))
