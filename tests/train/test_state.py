"""What a trainer takes over from another one's state, what ranks tell each other, and when patience ends a run."""

import contextlib
import time
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from essl_fast import config, models
from essl_fast.common.errors import InputError
from essl_fast.runtime import distributed
from essl_fast.runtime.distributed import World
from essl_fast.train.ending import patience_is_spent
from essl_fast.train.faults import Faults
from essl_fast.train.observers import Observers
from essl_fast.train.state import last_state, resume
from essl_fast.train.step import data_parallel
from tests.tools.trainers import trainer_of


def test_a_resumed_trainer_stands_where_the_other_did(tiny):
    one = trainer_of(tiny[1], "--optim.schedule", "cosine")
    one.loader.close()
    one.epoch, one.steps, one.best = 2, 7, {"epoch": 1, "score": [0.5, 0.4], "split": "val", "min_score": None}
    torch.rand(3)
    state = last_state(one)
    expected = torch.rand(5)
    other = trainer_of(tiny[1], "--optim.schedule", "cosine")
    other.loader.close()
    assert resume(other, state) == []
    assert torch.equal(torch.rand(5), expected)
    assert (other.epoch, other.steps, other.best) == (one.epoch, one.steps, one.best)
    rates = [float(group["lr"]) for group in other.step.optimizer.param_groups]
    other.step.rates.scale(0.5)  # reaches the optimizer: its groups do not keep the rates of its state
    assert [float(group["lr"]) for group in other.step.optimizer.param_groups] == [rate / 2 for rate in rates]


def test_a_pair_that_another_rank_skipped_is_skipped_here(monkeypatch):
    """The lists of two ranks; each learns of the other's."""
    told = []

    class Heard(Observers):
        def on_skipped(self, key, reason, epoch):
            told.append((key, reason, epoch))

    faults = Faults(config.load("demo", ["--data.max_errors", "0.2"]), ten_pairs(), World(0, 2), Heard())
    faults.skip(3, "broken", 1)
    monkeypatch.setattr(distributed, "gather", lambda mine, world: [mine, {5: "cut short", 3: "broken"}])
    faults.share(2)
    assert faults.skipped == {3: "broken", 5: "cut short"}
    assert told == [("pair 3", "broken", 1), ("pair 5", "cut short", 2)]


def ten_pairs():
    """As much of a manifest as counting takes: ten training pairs, two of each further split."""
    return SimpleNamespace(
        key=lambda row: f"pair {row}",
        split=[0] * 10 + [1, 1, 2, 2],
        pairs={"train": 10, "val": 2, "test": 2}.__getitem__,
        place="/data",
    )


@pytest.mark.parametrize(
    ("theirs", "more", "said"),
    [
        ([5], [], None),
        ([5, 6], [], r"^3 of 10 pairs \(train\) do not decode, as the processes found together, more than data.max_e"),
        ([13], [], r"^1 of 2 pairs \(test\) do not decode, .* the last is pair 13 \(cut short\): allow more, or run"),
        ([13], ["--data.max_errors", "0.5"], None),
        ([10], ["--select_on", "test"], None),  # 2 of the 12 that are trained on
    ],
)
def test_ranks_count_together_what_does_not_decode(monkeypatch, theirs, more, said):
    """Each rank found less than max_errors allows, and only together it is too much. Both end."""
    settings = config.load("demo", ["--data.max_errors", "0.2", *more])
    lists = {3: "broken"}, dict.fromkeys(theirs, "cut short")
    monkeypatch.setattr(distributed, "gather", lambda mine, world: lists)
    for rank, mine in enumerate(lists):
        faults = Faults(settings, ten_pairs(), World(rank, 2), Observers())
        for row, reason in mine.items():
            faults.skip(row, reason, 1)
        with pytest.raises(InputError, match=said) if said else contextlib.nullcontext():
            faults.share(1)


@pytest.fixture
def group_of_one():
    """A process group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_ddp_takes_a_second_step_where_the_blend_of_no_cycle_has_no_gradient(group_of_one, monkeypatch):
    monkeypatch.setattr(models, "synchronize", lambda model: None)  # its batch norms want a GPU or several ranks
    settings = config.load("demo", ["--model.pcm", "true", "--model.pcm_cycles", "0", "--data.root", "."])

    class Network(torch.nn.Module):
        """As the localizer with a PCM of no cycle: a parameter that no loss depends on."""

        def __init__(self):
            super().__init__()
            self.used, self.blend = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))

        def forward(self, x):
            return (self.used * x).sum()

    network = data_parallel(Network(), settings, compiled=False)
    for _ in range(2):
        network(torch.ones(2)).backward()
    assert network.module.used.grad.tolist() == [2, 2]


@pytest.mark.parametrize(("every", "spent"), [(1, [False, False, True]), (2, [False, True, True])])
def test_patience_counts_epochs(every, spent):
    """The first epoch is the best; with patience 2 the run ends when an epoch two later is evaluated."""
    found = []
    for evaluations in (1, 2, 3):
        history = [{"epoch": 1 + every * number, "selection": {}} for number in range(evaluations)]
        trainer = SimpleNamespace(history=history, best={"epoch": 1}, settings=SimpleNamespace(patience=2))
        found.append(patience_is_spent(trainer))
    assert found == spent


def test_an_epoch_whose_last_step_was_before_the_resumption_has_its_rates(tiny):
    """It was killed between that step and the end of the epoch."""
    one, other = trainer_of(tiny[1]), trainer_of(tiny[1])
    for raw in one.batches():
        one.take_step(raw)
    state = last_state(one)
    resume(other, state)
    assert [group["lr"] for group in last_state(other)["optimizer"]["param_groups"]] == [
        group["lr"] for group in state["optimizer"]["param_groups"]
    ]
    found, first = one.end_epoch()["rates"], trainer_of(tiny[1]).step.rates.now()
    assert other.end_epoch()["rates"] == found != first
    for trainer in (one, other):
        trainer.loader.close()


def test_the_clock_of_a_resumed_run_goes_on(tiny):
    one, other = trainer_of(tiny[1]), trainer_of(tiny[1])
    for trainer in (one, other):
        trainer.loader.close()
    one.speed.began = time.perf_counter() - 1000
    resume(other, last_state(one))
    assert other.speed.total_seconds() > 1000
