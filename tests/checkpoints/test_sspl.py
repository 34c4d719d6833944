"""The published SSPL code's files: read, evaluated, written as that code would take them, and errors."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from essl_fast import checkpoints, config, models
from essl_fast.checkpoints import sspl
from essl_fast.common.errors import InputError
from essl_fast.data.shards import Manifest
from essl_fast.evaluate import __main__ as evaluate_door
from essl_fast.evaluate import evaluate
from essl_fast.export import __main__ as export_door
from tests.golden.store import golden, recipe_state

PREFIX = {"frame": "frame_", "sound": "sound_", "pcm": "pcm_", "ssl_head": "head_"}  # of golden's arrays
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The recipe's weights as the published training saves them: (state dicts by part, their folder, golden's arrays,
    the model that was read from them)."""
    data, folder = golden("e2e_w_pcm"), tmp_path_factory.mktemp("published")
    gains = {"frame": np.sqrt(2), "sound": np.sqrt(2), "pcm": 1.0, "ssl_head": 1.0}
    parts = {}
    for part, seed in zip(PREFIX, data["wseeds"], strict=True):
        wrapped = "" if part == "frame" else "module."
        sd = recipe_state(data, PREFIX[part], seed, gains[part])
        parts[part] = {wrapped + name: value for name, value in sd.items()}
        torch.save(parts[part], folder / f"{part}_best.pth")
    model, settings = checkpoints.restore_published(folder, CPU)
    assert settings.model.pcm and settings.model.pcm_cycles == 4 and settings.model.out_dim == 512
    return parts, folder, data, model


@pytest.mark.slow
def test_published_files_give_the_published_outputs(published):
    _, _, data, model = published
    views = torch.from_numpy(data["low_view1"])[None].repeat_interleave(28, dim=3).repeat_interleave(28, dim=4)
    with torch.no_grad():
        similarity = model.eval().attend(views, torch.from_numpy(data["spect"])[:, :, 0]).similarity[0]
    assert np.abs(similarity.numpy() - data["eval_sim_map"]).max() < 3e-6


@pytest.mark.nightly  # copies VGG-16 several times
def test_exported_again_they_are_what_they_were(published, tiny, tmp_path, monkeypatch, capsys):
    """The same entries under the same names, and the counters of batch norm, which a strict loading wants besides; the
    files evaluate as the model."""
    parts, _, _, model = published
    given = tmp_path / "run" / "best.pt"
    given.parent.mkdir()
    checkpoints.save(given, {"config": {"model": {}}})
    monkeypatch.setattr(checkpoints, "restore", lambda state, device, weights: (model, config.Config()))
    assert export_door.main([str(given.parent), "--to", "sspl", "--out", str(tmp_path / "files")]) == 0
    again = sspl.read_files(tmp_path / "files")
    assert set(again) == set(parts) and "pcm_best.pth" in capsys.readouterr().out
    for part, sd in parts.items():
        counters = {name for name in again[part] if name.endswith("num_batches_tracked")}
        assert set(again[part]) - counters == set(sd)
        assert all(torch.equal(again[part][name], value) for name, value in sd.items())
        norms = {name.replace("running_mean", "num_batches_tracked") for name in sd if name.endswith("running_mean")}
        assert counters == norms and all(again[part][name].shape == () for name in counters)

    file = tmp_path / "result.json"
    arguments = ["--sspl-checkpoint", str(tmp_path / "files"), "--data", str(tiny[1]), "--device", "cpu"]
    assert evaluate_door.main([*arguments, "--split", "val", "--json", str(file)]) == 0
    found = json.loads(file.read_text())
    settings = config.Config(model=config.ModelConfig(pcm=True))
    expected = evaluate(model, Manifest.load(tiny[1]), "val", settings, CPU, torch.float32)
    assert [pair["ciou"] for pair in found["each"]] == expected.ciou.tolist() and len(expected.ciou) > 1
    assert found["checkpoint"] == str(tmp_path / "files")


def test_every_name_of_ours_is_one_of_theirs_and_back():
    settings = config.load("sspl_pcm", ["--model.pcm_cycles", "2"])
    with torch.device("meta"):
        model = models.build(settings.model)
    modules = {"frame": model.trunk, "sound": model.audio, "pcm": model.pcm, "ssl_head": model.head}
    for part, module in modules.items():
        names = list(module.state_dict())
        theirs = [sspl.to_sspl_name(part, name) for name in names]
        assert None not in theirs and len(set(theirs)) == len(names)
        assert [checkpoints.from_sspl_name(part, name) for name in theirs] == names
        assert [checkpoints.from_sspl_name(part, f"module.{name}") for name in theirs] == names
    assert checkpoints.from_sspl_name("pcm", "ErrorProcess.2.weight") is None
    assert checkpoints.from_sspl_name("frame", "classifier.0.weight") is None


def test_what_the_files_fix_of_the_model():
    fc = {"module.fc.2.weight": torch.zeros(96, 512)}
    pcm = {f"module.BNPred_step.{i}.{leaf}": torch.zeros(1) for i in range(6) for leaf in ("weight", "bias")}
    assert sspl.shape_of({"sound": fc}) == {"pcm": False, "out_dim": 96}
    assert sspl.shape_of({"sound": fc, "pcm": pcm}) == {"pcm": True, "out_dim": 96, "pcm_cycles": 3}
    assert sspl.shape_of({"sound": fc, "pcm": {"b0.0": torch.zeros(1)}})["pcm_cycles"] == 0
    with pytest.raises(InputError, match="sound_best.pth has no fc.2.weight"):
        sspl.shape_of({"sound": {"features.0.weight": torch.zeros(1)}})
    with pytest.raises(InputError, match="sound_best.pth has no fc.2.weight"):
        sspl.shape_of({"sound": {"fc.2.weight": torch.zeros(())}})


def test_an_entry_that_is_there_twice_is_refused():
    head = models.SimSiamHead(8, 16, 4)
    sd = {sspl.to_sspl_name("ssl_head", name): value for name, value in head.state_dict().items()}
    sspl.load_sspl_part(head, "ssl_head", sd)
    name = "predictor.layer2.bias"
    with pytest.raises(InputError, match=f"{name} twice, with DDP's prefix and without"):
        sspl.load_sspl_part(head, "ssl_head", {**sd, f"module.{name}": sd[name] + 1})


def test_errors_name_the_file(tmp_path):
    folder, good = tmp_path / "files", {"module.fc.2.bias": torch.arange(3.0)}

    def refused(match):
        with pytest.raises(InputError, match=match):
            sspl.read_files(folder)

    refused("there is no folder .*files; it should hold frame_best.pth, sound_best.pth, pcm_best.pth, ssl_head_")
    folder.mkdir()
    for name in sspl.FILES.values():
        torch.save(good, folder / name)
    assert set(sspl.read_files(folder)) == {"frame", "sound", "pcm", "ssl_head"}
    (folder / "pcm_best.pth").unlink()
    assert set(sspl.read_files(folder)) == {"frame", "sound", "ssl_head"}
    for part in ("frame", "sound", "ssl_head"):
        (folder / f"{part}_best.pth").unlink()
        refused(f"files has no {part}_best.pth; a published checkpoint is")
        torch.save(good, folder / f"{part}_best.pth")
    file = folder / "ssl_head_best.pth"
    whole = file.read_bytes()
    for content, match in (
        ([1, 2], "ssl_head_best.pth holds no state dict but a value of type list"),
        ({}, "ssl_head_best.pth holds no state dict but an empty dict"),
        ({"epoch": 3}, "ssl_head_best.pth: 'epoch' is a value of type int, where a state dict has tensors"),
    ):
        torch.save(content, file)
        refused(match)
    file.write_bytes(whole[:500])
    refused("ssl_head_best.pth is not a readable state dict .*; copy it again")

    class Evil:
        def __reduce__(self):
            return (print, ("ran",))

    torch.save(Evil(), file)
    refused("ssl_head_best.pth is not a readable state dict")
    for key in ("state_dict", "model"):  # as some save it
        torch.save({key: good, "epoch": 3}, file)
        assert torch.equal(sspl.read_files(folder)["ssl_head"]["module.fc.2.bias"], torch.arange(3.0))


def test_what_cannot_be_exported(tmp_path):
    there = tmp_path / "there"
    written = sspl.write_files(there, {"frame": {"feat_extractor.0.bias": torch.zeros(1)}})
    assert [path.name for path in written] == ["frame_best.pth"]
    with pytest.raises(InputError, match="holds frame_best.pth already; give another folder"):
        sspl.write_files(there, {"sound": {}})
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file/x cannot be written"):
        sspl.write_files(tmp_path / "file" / "x", {"sound": {}})
    with pytest.raises(InputError, match="there is no .*nowhere"):
        export_door.main([str(tmp_path / "nowhere"), "--to", "sspl", "--out", str(tmp_path / "x")])
    with pytest.raises(InputError, match="has no best.pt"):
        export_door.main([str(tmp_path), "--to", "sspl", "--out", str(tmp_path / "x")])
    for name, module in (("demo", "SmallTrunk"), ("lss", "LSSHead")):
        with torch.device("meta"):
            model = models.build(config.load(name).model)
        with pytest.raises(InputError, match=f"{module} has no place in the published SSPL code"):
            sspl.sspl_parts(model)


def test_one_checkpoint_at_a_time(tmp_path):
    with pytest.raises(InputError, match="and not both"):
        evaluate_door.main(["--device", "cpu"])
    with pytest.raises(InputError, match="and not both"):
        evaluate_door.main(["a.pt", "--sspl-checkpoint", "b", "--device", "cpu"])
    with pytest.raises(InputError, match="with --data DIR"):
        evaluate_door.main(["--sspl-checkpoint", str(tmp_path), "--device", "cpu"])


def test_published_parts_are_loaded_all_or_none(monkeypatch):
    model = SimpleNamespace(trunk=nn.Linear(2, 2), audio=nn.Linear(2, 2), pcm=None, head=nn.Linear(2, 2))
    modules = {name: module for name, module in vars(model).items() if module is not None}
    before = {name: module.weight.clone() for name, module in modules.items()}

    def load(module, part, state):
        if part == "ssl_head":
            raise InputError("does not fit")
        module.load_state_dict(state)

    monkeypatch.setattr(sspl, "load_sspl_part", load)
    with pytest.raises(InputError, match="does not fit"):
        sspl.load_sspl(model, {part: nn.Linear(2, 2).state_dict() for part in ("frame", "sound", "ssl_head")})
    assert all(torch.equal(module.weight, before[name]) for name, module in modules.items())
