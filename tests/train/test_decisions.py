"""What decides a result: the seed, views, rates, the clipping, the best epoch, and the order in which files appear."""

from types import SimpleNamespace

import pytest
import torch

from essl_fast import kernels
from essl_fast.runtime.stopping import Stopping
from essl_fast.train import loop
from essl_fast.train.guard import gradient_norm
from essl_fast.train.trainer import Trainer
from tests.tools.trainers import trainer_of


def test_the_best_epoch_is_the_first_of_the_best():
    run = SimpleNamespace(best=None, best_average=None, epoch=0, settings=SimpleNamespace(select_on="val"))
    results = (0.5, 0.4), (0.5, 0.4), (0.5, 0.6), (0.4, 0.9), (0.6, 0.1)
    better = []
    for run.epoch, (half, auc) in enumerate(results, 1):
        better.append(Trainer.is_best(run, {"success_at_half": half, "auc": auc}, 0.1 * run.epoch))
    assert better == [True, False, True, False, True]
    assert run.best == {"epoch": 5, "score": [0.6, 0.1], "split": "val", "min_score": 0.5}


def test_views_depend_on_the_seed_and_the_epoch(tiny, monkeypatch):
    asked, real = [], kernels.view_params

    def view_params(seed, epoch, *rest):
        asked.append((seed, epoch))
        return real(seed, epoch, *rest)

    monkeypatch.setattr(kernels, "view_params", view_params)
    trainer = trainer_of(tiny[1], "--seed", "5")
    with trainer.loader as loader:
        batch = next(iter(loader))
        for trainer.epoch in (0, 1, 2):
            trainer.train_step(batch)
    assert asked == [(5, 0), (5, 1), (5, 2)]


def test_the_seed_decides_the_weights(tiny):
    states = []
    for seed in ("1", "1", "2"):
        trainer = trainer_of(tiny[1], "--seed", seed)
        trainer.loader.close()
        states.append(trainer.model.state_dict())
    one, same, other = states
    assert all(torch.equal(value, same[name]) for name, value in one.items())
    assert any(not torch.equal(value, other[name]) for name, value in one.items() if name.startswith("head"))


def test_rates_rise_over_the_epochs_of_the_warm_up(tiny, monkeypatch):
    trainer, factors = trainer_of(tiny[1], "--optim.schedule", "cosine", "--optim.warmup", "1.0"), []
    monkeypatch.setattr(trainer.step.rates, "scale", factors.append)
    monkeypatch.setattr(trainer.step, "stepper", lambda inputs: {})
    with trainer.loader as loader:
        batch, steps = next(iter(loader)), len(loader)
        for trainer.steps in range(steps + 1):
            trainer.train_step(batch)
    assert steps > 2
    assert factors == pytest.approx([*((step + 1) / steps for step in range(steps)), 1.0])


def test_gradients_are_clipped_to_the_norm_of_the_settings(tiny):
    trainer = trainer_of(tiny[1], "--optim.clip_norm", "1e-3")
    with trainer.loader as loader:
        trainer.train_step(next(iter(loader)))
    assert gradient_norm(trainer.model.parameters()).item() == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("ranks, every, looks", [(1, 5, [1, 2, 3, 4, 5]), (3, 2, [2, 4]), (3, 0, [])])
def test_one_process_looks_for_a_signal_after_each_step_and_several_rarely(ranks, every, looks):
    run = SimpleNamespace(world=SimpleNamespace(size=ranks), losses=SimpleNamespace(every=every))
    found = []
    for run.steps in range(1, 6):
        found += [run.steps] * loop.looks_for_signal(run)
    assert found == looks


def test_an_evaluation_leaves_the_model_in_its_mode(tiny):
    trainer = trainer_of(tiny[1])
    with trainer.loader:
        for training in (True, False):
            trainer.model.train(training)
            trainer.evaluate("test")
            assert all(module.training == training for module in trainer.model.modules())


def test_an_epoch_trains_a_model_that_was_left_in_evaluation_mode(tiny):
    trainer = trainer_of(tiny[1])
    trainer.model.eval()
    with trainer.loader:
        next(trainer.batches())
    trainable = [
        part for name, part in trainer.model.named_children() if any(p.requires_grad for p in part.parameters())
    ]
    assert trainer.model.training and trainable and all(part.training for part in trainable)


def test_an_evaluation_changes_no_running_statistic(tiny):
    """The predictive coding module has batch norms on the way to the map."""
    trainer = trainer_of(tiny[1], "--model.pcm", "true", "--model.pcm_cycles", "1")
    trainer.loader.close()
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.model.train()
    trainer.evaluate("test")
    after = trainer.model.state_dict()
    assert any("running" in name for name in before)
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_an_epoch_is_logged_before_last_pt_is_written(tiny, tmp_path):
    """A run that is killed between the two then logs the epoch twice. The other order would lose it."""
    trainer, order = trainer_of(tiny[1], "--epochs", "1", "--out", str(tmp_path)), []
    trainer.observers.on_epoch = lambda entry: order.append("log")
    directory = SimpleNamespace(
        last=tmp_path / "last.pt",
        save_last=lambda state: order.append("last.pt"),
        save_best=lambda state: order.append("best.pt"),
    )
    with trainer.loader, Stopping() as stopping:
        loop.train(trainer, directory, stopping)
    assert order == ["best.pt", "log", "last.pt"]
