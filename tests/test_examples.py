"""The examples that are modules: the commands that stand in them run, and give what they should."""

import json
import re

import pytest

from essl_fast import checkpoints
from essl_fast.data.shards import Manifest
from tests import ROOT
from tests.tools.doors import door

EXAMPLES = ROOT / "examples"
SMALL = "--data.batch_size 5 --device cpu --epochs 1 --eval_every 1 --overlays 0 --baselines false --model.out_dim 16"


def words_of(name: str) -> tuple[str, list[str]]:
    """The command in an example's docstring: the module, and its arguments."""
    text = (EXAMPLES / name).read_text()
    shown = re.search(r"    python -m (essl_fast\.\w+) (.*?)\n\n", text, re.S)
    return shown[1], shown[2].replace("\\\n", " ").split()


def called(name: str, **values) -> int:
    """Run that command in this process, with values in the place of its words in capitals."""
    module, words = words_of(name)
    extra = values.pop("more", [])
    return door(module).main([str(values.get(word, word)) for word in words] + extra)


@pytest.fixture(autouse=True)
def in_examples(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))


@pytest.mark.slow
def test_own_model(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert called("own_model.py", FOLDER=tiny[1], more=SMALL.split()) == 0
    settings = checkpoints.load(tmp_path / "runs" / "own" / "best.pt")["config"]
    assert settings["imports"] == ["own_model"] and settings["model"]["audio"] == "spectrum"
    (entry,) = (
        json.loads(line)
        for line in (tmp_path / "runs/own/log.jsonl").read_text().splitlines()
        if '"epoch"' in line and '"losses"' in line
    )
    assert set(entry["losses"]) == {"loss", "spread"}


def test_own_dataset(tiny, tmp_path):
    world = tiny[0]
    videos = sorted(path.stem for path in world.videos.iterdir())[:3]
    images = [
        {"id": n, "video": name, "frame": 21, "time": 2.0, "width": 320, "height": 180, "split": split}
        for n, (name, split) in enumerate(zip(videos, ("train", "train", "test"), strict=True))
    ]
    boxes = [{"image_id": n, "bbox": [32, 18, 160, 90], "category_id": 7} for n in range(3)]
    told = {"images": images, "annotations": boxes, "categories": [{"id": 7, "name": "siren"}]}
    (tmp_path / "c.json").write_text(json.dumps(told))
    values = {"VIDEOS": world.videos, "FILE.json": tmp_path / "c.json", "FOLDER": tmp_path / "out"}
    assert called("own_dataset.py", **values, more=["--workers", "1"]) == 0
    manifest = Manifest.load(tmp_path / "out")
    assert manifest.classes == ("siren",) and manifest.name == "coco"
    assert sorted(manifest.key(row) for row in range(len(manifest))) == [f"{name}_000021" for name in videos]
    assert manifest.boxes[0][0].tolist() == [22, 22, 134, 134]  # 32, 18, 192, 108 of 320 x 180 on the 224 grid
