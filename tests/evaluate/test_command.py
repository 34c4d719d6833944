"""What the command does, as a function: the same result, with parts that a user's module registers."""

import json
import shutil

import pytest

import essl_fast.evaluate
from essl_fast import checkpoints, config, models
from essl_fast.common.errors import InputError
from essl_fast.data.shards import Manifest, read_index
from essl_fast.evaluate import __main__ as evaluate_door
from essl_fast.evaluate import evaluate_checkpoint
from essl_fast.models.registry import TRUNKS
from essl_fast.prepare import prepare
from tests.tools.modules import forget, own_module, registered

MODULE = "parts_of_an_evaluation"
PARTS = """
from essl_fast import register_trunk
from essl_fast.models import SmallTrunk


@register_trunk("thin")
def thin(config):
    return SmallTrunk(config.out_dim, width=8)
"""


@pytest.fixture
def run(tiny, tmp_path, monkeypatch):
    """A run directory whose checkpoint needs a module of the current folder, which is not imported yet."""
    known = registered()
    with own_module(tmp_path, monkeypatch, MODULE, PARTS):
        options = ["--data.root", str(tiny[1]), "--data.threads", "1", "--import", MODULE, "--model.trunk", "thin"]
        settings = models.check(config.load("demo", options))
        state = {"config": config.to_dict(settings), "data_root": str(tiny[1]), "data": Manifest.load(tiny[1]).header}
        folder = tmp_path / "run"
        folder.mkdir()
        checkpoints.save(folder / "best.pt", state | {"model": models.build(settings.model).state_dict()})
        forget(MODULE, known)
        yield folder


def test_the_function_gives_what_the_command_writes(run, capsys):
    result = evaluate_checkpoint(run, device="cpu")
    assert capsys.readouterr().out == ""
    assert result["split"] == "test" and result["pairs"] == len(result["each"]) > 1 and "extra" not in result
    forget(MODULE, {TRUNKS: set(TRUNKS.names()) - {"thin"}})
    assert evaluate_door.main([str(run), "--device", "cpu", "--json", str(run / "result.json")]) == 0
    assert f"the checkpoint uses {MODULE}" in capsys.readouterr().out
    assert json.loads((run / "result.json").read_text()) == result == json.loads(json.dumps(result))
    assert essl_fast.evaluate.evaluate_checkpoint is evaluate_checkpoint


def test_a_module_that_is_missing_or_named_by_hand(run, tmp_path, capsys):
    (tmp_path / f"{MODULE}.py").rename(tmp_path / "moved.py")
    with pytest.raises(InputError, match=f"the module {MODULE} cannot be imported"):
        evaluate_checkpoint(run, device="cpu")
    with pytest.raises(InputError, match="the module nowhere cannot be imported"):
        evaluate_door.main([str(run), "--import", "nowhere"])


def test_a_run_without_a_checkpoint_or_data(run, tmp_path):
    with pytest.raises(InputError, match="has no best.pt; wait for"):
        evaluate_checkpoint(tmp_path, device="cpu")
    with pytest.raises(InputError, match="there is no checkpoint .*gone"):
        evaluate_checkpoint(run / "gone", device="cpu")
    with pytest.raises(InputError, match="there is no folder .*elsewhere, which .*best.pt was trained on"):
        evaluate_checkpoint(run, data=tmp_path / "elsewhere", device="cpu")


def test_data_that_is_not_what_the_run_was_trained_on(run, tiny, tmp_path):
    state = checkpoints.load(run / "best.pt")
    checkpoints.save(run / "other.pt", state | {"data": {**state["data"], "seed": 99}})
    with pytest.raises(InputError, match="is no longer the data set that .*other.pt was trained on; say which one"):
        evaluate_checkpoint(run / "other.pt", device="cpu")
    assert evaluate_checkpoint(run / "other.pt", data=tiny[1], device="cpu")["pairs"] > 1
    del state["data_root"]
    checkpoints.save(run / "nowhere.pt", state)
    with pytest.raises(InputError, match="nowhere.pt does not say where its data is; .* with --data DIR"):
        evaluate_checkpoint(run / "nowhere.pt", device="cpu")


def test_a_split_without_pairs(run, tiny, tmp_path):
    world, _ = tiny
    prepare(world.videos, world.annotations, tmp_path / "whole", validation=0, workers=1, progress=False)
    with pytest.raises(InputError, match="the val split is empty; prepare the data with one, or choose another"):
        evaluate_checkpoint(run, data=tmp_path / "whole", split="val", device="cpu")


def test_pairs_that_do_not_decode_are_told_and_left_out(run, tiny, tmp_path, capsys):
    folder = tmp_path / "damaged"
    shutil.copytree(tiny[1], folder)
    manifest = Manifest.load(folder)
    row = int(manifest.rows("test")[0])
    (entry,) = manifest.entries(["test"])
    path, index = folder / entry["file"], read_index(folder / entry["index"])
    with open(path, "r+b") as file:  # the frame's data, behind its header
        file.seek(int(index.visual_offset[0]) + 300)
        file.write(bytes(int(index.visual_size[0]) - 300))
    state = checkpoints.load(run / "best.pt")
    state["config"]["data"] |= {"on_error": "skip", "max_errors": 0.5}
    checkpoints.save(run / "best.pt", state)
    assert evaluate_door.main([str(run), "--data", str(folder), "--device", "cpu", "--json", str(run / "r.json")]) == 0
    said = capsys.readouterr().out
    assert f"skipped {manifest.key(row)}, which does not decode: " in said
    assert json.loads((run / "r.json").read_text())["pairs"] == manifest.pairs("test") - 1
