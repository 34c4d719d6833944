"""The table of methods and worlds: its runs, its figures, what it says, and that it goes on where it stopped."""

import json
import os
import re
import subprocess
import threading
import time
from types import SimpleNamespace

import pytest

import essl_fast.evaluate
from essl_fast import checkpoints, config
from essl_fast.common import commands
from essl_fast.common.errors import InputError
from essl_fast.data.shards import Manifest
from essl_fast.report import figures
from essl_fast.reproduce import __main__ as reproduce_door
from essl_fast.reproduce import reproduce_worlds, runs, worlds_command
from essl_fast.reproduce.worlds import BASELINES, METHODS, WORLDS, Grid


def summary(success, priors=None):
    def figures(share):
        return {"pairs": 8, "success_at_half": share, "auc": share / 2, "curve": [share] * 21}

    return {"test": figures(success), "seconds": 2.0} | {part: figures(share) for part, share in (priors or {}).items()}


def filled(out, seeds=(0, 1)):
    grid = Grid(out, list(seeds))
    for world, method, seed in grid.runs():
        priors = {"centre_prior": 0.1, "object_prior": 0.2, "untrained": 0.05, "largest_object_prior": 1.0}
        share = 0.5 if method.name == "sspl" else 0.6
        grid.summaries[world, method.name, seed] = summary(share + 0.1 * seed, priors if method is METHODS[0] else None)
    return grid


def test_every_method_meets_every_world_with_settings_of_its_own(tmp_path):
    grid = Grid(tmp_path, [0, 1, 2])
    assert len(grid.runs()) == 3 * len(WORLDS) * len(METHODS)
    found = {}
    for world, method, seed in grid.runs():
        own = config.parse(grid.arguments(world, method, seed), "test")[0]
        assert (own.demo.objects, own.seed, own.model.trunk, own.data.root) == (world, seed, "small_frozen", "demo")
        found[method.name] = (own.objective.method, own.model.pcm, own.data.labelled_fraction, own.baselines)
    assert found == {
        "sspl": ("sspl", False, 1.0, True),
        "sspl-pcm": ("sspl", True, 1.0, False),
        "lss": ("lss", False, 1.0, False),
        "semipl-0.01": ("semipl", False, 0.01, False),
        "semipl-0.1": ("semipl", False, 0.1, False),
        "semipl-0.5": ("semipl", False, 0.5, False),
        "semipl-1": ("semipl", False, 1.0, False),
        "supervised": ("supervised", False, 1.0, False),
    }


def test_lines_and_finding(tmp_path):
    grid = filled(tmp_path)
    lines = grid.lines("success_at_half")
    assert [line[0] for line in lines] == [method.label for method in METHODS] + list(BASELINES.values())
    assert lines[0][1:] == ["55.0 ± 7.1"] * 3 and lines[-2][1:] == ["20.0 ± 0.0"] * 3
    assert "SSPL with PCM with 65.0%, 3.2 times the best baseline" in grid.finding()
    grid.failed["one", "lss", 0] = "exit code 1"
    assert "failed: exit code 1" in grid.lines("auc")[2][1]
    json.dumps(grid.to_dict(), allow_nan=False)
    assert "there is no finding" in Grid(tmp_path, [0]).finding()


def test_what_is_done_is_not_done_again(tmp_path, monkeypatch):
    trained, broken = [], []

    def finished(folder, arguments):
        path = folder / "summary.json"
        return json.loads(path.read_text()) if path.exists() else None

    def train(folder, arguments, threads):
        if folder.parent.name == "lss" and not broken:
            broken.append(folder)
            raise RuntimeError("exit code 1: no luck")
        trained.append(folder)
        folder.mkdir(parents=True)
        (folder / "summary.json").write_text(json.dumps(summary(0.5, dict.fromkeys(BASELINES, 0.25))))

    monkeypatch.setattr(runs, "finished", finished)
    monkeypatch.setattr(runs, "train", train)
    for expected in (len(METHODS) - 1, 1, 0):
        trained.clear()
        grid = reproduce_worlds(out=tmp_path, seeds=[0], worlds=["one"], console=commands.console(quiet=True))
        assert len(trained) == expected
    assert not grid.failed and (tmp_path / "worlds.html").read_text().count("2.0 times") == 1
    held = json.loads((tmp_path / "worlds.json").read_text())
    assert len(held["runs"]) == len(METHODS) and "| one object |" in (tmp_path / "worlds.md").read_text()


def test_workers_train_side_by_side_and_share_the_cores(tmp_path, monkeypatch):
    met, threads_of = threading.Barrier(2), set()

    def train(folder, arguments, threads):
        if folder.parent.name not in (METHODS[0].name, METHODS[-1].name):  # the first is alone, and there are eight
            met.wait(300)  # only two at once get past it
        threads_of.add(threads)
        folder.mkdir(parents=True)
        (folder / "summary.json").write_text(json.dumps(summary(0.5)))

    def finished(folder, arguments):
        return json.loads((folder / "summary.json").read_text()) if folder.exists() else None

    monkeypatch.setattr(runs, "finished", finished)
    monkeypatch.setattr(runs, "train", train)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)))
    grid = reproduce_worlds(out=tmp_path, seeds=[0], worlds=["one"], workers=2, console=commands.console(quiet=True))
    assert len(grid.summaries) == len(METHODS) and not grid.failed and threads_of == {3}


def test_an_error_ends_the_trainings_beside_it(tmp_path, monkeypatch):
    begun, popen = time.monotonic(), subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda command, **given: popen(["sleep", "600"], **given))
    with pytest.raises(ZeroDivisionError), runs.side_by_side(2) as pool:
        jobs = [pool.submit(runs.train, tmp_path / name, []) for name in ("a", "b", "c")]
        while len(runs._RUNNING) < 2:
            time.sleep(0.01)
        raise ZeroDivisionError
    assert time.monotonic() - begun < 300 and not runs._RUNNING
    assert all("exit code -15" in str(job.exception()) for job in jobs[:2]) and jobs[2].cancelled()


def test_an_error_misses_no_training_that_just_starts(tmp_path, monkeypatch):
    """One is being started when the error comes, and one is about to be."""
    popen, begins, leaves = subprocess.Popen, threading.Event(), threading.Event()

    def starts(command, **given):
        begins.set()
        time.sleep(0.2)  # the error comes meanwhile
        return popen(["sleep", "100"], **given)

    def later():
        assert leaves.wait(60)
        runs.train(tmp_path / "b", [])

    monkeypatch.setattr(subprocess, "Popen", starts)
    with pytest.raises(ZeroDivisionError), runs.side_by_side(2) as pool:
        shutdown = pool.shutdown
        monkeypatch.setattr(pool, "shutdown", lambda *given, **how: leaves.set() or shutdown(*given, **how))
        jobs = [pool.submit(runs.train, tmp_path / "a", []), pool.submit(later)]
        assert begins.wait(60)
        raise ZeroDivisionError
    assert [str(job.exception()).split(":")[0] for job in jobs] == ["exit code -15", "stopped before it began"]
    assert not runs._RUNNING and not runs._OVER.is_set()


def test_a_picture_of_each_world_that_ran(tmp_path, monkeypatch):
    grid = filled(tmp_path, seeds=(0,))
    shown = [{"key": key, "ciou": ciou} for key, ciou in (("x", 0.1), ("y", 0.9))]
    monkeypatch.setattr(checkpoints, "load", lambda path: {"data_root": str(path.parent)})
    settings = SimpleNamespace(precision="fp32")
    monkeypatch.setattr(checkpoints, "restore", lambda state, device: (None, settings))
    monkeypatch.setattr(Manifest, "load", lambda root: root)
    monkeypatch.setattr(essl_fast.evaluate, "evaluate", lambda *given, show: SimpleNamespace(samples=shown))
    drawn = []
    monkeypatch.setattr(figures, "side_by_side", lambda path, samples: drawn.append((path.name, samples)))
    found = worlds_command._draw(grid)
    assert (
        [path.name for _, path in found]
        == [name for name, _ in drawn]
        == [f"worlds-{each}.png" for each in grid.worlds]
    )
    assert all(caption.endswith(": the same test frames; seed 0") for caption, _ in found)
    for _, samples in drawn:
        assert all([one["key"] for one in each] == ["y", "x"] for each in samples.values()) and len(samples) == 2
    assert worlds_command._draw(Grid(tmp_path, [0])) == []  # nothing ran


def test_a_training_that_leaves_no_summary_has_failed(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "finished", lambda folder, arguments: None)
    monkeypatch.setattr(runs, "train", lambda folder, arguments, threads: None)
    grid = reproduce_worlds(out=tmp_path, seeds=[0], worlds=["one"])
    assert len(grid.failed) == len(METHODS) and not grid.summaries
    assert all(why.startswith("it left no ") and why.endswith("summary.json") for why in grid.failed.values())


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"config": {}, "seconds": "x"}', '{"config": {}}'])
def test_a_summary_that_is_damaged_is_named(tmp_path, text):
    (tmp_path / "summary.json").write_text(text)
    here = re.escape(str(tmp_path))
    with pytest.raises(InputError, match=f"{here}/summary.json is damaged: delete {here} and run again"):
        runs.finished(tmp_path, [])


def test_the_last_line_of_a_training(tmp_path):
    log = tmp_path / "seed-0.log"
    assert runs.last_line(log) == "it has printed nothing yet"
    log.write_bytes(b"\n\n")
    assert runs.last_line(log) == "it has printed nothing yet"
    log.write_bytes(b"first\n" * 2000 + b"epoch   3: loss \xff" + b"x" * 500 + b"\n\n")
    assert runs.last_line(log).startswith("epoch 3: loss ") and len(runs.last_line(log)) == 200


WRONG = [
    (["worlds", "--data", "x"], "--data does not go with worlds"),
    (["worlds", "--seeds", "1", "1"], "--seeds: each once"),
    (["table1", "--workers", "2"], "--workers goes with worlds"),
    (["worlds", "--demo.objects", "two"], "demo.objects"),
    (["worlds", "--data.labelled_fraction", "0.3"], "data.labelled_fraction"),
    (["worlds", "--device", "cuda:99"], "device: cuda:99 was asked for, but"),
    (["table1", "--device", "cuda:99"], "device: cuda:99 was asked for, but"),
    (["table1", "--data", "file:///no where/x"], "^file:///no where/x/manifest.json is not there"),
]


@pytest.mark.parametrize("words, message", WRONG)
def test_what_does_not_fit_is_refused_before_anything_is_trained(tmp_path, words, message):
    with pytest.raises(InputError, match=message):
        reproduce_door.main([*words, "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
