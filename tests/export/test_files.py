"""safetensors and the hub's folder: read back by every command, without a path of the machine that trained."""

import json
import os
import sys

import pytest
import torch

import essl_fast
from essl_fast import checkpoints
from essl_fast.checkpoints import hub as hub_names
from essl_fast.common.commands import command
from essl_fast.common.errors import InputError
from essl_fast.export import __main__ as door
from essl_fast.export import export_checkpoint, hub
from essl_fast.localize import SoundFinder
from tests.export.conftest import BEST, make_run

pytest.importorskip("safetensors")


def call(*argv) -> int:
    """The exit code of a command line."""
    try:
        return command(lambda: door.main([str(word) for word in argv]), door.PROG)
    except SystemExit as ended:
        return ended.code


def same(model, other) -> bool:
    ours, theirs = model.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_safetensors_round_trip(run, tmp_path, capsys):
    assert call(run, "--to", "safetensors", "--out", tmp_path / "out") == 0
    assert "read back and equal" in capsys.readouterr().out
    (path,) = (tmp_path / "out").iterdir()
    model, settings = essl_fast.load_checkpoint(run, "cpu")
    for given in (path, path.parent):
        other, theirs = essl_fast.load_checkpoint(given, "cpu")
        assert same(model, other) and theirs.model.trunk == settings.model.trunk
    finder = SoundFinder.open(path, "cpu")
    assert finder.trust.min_score == BEST["min_score"] and finder.trust.toys == ("bell", "car")
    assert b"/home/me" not in path.read_bytes()


def test_frozen_networks_are_inside(tmp_path, recwarn):
    """A model whose frozen trunk only a published file holds is whole in safetensors."""
    run = make_run(tmp_path / "run")
    state = checkpoints.load(run / "best.pt")
    model, settings = checkpoints.restore(state, torch.device("cpu"))
    model.trunk.requires_grad_(False)
    checkpoints.save_safetensors(tmp_path / "model.safetensors", model, settings, state)
    held = checkpoints.load(tmp_path / "model.safetensors")
    assert held["model"].keys() == model.state_dict().keys() and held["complete"]
    assert same(model, checkpoints.restore(held, torch.device("cpu"))[0])


@pytest.mark.parametrize("kind", ["cut", "foreign", "newer", "missing"])
def test_wrong_files_are_refused(run, tmp_path, kind):
    from safetensors.torch import save_file

    path = tmp_path / "model.safetensors"
    if kind != "missing":
        export_checkpoint(run, "safetensors", tmp_path)
    if kind == "cut":
        os.truncate(path, path.stat().st_size // 2)
    if kind in ("foreign", "newer"):
        about = {"format": "essl_fast model", "version": 2, "config": {}}
        save_file({"x": torch.zeros(2)}, path, {"essl_fast": json.dumps(about)} if kind == "newer" else None)
    words = {"cut": "not a readable", "foreign": "holds no essl_fast model", "newer": "version 2", "missing": "no file"}
    with pytest.raises(InputError, match=words[kind]) as refused:
        checkpoints.load(path)
    assert str(path) in str(refused.value) and "\n" not in str(refused.value)


def test_the_hubs_folder(run, tmp_path, capsys):
    assert call(run, "--to", "hub", "--out", tmp_path) == 0
    assert sorted(file.name for file in tmp_path.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    card, told = (tmp_path / "README.md").read_text(), json.loads((tmp_path / "config.json").read_text())
    assert card.startswith("---\nlibrary_name: essl_fast\n")
    assert "| this model | 118 | 93.2 | 75.8 |" in card and "| centre prior | 118 | 93.2 | 13.8 |" in card
    assert "epoch 18, the best on the val split (92.0% success" in card and "below 0.510" in card
    assert "toy objects only (bell, car)" in card and "int16 (B, 48000)" in card
    assert told["best"] == BEST and "/home/me" not in json.dumps(told) + card
    model, _ = essl_fast.load_checkpoint(tmp_path, "cpu")
    assert same(model, essl_fast.load_checkpoint(run, "cpu")[0])


def test_the_card_of_a_checkpoint_alone(run, tmp_path):
    (tmp_path / "best.pt").write_bytes((run / "best.pt").read_bytes())
    export_checkpoint(tmp_path / "best.pt", "hub", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "## Results" not in card and "The weights are those of epoch 18" in card
    (tmp_path / "summary.json").write_text("{")
    with pytest.raises(InputError, match="summary.json is damaged"):
        export_checkpoint(tmp_path / "best.pt", "hub", tmp_path / "again")


@pytest.fixture
def cached(run, tmp_path, monkeypatch):
    """A hub's cache that holds org/model, and no network."""
    huggingface_hub = pytest.importorskip("huggingface_hub")
    place = tmp_path / "cache" / "models--org--model"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("a" * 40)
    export_checkpoint(run, "hub", place / "snapshots" / ("a" * 40))
    real = huggingface_hub.snapshot_download
    monkeypatch.setattr(
        huggingface_hub,
        "snapshot_download",
        lambda name, **given: real(name, cache_dir=tmp_path / "cache", local_files_only=True, **given),
    )


def test_a_name_of_the_hub(run, cached):
    model, _ = essl_fast.load_checkpoint("hf://org/model", "cpu")
    assert same(model, essl_fast.load_checkpoint(run, "cpu")[0])
    assert SoundFinder.open("hf://org/model", "cpu").trust.min_score == BEST["min_score"]
    with pytest.raises(InputError, match="hf://org/other cannot be fetched .*or give a path"):
        essl_fast.load_checkpoint("hf://org/other", "cpu")


@pytest.mark.parametrize("name", ["hf://", "hf://org", "hf://a/b/c", "hf://org/na me"])
def test_what_is_no_name(name):
    assert hub_names.is_hub_name(name)
    with pytest.raises(InputError, match="is no name of a model"):
        essl_fast.load_checkpoint(name, "cpu")


@pytest.mark.parametrize("package", ["safetensors", "huggingface_hub", "onnxruntime"])
def test_a_missing_package_is_one_line(run, tmp_path, monkeypatch, capsys, package):
    monkeypatch.setitem(sys.modules, package, None)
    to = {"safetensors": ["safetensors"], "huggingface_hub": ["hub", "--push", "a/b"], "onnxruntime": ["onnx"]}
    if package == "onnxruntime":
        pytest.importorskip("onnx")
    assert call(run, "--out", tmp_path / "out", "--to", *to[package]) == 2
    said = capsys.readouterr().err
    assert f"the package {package} is missing: pip install" in said and said.count("\n") == 1


def test_push_uploads_only_when_asked(run, tmp_path, monkeypatch, capsys):
    huggingface_hub = pytest.importorskip("huggingface_hub")
    done = []

    class Api:
        def create_repo(self, name, **given):
            done.append((name, given["private"]))

        def upload_folder(self, *, repo_id, folder_path, allow_patterns):
            done.append((repo_id, sorted(allow_patterns)))

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    assert call(run, "--to", "hub", "--out", tmp_path) == 0 and not done
    assert call(run, "--to", "hub", "--out", tmp_path, "--push", "org/model") == 0
    assert done == [("org/model", True), ("org/model", ["README.md", "config.json", "model.safetensors"])]
    assert "uploaded: hf://org/model" in capsys.readouterr().out
    monkeypatch.setattr(Api, "create_repo", lambda *_, **__: 1 / 0)
    with pytest.raises(InputError, match="org/model cannot be uploaded .*is complete"):
        hub.push(tmp_path, "org/model")
    for words in (("onnx", "--push", "a/b"), ("hub", "--push", "model")):
        assert call(run, "--out", tmp_path, "--to", *words) == 2
        assert "error: --push: " in capsys.readouterr().err
