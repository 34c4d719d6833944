"""Flickr-SoundNet, VGG-SS and the published HDF5 files: prepared, loaded and evaluated, end to end."""

import io
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from essl_fast import config
from essl_fast.common import commands
from essl_fast.common.commands import command
from essl_fast.common.errors import InputError
from essl_fast.data.datasets import listed, read_dataset
from essl_fast.data.media import stills
from essl_fast.data.shards import SPLITS, Manifest, iterate
from essl_fast.evaluate import __main__ as evaluate_door
from essl_fast.evaluate import consensus_of, warn_of_consensus
from essl_fast.kernels import reference
from essl_fast.prepare import PreparedDifferently, prepare_dataset
from essl_fast.prepare.__main__ import PROG, main
from essl_fast.train import __main__ as train_door
from tests.golden.store import golden
from tests.tools import datasets as tools
from tests.tools.media import make_video, truncate
from tests.tools.prepare import hashes, left_out, workers_that

SMALL = ["--workers", "1", "--pairs-per-shard", "3"]
TRAIN = ["1001", "1002", "1003", "1004", "1005"]
TEST = ["2001", "2002", "2003", "2004"]
BOXES = {
    "2001": [[10, 20, 100, 120], [30, 40, 140, 160]],
    "2002": [[0, 0, 256, 256], [0, 0, 256, 256], [5, 5, 50, 50]],
    "2003": [[200, 200, 300, 290], [180, 190, 256, 256], [90, 90, 80, 80]],
    "1002": [[64, 64, 128, 128]],
    "1004": [[16, 16, 240, 240]],
}  # 2004 is not annotated


def prepared(*arguments) -> int:
    return command(lambda: main([*map(str, arguments), *SMALL]), PROG)


def pairs_of(manifest: Manifest, split: str) -> list[dict]:
    return [pair for tar, _ in manifest.shards(split) for pair in iterate(tar)]


@pytest.fixture(scope="module")
def flickr(tmp_path_factory):
    root = tools.make_flickr(tmp_path_factory.mktemp("flickr") / "SoundNet_Flickr", TRAIN, TEST, BOXES)
    lists = ["--train-list", root / "flickr_10k.txt", "--test-list", root / "flickr_test.csv"]
    assert prepared("--dataset", "flickr", "--data", root, *lists, "--out", root.parent / "out", "--seed", 3) == 0
    return root, root.parent / "out", lists


def test_flickr_pairs(flickr):
    root, out, _ = flickr
    manifest = Manifest.load(out)
    manifest.verify()
    assert manifest.consensus == 2 and manifest.header["dataset"] == "flickr" and manifest.sound == "<i2"
    # val is one of the two training pairs that somebody annotated
    assert (manifest.pairs("train"), manifest.pairs("val"), manifest.pairs("test")) == (4, 1, 3)
    told = {(entry["video"], entry["reason"]) for entry in left_out(out)}
    assert told == {("2004", listed.NO_LABEL), ("2003", "box inverted")}
    for split, folder, names in (("train", root, TRAIN), ("test", root / "5k_labeled" / "Data", TEST)):
        for pair in pairs_of(manifest, split):
            name = pair["json"]["video"]
            assert pair["key"] == f"{name}_000001" == manifest.key(pair["row"])
            assert pair["jpg"] == (folder / "frames" / f"{name}.jpg").read_bytes()
            wave = tools.sound(names.index(name))[8_000:56_000]  # the middle 3 of 4 s
            assert np.abs(np.frombuffer(pair["s16"], "<i2") / 32768 - wave).max() <= 1.01 * 2**-16
            assert manifest.labelled[pair["row"]] == (name in BOXES) == pair["json"]["labelled"]


FULL = """
def full(task, folder):
    if task.video == "1005":
        raise OSError(28, "No space left on device")
    return real(task, folder)
workers.make_part = full"""


def test_resuming_changes_no_byte(flickr, tmp_path, monkeypatch, capsys):
    root, out, lists = flickr
    arguments = ["--dataset", "flickr", "--data", root, *lists, "--seed", 3, "--out", tmp_path / "out"]
    with monkeypatch.context() as patched:
        workers_that(patched, FULL)
        assert prepared(*arguments) == 2 and "No space left on device" in capsys.readouterr().err
    assert list((tmp_path / "out").glob("train-*.tar")) and not (tmp_path / "out" / "manifest.json").exists()
    assert prepared(*arguments) == 0 and hashes(tmp_path / "out") == hashes(out)
    assert "continuing: 3 pairs are in 1 shards" in capsys.readouterr().err


def test_flickr_box_maps_count_annotators(flickr):
    manifest = Manifest.load(flickr[1])
    for row in manifest.rows("test"):
        expected = np.zeros((224, 224))
        for left, top, right, bottom in BOXES[manifest.key(row).split("_")[0]]:
            x1, y1, x2, y2 = (int(224 * value / 256) for value in (left, top, right, bottom))
            expected[y1:y2, x1:x2] += 1
        boxes = torch.from_numpy(np.array(manifest.boxes[row]))[None]
        weights = reference.box_weights(boxes, 224, manifest.consensus)[0].numpy()
        np.testing.assert_array_equal(weights, np.minimum(expected / 2, 1))


@pytest.fixture(scope="module")
def trained(flickr, tmp_path_factory):
    """The run directory of small networks, trained on the Flickr pairs."""
    out = tmp_path_factory.mktemp("trained") / "run"
    small = "--config demo --epochs 1 --data.batch_size 2 --device cpu --overlays 0".split()
    assert train_door.main([*small, "--data.root", str(flickr[1]), "--out", str(out)]) == 0
    return out


def evaluated(run: Path, data: Path, tmp_path: Path) -> dict:
    arguments = [str(run / "best.pt"), "--data", str(data), "--device", "cpu", "--json", str(tmp_path / "e.json")]
    assert evaluate_door.main(arguments) == 0
    return json.loads((tmp_path / "e.json").read_text())


@pytest.mark.slow
def test_flickr_trains_and_evaluates(flickr, trained, tmp_path, capsys):
    result = evaluated(trained, flickr[1], tmp_path)
    assert "warning: objective" not in capsys.readouterr().out
    assert {entry["key"] for entry in result["each"]} == {"2001_000001", "2002_000001", "2003_000001"}
    summary = json.loads((trained / "summary.json").read_text())
    assert summary["test"]["auc"] == result["auc"] and summary["centre_prior"]["pairs"] == 3

    # the centre prior against NumPy, by the definition of cIoU: consensus 2 came from the data set
    guess, scores = np.zeros((224, 224)), []
    guess[56:168, 56:168] = 1
    for name in TEST[:3]:
        truth = np.zeros((224, 224))
        for left, top, right, bottom in BOXES[name]:
            x1, y1, x2, y2 = (int(224 * value / 256) for value in (left, top, right, bottom))
            truth[y1:y2, x1:x2] += 0.5
        truth = np.minimum(truth, 1)
        scores.append((guess * truth).sum() / (truth.sum() + (guess * (truth == 0)).sum()))
    curve = [np.mean(np.array(scores) >= 0.05 * step) for step in range(21)]
    assert summary["centre_prior"]["auc"] == pytest.approx(np.trapezoid(curve, dx=0.05), abs=1e-6)


def test_another_consensus_is_told(flickr, capsys):
    manifest, settings = Manifest.load(flickr[1]), config.Config()
    assert consensus_of(settings, manifest) == 2
    warn_of_consensus(settings, manifest, commands.console())
    assert not capsys.readouterr().out
    settings.objective.consensus = 1
    assert consensus_of(config.check(settings), manifest) == 1
    warn_of_consensus(settings, manifest, commands.console())
    assert "warning: objective.consensus 1 overrides the 2 of" in capsys.readouterr().out


def test_files_whose_names_are_no_utf_8(tmp_path):
    """Only folders are named by the lists: what is in them may be called anything."""
    for name in ("a", "b", "it's 100%d"):
        tools.make_pairs(*[tmp_path / "data/Data" / name] * 2, [name])
    for name, content in (("a", b"broken"), ("b", (tmp_path / "data/Data/b/b.jpg").read_bytes())):
        (tmp_path / "data/Data" / name / f"{name}.jpg").unlink()
        Path(os.fsdecode(os.fsencode(tmp_path / "data/Data" / name) + b"/\xff.jpg")).write_bytes(content)
    (tmp_path / "list").write_text("a\nb\nit's 100%d\n")
    asked = ["--dataset", "flickr", "--data", tmp_path / "data", "--train-list", tmp_path / "list"]
    assert prepared(*asked, "--out", tmp_path / "out") == 0
    assert len(Manifest.load(tmp_path / "out")) == 2
    (entry,) = left_out(tmp_path / "out")
    assert entry["video"] == "a" and entry["detail"] == "\\udcff.jpg: no kind of picture that is known (1 pair)"


@pytest.mark.parametrize("layout", ["lvs", "original", "soundnet", "videos"])
def test_other_layouts_of_flickr(flickr, tmp_path, layout):
    """The same pairs in other published layouts."""
    root = tmp_path / "data"
    names = TRAIN[:3]
    if layout == "soundnet":
        entries = [f"videos2/4/{name[-1]}/{name}.mp4" for name in names]
        for number, entry in enumerate(entries):
            tools.make_pairs(root / "frames" / entry, root / "mp3" / entry.rpartition("/")[0], [f"x{number}"], "mp3")
            for frame in (f"a{number}", f"z{number}"):
                (root / "frames" / entry / f"{frame}.jpg").write_bytes(b"not the middle one")
    elif layout == "original":
        entries = names
        for name in names:
            tools.make_pairs(root / "Data" / name, root / "Data" / name, [name])
    elif layout == "videos":
        entries = names
        for name in names:
            sound = tools.sound(0)
            make_video(root / "videos" / f"{name}.mkv", sound=sound, sound_codec="pcm_s16le", rate=16_000)
    else:
        entries = names
        tools.make_pairs(root / "frames", root / "audio", names)
    (tmp_path / "list.csv").write_text("".join(f'"{entry}"\r\n' for entry in entries))
    out = tmp_path / "out"
    assert prepared("--dataset", "flickr", "--data", root, "--train-list", tmp_path / "list.csv", "--out", out) == 0
    manifest = Manifest.load(out)
    assert [manifest.key(row) for row in range(3)] == [f"{name}_000001" for name in names]
    assert left_out(out) == [] and not manifest.labelled.any()
    for number, pair in enumerate(pairs_of(manifest, "train")):
        heard = np.frombuffer(pair["s16"], "<i2") / 32768
        which = number if layout == "lvs" else 0
        if layout != "soundnet":  # MP3 is another sound, if only by a little
            assert np.abs(heard - tools.sound(which)[8_000:56_000]).max() <= 1.01 * 2**-16
        if layout != "videos":
            shown = np.asarray(Image.open(io.BytesIO(pair["jpg"]))).astype(int)
            assert np.abs(shown - tools.picture(which)).mean() < 3


VGG = ["-0BIyqJj9ZU_000030", "abcdefghijk_000001", "abcdefghijk_000150", "ZZZZZZZZZZZ_000100"]
CASES = [0, 1, 2, 4]  # golden's box maps, those with something in them


def test_vggss(trained, tmp_path, capsys):
    data = golden("gt_maps")
    counts = data["vggss_count"][CASES]
    entries = [
        {"file": name, "class": f"class {case % 2}", "bbox": boxes[:count].tolist()}
        for case, name, boxes, count in zip(CASES, VGG, data["vggss_boxes"][CASES], counts, strict=True)
    ]
    train_names = [f"train{n}_000000" for n in range(4)]
    root = tools.make_vggss(tmp_path / "VGG-Sound", train_names, VGG, entries)
    (root / "val.txt").write_text(f"{VGG[3]}.mp4\n")
    (root / "test.txt").write_text("".join(f"{name}\n" for name in VGG[:3]))
    out = tmp_path / "out"
    arguments = [
        "--dataset",
        "vggss",
        "--data",
        root,
        "--train-list",
        root / "vggss_10k.txt",
        "--val-list",
        root / "val.txt",
        "--test-list",
        root / "test.txt",
        "--out",
        out,
    ]
    assert prepared(*arguments) == 0
    before = hashes(out)
    assert prepared(*arguments) == 0 and hashes(out) == before and "nothing to do" in capsys.readouterr().err
    manifest = Manifest.load(out)
    assert manifest.consensus == 1 and [manifest.pairs(split) for split in SPLITS] == [4, 1, 3]
    assert manifest.classes == ("class 0", "class 1", listed.UNKNOWN)
    for row in [*manifest.rows("val"), *manifest.rows("test")]:
        case = CASES[VGG.index(manifest.key(row).removesuffix("_000001"))]
        weights = reference.box_weights(torch.from_numpy(np.array(manifest.boxes[row]))[None], 224, 1)[0].numpy()
        np.testing.assert_array_equal(weights, data["vggss_map"][case])
        assert manifest.classes[manifest.class_id[row]] == f"class {case % 2}"
    result = evaluated(trained, out, tmp_path)
    assert [entry["key"] for entry in result["each"]] == [manifest.key(row) for row in manifest.rows("test")]
    assert set(result["per_class"]) == {"class 0", "class 1"} and 0 <= result["auc"] <= 1
    with pytest.raises(PreparedDifferently, match="validation was 0.1, is 0.2"):
        lists = {"train_list": "vggss_10k.txt", "val_list": "val.txt", "test_list": "test.txt"}
        lists = {option: root / name for option, name in lists.items()}
        again = read_dataset({"dataset": "vggss", "data": [root], **lists, "validation": 0.2})
        prepare_dataset(again, out, pairs_per_shard=3, workers=1, progress=False)


def test_training_pairs_need_no_annotations_but_no_broken_ones(tmp_path, capsys):
    tools.make_pairs(tmp_path / "frames", tmp_path / "audio", TRAIN[:2])
    (tmp_path / "list.txt").write_text("\n".join(TRAIN[:2]))
    arguments = ["--dataset", "vggss", "--data", tmp_path, "--train-list", tmp_path / "list.txt"]
    (tmp_path / "vggss.json").write_text("[")
    assert prepared(*arguments, "--out", tmp_path / "out") == 2
    assert "vggss.json is no JSON file" in capsys.readouterr().err
    (tmp_path / "vggss.json").unlink()
    assert prepared(*arguments, "--out", tmp_path / "out") == 0
    assert prepared(*arguments, "--out", tmp_path / "out", "--annotations", tmp_path / "vggss.json") == 2
    assert "no annotations: looked for" in capsys.readouterr().err


def test_what_is_missing_is_left_out(flickr, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(flickr[0], root)
    (root / "frames" / "1001.jpg").unlink()
    (root / "audio" / "1002.wav").unlink()
    truncate(root / "frames" / "1003.jpg", 0.5)
    (root / "audio" / "1004.wav").write_bytes(b"no sound")
    out = tmp_path / "out"
    lists = ["--train-list", root / "flickr_10k.txt", "--test-list", root / "flickr_test.csv"]
    assert prepared("--dataset", "flickr", "--data", root, *lists, "--out", out, "--validation", 0, "--strict") == 1
    told = {entry["video"]: (entry["reason"], entry["detail"]) for entry in left_out(out)}
    assert told["1001"][0] == told["1002"][0] == "video file missing"
    assert told["1001"][1].startswith("1001: no picture in frames/, Data/frames/, 5k_labeled/Data/frames/; no video")
    assert told["1002"][1].startswith("1002: no sound in audio/, Data/audio/, 5k_labeled/Data/audio/; no video in ")
    assert told["1003"][0] == stills.BAD_PICTURE and told["1003"][1].startswith("1003.jpg: ")
    assert told["1004"][0] == "video file unreadable" and told["1004"][1].startswith("1004.wav: ")
    assert Manifest.load(out).pairs("train") == 1


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"--data": "nowhere"}, "nowhere is not a folder"),
        ({"--data": "5k_labeled/Annotations"}, "no folder of annotations: looked for"),
        ({"--train-list": "none.txt"}, "none.txt is not there: give the list"),
        ({"--train-list": "flickr_test.csv"}, "'2001' and 3 more names are in the lists of both train and test"),
        ({"--annotations": "xml"}, "no folder of annotations: looked for .*xml"),
        ({"--frame": "middle"}, "--frame does not go with --dataset flickr"),
        ({"--subset": "10k"}, "--subset does not go with --dataset flickr"),
        ({"--train-list": None, "--test-list": None}, "flickr needs --train-list or --test-list"),
        ({"--data": None}, "--dataset flickr needs --data"),
        ({"--validation": "1"}, "--validation is 1.0: give a share"),
    ],
)
def test_errors_say_what_is_missing(flickr, tmp_path, capsys, change, told):
    root = flickr[0]
    options = {"--data": ".", "--train-list": "flickr_10k.txt", "--test-list": "flickr_test.csv"} | change
    named = ("--data", "--train-list", "--test-list", "--annotations")
    arguments = [
        word
        for option, value in options.items()
        if value is not None
        for word in (option, str(root / value) if option in named else value)
    ]
    assert prepared("--dataset", "flickr", *arguments, "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert re.search(told, error), error
    assert error.count("\n") == 1 and not (tmp_path / "out").exists()


def test_no_folder_of_pictures(flickr, tmp_path, capsys):
    (tmp_path / "frames").mkdir()
    arguments = ["--train-list", flickr[0] / "flickr_10k.txt", "--out", tmp_path / "out"]
    assert prepared("--dataset", "flickr", "--data", tmp_path, *arguments) == 2
    told = "holds no picture of any listed name, and no video: looked in frames/, Data/frames/"
    assert told in capsys.readouterr().err


def test_a_list_of_names(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text('\n1001\n"videos2/3/1002.mp4",17\n1001\n a.b.c \n')
    assert listed.read_names(path) == {"1001": "1001", "1002": "videos2/3/1002.mp4", "a.b.c": "a.b.c"}
    for text, told in (
        ("..\n", "line 1: '..' is no name"),
        ("a\n../x/b.mp4\n", "line 2"),
        ("", "names no pair"),
        ("x/1.mp4\ny/1.mp4\n", "have the same name"),
        ("a\\b\n", "is no name"),
        ('a\n"b\nc\nd\n', "unexpected end"),
        ("x" * 2_000_000, "list.txt"),
        (f"a\n{'b' * 241}\n", "line 2: 'bbbb"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=told.replace(".", r"\.")):
            listed.read_names(path)
