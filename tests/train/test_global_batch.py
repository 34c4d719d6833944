"""data.global_batch: the same run on any number of processes, also where that number changes on the way."""

import contextlib
import itertools
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from essl_fast import checkpoints, config, models
from essl_fast.common.errors import InputError, in_shell
from essl_fast.data.loading import Loader, Order
from essl_fast.data.shards import Manifest
from essl_fast.runtime.distributed import World
from essl_fast.runtime.runlog import read_log
from essl_fast.train import Trainer, collapse, fit, replaying
from essl_fast.train.accumulation import grouped, sizes_of
from essl_fast.train.data import refuse_large_parts, refuse_own_statistics, refuse_wide_statistics
from essl_fast.train.events import Fault
from essl_fast.train.meters import LossMeter, SpeedMeter
from essl_fast.train.state import check_resume, last_state, of_rank, resume
from tests import ROOT
from tests.tools.ports import free_port
from tests.tools.ranks import run_worlds

CPU = torch.device("cpu")
STEPS, MIDDLE = 5, 3
SIZES = (1, 4, 3, 2)
RANKS = {  # each number of ranks goes on from the one before it
    "pcm": SIZES,
    "accumulated": (1, 4, 2),  # four share each batch, two take them by turns
    "by turns": (1, 3, 2),
}
# Of parts, one pair more in each batch of a step: 5 by 4 is 2, 1, 1, 1. By turns, one batch more.
APART = {("pcm", size): 1 for size in SIZES} | {
    ("accumulated", 4): 3,
    ("accumulated", 2): 5,
    ("by turns", 3): 0,
    ("by turns", 2): 3,
}
WORDS = {  # 19 pairs; batches of 5, 5, 5, 4; of 5 + 5 + 5; of 3 + 3 + 3 and 3 + 3 + 3; the other pairs are dropped
    "pcm": "--data.global_batch 5 --data.last_batch keep --data.resident never --model.pcm true --model.pcm_cycles 1",
    "accumulated": "--data.global_batch 15 --data.last_batch drop --optim.accumulate 3 --data.resident_shared always "
    "--epochs 6 --data.labelled_fraction 0.5 --optim.ema 0.9 --optim.clip_norm 0.5 --optim.schedule cosine",
    "by turns": "--data.global_batch 9 --data.last_batch drop --optim.accumulate 3 --data.resident never "
    "--objective.method lss --model.head lss",
}


def trainer_of(prepared, world, words):
    """In float64, with a narrow head."""
    settings = config.load(
        "demo", shlex.split(f"--data.root {in_shell(prepared)} --data.threads 1 --epochs 4 --model.head_dim 32 {words}")
    )
    build = models.build
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "build", lambda settings: build(settings).double())
        trainer = Trainer(settings, Manifest.load(prepared), CPU, world)
    trainer.model.register_forward_pre_hook(lambda _, inputs: tuple(each.double() for each in inputs))
    for group in trainer.step.optimizer.param_groups:
        group["eps"] = 1e-3  # with AdamW's 1e-8 a gradient of 1e-8 would be divided by itself, and its rounding grow
    return trainer


def train_to_step(trainer, last, keep=None):
    """What a run computes up to a step; ``keep``: where to write its checkpoint of the middle."""
    rows, losses, rates = [], [], []
    with trainer.loader:
        while trainer.steps < last:
            for raw in itertools.islice(trainer.batches(), last - trainer.steps):
                trainer.losses.every = 1
                trainer.take_step(raw)
                rows.append(raw.index.tolist())
                rates.append(trainer.step.rates.now()["head"])
                if trainer.steps == MIDDLE and keep:
                    state = last_state(trainer)
                    if trainer.world.leads:
                        checkpoints.save(keep, state)
            if trainer.steps < last:
                losses.append(trainer.end_epoch())
        state = last_state(trainer)
    tensors = state["model"] | {f"ema.{name}": value for name, value in state.get("ema", {}).items()}
    weights = {name: value.numpy().copy() for name, value in tensors.items()}
    entries = [{key: entry[key] for key in ("losses", "pairs", *collapse.SPREAD) if key in entry} for entry in losses]
    return rows, weights, entries, state["sums"], rates


def whole_and_resumed(world, prepared, folder):
    """For each case: a run from its beginning, and one that goes on from the checkpoint of other ranks."""
    found = {}
    for name, sizes in RANKS.items():
        if world.size not in sizes:
            continue
        trainer = trainer_of(prepared, world, WORDS[name])
        found[name] = [train_to_step(trainer, STEPS, Path(folder) / f"{name}-{world.size}.pt")]
        if world.size > 1:
            others = sizes[sizes.index(world.size) - 1]
            resume(trainer, checkpoints.load(Path(folder) / f"{name}-{others}.pt"))
            found[name].append(train_to_step(trainer, STEPS))
    return found


@pytest.mark.slow
def test_any_number_of_ranks_is_the_same_run(tiny, tmp_path):
    """Weights, running statistics, averages, losses and learning rates after five steps, in float64."""
    worlds = dict(zip(SIZES, run_worlds(SIZES, whole_and_resumed, tiny[1], str(tmp_path)), strict=True))
    for name, sizes in RANKS.items():
        alone = worlds[1][0][name][0]
        for size in sizes[1:]:
            for run in range(2):
                apart = APART[name, size]
                compare(f"{name}, {size} ranks", [rank[name][run] for rank in worlds[size]], alone, MIDDLE * run, apart)


def compare(what, ranks, alone, begin, apart):
    """What ranks have computed from step ``begin`` on is what one process has computed.

    apart: how many pairs of a step one of them has more than another.
    """
    rows, weights, entries, sums, rates = alone
    for step, together in enumerate(zip(*(rank[0] for rank in ranks), strict=True), begin):
        assert sorted(itertools.chain(*together)) == sorted(rows[step]), (what, step)
        assert max(map(len, together)) - min(map(len, together)) <= apart, (what, step)
    for _, their_weights, their_entries, their_sums, their_rates in ranks:
        assert their_weights.keys() == weights.keys() and their_rates == rates[begin:]
        for name, value in weights.items():
            np.testing.assert_allclose(their_weights[name], value, rtol=1e-12, atol=1e-12, err_msg=f"{what} {name}")
        for mine, theirs in zip(their_entries, entries[-len(their_entries) :], strict=True):
            assert mine["pairs"] == theirs["pairs"]
            for part, value in theirs["losses"].items():
                assert mine["losses"][part] == pytest.approx(value, abs=1e-9), (what, part)
            assert ("by turns" in what) == (not mine.keys() & set(collapse.SPREAD))  # LSS compares no views
            for part in mine.keys() & collapse.SPREAD:
                assert mine[part] == pytest.approx(theirs[part], rel=1e-4), (what, part)
        for part, value in sums.items():  # the spread is measured in float32
            near = {"rel": 1e-4} if part in collapse.SPREAD else {"abs": 1e-9}
            assert their_sums[part] == pytest.approx(value, **near), (what, part)


def settings_of(prepared, words):
    return config.load(
        "demo", shlex.split(f"--data.root {in_shell(prepared)} --data.threads 1 --data.last_batch drop {words}")
    )


@pytest.fixture(scope="module")
def alone(tiny):
    """A trainer of one process with a global batch, which tests may give another world or other settings."""
    trainer = Trainer(settings_of(tiny[1], "--data.global_batch 8 --data.batch_size 8"), Manifest.load(tiny[1]), CPU)
    trainer.loader.close()
    return trainer


def resumed(trainer, monkeypatch, was, now, ranks=(1, 1)):
    """What check_resume says of two settings; ``ranks``: of the checkpoint and of the run."""
    state = last_state(trainer) | {"seen": [0] * ranks[0]}
    for group in (was, now):
        settings = config.from_dict(config.to_dict(trainer.settings))
        for name, value in group.items():
            part, _, last = name.rpartition(".")
            setattr(getattr(settings, part), last, value)
        if group is was:
            state["config"] = config.to_dict(settings)
    monkeypatch.setattr(trainer, "settings", settings)
    monkeypatch.setattr(trainer, "world", World(0, ranks[1]))
    return check_resume(trainer, state, "runs/a")


SHARED, OWN = {"data.global_batch": 8, "data.batch_size": 8}, {"data.global_batch": 0, "data.batch_size": 4}


@pytest.mark.parametrize(
    ("was", "now", "ranks"),
    [
        (SHARED, SHARED, (3, 2)),
        (SHARED, SHARED | {"data.batch_size": 4}, (1, 3)),
        (OWN, SHARED, (2, 1)),
        (OWN, SHARED, (2, 5)),
        (OWN | {"data.batch_size": 2, "optim.accumulate": 2}, SHARED | {"optim.accumulate": 2}, (2, 3)),
        (OWN, OWN, (2, 2)),
    ],
)
def test_a_run_that_shares_its_batches_goes_on_with_other_ranks(alone, monkeypatch, was, now, ranks):
    changed = resumed(alone, monkeypatch, was, now, ranks)
    assert [line.split(":")[0] for line in changed] == [name for name in sorted(was) if was[name] != now[name]]


@pytest.mark.parametrize(
    ("was", "now", "ranks", "message"),
    [
        (
            OWN,
            OWN,
            (2, 4),
            "add --data.global_batch 8, or go on with: torchrun .*=2 -m essl_fast.train --resume runs/a$",
        ),
        (OWN, OWN, (2, 1), "unless they share a global batch: add --data.global_batch 8 --data.batch_size 8, or"),
        (OWN, SHARED, (3, 1), "other settings: data.global_batch: 12 -> 8"),
        (SHARED, OWN, (1, 2), "other settings: data.batch_size: 8 -> 4; data.global_batch: 8 -> 0"),
        (SHARED, SHARED | {"optim.accumulate": 2}, (1, 1), "other settings: optim.accumulate: 1 -> 2"),
    ],
)
def test_other_batches_are_refused(alone, monkeypatch, was, now, ranks, message):
    with pytest.raises(InputError, match=message):
        resumed(alone, monkeypatch, was, now, ranks)


@pytest.mark.parametrize(
    ("words", "ranks", "message"),
    [
        (
            "--data.global_batch 512",
            1,
            "512 pairs is 512 on each of 1 process, .* allows 16: .* --optim.accumulate 32$",
        ),
        (
            "--data.global_batch 7 --data.batch_size 2",
            3,
            "7 pairs is 3 on each .* --data.batch_size 3 if .* that many$",
        ),
        (
            "--data.global_batch 64 --data.batch_size 8 --optim.accumulate 2",
            2,
            "32 pairs is 16 on .*--optim.accumulate 4$",
        ),
        ("--data.global_batch 2147483646", 1, "2147483646 pairs is .* if memory holds that many$"),  # at once
    ],
)
def test_a_part_that_is_too_large_is_told(words, ranks, message):
    with pytest.raises(InputError, match=f"^data.global_batch: a batch of {message}"):
        refuse_large_parts(settings_of("somewhere", words), World(0, ranks))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--data.global_batch 1", "data.global_batch: must be 0, or at least 2, got 1"),
        ("--data.global_batch 2147483648", "data.global_batch: must be at most 2,147,483,647, got 2147483648"),
        (
            "--data.global_batch 10 --optim.accumulate 4",
            "data.global_batch: must be optim.accumulate .4. batches of one size",
        ),
        (
            "--data.global_batch 4 --optim.accumulate 4",
            "data.global_batch: must be optim.accumulate .4. batches .* 2 or more, got 4",
        ),
    ],
)
def test_impossible_sizes(words, message):
    with pytest.raises(InputError, match=message):
        settings_of("somewhere", words)


def test_what_takes_its_own_part_alone_is_refused(alone):
    """A loss that compares the pairs of a batch, and a norm that knows nothing of other processes."""
    settings = settings_of("somewhere", "--data.global_batch 8 --objective.method lss --model.head lss")
    refuse_own_statistics(settings, alone.model, World(0, 1))
    with pytest.raises(InputError, match="data.global_batch: objective.method lss compares a pair with others"):
        refuse_own_statistics(settings, alone.model, World(0, 2))
    refuse_own_statistics(alone.settings, alone.model, World(0, 2))
    alone.model.own = torch.nn.BatchNorm2d(3)
    try:
        with pytest.raises(
            InputError, match=r"data.global_batch: own \(BatchNorm2d\) takes .* use essl_fast.*ViewBatchNorm"
        ):
            refuse_own_statistics(alone.settings, alone.model, World(0, 2))
        alone.model.own.eval()
        refuse_own_statistics(alone.settings, alone.model, World(0, 2))
    finally:
        del alone.model.own


def test_batches_that_are_taken_by_turns_may_be_compared_within(alone):
    """Three batches for two processes: LSS and a norm of one's own see whole batches; a SyncBatchNorm would not."""
    words = "--data.global_batch 24 --data.batch_size 8 --optim.accumulate 3 --objective.method lss --model.head lss"
    turns = settings_of("somewhere", words)
    assert [config.turns(turns, ranks) for ranks in (1, 2, 3, 4)] == [0, 3, 3, 0]
    assert [config.own_batch(turns, ranks) for ranks in (1, 2, 3, 4)] == [8, 8, 8, 2]
    assert [config.own_batches(turns, ranks) for ranks in (1, 2, 3, 4)] == [3, 2, 1, 3]
    for words in ("--data.last_batch keep", "--data.batch_size 7", "--optim.accumulate 1"):
        changed = settings_of("somewhere", f"--data.global_batch 24 --data.batch_size 8 --optim.accumulate 3 {words}")
        assert not config.turns(changed, 2)
    norms = {"own": torch.nn.BatchNorm2d(3), "other": torch.nn.BatchNorm2d(3, track_running_stats=False)}
    for name, module in norms.items():
        setattr(alone.model, name, module)
    try:
        refuse_own_statistics(turns, alone.model, World(0, 2))
        refuse_wide_statistics(turns, alone.model, World(0, 2))
        alone.model.own.momentum = None
        with pytest.raises(InputError, match=r"own \(BatchNorm2d\) has no momentum: .* by turns; use .*ViewBatchNorm"):
            refuse_wide_statistics(turns, alone.model, World(0, 2))
        alone.model.own = torch.nn.SyncBatchNorm(3)
        with pytest.raises(InputError, match=r"own \(SyncBatchNorm\) takes its statistics over all .* by turns"):
            refuse_wide_statistics(turns, alone.model, World(0, 2))
        refuse_wide_statistics(turns, alone.model, World(0, 4))
    finally:
        del alone.model.own, alone.model.other
    with pytest.raises(InputError, match=r"; a run that begins may .* by turns: --optim.accumulate 4$"):
        refuse_own_statistics(turns, alone.model, World(0, 4))
    turns.data.last_batch = "keep"
    with pytest.raises(InputError, match=r"--optim.accumulate 3 --data.last_batch drop$"):
        refuse_own_statistics(turns, alone.model, World(0, 2))


def test_a_group_waits_for_the_end_of_its_update(tiny):
    """Three batches an update: the second of two ranks has the middle one, and stands where the first rank stands."""
    for rank, sizes in ((0, (2, 2)), (1, (2,))):
        with Loader(
            tiny[1], batch_size=2, global_batch=2, turns=3, rank=rank, world_size=2, last_batch="drop", threads=1
        ) as loader:
            found = [(sizes_of(raw), loader.step) for raw in grouped(loader, 3, "drop")]
        assert found and found == [(sizes, 3 * number) for number in range(1, len(found) + 1)]


def test_what_ranks_have_counted_is_shared_out_anew():
    assert [of_rank([5, 4], World(rank, 2)) for rank in range(2)] == [5, 4]
    for ranks in (1, 3, 4):
        parts = [of_rank([5, 4], World(rank, ranks)) for rank in range(ranks)]
        assert sum(parts) == 9 and max(parts) - min(parts) <= 1
    meter = LossMeter(World(), 1)
    meter.resume({"loss": 6.0}, 4)
    assert meter.means() == {"loss": 1.5} and meter.counted == 4
    meter.resume({"loss": 6.0}, [4, 2])  # rank 0's pairs weighted the sums
    assert meter.means() == {"loss": 1.5} and meter.counted == 6


def test_ranks_with_smaller_parts_are_not_counted_as_the_leading_one():
    """A batch of six on four ranks: 2, 2, 1, 1."""
    speed = SpeedMeter(World(0, 4), lambda: 0.0)
    speed.add(2)
    speed.epoch_seconds["train"] = speed.seconds["train"] = 1.0
    assert speed.settle([2, 2, 1, 1]) == speed.pairs == 6
    assert speed.rate() == 6.0 and speed.mean_rate() <= 6.0


@pytest.mark.parametrize(("ranks", "most"), [(3, 2), (2, 4)])
def test_a_step_of_several_ranks_is_replayed_as_one(alone, ranks, most):
    """Two batches of four: three ranks share each, though one process takes fewer at once; two take them by turns."""
    words = f"--data.global_batch 8 --optim.accumulate 2 --data.batch_size {most}"
    settings = settings_of(alone.settings.data.root, words)
    state = {"config": config.to_dict(settings), "data": alone.manifest.header, "model": {}}
    shared = {"last_batch": "drop", "global_batch": 4, "turns": config.turns(settings, ranks)}
    assert shared["turns"] == (2 if ranks == 2 else 0)
    order = [Order(alone.loader.pairs, 4, **shared, rank=rank, world_size=ranks) for rank in range(ranks)]
    rows = [alone.loader.rows[each.batches(1)[step]].tolist() for each in order for step in (2, 3)]
    fault = Fault(1, 1, list(itertools.chain(*rows)), [], {"loss": 0.0}, 0, ranks)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "load_trained", lambda model, weights: None)
        trainer = replaying.trainer_of(state, alone.manifest.root, CPU, "")
    batches = replaying.batches_of(trainer, fault)
    whole = Order(alone.loader.pairs, 4, last_batch="drop", global_batch=4).batches(1)[2:]
    assert [sorted(raw.index.tolist()) for raw in batches] == [
        sorted(alone.loader.rows[batch].tolist()) for batch in whole
    ]


def test_a_step_is_cut_into_batches_that_fit():
    """By the settings alone. A run that goes on keeps what it had, also where its batch size has changed."""
    for pairs, most, batches in ((1024, 128, 8), (1000, 128, 8), (9, 4, 3), (16, 16, 1), (509, 16, 1), (0, 16, 1)):
        begins = settings_of("somewhere", f"--data.global_batch {pairs} --data.batch_size {most}")
        assert config.update_batches(begins) == batches
    named = settings_of("somewhere", "--data.global_batch 1024 --optim.accumulate 2")
    assert config.update_batches(named) == 2
    was, now = (settings_of("somewhere", f"--data.global_batch 1024 --data.batch_size {most}") for most in (128, 64))
    assert config.update_batches(now, was) == 1  # an earlier version's: one batch over all processes
    was.optim.accumulate = 8
    assert config.update_batches(now, was) == 8
    was.data.global_batch = 0
    assert config.update_batches(now, was) == 1  # the resume then says what differs


@pytest.mark.slow
def test_a_run_whose_step_does_not_fit_adds_up_gradients(tiny, tmp_path, capsys, one_thread):
    """Twelve pairs a step of at most four: begun by two processes, ended by one; then whole, by one.

    Batch norms of four pairs make a thousand times as much of a rounding at each step: two threads would end 1% off.
    """
    words = shlex.split(
        "--data.global_batch 12 --data.batch_size 4 --data.last_batch drop --model.head_dim 32 --overlays 0 "
        "--baselines false --device cpu --eval_every 0 --data.threads 1 --optim.schedule constant"
    )
    out, whole = tmp_path / "a", tmp_path / "whole"
    torchrun = "-m torch.distributed.run --standalone --nproc-per-node=2 -m essl_fast.train --epochs 2 --config demo"
    command = [sys.executable, *shlex.split(torchrun), "--data.root", str(tiny[1]), "--out", str(out), *words]
    done = subprocess.run(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, cwd=ROOT, text=True, capture_output=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "data.global_batch: the 12 pairs of a step are 3 batches of 4" in done.stdout
    assert "2 processes, which take turns with batches of 4 pairs" in done.stdout
    given = ["--data.root", str(tiny[1]), *words]
    summary = fit("demo", [*given, "--epochs", "4", "--out", str(out)], resume="auto")
    assert "3 batches" not in capsys.readouterr().out
    fit("demo", [*given, "--epochs", "4", "--out", str(whole)])
    first, second = (
        [event["losses"]["loss"] for event in read_log(each / "log.jsonl") if event["event"] == "epoch"]
        for each in (out, whole)
    )
    assert summary["epochs"] == 4 and len(first) == 4
    assert first == pytest.approx(second, rel=1e-3)  # float32, in another order


def machine(port, words):
    """One of the machines of an elastic group: a torchrun of its own with one process."""
    torchrun = "-m torch.distributed.run --nnodes=1:2 --nproc-per-node=1 --max-restarts=3 --rdzv-id=run"
    torchrun += f" --rdzv-backend=c10d --rdzv-endpoint=127.0.0.1:{port}"
    torchrun += " --rdzv-conf=last_call_timeout=20,keep_alive_interval=1,keep_alive_max_attempt=3"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *shlex.split(f"{torchrun} -m essl_fast.train {words}")]
    return subprocess.Popen(
        command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )


@pytest.mark.nightly
def test_a_group_that_loses_a_machine_goes_on(tiny, tmp_path):
    """torchrun --nnodes=1:2: the second machine is killed after an epoch, and the first one trains on alone."""
    port, out = free_port(), tmp_path / "run"
    words = (
        f"--config demo --data.root {in_shell(tiny[1])} --data.global_batch 5 --data.batch_size 5 --model.head_dim 32"
    )
    words += f" --out {in_shell(out)} --epochs 12 --overlays 0 --baselines false --device cpu --eval_every 4"
    words += " --checkpoint_steps 1"
    first = machine(port, words)
    bound = time.monotonic() + 600
    while True:  # the machine that keeps the list of machines is the one that stays
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        assert time.monotonic() < bound
        time.sleep(0.2)
    second = machine(port, words)
    try:
        end = time.monotonic() + 600
        while not (out / "log.jsonl").exists() or len(read_log(out / "log.jsonl")) < 3:
            assert time.monotonic() < end and first.poll() is None and second.poll() is None
            time.sleep(0.5)
        workers = Path(f"/proc/{second.pid}/task/{second.pid}/children").read_text().split()
        assert workers
        for each in [second.pid, *map(int, workers)]:
            os.kill(each, signal.SIGKILL)
        said, _ = first.communicate(timeout=300)
    finally:
        for each in (first, second):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(each.pid, signal.SIGKILL)
    assert first.returncode == 0, said[-3000:]
    events = read_log(out / "log.jsonl")
    (again,) = [event for event in events if event["event"] == "resume"]
    epochs = [event["epoch"] for event in events if event["event"] == "epoch"]
    assert again["step"] > 4 and sorted(set(epochs)) == list(range(1, 13))  # four steps an epoch
    assert "2 processes, which share batches of 5 pairs" in said
    assert {event["pairs"] for event in events if event["event"] == "epoch"} == {19}
