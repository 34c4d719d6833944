"""A run that goes on: what may differ from its checkpoint, what it says, and what it needs."""

import json
import shutil

import pytest
import torch

from essl_fast import checkpoints, config
from essl_fast.common.errors import InputError
from essl_fast.data.shards import Manifest
from essl_fast.train import Trainer
from essl_fast.train import __main__ as train_door
from essl_fast.train.state import computes, resume

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.slow
def test_resume_refuses_other_settings_and_other_data(finished, tmp_path):
    out, prepared = finished
    with pytest.raises(InputError, match="other settings: optim.lr_head: .* -> 0.5"):
        train_door.main(["--resume", str(out), "--optim.lr_head", "0.5"])
    settings = config.load(str(out / "config.yaml"))
    manifest = Manifest.load(prepared)
    trainer = Trainer(settings, manifest, torch.device("cpu"))
    state = checkpoints.load(out / "last.pt")
    with pytest.raises(InputError, match="not the data set"):
        resume(trainer, {**state, "data": {**state["data"], "pairs": 1}})
    with pytest.raises(InputError, match="only last.pt"):
        resume(trainer, checkpoints.load(out / "best.pt"))
    trainer.loader.close()
    with pytest.raises(InputError, match="not a run directory"):
        train_door.main(["--resume", str(tmp_path / "nowhere")])


def test_what_may_change_on_a_resume():
    before = config.to_dict(config.load("sspl"))

    def refused(*overrides):
        after = config.to_dict(config.load("sspl", overrides))
        return [line.split(":")[0] for line in checkpoints.forbidden(config.difference(before, after))]

    assert refused("epochs=50", "data.root=elsewhere", "data.threads=3", "checkpoint_steps=7", "out=there") == []
    assert refused("data.resident=never", "data.resident_budget_gb=3", "data.on_error=skip", "data.max_errors=1") == []
    assert refused("data.exclude_quarantined=bad") == ["data.exclude_quarantined"]
    assert refused("model.vgg16_weights=/moved/vgg16.pth") == []
    assert refused("model.vgg16_weights=none", "seed=1") == ["model.vgg16_weights", "seed"]
    assert refused("optim.lr_head=1", "data.batch_size=64", "precision=bf16", "objective.method=semipl") == [
        "data.batch_size",
        "objective.method",
        "optim.lr_head",
        "precision",
    ]


@pytest.mark.parametrize(
    ("was", "now", "on", "refused"),
    [
        ({"device": "cpu"}, {"device": "auto"}, "cpu in float32", []),
        ({"device": "cuda:1"}, {"device": "cuda:0"}, "cuda in bfloat16", []),
        ({"device": "cuda:3"}, {"device": "cuda"}, "cuda in bfloat16", []),
        ({"device": "auto"}, {"device": "cuda:0"}, "cuda in float16", []),
        ({"precision": "fp32"}, {"precision": "auto"}, "cpu in float32", []),
        ({"precision": "auto"}, {"precision": "fp32"}, "cpu in float32", []),
        ({"precision": "tf32"}, {"precision": "fp32"}, "cpu in float32", []),
        ({"precision": "tf32"}, {"precision": "fp32"}, "cuda in float32", ["precision"]),
        ({"precision": "fp32"}, {"precision": "tf32"}, "cuda in float32", ["precision"]),
        ({"precision": "bf16"}, {"precision": "auto"}, "cuda in bfloat16", []),
        ({"compile": "auto"}, {"compile": "off"}, "cpu in float32", []),
        ({"compile": "auto"}, {"compile": "on"}, "cpu in float32", ["compile"]),
        ({"compile": "auto"}, {"compile": "off"}, "cuda in bfloat16", ["compile"]),
        ({"deterministic": False}, {"deterministic": True}, "cpu in float32", ["deterministic"]),
        ({"seed": 0}, {"seed": 1}, "cpu in float32", ["seed"]),
    ],
)
def test_a_setting_may_differ_where_what_is_computed_does_not(was, now, on, refused):
    whole = config.to_dict(config.load("demo"))
    lines = config.difference(computes(whole | was, on), computes(whole | now, on))
    assert [line.split(":")[0] for line in checkpoints.forbidden(lines)] == refused


def test_a_resume_says_what_to_do(finished, tmp_path):
    """Another kind of device, moved data, another number of processes: the message names an option or a command."""
    out, prepared = finished
    settings = config.load(str(out / "config.yaml"))
    state, said = checkpoints.load(out / "last.pt"), {}
    trainer = Trainer(settings, Manifest.load(prepared), torch.device("cpu"))
    trainer.loader.close()
    ways = {
        "device": {"runs_on": "cuda in bfloat16"},
        "data": {"data": {**state["data"], "pairs": 1}, "data_root": "/was/here"},
        "ranks": {"seen": [1, 2]},
    }
    for name, changed in ways.items():
        with pytest.raises(InputError) as error:
            resume(trainer, {**state, **changed}, "runs/a b")
        said[name] = str(error.value)
    assert "on cuda in bfloat16, this run would be on cpu in float32" in said["device"] and "--device" in said["device"]
    assert "--data.root DIR (it was /was/here)" in said["data"]
    command = "torchrun --standalone --nproc-per-node=2 -m essl_fast.train --resume "
    assert "made by 2 processes, this run has 1, and the order" in said["ranks"] and command in said["ranks"]


@pytest.mark.slow
def test_another_number_of_epochs_says_what_it_does_to_the_schedule(finished, tmp_path, capsys):
    said = []
    for schedule, epochs in (("cosine", 3), ("constant", 3)):
        mine = shutil.copytree(finished[0], tmp_path / schedule)
        state = checkpoints.load(mine / "last.pt")
        state["config"]["optim"]["schedule"] = schedule
        checkpoints.save(mine / "last.pt", state)
        words = ["--resume", str(mine), "--epochs", str(epochs), "--optim.schedule", schedule]
        assert train_door.main(words) == 0
        said.append(capsys.readouterr().out)
    assert "the cosine schedule now ends with epoch 3 instead of 2: the learning rates go on at " in said[0]
    assert "where they were at 0%" in said[0]
    assert "the learning rates are constant: another number of epochs does not change them" in said[1]
    held = json.loads((mine / "summary-1.json").read_text())  # the result of its first end is kept aside
    assert held["config"]["epochs"] == 2 and json.loads((mine / "summary.json").read_text())["config"]["epochs"] == 3


@pytest.mark.slow
def test_a_run_without_a_best_epoch_can_be_ended_early(finished, tmp_path):
    """Stopped before its first evaluation, then resumed with no epoch left: what was trained is evaluated."""
    mine = shutil.copytree(finished[0], tmp_path / "run")
    state = checkpoints.load(mine / "last.pt")
    history = [{name: value for name, value in entry.items() if name != "selection"} for entry in state["history"]]
    checkpoints.save(mine / "last.pt", {**state, "best": None, "history": history})
    (mine / "best.pt").unlink()
    assert train_door.main(["--resume", str(mine), "--epochs", "1"]) == 0
    best = checkpoints.load(mine / "best.pt")
    assert best["best"]["epoch"] == 2 and checkpoints.load(mine / "last.pt")["best"] == best["best"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--data.root", "X"], "to train on X, name a recipe with --config .*: demo, full, lss, .*semipl, sspl"),
        (["--data.root=X", "--epochs", "3"], "name a recipe with --config"),
        (["--resume", "auto", "--out", "x", "--data.root", "X"], "name a recipe with --config"),
        (["--config", "semipl"], "name the prepared folder with --data.root DIR .*, or train .* --data.root demo"),
        (["--config=sspl_pcm"], "name the prepared folder with --data.root DIR"),
        (["--config", "paper/table2_lss"], "name the prepared folder with --data.root DIR"),
        (["--config", "full", "--epochs", "3"], "name the prepared folder with --data.root DIR"),
    ],
)
def test_a_recipe_needs_data_and_data_need_a_recipe(words, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=said):
        train_door.main(words)
    assert not list(tmp_path.iterdir())
    for purposely in (["--config", "semipl", "--data.root", "demo"], [], ["--epochs", "2"]):
        settings, _ = train_door.parse(purposely)
        assert settings.data.root == "demo"
    assert train_door.parse(["--config", "demo", "--data.root", "X"])[0].data.root == "X"


NO_RUN = [  # what --resume is given, what the message says
    ("RUN/last.pt", "is not a run directory (give the directory RUN)"),
    ("RUN/log.jsonl", "is not a run directory (give the directory RUN)"),
    ("RUN/last.pt/x", "is not a run directory (it has no config.yaml)"),
    ("nowhere", "--resume: nowhere is not a run directory (it has no config.yaml)"),
    ("/dev/null", "is not a run directory (it has no config.yaml)"),
    ("~nobody-of-this-name/run", "no home folder is known for it"),
    ("a\0b", "must be a path, without control characters"),
    ("a\nb", "must be a path, without control characters"),
    ("x" * 5000, "is not a run directory"),
    ("\udcff", "is not a run directory"),
]


@pytest.mark.parametrize(("given", "said"), NO_RUN, ids=lambda text: repr(text)[:24])
def test_what_is_no_run_is_told(finished, given, said):
    run = str(finished[0])
    for words in (["--resume", given.replace("RUN", run)], [f"--resume={given.replace('RUN', run)}", "--epochs", "3"]):
        with pytest.raises(InputError) as refused:
            train_door.parse(words)
        assert said.replace("RUN", run) in str(refused.value) and "\n" not in str(refused.value)


def test_a_run_in_the_home_folder(finished, monkeypatch):
    monkeypatch.setenv("HOME", str(finished[0].parent))
    for words in (["--resume", f"~/{finished[0].name}"], [f"--resume=~/{finished[0].name}"]):
        assert train_door.parse(words)[1].resume == str(finished[0])


@pytest.mark.parametrize("words", [["--resume"], ["--resume", ""], ["--resume="], ["--resume", "--epochs", "3"]])
def test_resume_needs_a_run(words):
    with pytest.raises(InputError, match="--resume: needs a run directory, or auto"):
        train_door.parse(words)


@pytest.mark.slow
def test_the_data_may_move(finished, tmp_path, capsys):
    out, prepared = finished
    copy = shutil.copytree(prepared, tmp_path / "elsewhere")
    mine = shutil.copytree(out, tmp_path / "run")
    before = json.loads((out / "summary.json").read_text())
    assert train_door.main(["--resume", str(mine), "--data.root", str(copy)]) == 0  # nothing is left to train
    assert "differs from the checkpoint: data.root" in capsys.readouterr().out
    assert json.loads((mine / "summary.json").read_text())["test"] == before["test"]


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("gone", "data.root: there is no folder .*gone; say where the data is with --data.root DIR"),
        ("file", "data.root: there is no folder .*file; say where .* --data.root DIR"),
        ("file/below", "data.root: there is no folder .*below; say where .* --data.root DIR"),
        ("empty", "manifest.json is not there, so .*empty is not a complete prepared folder"),
        ("other", "other is not the data set that the checkpoint was trained on; give its folder with --data.root DIR"),
    ],
)
def test_data_that_moved_are_asked_for(finished, tmp_path, place, said):
    mine = shutil.copytree(finished[0], tmp_path / "run")
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    other = shutil.copytree(finished[1], tmp_path / "other")
    header = json.loads((other / "manifest.json").read_text())
    (other / "manifest.json").write_text(json.dumps(header | {"dataset": "another"}))
    with pytest.raises(InputError, match=said):
        train_door.main(["--resume", str(mine), "--epochs", "3", "--data.root", str(tmp_path / place)])


@pytest.mark.slow
def test_a_resume_that_has_nothing_to_train_says_so(finished, tmp_path, capsys):
    """It is of two epochs: with one, it is evaluated again; with three, it goes on."""
    mine, line = shutil.copytree(finished[0], tmp_path / "run"), "the run has already trained 2 epochs, so with "
    results = []
    for epochs in (2, 1, 3):
        assert train_door.main(["--resume", str(mine), "--epochs", str(epochs)]) == 0
        told = f"{line}--epochs {epochs} there is nothing to train: it is evaluated again"
        said = capsys.readouterr().out
        assert (said.count(told), said.count(line)) == ((1, 1) if epochs < 3 else (0, 0))
        results.append(json.loads((mine / "summary.json").read_text())["test"])
        assert checkpoints.load(mine / "last.pt")["epoch"] == max(epochs, 2)
    assert results[0] == results[1] == json.loads((finished[0] / "summary.json").read_text())["test"]
