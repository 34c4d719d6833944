"""Numbers that are not finite change nothing and are kept for a replay, collapse is seen, a run has one owner."""

import errno
import fcntl
import math
import os

import pytest
import torch
from torch import nn

from essl_fast import checkpoints, config, models, replay
from essl_fast.common.commands import command
from essl_fast.common.errors import InputError
from essl_fast.data.shards import Manifest
from essl_fast.models import heads, localizer
from essl_fast.runtime.runlog import read_log
from essl_fast.train import Observer, Trainer, collapse, guard, rundir, train_epoch
from essl_fast.train import __main__ as train_door
from essl_fast.train.state import faulty_state

SETTINGS = ["--data.batch_size", "5", "--device", "cpu", "--epochs", "1", "--overlays", "0", "--baselines", "false"]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """A small head: the same code in a fraction of the time."""
    head = heads.SimSiamHead
    monkeypatch.setattr(heads, "SimSiamHead", lambda channels: head(channels, 64, 16))


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def steps(batches, poison=(), latch=False):
    """The state of a network and its optimizer after a step with each batch; the gradients of some are spoiled."""
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    watch, flags = guard.Guard(model, torch.device("cpu"), latch), []
    for number, batch in enumerate(batches):
        watch.begin()
        loss = model(batch).square().mean()
        optimizer.zero_grad()
        loss.backward()
        if number in poison:
            model[0].weight.grad[1, 2] = poison[number]
        optimizer.found_inf = watch.judge(loss, guard.gradient_norm(model.parameters()))
        optimizer.step()
        watch.settle()
        flags.append(watch.flag.item())
    moments = [value for state in optimizer.state.values() for value in state.values()]
    return [*model.state_dict().values(), *moments], flags


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e30])  # the square of the last overflows
def test_a_gradient_that_is_not_finite_changes_nothing(value):
    batches = list(torch.randn(4, 5, 6))
    spoiled, flags = steps(batches, poison={2: value})
    without, _ = steps(batches[:2] + batches[3:])
    assert flags == [0, 0, 1, 0]
    assert all(torch.equal(a, b) for a, b in zip(spoiled, without, strict=True))


def test_a_batch_that_is_not_finite_leaves_the_running_statistics():
    batches = list(torch.randn(4, 5, 6))
    bad = batches[2].clone()
    bad[0, 0] = math.nan
    spoiled, flags = steps([*batches[:2], bad, batches[3]])
    without, _ = steps(batches[:2] + batches[3:])
    assert flags == [0, 0, 1, 0]
    assert all(torch.equal(a, b) for a, b in zip(spoiled, without, strict=True))


def test_a_latched_guard_keeps_what_the_first_bad_step_began_with():
    batches = list(torch.randn(5, 5, 6))
    latched, flags = steps(batches, poison={2: math.nan}, latch=True)
    until, _ = steps(batches[:2])
    assert flags == [0, 0, 1, 0, 0]
    assert all(torch.equal(a, b) for a, b in zip(latched, until, strict=True))


def test_how_far_projections_are_apart():
    torch.manual_seed(0)
    spread = torch.randn(2, 64, 2048)
    found = collapse.projection_spread(spread)
    assert found["projection_std"].item() == pytest.approx(1, abs=0.02)
    singular = torch.linalg.svdvals((spread - spread.mean(1, keepdim=True)).double()) ** 2
    expected = (singular.sum(1) ** 2 / (singular**2).sum(1)).mean().item()
    assert found["projection_rank"].item() == pytest.approx(expected, rel=1e-4) and expected > 55
    line = torch.randn(2, 64, 1) * torch.randn(2, 1, 2048)
    assert collapse.projection_spread(line)["projection_rank"].item() == pytest.approx(1, abs=1e-4)
    assert [value.item() for value in collapse.projection_spread(torch.ones(2, 64, 256)).values()] == [0, 0]
    assert {value.dtype for value in collapse.projection_spread(spread.bfloat16()).values()} == {torch.float32}

    head = models.SimSiamHead(128).train()
    pooled = torch.randn(2, 32, 128)
    healthy = collapse.projection_spread(head(pooled)[1])
    assert healthy["projection_std"] > 0.9 and healthy["projection_rank"] > 5
    same = collapse.projection_spread(head(torch.randn(2, 1, 128).expand(2, 32, 128))[1])
    assert same["projection_std"] < collapse.COLLAPSED_BELOW
    along = collapse.projection_spread(head(torch.randn(2, 1, 128) + 1e-3 * pooled[:, :, :1])[1])
    assert along["projection_std"] > 0.9 and along["projection_rank"] < 0.2 * healthy["projection_rank"]


def test_the_warning_of_a_collapse():
    entries = [{"projection_std": value, "projection_rank": 9.0} for value in (0.9, 0.05, 0.04, 0.8, 0.02)]
    said = [collapse.collapse(entries[: count + 1], 16) is not None for count in range(5)]
    assert said == [False, True, False, False, True]  # once for each time that it collapses
    assert "collapsed" in collapse.collapse(entries[:2], 16) and "optim.lr_head" in collapse.collapse(entries[:2], 16)
    assert collapse.collapse([], 16) is None and collapse.collapse([{"losses": {}}], 16) is None
    line = [{"projection_std": 0.95, "projection_rank": 1.1}]
    assert "on a line: projection_rank is 1.10" in collapse.collapse(line, 16) and collapse.collapse(line, 4) is None


def trainer_of(prepared, *more):
    settings = config.load("demo", [*SETTINGS, "--data.root", str(prepared), *more])
    return Trainer(settings, Manifest.load(prepared), torch.device("cpu"))


def spoil(trainer, at):
    """The gradient of step ``at``, counted from 0, is infinite; what the model was before each step is kept."""
    before = []
    parameter = trainer.model.head.predictor[0].weight

    def hook(gradient):
        before.append({name: value.clone() for name, value in trainer.model.state_dict().items()})
        return gradient * math.inf if len(before) == at + 1 else gradient

    parameter.register_hook(hook)
    return before


class Listener(Observer):
    """Keeps the faults that it is told of."""

    def __init__(self):
        self.faults = []

    def on_not_finite(self, fault, file, passed):
        self.faults.append(fault)


def run_epoch(trainer):
    with trainer.loader:
        return train_epoch(trainer)


def parameters(trainer, state):
    """Those of a state that were not moved by the forward pass that came before it was taken."""
    return {name: state[name] for name, _ in trainer.model.named_parameters()}


@pytest.mark.parametrize("read_every", [1, 20])
def test_a_run_stops_with_the_weights_that_the_bad_step_began_with(tiny, read_every):
    """Also where losses are read only after further steps, as on a GPU."""
    trainer = trainer_of(tiny[1])
    trainer.losses.every, before, listener = read_every, spoil(trainer, 1), Listener()
    trainer.observers.add(listener)
    with pytest.raises(FloatingPointError, match="a gradient is not finite in epoch 1, step 2; lower the learning ra"):
        run_epoch(trainer)
    assert len(before) == (2 if read_every == 1 else len(trainer.loader))
    expected, now = parameters(trainer, before[1]), parameters(trainer, trainer.model.state_dict())
    assert all(torch.equal(now[name], value) for name, value in expected.items())
    assert any(not torch.equal(before[0][name], value) for name, value in expected.items())
    (fault,) = listener.faults
    assert (fault.epoch, fault.step, fault.later, len(fault.keys)) == (0, 1, 0, 5)
    assert math.isfinite(fault.losses["loss"]) and fault.keys == [trainer.manifest.key(row) for row in fault.rows]


def test_a_step_may_be_passed_over(tiny):
    trainer = trainer_of(tiny[1], "--on_nonfinite", "skip")
    spoil(trainer, 1)
    losses = []

    class Losses(Observer):
        def on_step(self, epoch, reading):
            losses.append(reading.loss)

    trainer.observers.add(Losses())
    entry = run_epoch(trainer)
    assert entry["not_finite"] == 1 and entry["pairs"] == trainer.loader.pairs == 19
    sizes = [5, 5, 5, 4]
    kept = [(loss, size) for number, (loss, size) in enumerate(zip(losses, sizes, strict=False)) if number != 1]
    assert entry["losses"]["loss"] == pytest.approx(sum(a * b for a, b in kept) / sum(b for _, b in kept))
    assert 0.5 < entry["projection_std"] <= 1 < entry["projection_rank"] < 5
    assert not set(collapse.SPREAD) & set(entry["losses"])

    trainer = trainer_of(tiny[1], "--on_nonfinite", "skip")
    trainer.model.head.predictor[0].weight.register_hook(lambda gradient: gradient * math.nan)
    with pytest.raises(FloatingPointError, match="step 2, and max_nonfinite allows 1 such step an epoch"):
        run_epoch(trainer)


def test_fp16_that_overflows_at_every_scale_stops(tiny):
    trainer = trainer_of(tiny[1])
    trainer.step.scaler = torch.amp.GradScaler("cpu", init_scale=guard.LEAST_SCALE)
    trainer.read_losses()
    trainer.step.scaler = torch.amp.GradScaler("cpu", init_scale=guard.LEAST_SCALE / 2)
    with pytest.raises(FloatingPointError, match="overflow at every loss scale.*use --precision bf16 or fp32"):
        trainer.read_losses()
    trainer.loader.close()


def test_a_loss_that_is_not_finite_is_kept_and_replayed(tiny, tmp_path, capsys):
    out = tmp_path / "hot"
    arguments = [*SETTINGS, "--data.root", str(tiny[1]), "--out", str(out), "--optim.lr_trunk", "1e30"]
    assert command(lambda: train_door.main(arguments), train_door.PROG) == 1
    error = capsys.readouterr().err
    (file,) = out.glob("nonfinite-*.pt")
    assert f"python -m essl_fast.replay {file}" in error and "lower the learning rates" in error
    (event,) = [e for e in read_log(out / "log.jsonl") if e["event"] == "not_finite"]
    assert event["file"] == file.name and event["keys"][0] in error
    assert checkpoints.load(out / "last.pt")["step"] == 0  # from before it

    assert replay.main([str(file), "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert f"5 pairs, {', '.join(event['keys'])}" in said
    assert "first not finite: output trunk." in said, said  # the weights are 1e30: huge, and finite

    state = checkpoints.load(file)
    name = (
        "audio.features.0.weight"
        if "audio.features.0.weight" in state["model"]
        else next(name for name in state["model"] if name.startswith("audio.") and name.endswith("weight"))
    )
    state["model"][name].view(-1)[3] = math.nan
    report = replay.replay(state, tiny[1], torch.device("cpu"))
    assert report.places[0] == replay.Place("weight", name, f"1 nan of {state['model'][name].numel()} values")


def test_a_replay_of_what_is_finite_says_so(tiny, tmp_path, capsys):
    trainer = trainer_of(tiny[1])
    spoil(trainer, 0)
    trainer.faults.keep_in(tmp_path, lambda: faulty_state(trainer) | {"runs_on": "cuda in bfloat16"})
    with pytest.raises(FloatingPointError, match="essl_fast.replay"):
        run_epoch(trainer)
    (file,) = tmp_path.glob("nonfinite-1-1.pt")
    assert replay.main([str(file), "--device", "cpu"]) == 1
    said = capsys.readouterr().out
    assert "ran on cuda in bfloat16, this is cpu in float32" in said and "everything is finite this time" in said
    with pytest.raises(InputError, match="is no step to replay"):
        checkpoints.save(tmp_path / "last.pt", {"kind": "last"})
        replay.main([str(tmp_path / "last.pt"), "--device", "cpu"])


def test_pairs_that_alone_are_not_finite_are_named():
    watch = replay.Watch(nn.Identity(), ["a", "b", "c"])
    value = torch.zeros(6, 4)
    value[4, 0] = math.nan  # the second view of b
    assert watch._pairs(value) == ("b",)
    assert watch._pairs(torch.full((6, 4), math.nan)) == () and watch._pairs(torch.zeros(5)) == ()
    assert replay.amiss(value) == "1 nan of 24 values" and replay.amiss(torch.zeros(3)) is None
    assert replay.amiss(torch.tensor([math.inf, math.nan, 0, -math.inf])) == "1 nan and 2 inf of 4 values"


def test_a_run_that_collapses_is_told(tiny, tmp_path, capsys, monkeypatch):
    build = localizer.build

    def collapsed(settings):
        model = build(settings)
        with torch.no_grad():
            model.head.projector[6].weight.zero_()
        model.head.projector[6].weight.requires_grad_(False)
        return model

    monkeypatch.setattr(models, "build", collapsed)
    out = tmp_path / "run"
    assert train_door.main([*SETTINGS, "--data.root", str(tiny[1]), "--out", str(out), "--epochs", "2"]) == 0
    assert capsys.readouterr().out.count("warning: the projections have collapsed") == 1
    events = read_log(out / "log.jsonl")
    assert [e["epoch"] for e in events if e["event"] == "warning"] == [1]
    assert all(e["projection_std"] < collapse.COLLAPSED_BELOW for e in events if e["event"] == "epoch")


def test_a_run_directory_has_one_owner(tmp_path, monkeypatch):
    with rundir.owned(tmp_path):
        with pytest.raises(InputError, match=rf"another training is at work in .* \(process {os.getpid()} on "):
            with rundir.owned(tmp_path):
                pass
        assert (tmp_path / rundir.LOCK).exists()
    assert not list(tmp_path.iterdir())
    (tmp_path / rundir.LOCK).write_text("process 1 on a machine that lost power\n")  # nobody holds it
    with rundir.owned(tmp_path):
        assert f"process {os.getpid()}" in (tmp_path / rundir.LOCK).read_text()

    def none(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    said = []
    with rundir.owned(tmp_path, said.append):
        assert "has no locks (No locks available)" in said[0]
