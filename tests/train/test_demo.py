"""The demo world is made once: found again, waited for, made again after a kill, and never taken from a run."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from essl_fast import config
from essl_fast.common import pulse
from essl_fast.common.errors import InputError
from essl_fast.data.synthetic import OtherWorld, make_world, world
from essl_fast.train.demo import demo_data, demo_folder
from tests import ROOT

TINY = ["--demo.train_videos", "10", "--demo.test_videos", "1"]
MAKE = """
import sys
from essl_fast import config
from essl_fast.train.demo import demo_data
print("ready", flush=True)
sys.stdin.readline()
print(demo_data(config.load("demo", sys.argv[1:]).demo, print, progress=False)[0])
"""
DIES = """
import os, signal
from essl_fast.data.synthetic import world
def dying(make):
    def made(*given):
        for name in make(*given):
            os.kill(os.getpid(), signal.SIGKILL)
            yield name
    return made
world.make_videos, world.make_in_parallel = dying(world.make_videos), dying(world.make_in_parallel)
"""


def demo(cache, *more):
    return config.load("demo", [*TINY, "--demo.cache", str(cache), *more]).demo


def bytes_of(folder):
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


def start(cache, dies=""):
    """A process that makes a world when it is told to; with DIES it is killed when it has made the first video."""
    command = [sys.executable, "-c", f"{dies}{MAKE}", *TINY, "--demo.cache", str(cache)]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    return subprocess.Popen(command, **pipes, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A cache with a finished demo world, made by two processes at once, of which a third was killed before."""
    cache = tmp_path_factory.mktemp("cache")
    first, place = start(cache, DIES), demo_folder(demo(cache))
    _, error = first.communicate("\n")
    assert first.returncode == -signal.SIGKILL, error
    assert list(place.glob("world/videos/*.mp4")) and not (place / "world" / "world.json").exists()
    both = [start(cache) for _ in range(2)]
    assert [process.stdout.readline() for process in both] == ["ready\n"] * 2  # they begin at the same time
    for process in both:
        process.stdin.write("\n")
        process.stdin.flush()
    said = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert {out.splitlines()[-1] for out, _ in said} == {str(place / "prepared")}
    assert sum("waiting for " in out for out, _ in said) == 1, said
    return cache


@pytest.mark.slow
def test_a_finished_world_is_used_as_it_is(made):
    before, said = bytes_of(made), []
    prepared, objects = demo_data(demo(made), said.append)
    assert bytes_of(made) == before
    assert said == [f"demo world: {prepared}"] and (prepared / "manifest.json").is_file() and objects


@pytest.mark.slow
@pytest.mark.parametrize("what", ["world's version", "prepared format", "prepared setting"])
def test_another_versions_world_stays_and_another_folder_is_made(made, tmp_path, what):
    place = demo_folder(demo(tmp_path))
    subprocess.run(["cp", "-r", str(demo_folder(demo(made))), str(place)], check=True)
    changed = place / ("world/world.json" if what.startswith("world") else "prepared/manifest.json")
    held = json.loads(changed.read_text())
    if what == "prepared setting":
        held["settings"]["pairs_per_shard"] = 7
    else:
        held["version"] -= 1
    changed.write_text(json.dumps(held))
    before, said = bytes_of(place), []
    prepared, _ = demo_data(demo(tmp_path), said.append, progress=False)
    assert prepared == place.with_name(f"{place.name}-2") / "prepared" and bytes_of(place) == before
    assert said[0] == f"{place} is of another version, and stays as it is"
    assert demo_data(demo(tmp_path), said.append)[0] == prepared


def test_other_settings_are_another_folder():
    others = ["--demo.seed=1", "--demo.codec=vp9", "--demo.train_videos=11", "--demo.test_videos=2", "--demo.cache=/b"]
    assert len({demo_folder(demo("/a", *more)) for more in [[], *([one] for one in others)]}) == 6


@pytest.mark.parametrize("lost", ["objects.json", "videos", "one video"])
def test_a_world_that_lost_files_is_made_again(made, tmp_path, lost):
    place = demo_folder(demo(tmp_path))
    subprocess.run(["cp", "-r", str(demo_folder(demo(made))), str(place)], check=True)
    path = place / "world" / lost if lost != "one video" else next(place.glob("world/videos/*.mp4"))
    before = {name: data for name, (data, _) in bytes_of(place).items()}
    subprocess.run(["rm", "-r", str(path)], check=True)
    demo_data(demo(tmp_path), print, progress=False)
    assert {name: data for name, (data, _) in bytes_of(place).items()} == before


def test_without_a_place_the_message_names_the_option(monkeypatch, tmp_path):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", classmethod(lambda cls: (_ for _ in ()).throw(RuntimeError("no home"))))
    with pytest.raises(InputError, match="give --demo.cache DIR"):
        demo_data(config.load("demo", TINY).demo, print)
    (tmp_path / "file").write_text("")
    for cache in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match="--demo.cache DIR"):
            demo_data(demo(cache), print)


def test_a_second_thread_waits_and_a_world_of_other_settings_is_refused(tmp_path, monkeypatch):
    small = {"train_videos": 2, "test_videos": 0, "workers": 1, "progress": False}
    found, said = [], []
    threads = [
        threading.Thread(target=lambda: found.append(make_world(tmp_path / "w", say=said.append, **small)))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(each.reused for each in found) == [False, True, True]
    assert not (tmp_path / "w" / world.LOCK).exists()
    with pytest.raises(OtherWorld, match="other settings"):
        make_world(tmp_path / "w", **{**small, "seed": 1})


@pytest.mark.parametrize("lying_there", ["videos", "world.unfinished.json.0123.tmp"])
def test_what_another_process_is_making_is_not_a_foreign_folder(tmp_path, lying_there):
    """Its files come and go, so who finds some of them waits for the lock before it judges the folder."""
    out, said, raised = tmp_path / "w", [], []
    (out / lying_there).mkdir(parents=True)
    waits = threading.Event()

    def say(line):
        said.append(line)
        waits.set()

    def second():
        try:
            make_world(out, train_videos=1, test_videos=0, workers=1, progress=False, say=say)
        except InputError as error:
            raised.append(error)
            waits.set()

    with world.world_lock(out, said.append):
        thread = threading.Thread(target=second)
        thread.start()
        assert waits.wait(60) and not raised
        (out / lying_there).rmdir()
    thread.join()
    assert not raised and (out / "world.json").is_file()
    assert said[0].startswith("waiting for ")


def test_a_line_every_30_s_where_there_is_no_terminal(tmp_path, monkeypatch):
    monkeypatch.setattr(pulse, "EVERY", 0.0)
    said = []
    make_world(tmp_path / "w", train_videos=3, test_videos=0, workers=1, say=said.append)
    assert len(said) >= 3 and any(
        line.startswith("making the demo world: 2 of 3 videos (66%), about ") for line in said
    )
