"""Several processes whose steps are captured up to the gradients: the run of DDP, and no collective in a capture."""

import contextlib
import copy
import datetime
import shlex
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

from essl_fast import config, models
from essl_fast.common.errors import InputError, in_shell
from essl_fast.data.shards import Manifest
from essl_fast.models.norm import ViewBatchNorm
from essl_fast.runtime.distributed import World
from essl_fast.train import Trainer
from essl_fast.train import step as training_step
from essl_fast.train.data import meets_within_a_batch
from essl_fast.train.gradients import SharedGradients
from essl_fast.train.graphs import WARMUP, wants_capture
from essl_fast.train.running import RunningStatistics
from essl_fast.train.state import last_state, resume
from tests.tools.ranks import run_worlds
from tests.tools.recording import RecordedStep, Recorder

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
STEPS, FAULTY, MIDDLE = {2: 8, 3: 6}, 4, 4  # of a run, from 0: from step 3 on, full batches are replays
WORDS = {  # 19 pairs. By turns, two ranks have two batches and one of an update's three; three have one each
    "by turns": "--data.global_batch 6 --optim.accumulate 3 --data.batch_size 4 --data.last_batch drop --optim.ema 0.9 "
    "--optim.clip_norm 0.5 --optim.schedule cosine --data.labelled_fraction 0.5",
    "rounded": "--data.global_batch 6 --optim.accumulate 3 --data.batch_size 4 --data.last_batch drop "
    "--optim.exchange bf16 --model.pcm true --model.pcm_cycles 0",  # its blend has no gradient
    "own batches": "--data.batch_size 2 --data.last_batch keep --data.labelled_fraction 0.5",  # some end smaller
}


@contextlib.contextmanager
def norms_at_rest(wanted):
    """With batch norms that take no statistics over a batch, so that ranks need not exchange any."""
    with pytest.MonkeyPatch.context() as patch:
        if wanted:
            patch.setattr(ViewBatchNorm, "train", lambda self, mode=True: nn.Module.train(self, False))
        yield


def trainer_of(prepared, world, words, captured):
    """In float64; `captured`: as on a GPU with `cuda_graphs: on`, but that the recorder takes the graph's place."""
    words += f" --data.root {in_shell(prepared)} --data.threads 1 --data.resident never --epochs 4 --model.head_dim 32"
    settings = config.load(
        "demo", [*shlex.split(words), "--on_nonfinite", "skip", "--cuda_graphs", "on" if captured else "off"]
    )
    build, capture = models.build, RecordedStep(None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "build", lambda settings: build(settings).double().train())
        wants = training_step.wants_capture
        patch.setattr(training_step, "wants_capture", lambda settings, device, *more: wants(settings, GPU, *more))
        patch.setattr(training_step, "CudaCapture", lambda device: capture)
        trainer = Trainer(settings, Manifest.load(prepared), CPU, world)
    guard = trainer.step.guard
    capture.state = lambda: [*trainer.model.parameters(), *trainer.model.buffers(), guard.flag, guard.gate]
    trainer.model.register_forward_pre_hook(lambda _, inputs: tuple(each.double() for each in inputs))
    for group in trainer.step.optimizer.param_groups:
        group["eps"] = 1e-3  # with AdamW's 1e-8 a gradient of 1e-8 would be divided by itself, and its rounding grow
    return trainer


def spoiled(trainer, raw):
    """At one step rank 1 has a sound that is no number."""
    if trainer.steps == FAULTY and trainer.world.rank == 1:
        return raw._replace(sound=torch.full_like(raw.sound, float("nan")))
    return raw


def train(trainer, before=spoiled, middle=None):
    """The losses of each step, and all that the run has learned.

    before: gives each step its batch.
    middle: gets the run's state after MIDDLE steps.
    """
    losses, last = [], STEPS[trainer.world.size]
    with trainer.loader:
        while trainer.steps < last:
            for raw in trainer.batches():
                done = trainer.train_step(before(trainer, raw))
                losses.append({name: value.item() for name, value in done.items()} | {"pairs": len(raw.index)})
                trainer.steps += 1
                if trainer.steps == MIDDLE and middle is not None:
                    middle.update(copy.deepcopy(last_state(trainer)))
                if trainer.steps == last:
                    break
            else:
                trainer.epoch += 1
                trainer.losses.reset()
    average = trainer.step.average
    tensors = trainer.model.state_dict() | ({f"ema.{n}": t for n, t in average.state_dict().items()} if average else {})
    return losses, {name: value.numpy().copy() for name, value in tensors.items()}


def both_ways(world, prepared):
    """For each case what DDP trains, what a captured step trains, and how its steps ran; of two ranks, also resumed."""
    found = {}
    for name, words in WORDS.items():
        if world.size == 3:  # DDP adds in another order: SimSiam's norms over two pairs make that larger
            if name != "by turns":
                continue
            words += " --objective.method lss_semi --model.head lss"
        with norms_at_rest(name == "own batches"):
            plain = train(trainer_of(prepared, world, words, False))
            trainer, middle = trainer_of(prepared, world, words, True), {}
            captured = train(trainer, middle=middle)
            assert trainer.step._parallel is None and not trainer.step.stepper.note
            found[name] = [plain, captured]
            if world.size == 2 and name == "by turns":
                for again in (False, True):
                    later = trainer_of(prepared, world, words, again)
                    resume(later, copy.deepcopy(middle))  # the optimizer takes its tensors, not copies
                    found[name].append(train(later))
            found[name].append(trainer.step.stepper.counts)
    return found


@pytest.mark.slow
def test_captured_ranks_train_what_ddp_trains(tiny):
    """Clipped, averaged, rounded, accumulated, with smaller batches and a step of one rank that is not finite."""
    for size, ranks in zip((2, 3), run_worlds((2, 3), both_ways, tiny[1]), strict=True):
        near = partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-12)
        compare = np.testing.assert_array_equal if size == 2 else near  # two numbers have one sum, three have several
        differ = False
        for name in ranks[0]:
            for plain, *others, counts in (each[name] for each in ranks):
                losses, weights = plain
                assert [bool(each["non_finite"]) for each in losses] == [step == FAULTY for step in range(STEPS[size])]
                for theirs, their_weights in others:
                    assert their_weights.keys() == weights.keys()
                    for key, value in weights.items():
                        compare(their_weights[key], value, err_msg=f"{name}, {size} ranks, {len(theirs)} steps: {key}")
                    same = [each["non_finite"] for each in losses[-len(theirs) :]]
                    assert [each["non_finite"] for each in theirs] == same
                pairs = [each["pairs"] for each in losses]
                smaller = sum(each < max(pairs) for each in pairs)
                assert counts == {"plain": WARMUP + smaller, "replayed": STEPS[size] - WARMUP - smaller}, (name, size)
                differ |= bool(smaller)
            first, *rest = (each[name][1][1] for each in ranks)  # the ranks agree to the bit
            assert all(np.array_equal(value, other[key]) for other in rest for key, value in first.items())
        assert differ == (size == 2)  # a rank ran plainly while another one replayed


GROUPS = [(captured, leaves) for captured in (False, True) for leaves in (True, False)]
MET = []  # groups that this process has been in


class Gone(Exception):
    """This rank takes part no longer."""


def without_the_other(world, prepared, folder):
    """What rank 0 says when rank 1 leaves, or stays and does nothing, after replays; and after how many seconds."""
    number = len(MET)
    captured, leaves = GROUPS[number]
    MET.append(world)
    told, begun = Path(folder, f"{number}"), []

    def before(trainer, raw):
        if trainer.steps == (FAULTY if captured else 1):
            assert trainer.step.stepper.captured == captured
            dist.distributed_c10d._set_pg_timeout(datetime.timedelta(seconds=2))
            begun.append(time.monotonic())
            if world.rank == 1:
                while not leaves and not told.exists() and time.monotonic() < begun[0] + 60:
                    time.sleep(0.1)
                raise Gone
        return raw

    try:
        train(trainer_of(prepared, world, WORDS["by turns"], captured), before=before)
    except (RuntimeError, Gone) as error:
        told.touch()
        return type(error).__name__, time.monotonic() - begun[0]


@pytest.mark.slow
def test_a_rank_that_is_gone_is_noticed_as_under_ddp(tiny, tmp_path):
    found = [ranks[0] for ranks in run_worlds([2] * len(GROUPS), without_the_other, tiny[1], str(tmp_path))]
    for (captured, leaves), (error, seconds) in zip(GROUPS, found, strict=True):
        assert error == "RuntimeError" and seconds < 30, (captured, leaves, error, seconds)
        assert leaves or seconds > 1.5  # the time-out


@pytest.fixture
def group_of_one():
    """A process group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_gradients_lie_in_one_tensor_in_the_form_of_their_parameters(group_of_one):
    """Also of a plain step between two replays, which makes gradients of its own; one without a gradient gets none."""
    layers = nn.ModuleDict({"conv": nn.Conv2d(3, 5, 3), "line": nn.Linear(7, 2), "unused": nn.Linear(2, 2)})
    layers["conv"].to(memory_format=torch.channels_last)
    before = [each.detach().clone() for each in layers.parameters()]
    shared = SharedGradients(layers.parameters(), World(0, 1), rounded=False)
    assert all(torch.equal(*both) for both in zip(layers.parameters(), before, strict=True))
    (flat,) = shared._flat
    used = [*layers["conv"].parameters(), *layers["line"].parameters()]
    for scale in (1.0, 2.0):
        layers.zero_grad(set_to_none=True)
        for each in used:
            each.grad = torch.full_like(each, scale)
        shared.pack()
        for each in used:
            assert each.grad.untyped_storage().data_ptr() == flat.untyped_storage().data_ptr()
            assert each.grad.stride() == each.stride() and each.grad.data_ptr() % 16 == 0
        assert flat.sum() == scale * sum(each.numel() for each in used)
        shared._world = World(0, 2)  # this rank's gradients are half of the mean
        shared.exchange()
        assert all((each.grad == scale / 2).all() for each in used)
    assert all(each.grad is None for each in layers["unused"].parameters())


def test_gradients_are_rounded_before_they_are_sent(group_of_one):
    layer = nn.Linear(300, 1, bias=False)
    shared = SharedGradients(layer.parameters(), World(0, 1), rounded=True)
    layer.weight.grad = torch.randn(1, 300)
    wanted = layer.weight.grad.bfloat16().float()
    shared.pack()
    shared.exchange()
    assert torch.equal(layer.weight.grad, wanted) and layer.weight.grad.dtype == torch.float32


def test_the_recorder_refuses_a_collective(group_of_one):
    with pytest.raises(RuntimeError, match="not permitted while capturing: c10d"), Recorder():
        dist.all_reduce(torch.ones(2))


def test_running_statistics_of_a_replay_are_its_own():
    """A plain step between two replays moves what the graph has recorded nowhere else."""
    norm = nn.BatchNorm1d(3)
    running = RunningStatistics(norm, World(0, 1), 1)

    def work():
        running.begin()
        norm(batch)
        running.keep()
        return batch.sum()

    batch, capture = torch.randn(5, 3), RecordedStep(lambda: list(norm.buffers()))
    work()
    running.settle()
    capture.record(work)
    work()
    running.settle()
    batch.add_(1.0)
    expected = copy.deepcopy(norm)
    expected(batch)
    capture.replay()
    running.settle()
    for mine, wanted in zip(norm.buffers(), expected.buffers(), strict=True):
        torch.testing.assert_close(mine, wanted)
    with pytest.raises(ValueError, match="an update of 1 batches on this rank had 0"):
        running.begin()
        running.settle()


def settings_of(*words):
    return config.load("demo", ["--data.root", "somewhere", "--cuda_graphs", "on", *shlex.split(" ".join(words))])


def test_what_exchanges_statistics_within_a_batch_is_not_captured():
    """The line names what does it without: this command is not refused."""
    words = "--data.batch_size 16 --data.last_batch keep"
    settings = settings_of(words)
    model = models.build(settings.model)
    assert meets_within_a_batch(settings, model, World(0, 4)) and not meets_within_a_batch(settings, model, World(0, 1))
    with pytest.raises(InputError, match="give each process batches of its own: ") as refused:
        wants_capture(settings, GPU, torch.bfloat16, 4, True)
    remedy = str(refused.value).partition("of its own: ")[2]
    assert remedy == "--data.global_batch 64 --optim.accumulate 4 --data.last_batch drop"
    mended = settings_of(words, remedy)
    assert config.turns(mended, 4) == 4 and not meets_within_a_batch(mended, model, World(0, 4))
    shared = settings_of("--data.batch_size 16 --data.global_batch 32 --optim.accumulate 2 --data.last_batch drop")
    assert meets_within_a_batch(shared, model, World(0, 4)) and not meets_within_a_batch(shared, model, World(0, 2))
    for module in model.modules():
        if isinstance(module, ViewBatchNorm):
            module.eval()
    assert not meets_within_a_batch(settings, model, World(0, 4))
    assert meets_within_a_batch(shared, model, World(0, 4))  # the spread of the projections
    tiny = settings_of("--data.batch_size 2 --data.global_batch 6")
    with pytest.raises(InputError, match="has died; use auto or off$"):  # no batches of two for each
        wants_capture(tiny, GPU, torch.bfloat16, 4, True)


def test_a_process_knows_how_many_batches_it_takes():
    settings = settings_of("--data.global_batch 24 --data.batch_size 8 --optim.accumulate 3 --data.last_batch drop")
    assert [config.own_batches(settings, 2, rank) for rank in range(2)] == [2, 1]
    assert [config.own_batches(settings, 4, rank) for rank in range(4)] == [3] * 4  # each has a part of all
