"""The training command: from data to a summary, killed and resumed, and its errors."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from essl_fast import checkpoints, config, models
from essl_fast.common.commands import command
from essl_fast.common.errors import InputError
from essl_fast.data.shards import QUARANTINE, Manifest, read_index
from essl_fast.evaluate import __main__ as evaluate_door
from essl_fast.models import heads, objectives, weights
from essl_fast.runtime import runlog
from essl_fast.train import Trainer
from essl_fast.train import __main__ as train_door
from essl_fast.train.optimizer import learning_rate_factor
from tests.tools.compiling import losses_of_one_graph
from tests.train.conftest import ARGUMENTS

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.slow
def test_a_run_leaves_everything(finished):
    out, prepared = finished
    files = "config.yaml log.jsonl last.pt last-1.pt best.pt summary.json report.html".split()
    pictures = "curves.png overlays.png test_pairs.jsonl gallery.npz".split()
    assert {file.name for file in out.iterdir()} == {*files, *pictures}
    summary = json.loads((out / "summary.json").read_text())
    for name in ("test", "untrained", "centre_prior"):
        assert 0 <= summary[name]["success_at_half"] <= 1 and 0 <= summary[name]["auc"] <= 1
        assert len(summary[name]["curve"]) == 21
    assert summary["test"]["pairs"] == Manifest.load(prepared).pairs("test")
    assert summary["pairs_per_second"] > 0 and summary["seconds"] > 0
    assert summary["config"]["data"]["batch_size"] == 5 and summary["environment"]["packages"]["torch"]
    events = runlog.read_log(out / "log.jsonl")
    assert [e["event"] for e in events] == ["start", "baseline", "epoch", "epoch", "end"]
    assert events[0]["environment"]["source"]["sha256"] and events[2]["pairs"] == Manifest.load(prepared).pairs("train")
    assert set(events[2]["losses"]) == {"loss", "unsupervised", "supervised"}


def test_evaluate_repeats_the_summary(finished, tmp_path, capsys):
    out, _ = finished
    summary = json.loads((out / "summary.json").read_text())
    result = tmp_path / "result.json"
    assert evaluate_door.main([str(out / "best.pt"), "--device", "cpu", "--json", str(result)]) == 0
    found = json.loads(result.read_text())
    for key in ("success_at_half", "auc", "curve", "per_class"):
        assert found[key] == summary["test"][key]
    assert len(found["each"]) == summary["test"]["pairs"]
    assert "success at cIoU 0.5" in capsys.readouterr().out


def command_line(*arguments):
    return [sys.executable, "-m", "essl_fast.train", *map(str, arguments)]


KILLED = """
import os, signal, sys, threading
from essl_fast import checkpoints
from essl_fast.train import __main__ as door

save = checkpoints.save
def saved(path, state, *more):
    save(path, state, *more)
    if path.name == "last.pt" and state["step"] >= int(sys.argv[1]):
        threading.Timer(0.01, os.kill, (os.getpid(), signal.SIGKILL)).start()
checkpoints.save = saved
sys.exit(door.main(sys.argv[2:]))
"""


@pytest.mark.parametrize(
    ("kill_at", "resident", "then"),
    [
        pytest.param(1, "always", "always", marks=pytest.mark.nightly),
        pytest.param(4, "never", "never", marks=pytest.mark.nightly),
        pytest.param(5, "always", "never", marks=pytest.mark.slow),
    ],
)
def test_killed_and_resumed_equals_undisturbed(finished, tmp_path, kill_at, resident, then):
    """SIGKILL at whatever instant it is 10 ms after step ``kill_at`` has been saved; four steps are an epoch.

    The undisturbed run kept its pairs in memory. Whether a run does so, or its resumption, changes no bit."""
    whole, prepared = finished
    out = tmp_path / "killed"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    arguments = [*ARGUMENTS, "--data.root", prepared, "--out", out, "--checkpoint_steps", "1"]
    arguments += ["--data.resident", resident]
    command = [sys.executable, "-c", KILLED, str(kill_at), *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == -signal.SIGKILL, done.stderr
    left_at = checkpoints.load(out / "last.pt")["step"]
    assert left_at >= kill_at
    assert train_door.main(["--resume", str(out), "--data.resident", then]) == 0

    expected, state = checkpoints.load(whole / "last.pt"), checkpoints.load(out / "last.pt")
    assert state["step"] == expected["step"] > left_at
    for name, value in expected["model"].items():
        assert torch.equal(state["model"][name], value), name
    for mine, theirs in zip(state["optimizer"]["state"].values(), expected["optimizer"]["state"].values(), strict=True):
        assert all(torch.equal(mine[key], theirs[key]) for key in theirs)
    without_speed = [
        [{k: v for k, v in entry.items() if k not in ("pairs_per_second", "waiting")} for entry in s["history"]]
        for s in (state, expected)
    ]
    assert without_speed[0] == without_speed[1]
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (out, whole)]
    assert summaries[0]["test"] == summaries[1]["test"] and summaries[0]["untrained"] == summaries[1]["untrained"]


@pytest.mark.slow
def test_ctrl_c_ends_with_the_command_that_continues(tiny, tmp_path):
    out = tmp_path / "stopped"
    arguments = [*ARGUMENTS, "--data.root", tiny[1], "--out", out, "--epochs", "500", "--checkpoint_steps", "1"]
    process = subprocess.Popen(command_line(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 600
        while time.monotonic() < deadline and process.poll() is None:
            if (out / "last.pt").exists() and checkpoints.load(out / "last.pt")["step"] >= 2:
                break
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        said, error = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 130, error
    assert f"continue with: python -m essl_fast.train --resume {out}" in said
    assert "Traceback" not in error
    assert checkpoints.load(out / "last.pt")["step"] >= 2


@pytest.mark.nightly  # the first command that CI runs
def test_the_demo_from_nothing(tmp_path):
    """What `python -m essl_fast.train` does, in small: world, shards, training, and every prior."""
    out = tmp_path / "demo"
    arguments = ["--demo.train_videos", "10", "--demo.test_videos", "3", "--demo.cache", str(tmp_path / "cache")]
    arguments += ["--data.batch_size", "3", "--data.last_batch", "drop", "--epochs", "1", "--out", str(out)]
    assert train_door.main([*arguments, "--device", "cpu"]) == 0
    summary = json.loads((out / "summary.json").read_text())
    priors = {name: summary[name]["success_at_half"] for name in ("untrained", "centre_prior", "largest_object_prior")}
    world = next((tmp_path / "cache").iterdir())
    objects = json.loads((world / "world" / "objects.json").read_text())
    manifest = Manifest.load(world / "prepared")
    largest = [max(objects[manifest.key(row)], key=lambda thing: thing["area"]) for row in manifest.rows("test")]
    # Objects hardly overlap, so the guess is right where the largest one sounds, and only there.
    assert priors["largest_object_prior"] == np.mean([thing["sounding"] for thing in largest])


def damaged(prepared, place, row):
    """A copy in which the frame of a row is none."""
    copy = Path(shutil.copytree(prepared, place))
    manifest = Manifest.load(copy)
    split = ("train", "val", "test")[manifest.split[row]]
    tar, idx = manifest.shards(split)[0]
    index = read_index(idx)
    with open(tar, "r+b") as file:
        file.seek(int(index.visual_offset[row - manifest.rows(split)[0]]))
        file.write(bytes(100))
    return copy, manifest.key(row)


@pytest.mark.slow
@pytest.mark.parametrize("split", ["train", "test"])
def test_a_frame_that_does_not_decode(tiny, tmp_path, capsys, split):
    """It stops the run with its key and what to do; or it is skipped, and that is said, logged and counted."""
    manifest = Manifest.load(tiny[1])
    copy, key = damaged(tiny[1], tmp_path / "data", int(manifest.rows(split)[2]))
    arguments = [*ARGUMENTS, "--data.root", copy, "--epochs", "1", "--out"]
    code, line = run_command(capsys, *arguments, tmp_path / "stopped")
    assert code == 2 and key in line and "--data.on_error skip" in line and "prepare --verify" in line
    code, line = run_command(capsys, *arguments, tmp_path / "few", "--data.on_error", "skip")
    assert code == 2 and "more than data.max_errors = 0.01 allows" in line and key in line
    out = tmp_path / "skipped"
    assert train_door.main([*map(str, arguments), str(out), "--data.on_error", "skip", "--data.max_errors", "0.3"]) == 0
    assert f"skipped {key}, which does not decode" in capsys.readouterr().out
    events = runlog.read_log(out / "log.jsonl")
    assert [e["key"] for e in events if e["event"] == "skipped"] == [key]
    summary = json.loads((out / "summary.json").read_text())
    assert summary["left_out"] == {"quarantined": 0, "skipped": 1}
    counts = {"train": next(e["pairs"] for e in events if e["event"] == "epoch")}
    counts["test"] = summary["test"]["pairs"]
    assert {summary[name]["pairs"] for name in ("untrained", "centre_prior")} == {counts["test"]}
    assert counts == {name: manifest.pairs(name) - (name == split) for name in counts}
    assert evaluate_door.main([str(out / "best.pt"), "--device", "cpu", "--split", split]) == 0
    assert f"skipped {key}" in capsys.readouterr().out


@pytest.mark.slow
def test_quarantined_pairs_and_pools_that_do_not_fit_are_told(tiny, tmp_path, capsys):
    copy = Path(shutil.copytree(tiny[1], tmp_path / "data"))
    manifest = Manifest.load(copy)
    entries = [
        {"row": row, "key": manifest.key(row), "reason": "corrupt"} for row in (1, int(manifest.rows("test")[0]))
    ]
    (copy / QUARANTINE).write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    arguments = [*ARGUMENTS, "--data.root", copy, "--epochs", "1", "--data.exclude_quarantined", "bad"]
    out, size = tmp_path / "run", 246 * 246 * 3 + 3 * 96 * 64 * 4
    budget = 1.02 * size * (manifest.pairs("train") - 1) / 1e9
    arguments += ["--data.resident_budget_gb", budget]
    assert train_door.main([*map(str, arguments), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "2 quarantined pairs are left out" in said
    assert "test at side 224 is streamed, not kept: that needs 0.00" in said and "GB missing" in said
    assert "train at side 246 is streamed" not in said
    summary = json.loads((out / "summary.json").read_text())
    assert summary["left_out"]["quarantined"] == 2
    assert {summary[name]["pairs"] for name in ("test", "untrained", "centre_prior")} == {manifest.pairs("test") - 1}
    code, line = run_command(capsys, *arguments, "--out", tmp_path / "refused", "--data.resident", "always")
    assert code == 2 and "data.resident: always, but " in line and not (tmp_path / "refused").exists()


def test_a_finished_run_is_not_overwritten(finished):
    out, prepared = finished
    with pytest.raises(InputError, match="holds a run already; continue it with --resume"):
        train_door.main([*ARGUMENTS, "--data.root", str(prepared), "--out", str(out)])


def run_command(capsys, *arguments):
    """Exit code and error line of the command, run in this process."""
    code = command(lambda: train_door.main(list(map(str, arguments))), train_door.PROG)
    return code, capsys.readouterr().err.strip()


def test_errors_are_one_line_and_exit_code_2(tiny, tmp_path, monkeypatch, capsys):
    code, line = run_command(capsys, "--data.nonsense", "1")
    assert code == 2 and "--data.nonsense" in line and "\n" not in line
    code, line = run_command(
        capsys,
        "--config",
        "demo",
        "--data.root",
        tiny[1],
        "--precision",
        "fp16",
        "--device",
        "cpu",
        "--out",
        tmp_path / "f",
    )
    assert code == 2 and "precision: fp16 needs a GPU" in line and "\n" not in line
    code, line = run_command(capsys, "--config", "demo", "--data.root", tmp_path / "nothing", "--out", tmp_path / "a")
    assert code == 2 and "nothing" in line and "prepare" in line and "\n" not in line

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))

    def refuse(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(weights.urllib.request, "urlopen", refuse)
    code, line = run_command(
        capsys, "--config", "sspl", "--data.root", tiny[1], "--out", tmp_path / "b", "--device", "cpu"
    )
    assert code == 2 and "vgg16-397923af.pth" in line and "--model.vgg16_weights" in line and "\n" not in line
    assert not (tmp_path / "b").exists()  # nothing is left behind that would have to be cleared away


@pytest.mark.slow
@pytest.mark.parametrize("saved", [True, False])
def test_a_run_that_does_not_train_the_head_is_evaluated_and_resumed(tiny, tmp_path, monkeypatch, capsys, saved):
    """Also where its checkpoints lack the weights of the head, as those of the first version do."""
    head = heads.SimSiamHead
    monkeypatch.setattr(heads, "SimSiamHead", lambda channels: head(channels, 64, 16))
    out = tmp_path / "run"
    arguments = [*ARGUMENTS, "--data.root", str(tiny[1]), "--objective.method", "supervised", "--baselines", "false"]
    assert train_door.main([*arguments, "--epochs", "1", "--out", str(out)]) == 0
    for name in () if saved else ("best.pt", "last.pt"):
        state = checkpoints.load(out / name)
        own = {key for key in state["model"] if key.startswith("head.") and key.endswith(("weight", "bias"))}
        state["model"] = {key: value for key, value in state["model"].items() if key not in own}
        checkpoints.save(out / name, state)
    assert evaluate_door.main([str(out), "--device", "cpu"]) == 0
    assert train_door.main(["--resume", str(out), "--epochs", "2"]) == 0
    assert "head.projector.0.weight" in checkpoints.load(out / "last.pt")["model"]


def test_a_batch_of_one_is_refused_before_training(tiny, tmp_path):
    pairs = Manifest.load(tiny[1]).pairs("train")
    with pytest.raises(InputError, match="last batch of one pair"):
        train_door.main(
            [*ARGUMENTS, "--data.root", str(tiny[1]), "--out", str(tmp_path / "a"), "--data.batch_size", str(pairs - 1)]
        )


@pytest.mark.slow
def test_the_published_protocol_says_so(tiny, tmp_path, capsys):
    out = tmp_path / "published"
    arguments = [*ARGUMENTS, "--data.root", str(tiny[1]), "--out", str(out), "--select_on", "test", "--epochs", "1"]
    assert train_door.main(arguments) == 0
    assert "chosen on the test set itself" in capsys.readouterr().out
    manifest = Manifest.load(tiny[1])
    epoch = next(e for e in runlog.read_log(out / "log.jsonl") if e["event"] == "epoch")
    assert epoch["pairs"] == manifest.pairs("train") + manifest.pairs("val")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sspl", "semipl"])
def test_the_papers_networks_take_a_step(tiny, name, recwarn):
    weights = "--model.vgg16_weights none --model.vggish_weights none"
    settings = config.load(name, f"{weights} --data.batch_size 2 --device cpu --model.pcm_cycles 1".split())
    trainer = Trainer(settings, Manifest.load(tiny[1]), torch.device("cpu"))
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    losses = trainer.train_step(next(iter(trainer.loader)))
    trainer.loader.close()
    assert all(np.isfinite(value.item()) for value in losses.values())
    moved = {name for name, p in trainer.model.named_parameters() if not torch.equal(p, before[name])}
    assert not any(name.startswith("trunk.") for name in moved)
    assert any(name.startswith("head.") for name in moved) and any(name.startswith("audio.fc") for name in moved)
    assert any(name.startswith("pcm.") for name in moved) == settings.model.pcm


@pytest.mark.nightly  # two minutes: the compiler; tests/golden compiles a step for CI
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("bf16", 2e-2)])
def test_compiled_step_equals_the_plain_one(tiny, precision, tolerance):
    """One step through torch.compile, which must not break the graph, gives the losses of the plain step."""
    found = []
    for compiled in ("off", "on"):
        arguments = ["--compile", compiled, "--data.batch_size", "4", "--device", "cpu", "--precision", precision]
        trainer = Trainer(config.load("demo", arguments), Manifest.load(tiny[1]), torch.device("cpu"))
        found.append({k: v.item() for k, v in trainer.train_step(next(iter(trainer.loader))).items()})
        trainer.loader.close()
    # L_U is near 0 before training, a mean of cosines: their rounding is absolute, not relative.
    assert found[0] == pytest.approx(found[1], rel=tolerance, abs=tolerance / 10)


@pytest.mark.slow
def test_a_run_in_bf16(tiny, tmp_path):
    out = tmp_path / "half"
    arguments = [*ARGUMENTS, "--data.root", str(tiny[1]), "--out", str(out), "--precision", "bf16", "--epochs", "1"]
    assert train_door.main(arguments) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert summary["test"]["pairs"] == Manifest.load(tiny[1]).pairs("test")
    assert {value.dtype for value in checkpoints.load(out / "best.pt")["model"].values()} == {
        torch.float32,
        torch.int64,
    }


@pytest.mark.slow
def test_the_papers_step_is_one_graph():
    """SemiPL's whole forward pass under bf16 autocast, as a GPU compiles it: captured without a break, then run.

    On tensors that hold no numbers: most CPUs convolve bf16 a hundred times as slowly as float32, and VGG-16 on four
    views would take them minutes."""
    with FakeTensorMode():
        settings = config.load("semipl", ["--model.pcm_cycles", "1"])
        model, objective = models.build(settings.model), objectives.build(settings.objective)
        boxes = torch.zeros(2, 2, 1, 4, dtype=torch.int32)
        inputs = (torch.randn(2, 2, 3, 224, 224), torch.randn(2, 3, 96, 64), boxes, torch.ones(2, dtype=torch.bool))
        found = losses_of_one_graph(model, objective, *inputs)
        assert set(found) == {"loss", "unsupervised", "supervised"}
        assert all(value.shape == () and value.dtype == torch.float32 for value in found.values())
        found["loss"].backward()
    trained = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None}
    assert trained == {"audio", "pcm", "head"}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
def test_a_run_on_a_gpu(tiny, tmp_path, precision):
    """Training, checkpoint, resume and evaluation on a GPU; the step itself does not wait for the GPU."""
    out = tmp_path / precision
    arguments = [*ARGUMENTS, "--data.root", str(tiny[1]), "--out", str(out), "--precision", precision]
    assert train_door.main([*arguments, "--device", "cuda"]) == 0
    assert evaluate_door.main([str(out / "best.pt"), "--device", "cuda", "--precision", precision]) == 0
    assert train_door.main(["--resume", str(out), "--epochs", "3"]) == 0
    assert checkpoints.load(out / "last.pt")["epoch"] == 3

    settings = config.load(str(out / "config.yaml"))
    trainer = Trainer(settings, Manifest.load(tiny[1]), torch.device("cuda"))
    raw = next(iter(trainer.loader))
    trainer.train_step(raw)  # compiles, and waits as it likes
    torch.cuda.set_sync_debug_mode("error")
    try:
        losses = trainer.train_step(raw)
    finally:
        torch.cuda.set_sync_debug_mode("default")
        trainer.loader.close()
    assert losses["loss"].isfinite()


def test_learning_rate_factor():
    assert {learning_rate_factor("constant", step, 10, 2) for step in range(10)} == {1.0}
    factors = [learning_rate_factor("cosine", step, 10, 2) for step in range(10)]
    assert factors[:3] == [0.5, 1.0, 1.0] and all(a > b for a, b in zip(factors[2:], factors[3:], strict=False))
    assert factors[-1] < 0.05


def test_a_non_finite_loss_stops_the_run_with_its_pairs(tiny, tmp_path):
    arguments = [*ARGUMENTS, "--data.root", str(tiny[1]), "--out", str(tmp_path / "hot"), "--optim.lr_trunk", "1e30"]
    with pytest.raises(FloatingPointError, match="lower the learning rates.*pairs: [A-Z]{8}_"):
        train_door.main(arguments)
