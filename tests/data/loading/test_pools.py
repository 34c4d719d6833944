"""How much memory pools may take, and who gets one."""

import gc
from pathlib import Path

import pytest
import torch

from essl_fast import kernels
from essl_fast.common.errors import InputError
from essl_fast.data.loading import Loader, Order, Pools, bytes_per_pair, host_memory, memory
from essl_fast.data.loading.memory import GB
from essl_fast.data.shards import Manifest
from tests.data.shards.test_shards import write_folder
from tests.tools.batches import assert_equal, batches

SIDE = 32


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return Manifest.load(write_folder(tmp_path_factory.mktemp("prepared"), train=31, val=5, test=0))


def make(manifest: Manifest, **settings) -> Loader:
    given = {"splits": "train", "batch_size": 4, "side": SIDE, "shuffle": True, "threads": 1, "seed": 3}
    return Loader(manifest, **(given | settings))


@pytest.mark.slow
def test_the_budget_is_kept(manifest):
    size = bytes_per_pair(SIDE)
    assert size == SIDE * SIDE * 3 + 96_000
    assert bytes_per_pair(246, kernels.log_mel) == 246 * 246 * 3 + 3 * 96 * 64 * 4
    fits = Pools("auto", 31 * size / GB, "cpu")
    loader = make(manifest, pools=fits)
    assert loader.pool is not None and not fits.notes
    late = make(manifest, splits=("val",), pools=fits)
    assert late.pool is None and late.pairs == 5
    assert fits.notes == [
        "val at side 32 is streamed, not kept: that needs 0.000495 GB for 5 pairs, and 0 GB of the budget are left "
        "(0.000495 GB missing; data.resident_budget_gb sets the budget)"
    ]
    make(manifest, splits=("val",), pools=fits)
    assert len(fits.notes) == 1, "the same line twice"
    assert_equal(batches(late, 2), batches(make(manifest, splits=("val",)), 2))

    short = Pools("always", 30 * size / GB, "cpu")
    with pytest.raises(
        InputError,
        match=r"data.resident: always, but train at side 32 needs 0.00307 GB for 31 pairs, "
        r"and 0.00297 GB of the budget are left; raise data.resident_budget_gb, or use auto or never",
    ):
        make(manifest, pools=short)
    assert make(manifest, pools=Pools("never", 1, "cpu")).pool is None
    with pytest.raises(InputError, match="data.resident_budget_gb: cpu did not give 9.91e"):
        Pools("always", 1e12, "cpu").take("everything", "all", Order(10**15, 4), SIDE)
    gc.collect()


def fake_host(root: Path, available: int, groups: str, files: dict[str, dict[str, str]]) -> Path:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(f"MemTotal: 99999 kB\nMemAvailable:   {available} kB\nHugePages_Total: 0\n")
    (root / "proc/self/cgroup").write_text(groups)
    for folder, entries in files.items():
        (root / "sys/fs/cgroup" / folder).mkdir(parents=True, exist_ok=True)
        for name, value in entries.items():
            (root / "sys/fs/cgroup" / folder / name).write_text(value + "\n")
    return root


V2 = {"memory.current": "3000", "memory.stat": "anon 1\ninactive_file 500\nactive_file 2"}
V1 = {"memory.usage_in_bytes": "3000", "memory.stat": "cache 1\ninactive_file 9\ntotal_inactive_file 500"}


@pytest.mark.parametrize(
    ("groups", "files", "room"),
    [
        ("", {}, 10 * 1024),
        ("0::/\n", {}, 10 * 1024),
        ("0::/\n", {"": V2 | {"memory.max": "8000"}}, 5500),
        ("0::/a/b\n", {"a/b": V2 | {"memory.max": "max"}, "a": V2 | {"memory.max": "7000"}}, 4500),
        ("0::/a/b\n", {"a/b": V2 | {"memory.max": "4000"}, "a": V2 | {"memory.max": "7000"}}, 1500),
        ("0::/path/of/the/host\n", {"": V2 | {"memory.max": "8000"}}, 5500),
        ("0::/a\n", {"a": V2 | {"memory.max": "2000"}}, 0),
        ("5:cpu,cpuacct:/a\n4:memory:/a\n", {"memory/a": V1 | {"memory.limit_in_bytes": "9000"}}, 6500),
        ("4:memory:/a\n", {"memory/a": V1 | {"memory.limit_in_bytes": str(2**63 - 4096)}}, 10 * 1024),
    ],
)
def test_host_memory_knows_control_groups(tmp_path, groups, files, room):
    assert host_memory(fake_host(tmp_path, 10, groups, files)) == room


def test_the_budget_that_nobody_gave(monkeypatch):
    assert 0 < host_memory() < 2**50
    monkeypatch.setattr(memory, "host_memory", lambda: 1000 * bytes_per_pair(SIDE))
    assert Pools("auto", 0, "cpu").take("half", 1, Order(500, 4), SIDE) is not None
    assert Pools("auto", 0, "cpu").take("more", 1, Order(501, 4), SIDE) is None
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert Pools("auto", 0, "cpu").take("half", 1, Order(126, 4), SIDE) is None
    with pytest.raises(InputError, match="set data.resident_budget_gb, or use auto or never"):
        Pools("always", 0, "cpu").take("half", 1, Order(126, 4), SIDE)


def test_the_budget_on_a_gpu_is_a_share_of_what_is_free(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 5000))
    assert memory.Budget.of(0, torch.device("cuda", 0)).left == 600  # the rest is for activations
