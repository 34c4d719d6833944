"""`--engine ray`: the parts are tasks of Ray, here of a stand-in that runs them one by one, and of Ray where it is."""

import fcntl
import os
import pickle
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest

from essl_fast.common.errors import InputError
from essl_fast.prepare import __main__ as door
from essl_fast.prepare import on_ray
from tests import ROOT
from tests.prepare.test_dividing import part
from tests.tools.prepare import arguments, hashes


class RayError(Exception):
    """What Ray raises where a task's machine or process ended."""


class Ray(types.ModuleType):
    """As much of Ray as is used. Tasks run when they are waited for, the last one first, in another folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__("ray")
        self.exceptions = types.ModuleType("ray.exceptions")
        self.exceptions.RayError = RayError
        self.folder, self.began, self.ended = folder, False, False
        self.machines = [{"CPU": 2.0, "memory": 1e9}, {"CPU": 2.0}]
        self.needs, self.dies, self.lost = {}, set(), set()

    def is_initialized(self):
        return self.began

    def init(self, **_):
        self.began = True

    def shutdown(self):
        self.began, self.ended = False, True

    def nodes(self):
        dead = {"Alive": False, "Resources": {}}
        return [{"Alive": True, "Resources": has} for has in self.machines] + [dead]

    def remote(self, **needs):
        self.needs = needs
        return lambda task: types.SimpleNamespace(remote=lambda *given: pickle.dumps((task, given)))

    def wait(self, references, num_returns):
        assert num_returns == 1
        return references[-1:], references[:-1]

    def get(self, reference):
        task, given = pickle.loads(reference)
        if str(given[0]) in self.dies:
            raise RayError("the worker died\nof no memory")
        here = os.getcwd()
        os.chdir(self.folder)
        try:
            done = task(*given)
        finally:
            os.chdir(here)
        if str(given[0]) in self.lost:
            shutil.rmtree(given[2]["out"] / ".parts" / given[0].folder)
        return done


@pytest.fixture
def ray(monkeypatch, tmp_path):
    (tmp_path / "another").mkdir()
    made = Ray(tmp_path / "another")
    monkeypatch.setitem(sys.modules, "ray", made)
    monkeypatch.setitem(sys.modules, "ray.exceptions", made.exceptions)
    return made


def on(world, out, *more):
    return door.main(arguments(world, out, "--engine", "ray", *more))


@pytest.mark.slow
def test_the_parts_are_tasks_and_joined_to_what_one_machine_makes(world, reference, ray, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(world, "world")  # which keeps the files' times
    relative = Path("world"), Path("out")
    assert on(*relative, "--workers", "1", "--parts", "3") == 0
    assert hashes(tmp_path / "out") == hashes(reference)
    assert ray.needs == {"num_cpus": 1, "num_gpus": 0} and ray.ended
    assert "3 parts, 4 at the same time, on 2 machines of Ray" in capsys.readouterr().err
    assert on(*relative, "--workers", "1") == 0, "a finished folder is opened"
    assert hashes(tmp_path / "out") == hashes(reference)


@pytest.mark.slow
def test_a_part_that_fails_is_named_and_the_same_command_goes_on(world, reference, ray, tmp_path, capsys):
    out = tmp_path / "out"
    part(world, out, 1)  # by hand; the count is then the folder's
    (out / ".parts" / "2-of-2").mkdir()
    with open(out / ".parts" / "2-of-2" / "lock", "a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(InputError) as error:
            on(world, out, "--workers", "1")
    told = str(error.value)
    assert told.startswith("--engine ray: part 2/2, on ") and "another prepare is at work on part 2/2" in told
    assert told.endswith("what was made is kept: the same command goes on") and "\n" not in told
    with pytest.raises(InputError, match="holds parts of 2, not of 5: give --parts 2, or delete them"):
        on(world, out, "--parts", "5")
    ray.dies = {"1/2", "2/2"}
    with pytest.raises(InputError, match=r"part 2/2, on a machine: RayError: the .* memory \(1 further parts failed\)"):
        on(world, out, "--workers", "1")
    ray.dies, ray.lost = set(), {"2/2"}
    with pytest.raises(InputError, match=r"part 2/2, on .*: it is not in .*\.parts: give an --out on a disk that all"):
        on(world, out, "--workers", "1")
    ray.lost = set()
    assert on(world, out, "--workers", "1") == 0 and hashes(out) == hashes(reference)
    capsys.readouterr()


def test_where_there_is_no_ray_or_no_cluster(world, ray, tmp_path, monkeypatch):
    def refuse(**_):
        raise ConnectionError("nobody\nanswers")

    monkeypatch.setattr(ray, "init", refuse)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with pytest.raises(InputError, match=r"RAY_ADDRESS=10.0.0.1:6379 cannot be reached \(.*nobody answers\)"):
        on(world, tmp_path / "out")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match="the package ray cannot be imported .*: pip install ray .*with --part"):
        on(world, tmp_path / "out")


def test_how_many_parts_a_cluster_makes_at_the_same_time():
    small, large, gpus = {"CPU": 4.0}, {"CPU": 33.0}, {"CPU": 16.0, "GPU": 2.0}
    assert on_ray._places([large], {}) == (8, 4)
    assert on_ray._places([small, large], {}) == (4, 9), "each machine has room for a part"
    assert on_ray._places([{}, large], {}) == (8, 4), "a machine that only directs takes none"
    assert on_ray._places([small, large], {"workers": 16}) == (16, 2)
    assert on_ray._places([gpus, large], {"workers": 4, "decoder": "nvdec"}) == (4, 2), "a GPU for each"
    with pytest.raises(
        InputError, match=r"no machine has 64 CPUs \(--workers\); of 2 machines the largest has 33 CPUs"
    ):
        on_ray._places([small, large], {"workers": 64})
    with pytest.raises(InputError, match=r"has 4 CPUs \(--workers\) and a GPU \(--decoder nvdec\)"):
        on_ray._places([small], {"decoder": "nvdec"})
    with pytest.raises(InputError, match="of 0 machines the largest has 0 CPUs"):  # all of them are gone
        on_ray._places([], {})


WRONG = {
    ("--engine", "ray", "--part", "1/2"): "--engine ray does not go with --part: it makes all parts and joins them",
    ("--engine", "ray", "--join"): "--engine ray does not go with --join",
    ("--engine", "ray", "--check"): "--engine ray does not go with --check",
    ("--parts", "2"): "--parts goes with --engine ray; elsewhere give each machine its part, with --part I/N",
    ("--engine", "ray", "--out", "s3://bucket/a"): "--engine ray needs a folder of this machine, and --out is s3://",
    ("--engine", "ray", "--parts", "0"): "--parts",
    ("--engine", "dask"): "dask",
}


@pytest.mark.parametrize("options", WRONG, ids=" ".join)
def test_options_that_do_not_go_together(options, capsys):
    with pytest.raises(SystemExit):
        door.main(["--videos", "v", "--annotations", "a", "--out", "o", *options])
    assert WRONG[options] in capsys.readouterr().err
    with pytest.raises(SystemExit):
        door.main(["--verify", "--out", "o", "--engine", "ray"])
    assert "--engine ray is for preparing: it does not go with --verify alone" in capsys.readouterr().err


@pytest.mark.slow
def test_ray_itself(world, reference, tmp_path):
    """A cluster of this machine alone, two parts at the same time."""
    pytest.importorskip("ray", reason="ray is not installed")
    out = tmp_path / "out"
    words = arguments(world, out, "--engine", "ray", "--parts", "2", "--workers", "1")
    environment = os.environ | {"RAY_USAGE_STATS_ENABLED": "0", "RAY_TMPDIR": "/tmp"}
    environment.pop("RAY_ADDRESS", None)
    command = [sys.executable, "-m", "essl_fast.prepare", *words]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "2 parts" in done.stderr and hashes(out) == hashes(reference)
