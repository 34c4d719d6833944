"""Two processes train as one: the same losses and weights as one process with the whole batch."""

import json
import os
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from essl_fast import checkpoints, config, models
from essl_fast.common.errors import InputError, in_shell
from essl_fast.data.shards import Manifest
from essl_fast.runtime import distributed
from essl_fast.train import Trainer
from essl_fast.train import __main__ as train_door
from essl_fast.train.gradients import SharedGradients
from essl_fast.train.state import check_resume
from essl_fast.train.step import data_parallel
from tests.tools.ranks import run_ranks


def settings_of(prepared, batch, method, *options):
    settings = f"--data.root {in_shell(prepared)} --data.batch_size {batch} --data.threads 1 --data.last_batch keep"
    return config.load("demo", [*shlex.split(settings), "--objective.method", method, *options])


def three_steps(world, prepared, batch, method, *options):
    """In float64: losses of three steps, the weights and buffers after them; and what an evaluation saw."""
    build = models.build
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "build", lambda settings: build(settings).double())
        manifest = Manifest.load(prepared)
        trainer = Trainer(settings_of(prepared, batch, method, *options), manifest, torch.device("cpu"), world)
    wider = trainer.model.register_forward_pre_hook(lambda _, inputs: tuple(x.double() for x in inputs))
    trainer.model.train()
    losses = []
    with trainer.loader as loader:
        for raw in loader:
            trainer.losses.add(raw.index, trainer.train_step(raw), trainer.steps)
            losses.append(trainer.read_losses())
            trainer.steps += 1
            if trainer.steps == 3:
                break
    state = {name: value.numpy().copy() for name, value in trainer.model.state_dict().items()}
    wider.remove()
    trainer.model.float()
    found = trainer.evaluate("test", show=2)
    return losses, state, found.rows, found.ciou, found.similarity, len(found.samples)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["semipl", pytest.param("supervised", marks=pytest.mark.nightly)])
def test_two_ranks_equal_one_with_the_whole_batch(tiny, method):
    _, prepared = tiny
    losses, state, rows, ciou, similarity, shown = three_steps(distributed.ALONE, prepared, 8, method)
    both = run_ranks(2, three_steps, prepared, 4, method)
    for their_losses, their_state, their_rows, their_ciou, their_similarity, their_shown in both:
        np.testing.assert_allclose(their_losses, losses, rtol=1e-7)
        for name, value in state.items():
            np.testing.assert_allclose(their_state[name], value, rtol=1e-5, atol=1e-5, err_msg=name)
        np.testing.assert_array_equal(their_rows, rows)
        np.testing.assert_allclose(their_similarity, similarity, atol=1e-4)
        assert their_shown == shown and their_ciou.shape == ciou.shape
    for name, value in both[0][1].items():  # the ranks agree to the bit
        np.testing.assert_array_equal(value, both[1][1][name])


def steps_with_pcm(world, prepared, batch):
    """Losses and weights of SemiPL without and with a PCM cycle; without one its blend gets no gradient."""
    options = "semipl", "--model.pcm", "true", "--model.pcm_cycles"
    return [three_steps(world, prepared, batch, *options, cycles)[:2] for cycles in "01"]


def gradients(rank):
    """A layer with random weights, and the gradients of its parameters by a rank's own batch."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(40, 30)
    batch = torch.randn(5, 40, generator=torch.Generator().manual_seed(rank))
    return layer, batch, torch.autograd.grad(layer(batch).square().sum(), list(layer.parameters()))


def exchanged(world, kind):
    """The gradients of all ranks' batches, as DDP has left them."""
    layer, batch, _ = gradients(world.rank)
    network = data_parallel(layer, config.load("demo", ["--optim.exchange", kind]), compiled=False)
    network(batch).square().sum().backward()
    return [each.grad.numpy().copy() for each in layer.parameters()]


def with_a_loss_scale(world, prepared):
    """Scaled losses as in fp16, batches by turns; in the second of two updates rank 1 has a sound that is no number.

    The values of "non_finite", and the state.
    """
    words = "--data.global_batch 6 --optim.accumulate 3 --data.last_batch drop --optim.ema 0.9 --on_nonfinite skip"
    settings = settings_of(prepared, 4, "semipl", *words.split())
    trainer, told = Trainer(settings, Manifest.load(prepared), torch.device("cpu"), world), []
    trainer.step.scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    with trainer.loader:
        for raw in trainer.batches():
            if trainer.steps == 1 and world.rank == 1:
                raw = raw._replace(sound=torch.full_like(raw.sound, float("nan")))
            told.append(trainer.train_step(raw)["non_finite"].item())
            trainer.steps += 1
            if trainer.steps == 2:
                break
    averages = trainer.step.average.state_dict()
    state = trainer.model.state_dict() | {f"average of {name}": each for name, each in averages.items()}
    return told, {name: value.numpy().copy() for name, value in state.items()}


def begun(world):
    """What ranks with weights of their own begin with where the step is captured."""
    torch.manual_seed(world.rank)
    layer = torch.nn.Linear(7, 3)
    SharedGradients(layer.parameters(), world, rounded=False)
    return [each.detach().numpy().copy() for each in layer.parameters()]


def as_ranks(world, prepared):
    found = {"begun": begun(world)} | {kind: exchanged(world, kind) for kind in ("own", "bf16")}
    return found | {"pcm": steps_with_pcm(world, prepared, 4), "scaled": with_a_loss_scale(world, prepared)}


@pytest.fixture(scope="module")
def two(tiny):
    return run_ranks(2, as_ranks, tiny[1])


@pytest.mark.slow
def test_gradients_may_be_exchanged_in_half_the_bytes(two):
    """Each rank's are rounded to bfloat16 and halved, and their sum is rounded: by at most 2^-8 each time."""
    exact = [(one.double() + other.double()) / 2 for one, other in zip(gradients(0)[2], gradients(1)[2], strict=True)]
    sizes = [(one.abs() + other.abs()) / 2 for one, other in zip(gradients(0)[2], gradients(1)[2], strict=True)]
    for theirs in two:
        for own, rounded, want, size in zip(theirs["own"], theirs["bf16"], exact, sizes, strict=True):
            np.testing.assert_allclose(own, want, rtol=1e-5, atol=1e-5)
            apart = np.abs(rounded - want.numpy()) / size.numpy()
            assert 1e-4 < apart.max() < 2.1 * 2**-8
    for kind in ("own", "bf16"):  # the ranks agree to the bit
        assert all(np.array_equal(*both) for both in zip(*(theirs[kind] for theirs in two), strict=True))


@pytest.mark.slow
def test_ranks_begin_with_the_weights_of_the_first(two):
    torch.manual_seed(0)
    wanted = [each.detach().numpy() for each in torch.nn.Linear(7, 3).parameters()]
    for theirs in (each["begun"] for each in two):
        assert all(np.array_equal(*both) for both in zip(theirs, wanted, strict=True))


@pytest.mark.slow
def test_ranks_with_a_loss_scale_refuse_an_update_together(two):
    """One rank's loss is not finite: no rank keeps the running statistics, to which that rank's batch has added."""
    (told, state), (other_told, other) = (each["scaled"] for each in two)
    assert told == other_told == [0.0, 1.0]
    for name, value in state.items():
        assert np.isfinite(value).all(), name
        np.testing.assert_array_equal(value, other[name], err_msg=name)


@pytest.mark.slow
def test_two_ranks_with_pcm_equal_one(tiny, two):
    alone = steps_with_pcm(distributed.ALONE, tiny[1], 8)
    for theirs in (each["pcm"] for each in two):
        for (losses, state), (their_losses, their_state) in zip(alone, theirs, strict=True):
            np.testing.assert_allclose(their_losses, losses, rtol=1e-6)
            for name, value in state.items():
                np.testing.assert_allclose(their_state[name], value, rtol=1e-4, atol=1e-4, err_msg=name)


@pytest.mark.slow
def test_torchrun_trains_and_evaluates(tiny, tmp_path):
    """The command as users start it: rank 0 alone writes and prints."""
    _, prepared = tiny
    out = tmp_path / "run"
    torchrun = "-m torch.distributed.run --nproc-per-node=2 --standalone -m essl_fast.train"
    settings = f"--config demo --data.root {in_shell(prepared)} --data.batch_size 2 --out {in_shell(out)} --epochs 2"
    settings += " --overlays 2 --device cpu"
    command = [sys.executable, *shlex.split(f"{torchrun} {settings} --data.resident_shared always")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("epoch   2") == 1 and "2 processes" in done.stdout
    summary = json.loads((out / "summary.json").read_text())
    assert summary["test"]["pairs"] == Manifest.load(prepared).pairs("test")
    events = [json.loads(line)["event"] for line in (out / "log.jsonl").read_text().splitlines()]
    assert events.count("start") == 1 and events.count("epoch") == 2

    with pytest.raises(InputError) as refused:  # with another number of processes: the command it names works
        train_door.main(["--resume", str(out), "--epochs", "3"])
    assert "add --data.global_batch 4 --data.batch_size 4, or" in str(refused.value)  # and what it names works
    mine = shutil.copytree(out, tmp_path / "alone")
    assert (
        train_door.main(shlex.split(f"--resume {in_shell(mine)} --epochs 3 --data.global_batch 4 --data.batch_size 4"))
        == 0
    )
    assert checkpoints.load(mine / "last.pt")["epoch"] == 3
    named = str(refused.value).partition("go on with: ")[2]
    assert named.startswith("torchrun --standalone --nproc-per-node=2 ")
    words = [os.path.join(os.path.dirname(sys.executable), "torchrun"), *shlex.split(named)[1:], "--epochs", "3"]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("epoch   3") == 1 and checkpoints.load(out / "last.pt")["epoch"] == 3


@pytest.mark.slow
def test_one_process_goes_on_where_two_may_not(finished, tmp_path):
    """The command that the message of two processes names, as it stands, with a folder that a shell would split."""
    mine = shutil.copytree(finished[0], tmp_path / "a run's $HOME")
    trainer = Trainer(config.load(str(mine / "config.yaml")), Manifest.load(finished[1]), torch.device("cpu"))
    trainer.loader.close()
    trainer.world = distributed.World(0, 2, 0)
    with pytest.raises(InputError, match="made by 1 process, this run has 2") as refused:
        check_resume(trainer, checkpoints.load(mine / "last.pt"), mine)
    words = shlex.split(str(refused.value).partition("go on with: ")[2])
    assert words[:3] == ["python", "-m", "essl_fast.train"]
    assert train_door.main([*words[3:], "--epochs", "3"]) == 0
    assert checkpoints.load(mine / "last.pt")["epoch"] == 3
