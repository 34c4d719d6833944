"""Observers are called from the start of a run to its end, also one that a user's module registers."""

import json

import pytest
import torch

from essl_fast import checkpoints, config, train
from essl_fast.common.errors import InputError
from essl_fast.models import heads
from essl_fast.runtime.runlog import read_log
from essl_fast.train import __main__ as train_door
from tests.tools.modules import own_module

SETTINGS = (
    "--config demo --data.batch_size 5 --device cpu --epochs 2 --eval_every 1 --overlays 0 --baselines false".split()
)
LOGGER = """
import json
from essl_fast import register_logger
from essl_fast.train import Observer


@register_logger("lines")
class Lines(Observer):
    def __init__(self, settings, folder, epoch):
        self.file = open(folder / "lines.txt", "a")
        self.tell("begin", epoch)

    def tell(self, *words):
        self.file.write(json.dumps(words) + "\\n")

    def on_start(self, resumed, facts):
        self.tell("start", resumed, facts["step"])

    def on_train_start(self, epochs, steps_per_epoch, steps_done):
        self.tell("train", epochs, steps_per_epoch, steps_done)

    def on_step(self, epoch, reading):
        self.tell("step", epoch, reading.loss > -1e9)

    def on_epoch(self, entry):
        self.tell("epoch", entry["epoch"], sorted(entry["selection"]))

    def on_end(self, summary):
        self.tell("end", summary["test"]["pairs"])

    def close(self):
        self.file.close()
"""


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """A small head: the same code in a fraction of the time."""
    head = heads.SimSiamHead
    monkeypatch.setattr(heads, "SimSiamHead", lambda channels: head(channels, 64, 16))


def logged(out):
    return [json.loads(line) for line in (out / "lines.txt").read_text().splitlines()]


@pytest.mark.slow
def test_a_users_logger_sees_the_whole_run_and_what_a_resume_adds(tiny, tmp_path, monkeypatch):
    with own_module(tmp_path, monkeypatch, "my_lines", LOGGER):
        out = tmp_path / "run"
        arguments = ["--import", "my_lines", "--loggers", "[lines]", "--data.root", str(tiny[1]), "--out", str(out)]
        assert train_door.main([*SETTINGS, *arguments]) == 0
        steps = [["step", epoch, True] for epoch in (0, 1) for _ in range(4)]
        epochs = [["epoch", epoch, ["auc", "success_at_half"]] for epoch in (1, 2)]
        expected = [["begin", 0], ["start", False, 0], ["train", 2, 4, 0], *steps[:4], epochs[0], *steps[4:], epochs[1]]
        assert logged(out)[:-1] == expected and logged(out)[-1][0] == "end"
        assert checkpoints.load(out / "last.pt")["config"]["imports"] == ["my_lines"]
        assert train_door.main(["--resume", str(out), "--epochs", "3"]) == 0
        later = logged(out)[len(expected) + 1 :]
        assert later[:4] == [["begin", 2], ["start", True, 8], ["train", 3, 4, 8], ["step", 2, True]]
        assert later[-2][:2] == ["epoch", 3] and later[-1][0] == "end"


@pytest.mark.slow
def test_fit_does_what_the_command_does(tiny, tmp_path):
    """Same defaults, same numbers: the summary, the weights and the log, but for times."""
    torch.set_num_threads(1)
    folders = [tmp_path / name for name in ("command", "function")]
    words = [*SETTINGS, "--data.root", str(tiny[1]), "--name", "same"]
    assert train_door.main([*words, "--out", str(folders[0])]) == 0
    summary = train.fit("demo", [*words, "--out", str(folders[1])], quiet=True)
    assert summary == json.loads((folders[1] / "summary.json").read_text())
    assert summary["test"] == json.loads((folders[0] / "summary.json").read_text())["test"]
    states = [checkpoints.load(folder / "last.pt")["model"] for folder in folders]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    events = [[event["event"] for event in read_log(folder / "log.jsonl")] for folder in folders]
    assert events[0] == events[1] == ["start", "epoch", "epoch", "end"]


@pytest.mark.slow
def test_fit_resumes_and_refuses_what_is_not_there(tiny, tmp_path):
    settings = config.load("demo", [*SETTINGS, "--data.root", str(tiny[1]), "--out", str(tmp_path / "run")])
    settings.epochs = 1
    train.fit(settings, quiet=True)
    train.fit(resume=tmp_path / "run", overrides=["--epochs", "2"], quiet=True)
    assert checkpoints.load(tmp_path / "run" / "last.pt")["epoch"] == 2
    with pytest.raises(InputError, match="objective.method: there is no method 'nonsense'"):
        train.fit("demo", ["--objective.method", "nonsense"])


@pytest.mark.slow
def test_one_that_raises_is_left_out(tiny, tmp_path, monkeypatch, capsys):
    with own_module(tmp_path, monkeypatch, "my_broken", LOGGER.replace("reading.loss > -1e9", "1 / 0")):
        arguments = ["--import", "my_broken", "--loggers", "[lines]", "--data.root", str(tiny[1])]
        assert train_door.main([*SETTINGS, *arguments, "--out", str(tmp_path / "run")]) == 0
    line = "warning: logger lines: ZeroDivisionError: division by zero; the run goes on without it"
    assert capsys.readouterr().out.count(line) == 1 and (tmp_path / "run" / "summary.json").is_file()
