"""Fixtures that several test files share."""

import os
import signal

import pytest
import torch

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # started with & by a script; tests of Ctrl-C pass it on
    signal.signal(signal.SIGINT, signal.default_int_handler)

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when a kernel is defined: it then runs on the CPU


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A small demo world, made and prepared: (world, prepared folder)."""
    from essl_fast.data.synthetic import make_world
    from essl_fast.prepare import prepare

    place = tmp_path_factory.mktemp("tiny")
    world = make_world(place / "world", train_videos=14, test_videos=5, seed=3, progress=False)
    prepare(world.videos, world.annotations, place / "prepared", validation=0.15, progress=False)
    return world, place / "prepared"


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """Real videos with annotations (see `make_world`); tests may touch a file's time, nothing else."""
    from tests.tools.prepare import make_world

    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def reference(world, tmp_path_factory):
    """`world` prepared in one go, by one process: 12 training pairs in 3 shards, 3 for validation in one, 6 in 2."""
    from tests.tools.prepare import run

    out = tmp_path_factory.mktemp("reference") / "out"
    run(world, out)
    return out


@pytest.fixture
def triton_on_cpu(monkeypatch):
    """The Triton kernels take CPU tensors, in Triton's interpreter."""
    from essl_fast.kernels import tuning

    if not tuning.INTERPRETED:
        pytest.skip("there is a GPU: its tests run the compiled kernels")
    monkeypatch.setattr(tuning, "CPU_TOO", True)
