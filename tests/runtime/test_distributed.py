"""Several processes: joining, sharing, and batch norm over all ranks."""

import datetime
import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torch.distributed as dist

from essl_fast.common.errors import InputError
from essl_fast.models.norm import ViewBatchNorm
from essl_fast.runtime import distributed
from essl_fast.runtime.distributed import World
from tests import ROOT
from tests.tools.ranks import run_ranks

SIZES = (3, 5)  # samples of each view on rank 0 and 1: statistics weigh samples, not ranks


def test_the_world_is_torchruns():
    assert distributed.world_of({}) == distributed.ALONE and distributed.ALONE.leads
    environment = {"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "1"}
    world = distributed.world_of(environment)
    assert world == (3, 4, 1, 0) and not world.leads
    with pytest.raises(InputError, match="MASTER_PORT is not: start several processes with torchrun"):
        distributed.world_of({k: v for k, v in environment.items() if k != "MASTER_PORT"})
    assert distributed.own_device("cpu", world) == "cpu"
    with pytest.raises(InputError, match="cuda:0 names one GPU for 4 processes"):
        distributed.own_device("cuda:0", world)
    if torch.cuda.device_count() == 0:
        assert distributed.own_device("auto", world) == "cpu"
        with pytest.raises(InputError, match="process 1 of this machine has no GPU of its own"):
            distributed.own_device("cuda", world)


TORCHRUN = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("environment", "world"),
    [
        ({"WORLD_SIZE": ""}, (0, 1, 0, 0)),
        ({"WORLD_SIZE": " "}, (0, 1, 0, 0)),
        ({"WORLD_SIZE": "1"}, (0, 1, 0, 0)),
        ({"WORLD_SIZE": "1", "RANK": "7", "LOCAL_RANK": "x", "MASTER_PORT": "tcp://10.0.0.1:80"}, (0, 1, 0, 0)),
        ({"RANK": "3", "LOCAL_RANK": "3"}, (0, 1, 0, 0)),
        ({"MASTER_PORT": "tcp://10.0.0.1:80", "MASTER_ADDR": "10.0.0.1"}, (0, 1, 0, 0)),
        ({"SLURM_NTASKS": "8", "SLURM_PROCID": "3", "SLURM_LOCALID": "3", "SLURM_JOB_ID": "1"}, (0, 1, 0, 0)),
        ({"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "2"}, (0, 1, 0, 0)),
        ({"WORLD_SIZE": "1", "TORCHELASTIC_RESTART_COUNT": "2"}, (0, 1, 0, 2)),
        ({"TORCHELASTIC_RESTART_COUNT": "1"}, (0, 1, 0, 1)),
        ({"WORLD_SIZE": "1", "TORCHELASTIC_RESTART_COUNT": "often"}, (0, 1, 0, 0)),
        (TORCHRUN, (1, 2, 1, 0)),
        ({**TORCHRUN, "TORCHELASTIC_RESTART_COUNT": "3"}, (1, 2, 1, 3)),
    ],
)
def test_an_environment_that_says_which_world_this_is(environment, world):
    assert distributed.world_of(environment) == world


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two', not a number from 1 on"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE is '0'"),
        ({"WORLD_SIZE": "-1"}, "WORLD_SIZE is '-1'"),
        ({"WORLD_SIZE": "2.0"}, "WORLD_SIZE is '2.0'"),
        ({"WORLD_SIZE": "9" * 30}, "WORLD_SIZE is '999"),
        ({"WORLD_SIZE": "2\n3"}, "WORLD_SIZE is"),
        ({"RANK": "2"}, "RANK is '2', not a number from 0 to 1"),
        ({"RANK": "-1"}, "RANK is '-1'"),
        ({"RANK": "0x1"}, "RANK is '0x1'"),
        ({"RANK": ""}, "WORLD_SIZE is set but RANK is not"),
        ({"LOCAL_RANK": "a"}, "LOCAL_RANK is 'a'"),
        ({"LOCAL_RANK": ""}, "LOCAL_RANK is not"),
        ({"MASTER_ADDR": ""}, "MASTER_ADDR is not"),
        ({"MASTER_ADDR": "", "MASTER_PORT": ""}, "MASTER_ADDR, MASTER_PORT are not"),
        ({"MASTER_PORT": "tcp://10.0.0.1:80"}, "MASTER_PORT is 'tcp://10.0.0.1:80' (Kubernetes sets such a variable"),
        ({"MASTER_PORT": "70000"}, "MASTER_PORT is '70000', not a number from 1 to 65535"),
        ({"MASTER_PORT": "0"}, "MASTER_PORT is '0'"),
        ({"TORCHELASTIC_RESTART_COUNT": "x"}, "TORCHELASTIC_RESTART_COUNT is 'x'"),
    ],
)
def test_an_environment_that_is_not_torchruns_is_one_line(changed, named):
    with pytest.raises(InputError) as error:
        distributed.world_of({**TORCHRUN, **changed})
    assert named in str(error.value) and "\n" not in str(error.value) and "torchrun" in str(error.value)


def test_processes_that_cannot_be_joined_are_one_line(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        monkeypatch.setenv("MASTER_PORT", str(taken.getsockname()[1]))
        with pytest.raises(
            InputError, match="2 processes of WORLD_SIZE could not be joined at 127.0.0.1:.*unset WORLD_SIZE"
        ):
            with distributed.joined(distributed.World(0, 2, 0), torch.device("cpu"), minutes=0.05):
                pass


@pytest.mark.slow
def test_a_rank_that_fails_on_a_gpu_ends_at_once_and_nothing_else_does():
    code = "import sys, torch\nfrom essl_fast.runtime import distributed as d\nworld = d.World(0, int(sys.argv[1]))\n"
    code += "import atexit\natexit.register(print, 'orderly')\nd.give_up(world, torch.device(sys.argv[2]), 3)\n"
    cases = ("2", "cuda", 3, ""), ("1", "cuda", 0, "orderly\n"), ("2", "cpu", 0, "orderly\n")
    for size, device, code_of_exit, said in cases:
        done = subprocess.run([sys.executable, "-c", code, size, device], capture_output=True, text=True, timeout=300)
        assert (done.returncode, done.stdout) == (code_of_exit, said), done.stderr


def talk(world):
    order = []
    with distributed.leader_first(world):
        order.append(world.rank)
    summed = distributed.total(torch.full((3,), float(world.rank + 1)), world)
    try:
        with distributed.leader_first(world):
            if world.leads:
                raise InputError("the disk is full")
        error = ""
    except InputError as caught:
        error = str(caught)
    return distributed.share({"from": world.rank}, world), distributed.gather(world.rank * 10, world), summed, error


@pytest.mark.slow
def test_ranks_share_gather_and_sum():
    for rank, (shared, gathered, summed, error) in enumerate(run_ranks(2, talk)):
        assert shared == {"from": 0} and gathered == [0, 10] and summed.tolist() == [3, 3, 3]
        assert error == ("the disk is full" if rank == 0 else "rank 0 stopped: the disk is full")


def norm_inputs(shape):
    """Two views of 8 samples and the gradient of the output, as one process sees them."""
    torch.manual_seed(0)
    x = torch.randn(2, sum(SIZES), *shape) * 2 + torch.arange(2.0).view(2, *[1] * (1 + len(shape)))
    return x, torch.randn_like(x)


def synced_norm(world, shape, compiled):
    norm = ViewBatchNorm(shape[0])
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(0.5, 2, shape[0]))
    norm.synced = world.size > 1
    run = torch.compile(norm, fullgraph=True, backend="aot_eager", dynamic=False) if compiled else norm
    x, weights = norm_inputs(shape)
    if world.size > 1:
        mine = slice(0, SIZES[0]) if world.rank == 0 else slice(SIZES[0], None)
        x, weights = x[:, mine], weights[:, mine]
    x = x.flatten(0, 1).requires_grad_()
    out = run(x, 2)
    (out * weights.flatten(0, 1)).sum().backward()
    parameters = distributed.total(torch.stack([norm.weight.grad, norm.bias.grad]), world)
    return [t.detach().numpy() for t in (out, x.grad, parameters, norm.running_mean, norm.running_var)]


@pytest.mark.slow
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.nightly)], ids=["eager", "compiled"])
@pytest.mark.parametrize("shape", [(6,), (4, 3, 2)], ids=str)
def test_batch_norm_over_two_ranks_equals_one_rank_with_all(shape, compiled):
    want = synced_norm(distributed.ALONE, shape, False)
    both = run_ranks(2, synced_norm, shape, compiled)
    for position in (0, 1):  # outputs and gradients of the samples
        whole = want[position].reshape(2, sum(SIZES), *shape)
        parts = [ranks[position].reshape(2, count, *shape) for ranks, count in zip(both, SIZES, strict=True)]
        np.testing.assert_allclose(np.concatenate(parts, axis=1), whole, rtol=1e-5, atol=1e-5)
    for have in both:
        for mine, expected in zip(have[2:], want[2:], strict=True):
            np.testing.assert_allclose(mine, expected, rtol=1e-5, atol=1e-5)


def test_each_process_takes_the_gpu_of_its_place_on_its_machine(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    assert distributed.own_device("cuda", distributed.World(rank=9, size=16, local_rank=1)) == "cuda:1"
    assert distributed.own_device("cuda", distributed.World(rank=7, size=16, local_rank=7)) == "cuda:7"
    with pytest.raises(InputError, match="process 8 of this machine .* there are 8: use --nproc-per-node=8$"):
        distributed.own_device("cuda", distributed.World(rank=8, size=16, local_rank=8))


def test_a_group_after_a_restart_finds_nothing_of_the_one_before(monkeypatch):
    """torchrun keeps one store over its restarts; rank 2 of the first group asked, and was killed."""
    server = dist.TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False)
    wait = datetime.timedelta(seconds=20)
    server.set("essl_fast/asks/2", "a word of one that is gone")

    def client(url, rank, size, timeout):
        assert url == "env://" and timeout == wait
        yield dist.TCPStore("127.0.0.1", server.port, None, False, wait_for_workers=False), rank, size

    monkeypatch.setattr(distributed, "rendezvous", client)

    def group():
        with ThreadPoolExecutor(3) as pool:
            return list(pool.map(lambda rank: distributed._own_store(World(rank, 3), wait), range(3)))

    first = group()
    first[0].set("address", "of a process")
    assert [each.check(["address"]) for each in first] == [True] * 3
    assert not any(each.check(["address"]) for each in group())
    with pytest.raises(dist.DistStoreError, match="^ranks 1, 2 did not come$"):
        wait = datetime.timedelta(seconds=0.2)
        distributed._own_store(World(0, 3), wait)


KILLED_ONCE = """
import os, torch
from essl_fast.runtime import distributed
world = distributed.world_of()
with distributed.joined(world, torch.device("cpu"), minutes=1):
    assert distributed.gather(world.rank, world) == [0, 1]
    if world.rank == 1 and not world.restarts:
        os.kill(os.getpid(), 9)
    assert distributed.gather(world.restarts, world) == [1, 1]
"""


@pytest.mark.slow
def test_torchrun_starts_a_group_again(tmp_path):
    (tmp_path / "group.py").write_text(KILLED_ONCE)
    words = "-m torch.distributed.run --standalone --max-restarts=1 --nproc-per-node=2".split()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *words, str(tmp_path / "group.py")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
