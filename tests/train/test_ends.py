"""How a run ends: what a rank that does not lead writes, how to go on, and what an error leaves."""

import errno
import io
import os
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from rich.console import Console

from essl_fast import checkpoints, config
from essl_fast.common.errors import InputError, in_shell
from essl_fast.runtime import distributed
from essl_fast.runtime.distributed import World
from essl_fast.runtime.runlog import RunLog
from essl_fast.runtime.stopping import Stopped
from essl_fast.train import results, step
from essl_fast.train import run as run_module
from essl_fast.train.rundir import RunDirectory
from essl_fast.train.state import check_resume

CPU = torch.device("cpu")
ALONE, SECOND = distributed.ALONE, World(1, 2)


def test_a_rank_that_does_not_lead_writes_nothing(tmp_path):
    for leads in (False, True):
        directory = RunDirectory(tmp_path, keep=2, leads=leads)
        directory.summary.write_text("{}")
        directory.save_last({"epoch": 1})
        directory.save_best({"epoch": 1})
        directory.save_best({"epoch": 1}, average=True)
        directory.save_config(config.load("demo"))
        directory.set_aside()
        assert directory.holds_a_run == leads and directory.summary.is_file() != leads
        names = {path.name for path in tmp_path.iterdir()}
        assert names == (
            {"last.pt", "best.pt", "best-ema.pt", "config.yaml", "summary-1.json"} if leads else {"summary.json"}
        )
    assert config.load(str(directory.config)) == config.load("demo")


def test_what_is_wrong_with_the_best_weights(tmp_path):
    directory = RunDirectory(tmp_path, keep=2, leads=True)
    assert directory.best_fault() == directory.best_fault(average=True) == "it is gone"
    directory.save_best({"epoch": 1, "x": torch.arange(1000)})
    assert directory.best_fault() is None and directory.best_fault(average=True) == "it is gone"
    data = bytearray(directory.best.read_bytes())
    data[len(data) // 2] ^= 1
    directory.best.write_bytes(data)
    assert "CRC-32" in directory.best_fault()


def test_the_last_baseline_of_the_log_counts(tmp_path):
    directory = RunDirectory(tmp_path, keep=2, leads=True)
    log = RunLog(directory.log)
    log.write("start", step=0)
    assert directory.logged_baseline("untrained") is None
    for auc in (0.25, 0.5):
        log.write("baseline", name="untrained", result={"auc": auc})
    log.write("baseline", name="other", result={"auc": 1.0})
    assert directory.logged_baseline("untrained") == {"auc": 0.5}
    log.close()


@pytest.fixture
def given_up(monkeypatch):
    """The exit codes with which a rank would have ended at once."""
    codes = []
    monkeypatch.setattr(distributed, "give_up", lambda world, device, code: codes.append(code))
    return codes


@pytest.mark.parametrize("saved", [False, True])
def test_after_ctrl_c_the_way_to_go_on_is_told(tmp_path, given_up, saved):
    stream = io.StringIO()
    if saved:
        (tmp_path / "last.pt").touch()
    with pytest.raises(KeyboardInterrupt), run_module.ended_well(tmp_path, Console(file=stream, width=300), CPU, ALONE):
        raise Stopped(signal.SIGTERM)
    said = stream.getvalue()
    assert said == (f"stopped; continue with: {run_module.command(1)} --resume {in_shell(tmp_path)}\n" if saved else "")
    assert given_up == [Stopped(signal.SIGTERM).code]


@pytest.mark.parametrize("there", [False, True])
def test_a_disk_that_fails_is_one_line_with_the_way_to_go_on(tmp_path, capsys, given_up, there):
    out = tmp_path if there else tmp_path / "gone"
    with pytest.raises(InputError) as raised, run_module.ended_well(out, Console(), CPU, ALONE):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(out / "last.pt"))
    assert str(raised.value).startswith(f"cannot write or read {out}/last.pt: No space left on device; ")
    assert str(raised.value).endswith(f"--resume {in_shell(out)}" if there else "choose another --out")
    assert capsys.readouterr().err == "" and given_up == []  # the command itself prints it


def test_a_rank_says_which_one_it_is(tmp_path, capsys, given_up):
    checkpoints.save(tmp_path / "last.pt", {"epoch": 1})
    with pytest.raises(RuntimeError), run_module.ended_well(tmp_path, Console(), CPU, SECOND):
        raise RuntimeError("Connection closed by peer")
    said = capsys.readouterr().err.strip()
    assert said.startswith(f"{run_module.COMMAND}: error: rank 1: RuntimeError: Connection closed by peer; to go on: ")
    assert said.endswith(f"--resume {in_shell(tmp_path)}") and "torchrun" in said and given_up == [1]


@pytest.mark.parametrize("device", [CPU, torch.device("cuda")])
def test_what_a_rank_refuses_is_said_once(tmp_path, capsys, given_up, device):
    """By the command, or, on a GPU, where the process ends at once, before that."""
    checkpoints.save(tmp_path / "last.pt", {"epoch": 1})
    with pytest.raises(InputError) as raised, run_module.ended_well(tmp_path, Console(), device, SECOND):
        raise InputError("5 ranks cannot share batches of 4 pairs")
    said, line = capsys.readouterr().err, "rank 1: 5 ranks cannot share batches of 4 pairs; to go on: "
    assert (said + str(raised.value)).count("5 ranks") == 1 + (device != CPU) and given_up == [1]
    assert (str(raised.value) if device == CPU else said.removeprefix(f"{run_module.COMMAND}: error: ")).startswith(
        line
    )


@pytest.mark.parametrize(("world", "left"), [(ALONE, False), (SECOND, True)])
def test_a_directory_that_was_only_a_name_is_removed(tmp_path, world, left):
    for holds in (False, True):
        out = tmp_path / str(holds)
        out.mkdir()
        if holds:
            (out / "config.yaml").touch()
        with pytest.raises(KeyError), run_module.made_for_a_run(out, world):
            raise KeyError
        assert out.exists() == (left or holds)


def test_deterministic_algorithms(monkeypatch):
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")  # the user's own stays
    try:
        torch.backends.cudnn.benchmark = True
        run_module.be_deterministic()
        assert torch.are_deterministic_algorithms_enabled() and not torch.backends.cudnn.benchmark
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.benchmark = before[1]


def test_a_picture_that_fails_is_a_warning():
    told = []
    trainer = SimpleNamespace(epoch=3, observers=SimpleNamespace(on_warning=lambda *given: told.append(given)))
    with results.not_needed("report.html", trainer):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    ((epoch, line),) = told
    assert epoch == 3 and line.startswith("report.html could not be written (")
    assert line.endswith("; the results are complete without it")
    with pytest.raises(KeyboardInterrupt), results.not_needed("report.html", trainer):
        raise KeyboardInterrupt


def test_the_baselines_that_there_are():
    """Of two pairs; the trunk's own map is a baseline where the trunk is frozen, the largest object on the demo."""
    boxes = np.zeros((2, 1, 4), np.int32)
    boxes[:, 0] = [0, 0, 112, 224]
    keys = ["a_000001", "b_000001"]
    manifest = SimpleNamespace(
        boxes=boxes, negative=None, class_id=np.zeros(2, int), classes=("a",), key=keys.__getitem__, consensus=1
    )
    maps = np.zeros((2, 8, 8), np.float32)
    maps[:, :, :4] = 1
    trainer = SimpleNamespace(settings=config.load("demo"), manifest=manifest, untrained=None)
    found = SimpleNamespace(rows=np.arange(2), objects=None)
    assert list(results.baselines(trainer, found, None)) == ["centre_prior"]
    trainer.untrained, found.objects = {"auc": 0.1}, maps
    wide, high = results.ANNOTATED
    things = [{"area": 5, "box": [wide / 2, 0, wide, high]}, {"area": 9, "box": [0, 0, wide / 2, high]}]
    all_of_them = results.baselines(trainer, found, dict.fromkeys(keys, things))
    assert list(all_of_them) == ["untrained", "centre_prior", "object_prior", "largest_object_prior"]
    assert all_of_them["object_prior"]["success_at_half"] == 1 == all_of_them["largest_object_prior"]["success_at_half"]


def test_weights_alone_cannot_be_resumed():
    with pytest.raises(InputError, match="only last.pt can be resumed; best.pt holds weights alone"):
        check_resume(SimpleNamespace(), {"kind": "best"}, "runs/a")


def test_an_exchange_that_this_pytorch_lacks(monkeypatch):
    def lacks(*_, **__):
        def hook(*_):
            raise TypeError("bf16 all reduce is not there")

        return SimpleNamespace(register_comm_hook=hook)

    monkeypatch.setattr(step, "DistributedDataParallel", lacks)
    settings = config.load("demo", ["--optim.exchange", "bf16"])
    with pytest.raises(
        InputError, match="optim.exchange: bf16, but this PyTorch has none .bf16 all reduce .*; use own"
    ):
        step.data_parallel(torch.nn.Sequential(torch.nn.Linear(2, 2)), settings, compiled=False)
