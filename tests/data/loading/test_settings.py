"""What a loader is told: what is refused, and what it picks itself."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from essl_fast.common.errors import InputError
from essl_fast.data.loading import Loader, LoaderSettings, Order
from essl_fast.data.loading.memory import processes_here
from essl_fast.data.loading.settings import pick_prefetch, pick_threads
from essl_fast.data.shards import Manifest
from tests.data.shards.test_shards import write_folder

GIVEN = {"batch_size": 8, "side": 32, "shuffle": True}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("prepared"), train=50, val=5, test=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "batch_size is at least 1"),
        ({"side": 0}, "side is at least 1"),
        ({"threads": 0}, "threads is at least 1"),
        ({"prefetch": 0}, "prefetch is at least 1"),
        ({"seed": -1}, "seed is at least 0"),
        ({"rank": 2, "world_size": 2}, "world_size is at least 3"),
        ({"max_errors": -0.1}, "max_errors is at least 0"),
        ({"global_batch": -1}, "global_batch is at least 0"),
        ({"global_batch": 17, "world_size": 2}, "a global_batch of 17 is more than batch_size 8 on each of 2 ranks"),
        ({"last_batch": "pad"}, "last_batch is keep or drop"),
        ({"on_error": "retry"}, "on_error is stop or skip, not 'retry'"),
        ({"exclude": "some"}, "exclude is none or bad or all"),
        ({"splits": ()}, "one or more different names"),
        ({"splits": ("val", "val")}, "one or more different names"),
        ({"splits": ("dev",)}, "no split 'dev'"),
        ({"splits": ("test",)}, "has no pair in test"),
        ({"splits": ("val",), "last_batch": "drop"}, "5 pairs do not fill one batch of 8 on each of 1 ranks"),
        (
            {"splits": ("val",), "world_size": 6},
            "5 pairs cannot be shared out over 6 ranks.*use fewer ranks .--nproc-per-node.$",
        ),
        (
            {"batch_size": 1, "world_size": 3},
            "50 pairs cannot be shared out over 3 ranks.*or a larger --data.batch_size",
        ),
    ],
)
def test_impossible_settings(folder, settings, message):
    with pytest.raises(InputError, match=message):
        Loader(Manifest.load(folder), **({"splits": ("train",), "threads": 1} | GIVEN | settings))


def test_an_unknown_setting_is_named(folder):
    with pytest.raises(TypeError, match="'batchsize'"):
        Loader(folder, "train", batchsize=8, side=32, shuffle=True)


def test_threads_and_prefetch_come_from_the_machine(folder, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(24)))
    assert pick_threads() == 8
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert pick_threads() == 6
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    assert pick_threads() == 1
    assert [pick_prefetch(size) for size in (1, 64, 100, 128, 4096)] == [4, 4, 2, 2, 2]
    loader = Loader(Manifest.load(folder), "train", **GIVEN, threads=None, prefetch=None)
    assert (loader.threads, loader.settings.prefetch) == (1, 4)


@pytest.mark.parametrize(
    ("environment", "processes"),
    [
        ({}, 1),
        ({"LOCAL_WORLD_SIZE": "4"}, 1),  # left from elsewhere
        ({"LOCAL_WORLD_SIZE": ""}, 1),
        ({"WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": ""}, 1),
        ({"WORLD_SIZE": "", "LOCAL_WORLD_SIZE": "8"}, 1),
        ({"WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "four"}, 1),
        ({"WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "-4"}, 1),
        ({"WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "9" * 5000}, 1),
        ({"WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "0"}, 1),
        ({"WORLD_SIZE": "tcp://10.0.0.1:80", "LOCAL_WORLD_SIZE": "2"}, 1),
        ({"WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "8"}, 1),
        ({"WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": " 4 "}, 4),
        ({"WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": "8"}, 8),
    ],
)
def test_processes_of_this_host(monkeypatch, environment, processes):
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    assert processes_here() == processes and pick_threads() == min(8, 16 // processes)


def test_settings_are_complete_and_make_the_order():
    settings = LoaderSettings(splits="train", **GIVEN | {"shuffle": 1}, seed=5, rank=1, world_size=2, threads=3)
    assert (settings.splits, settings.shuffle, settings.device) == (("train",), True, torch.device("cpu"))
    assert settings.order(50) == Order(50, 8, seed=5, shuffle=True, rank=1, world_size=2)


def test_what_gives_a_rank_more_pairs_depends_on_who_decides_their_number():
    made = {
        more: LoaderSettings(splits=("train",), **GIVEN, **dict(more)).larger_batches
        for more in (
            (),
            (("global_batch", 8),),
            (("global_batch", 8), ("world_size", 3)),
        )
    }
    assert list(made.values()) == [
        "choose a larger data.batch_size",
        "choose a larger data.global_batch",
        "use fewer ranks (--nproc-per-node) or a larger data.global_batch",
    ]


@pytest.mark.parametrize("kind", [str, Path])
def test_a_folder_stands_for_its_manifest(folder, kind):
    with Loader(kind(folder), "val", **GIVEN | {"shuffle": False}) as loader:
        assert np.concatenate([batch.index for batch in loader]).tolist() == list(range(50, 55))
    with pytest.raises(InputError, match="nowhere"):
        Loader(kind(folder / "nowhere"), "val", **GIVEN)


def test_a_loader_goes_on_where_another_number_of_ranks_was(folder):
    """With a global batch; also where the state is of loaders without one whose steps held the same pairs."""

    def loader(**settings):
        return Loader(Manifest.load(folder), "train", **{**GIVEN, "threads": 1, **settings})

    shared = {"global_batch": 10, "batch_size": 10}
    alone, three, two = loader(**shared), loader(**shared, world_size=3), loader(batch_size=5, world_size=2)
    for before in (alone, three, two):
        before.seek(1, 2)
        for after in (loader(**shared), loader(**shared, world_size=2, rank=1)):
            after.load_state_dict(before.state_dict())
            assert (after.epoch, after.step) == (1, 2)
    with pytest.raises(InputError, match=r"this changed: global_batch \(was 10, is 6\)"):
        loader(global_batch=6).load_state_dict(two.state_dict())
    with pytest.raises(InputError, match=r"this changed: global_batch \(was 10, is 0\)"):
        two.load_state_dict(alone.state_dict())
    other = loader(batch_size=7, world_size=7)  # 50 pairs: a rank would have no pair in the last step, and kept one
    with pytest.raises(InputError, match=r"this changed: global_batch \(was None, is 49\)"):
        loader(global_batch=49, batch_size=49).load_state_dict(other.state_dict())
