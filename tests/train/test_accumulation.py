"""Gradients of several batches in one update: the update of the large batch, up to what is taken over a batch."""

import contextlib
import math
import shlex
from unittest import mock

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from essl_fast import config, models
from essl_fast.common.errors import InputError, in_shell
from essl_fast.data.loading import RawBatch
from essl_fast.data.shards import Manifest
from essl_fast.models import heads
from essl_fast.models.norm import ViewBatchNorm
from essl_fast.runtime import distributed
from essl_fast.train import Observer, Trainer, replaying, train_epoch
from essl_fast.train.accumulation import Group, grouped, joined, updates_of
from essl_fast.train.graphs import WARMUP, Stepper
from essl_fast.train.state import faulty_state
from tests.tools.ranks import run_ranks
from tests.tools.recording import RecordedStep

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("one_thread")


@contextlib.contextmanager
def small():
    """A narrow head in float64, whose batch norms take no statistics over a batch."""
    head, build = heads.SimSiamHead, models.build
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(heads, "SimSiamHead", lambda channels: head(channels, 64, 16))
        patch.setattr(models, "build", lambda settings: build(settings).double())
        patch.setattr(ViewBatchNorm, "train", lambda self, mode=True: nn.Module.train(self, False))
        yield


def trainer_of(prepared, batch, every, *options, world=distributed.ALONE):
    words = f"--data.root {in_shell(prepared)} --data.batch_size {batch} --data.threads 1 --data.last_batch keep"
    words += f" --optim.accumulate {every}"
    trainer = Trainer(config.load("demo", [*shlex.split(words), *options]), Manifest.load(prepared), CPU, world)
    if next(trainer.model.parameters()).dtype == torch.float64:
        trainer.model.register_forward_pre_hook(lambda _, inputs: tuple(each.double() for each in inputs))
    return trainer


def epoch_of(world, prepared, batch, every, *options):
    """The loss and the weights after an epoch; how often gradients were kept back from the other ranks."""
    kept_back, own = [], DistributedDataParallel.no_sync

    def no_sync(self):
        kept_back.append(1)
        return own(self)

    with small(), mock.patch.object(DistributedDataParallel, "no_sync", no_sync):
        trainer = trainer_of(prepared, batch, every, *options, world=world)
        with trainer.loader:
            entry = train_epoch(trainer)
        state = {name: value.detach().numpy().copy() for name, value in trainer.model.named_parameters()}
    return entry["losses"]["loss"], entry["pairs"], trainer.steps, state, len(kept_back)


LABELS = "--data.labelled_fraction", "0.5"  # so that batches have different numbers of labelled pairs


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("semipl", ["--data.resident", "never", "--optim.clip_norm", "0.5"]),
        ("supervised", ["--data.last_batch", "drop"]),
    ],
    ids=["semipl, streamed, clipped", "supervised, last batch dropped"],
)
def test_small_batches_equal_a_large_one(tiny, method, more):
    """19 pairs: batches of 8, 8 and 3, or 4, 4, then 4, 4, then 3."""
    options = "--objective.method", method, *LABELS, *more
    loss, pairs, steps, weights, _ = epoch_of(distributed.ALONE, tiny[1], 8, 1, *options)
    mine = epoch_of(distributed.ALONE, tiny[1], 4, 2, *options)
    assert (mine[1], mine[2]) == (pairs, steps) == ((16, 2) if "drop" in more else (19, 3))
    assert mine[0] == pytest.approx(loss, rel=1e-6)
    for name, value in weights.items():
        np.testing.assert_allclose(mine[3][name], value, rtol=1e-5, atol=1e-7, err_msg=name)


@pytest.mark.slow
def test_two_ranks_equal_one_and_share_gradients_once_an_update(tiny):
    options = "--objective.method", "semipl", *LABELS
    loss, pairs, steps, weights, _ = epoch_of(distributed.ALONE, tiny[1], 8, 1, *options)
    for theirs in run_ranks(2, epoch_of, tiny[1], 2, 2, *options):
        assert theirs[1:3] == (pairs, steps)
        assert theirs[4] == 1 + 1 + 0  # in two updates of two batches the first; the third update has one batch
        for name, value in weights.items():
            np.testing.assert_allclose(theirs[3][name], value, rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.nightly  # a minute: the compiler
def test_a_compiled_step_adds_up_as_an_uncompiled_one(tiny):
    """Also where the compiler fails at a later batch of an update: the gradients of the ones before it stay."""
    found = {}
    for compiled in ("off", "on"):
        with small():
            trainer = trainer_of(tiny[1], 4, 2, "--compile", compiled, *LABELS)
            with mock.patch.object(torch._dynamo.config, "suppress_errors", False), trainer.loader:
                batches = trainer.batches()
                losses = [trainer.train_step(next(batches))["loss"].item() for _ in range(2)]
            found[compiled] = losses, trainer.model.state_dict(), trainer.step.compiled
    assert found["on"][2] and not found["off"][2]
    np.testing.assert_allclose(found["on"][0], found["off"][0], rtol=1e-6)
    for name, value in found["off"][1].items():
        np.testing.assert_allclose(found["on"][1][name], value, rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.mark.slow
def test_a_compiler_that_fails_in_the_middle_of_an_update_loses_no_gradient(tiny):
    with small():
        plain, failing = (trainer_of(tiny[1], 4, 2, "--compile", "off") for _ in range(2))
        own, calls = failing.step._losses, []

        def forward(*batch):
            calls.append(len(batch[1]))
            if failing.step.compilation.on and len(calls) == 2:
                raise TypeError("not traceable")
            return own(*batch)

        failing.step.compilation.on, failing.step._forward = True, forward
        failing.step.compilation._switch_off = lambda: setattr(failing.step, "_forward", own)
        losses = []
        for trainer in (plain, failing):
            with trainer.loader:
                first, second, *_ = list(trainer.loader)
                sizes = RawBatch(second.frames, second.rows[:3], second.sound[:3], second.index[:3])
                losses.append(trainer.train_step(joined([first, sizes]))["loss"].item())
    assert calls == [4, 3] and failing.step.compilation.note and losses[0] == losses[1]
    theirs = plain.model.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in failing.model.state_dict().items())


@pytest.mark.slow
def test_an_update_is_captured_as_one(tiny):
    """Eight batches of two are four updates of two batches; after the warm-up they are replays, equal to the bit."""
    found = []
    for captured in (False, True):
        trainer = trainer_of(tiny[1], 2, 2, "--data.resident", "never", "--data.last_batch", "drop")
        step, own = trainer.step, trainer.step.stepper

        def state(trainer=trainer, step=step):
            moments = [t for s in step.optimizer.state.values() for t in s.values()]
            return [*trainer.model.parameters(), *trainer.model.buffers(), *moments, step.guard.flag, step.guard.gate]

        capture = RecordedStep(state) if captured else None
        step.stepper = Stepper(own._body, step.optimizer, 4, capture, held=own._held, must_capture=captured)
        losses = []
        with trainer.loader:
            for raw in trainer.batches():
                losses.append({name: value.item() for name, value in trainer.train_step(raw).items()})
                trainer.steps += 1
        found.append((losses, {name: value.clone() for name, value in trainer.model.state_dict().items()}))
        assert len(losses) == 4
        if captured:
            assert capture.replays == step.stepper.counts["replayed"] == 4 - WARMUP
    assert found[0][0] == found[1][0]
    assert all(torch.equal(value, found[1][1][name]) for name, value in found[0][1].items())


def test_batches_are_joined():
    pool = torch.arange(10, dtype=torch.uint8).reshape(10, 1, 1, 1)

    def batch(frames, rows, index):
        rows, index = torch.tensor(rows), torch.tensor(index)
        return RawBatch(frames, rows, index[:, None].float(), index)

    held = joined([batch(pool, [3, 1], [30, 10]), batch(pool, [2], [20])])
    assert isinstance(held, Group) and held.frames is pool and held.sizes == (2, 1)
    streamed = joined([batch(pool[:2].clone(), [1, 0], [10, 0]), batch(pool[5:6].clone(), [0], [50])])
    for group, frames in ((held, [3, 1, 2]), (streamed, [1, 0, 5])):
        assert group.frames[group.rows].flatten().tolist() == frames
        assert group.index.tolist() == [10 * frame for frame in frames] == group.sound.flatten().tolist()
    one = batch(pool, [1], [10])
    assert joined([one]) is one


@pytest.mark.parametrize(("last", "sizes"), [("keep", [4, 4, 1]), ("drop", [4, 4])])
def test_a_group_comes_out_when_the_loader_stands_behind_its_last_batch(last, sizes):
    """A checkpoint is taken there: a batch further, and a resumed run would miss it."""

    class Loader:
        step = 0

        def __len__(self):
            return 9

        def each_step(self):
            for self.step in range(1, 10):
                one = torch.full((1,), self.step)
                yield RawBatch(one[:, None, None, None], torch.zeros(1, dtype=torch.int64), one.float(), one)
            self.step = 0  # of the next epoch

    loader, stands, found = Loader(), [], []
    for group in grouped(loader, 4, last):
        stands.append(loader.step)
        found.append(len(group.index))
    assert found == sizes and stands == [4, 8, 9][: len(sizes)]


@pytest.mark.parametrize(
    ("batches", "every", "last", "updates"),
    [(8, 4, "drop", 2), (9, 4, "drop", 2), (9, 4, "keep", 3), (3, 1, "drop", 3)],
)
def test_how_many_updates_an_epoch_has(batches, every, last, updates):
    assert updates_of(batches, every, last) == updates


def test_an_update_of_a_global_batch_has_another_remedy():
    with pytest.raises(InputError, match="which do not fill one update of 2: choose a smaller --data.global_batch, or"):
        updates_of(1, 2, "drop", shared=True)


def test_an_epoch_that_fills_no_update_is_told(tiny):
    with pytest.raises(InputError, match="optim.accumulate: an epoch has 4 batches, which do not fill one update of 5"):
        trainer_of(tiny[1], 4, 5, "--data.last_batch", "drop").loader.close()


@pytest.mark.slow
def test_an_update_that_is_not_finite_is_passed_over_and_replayed_as_a_whole(tiny, tmp_path):
    trainer = trainer_of(tiny[1], 4, 2, "--on_nonfinite", "skip")
    faults = []

    class Listener(Observer):
        def on_not_finite(self, fault, file, passed):
            faults.append((fault, file))

    trainer.observers.add(Listener())
    trainer.faults.keep_in(tmp_path, lambda: faulty_state(trainer))
    weight, calls = trainer.model.head.predictor[0].weight, []

    def spoil(gradient):  # of the second batch of the second update
        calls.append(1)
        return gradient * math.nan if len(calls) == 4 else gradient

    weight.register_hook(spoil)
    before = []
    with trainer.loader:
        for raw in trainer.batches():
            before.append({name: value.clone() for name, value in trainer.model.state_dict().items()})
            trainer.take_step(raw)
        trainer.end_epoch()
    assert all(torch.equal(before[1][name], before[2][name]) for name in before[1])  # with the running statistics
    ((fault, file),) = faults
    assert (fault.epoch, fault.step, len(fault.keys)) == (0, 1, 8) and trainer.steps == 3
    from essl_fast import checkpoints

    state = checkpoints.load(file)
    report = replaying.replay(state, tiny[1], CPU)
    assert report.fault.keys == fault.keys and not report.places  # the hook is gone
    assert report.losses["loss"] == pytest.approx(fault.losses["loss"], rel=1e-5)
    name = next(name for name in state["model"] if name.startswith("audio.") and name.endswith("weight"))
    state["model"][name].view(-1)[3] = math.nan
    assert replaying.replay(state, tiny[1], CPU).places[0].name == name
