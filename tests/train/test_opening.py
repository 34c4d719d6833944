"""The lines that a run prints before its first step."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from essl_fast import config
from essl_fast.kernels import native
from essl_fast.train.ending import why_early
from essl_fast.train.opening import opening_lines, other_schedule, slower_parts


def trainer_of(*words: str, **more) -> SimpleNamespace:
    """What the lines read of a trainer: epoch 2 of the demo, 20 steps an epoch, on a CPU."""
    settings = config.load("demo", ["--epochs", "4", "--name", "mine", *words])
    data = SimpleNamespace(excluded=0, labels_dropped=0, pools=SimpleNamespace(notes=[]))
    facts = dict(
        settings=settings,
        world=SimpleNamespace(size=1),
        model=nn.Linear(1000, 1000),
        loader=SimpleNamespace(pairs=77),
        device=torch.device("cpu"),
        dtype=torch.float32,
        epoch=2,
        steps=40,
        best={"epoch": 1},
        history=[{"epoch": 1, "selection": {}}, {"epoch": 2, "selection": {}}],
        data=data,
        step=SimpleNamespace(steps_per_epoch=20, compiled=False),
    )
    return SimpleNamespace(**{**facts, **more})


def lines(trainer, resumed=None, changed=(), passed=()) -> list[str]:
    return list(opening_lines(trainer, SimpleNamespace(path=Path("runs/a")), resumed, list(changed), list(passed)))


@pytest.fixture(autouse=True)
def built(monkeypatch):
    """The compiled module is there, with all its parts."""
    monkeypatch.setattr(native, "available", lambda: True)
    monkeypatch.setattr(native, "has_cuda", lambda: True)


def test_what_runs():
    (line,) = lines(trainer_of())
    assert line == ("mine: semipl, 77 training pairs, 1.0 M trained parameters, cpu, float32; run directory runs/a")
    line = lines(trainer_of("--data.global_batch", "64", world=SimpleNamespace(size=2)))[0]
    assert ", 2 processes, which share batches of 64 pairs; run directory runs/a" in line


def test_what_a_resumed_run_does_otherwise():
    found = lines(trainer_of(), Path("runs/a/last.pt"), ["name: x -> y"], ["last-2.pt (damaged)"])
    assert found[1:] == [
        "differs from the checkpoint: name: x -> y",
        "passed over: last-2.pt (damaged)",
        "goes on from runs/a/last.pt, step 40",
    ]
    data = SimpleNamespace(excluded=3, labels_dropped=5, pools=SimpleNamespace(notes=["a note on pools"]))
    found = lines(trainer_of(epoch=4, data=data))
    assert found[1].startswith("the run has already trained 4 epochs, so with --epochs 4 there is nothing to train")
    assert found[2:] == [
        "a note on pools",
        "3 quarantined pairs are left out",
        "5 labelled pairs train without their boxes (data.labelled_fraction)",
    ]


def test_a_run_that_lost_patience():
    trainer = trainer_of("--patience", "1", epoch=3)
    found = lines(trainer)
    assert found[1] == "the run has ended early (patience 1): it is evaluated again; --patience 0 goes on"
    assert why_early(trainer).startswith("no better result on val since epoch 1 (patience 1): the run ")


@pytest.mark.parametrize(
    ("words", "changed", "said"),
    [
        (
            (),
            ["epochs: 8 -> 4"],
            "the cosine schedule now ends with epoch 4 instead of 8: the learning rates go on at ",
        ),
        (("--optim.schedule", "constant"), ["epochs: 8 -> 4"], "the learning rates are constant: another number"),
        ((), ["name: a -> b"], ""),
        (("--epochs", "2"), ["epochs: 8 -> 2"], ""),  # all are trained
    ],
)
def test_another_number_of_epochs(words, changed, said):
    found = list(other_schedule(trainer_of("--optim.schedule", "cosine", "--optim.warmup", "0", *words), changed))
    assert len(found) == bool(said) and all(line.startswith(said) for line in found)
    if "ends with" in said:  # half of it is over instead of a quarter
        assert found[0].endswith("at 50% of their highest value, where they were at 85%")


@pytest.mark.parametrize(
    ("device", "there", "cuda", "compiled", "said"),
    [
        ("cpu", False, False, False, ["PyTorch alone makes the views, more slowly: no compiler"]),
        ("cpu", True, False, False, ["on a GPU, PyTorch alone would make the views: no nvcc"]),
        ("cuda", True, False, True, ["PyTorch alone makes the views, more slowly: no nvcc"]),
        ("cuda", True, True, False, ["the step runs uncompiled, more slowly: torch.compile needs a C compiler and"]),
        ("cuda", True, True, True, []),
        ("cpu", True, True, False, []),
    ],
)
def test_parts_that_are_slower_than_they_could_be(monkeypatch, device, there, cuda, compiled, said):
    for name, value in {"available": there, "has_cuda": cuda, "left_out": ""}.items():
        monkeypatch.setattr(native, name, lambda value=value: value)
    monkeypatch.setattr(native, "why_unavailable", lambda: "no compiler")
    monkeypatch.setattr(native, "why_no_cuda", lambda: "no nvcc")
    step = SimpleNamespace(steps_per_epoch=20, compiled=compiled)
    found = list(slower_parts(trainer_of("--compile", "auto", device=torch.device(device), step=step)))
    assert len(found) == len(said) and all(line.startswith(start) for line, start in zip(found, said, strict=True))
