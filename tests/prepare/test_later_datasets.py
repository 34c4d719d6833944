"""IS3, AVSBench and the extended test sets, in the layouts as published: prepared, and scored by what they add."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from essl_fast import config, models
from essl_fast.common.commands import command
from essl_fast.common.errors import InputError
from essl_fast.data.datasets.further import read_mask
from essl_fast.data.shards import Manifest
from essl_fast.evaluate import evaluate, masks
from essl_fast.prepare.__main__ import PROG, main
from tests.tools import datasets as tools
from tests.tools.prepare import left_out

CPU = torch.device("cpu")


def prepared(*arguments) -> int:
    return command(lambda: main([*map(str, arguments), "--workers", "1"]), PROG)


def scored(out) -> dict:
    """Result and further metrics of an untrained model on the test split."""
    manifest = Manifest.load(out)
    settings = config.load("demo", ["--data.root", str(out), "--data.threads", "1"])
    torch.manual_seed(0)
    model = models.build(settings.model).eval()
    found = evaluate(model, manifest, "test", settings, CPU, torch.float32, foreign=True, guidance=True)
    extra = found.extra(manifest, 1, threshold=0.1)
    json.dumps(extra, allow_nan=False)
    return {**found.result(manifest), **extra, "each": found.each(manifest)}


def make_mask(path, box=None, side=224):
    pixels = np.zeros((side, side), np.uint8)
    if box:
        left, top, right, bottom = box
        pixels[top:bottom, left:right] = 255
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


# ---------------------------------------------------------------- IS3

SOURCES = {"cat_bus_7_cat": [10, 20, 90, 110], "cat_bus_7_bus": [100, 30, 224, 200], "owl_sea_8_owl": [0, 0, 60, 60]}


def make_is3(root):
    tools.make_pairs(root / "images", root / "audio_wav", list(SOURCES))
    entries = [
        {"image": f"/somewhere/{name}.jpg", "audio": f"elsewhere/{name}.wav", "gt_box": box}
        for name, box in SOURCES.items()
    ]
    (root / "IS3_annotation.json").write_text(json.dumps(entries))
    for name, box in SOURCES.items():
        make_mask(root / "gt_segmentation" / f"{name}.png", box)
    return root


def test_is3(tmp_path, capsys):
    root = make_is3(tmp_path / "IS3")
    assert prepared("--dataset", "is3", "--data", root, "--out", tmp_path / "out") == 0
    assert "coverage: 3 of the 3 pairs that the lists name for test (100.0%)" in capsys.readouterr().out
    manifest = Manifest.load(tmp_path / "out")
    rows = {manifest.key(row).rpartition("_")[0]: row for row in manifest.rows("test")}
    assert rows.keys() == SOURCES.keys() and manifest.negative is None
    scene, boxes = np.array(manifest.scene), np.array(manifest.boxes)
    assert scene[rows["cat_bus_7_cat"]] == scene[rows["cat_bus_7_bus"]] != scene[rows["owl_sea_8_owl"]]
    for name, box in SOURCES.items():
        assert boxes[rows[name], 0].tolist() == box
        left, top, right, bottom = box
        mask = masks.unpacked(np.array(manifest.mask[rows[name]])[None])[0]
        assert mask[top:bottom, left:right].all() and mask.sum() == (right - left) * (bottom - top)
    assert manifest.classes == ("bus", "cat", "owl")
    found = scored(tmp_path / "out")
    assert found["interactive"]["frames"] == 1 and found["masks"]["pairs"] == 3 and found["pairs"] == 3


def test_is3_without_a_picture_says_what_is_missing(tmp_path, capsys):
    root = make_is3(tmp_path / "IS3")
    (root / "images" / "owl_sea_8_owl.jpg").unlink()
    assert prepared("--dataset", "is3", "--data", root, "--out", tmp_path / "out") == 0
    assert "coverage: 2 of the 3 pairs that the lists name for test (66.7%)" in capsys.readouterr().out
    assert "no images/owl_sea_8_owl.jpg" in left_out(tmp_path / "out")[0]["detail"]


# ---------------------------------------------------------------- AVSBench


def make_s4(root):
    """Videos a (train), b (val) and c (test); c's third frame shows nothing that sounds."""
    lines = ["name,category,split"]
    for number, (name, split) in enumerate((("a", "train"), ("b", "val"), ("c", "test"))):
        lines.append(f"{name},dog,{split}")
        base, inner = root / "s4_data", f"{split}/dog"
        tools.make_pairs(root / "jpg", base / "audio_wav" / inner, [name])
        for frame in range(1, 6):
            shown = base / "visual_frames" / inner / name / f"{name}_{frame}.png"
            shown.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(tools.picture(10 * number + frame)).save(shown)
            if split != "train" or frame == 1:
                empty = (name, frame) == ("c", 3)
                make_mask(base / "gt_masks" / inner / name / f"{name}_{frame}.png", None if empty else (20, 30, 99, 88))
    (root / "s4_meta_data.csv").write_text("\n".join(lines))
    return root


def test_s4(tmp_path):
    assert prepared("--dataset", "avsbench-s4", "--data", make_s4(tmp_path / "s4"), "--out", tmp_path / "out") == 0
    manifest = Manifest.load(tmp_path / "out")
    assert [manifest.pairs(split) for split in ("train", "val", "test")] == [5, 5, 5]
    assert manifest.labelled[manifest.rows("train")].sum() == 1  # only the first frame has a mask
    assert manifest.boxes[manifest.rows("test")[0], 0].tolist() == [20, 30, 99, 88]
    negative = [manifest.key(row) for row in np.flatnonzero(manifest.negative)]
    assert negative == ["c_3_000001"]
    found = scored(tmp_path / "out")
    assert (found["pairs"], found["negatives"]["max_f1"] >= 0, found["masks"]["pairs"]) == (4, True, 5)
    assert [entry["key"] for entry in found["each"] if entry["ciou"] is None] == negative


def test_ms3(tmp_path):
    root, base = tmp_path, tmp_path / "ms3_data"
    for name, split in (("d", "train"), ("e", "val"), ("f", "test")):
        tools.make_pairs(root / "jpg", base / "audio_wav" / split, [name])
        for frame in range(1, 6):
            shown = base / "visual_frames" / name / f"{name}.mp4_{frame}.png"
            shown.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(tools.picture(frame)).save(shown)
            make_mask(base / "gt_masks" / split / name / f"{name}_{frame}.png", (1, 2, 30, 40))
    (root / "ms3_meta_data.csv").write_text("video_id,split\nd,train\ne,val\nf,test\n")
    assert prepared("--dataset", "avsbench-ms3", "--data", root, "--out", tmp_path / "out") == 0
    manifest = Manifest.load(tmp_path / "out")
    assert len(manifest) == 15 and manifest.labelled.all() and manifest.negative is None


# ---------------------------------------------------------------- extended sets

BOXES = {"t1": [[0.1, 0.1, 0.5, 0.5]], "t2": [[0.2, 0.2, 0.9, 0.9]]}


def make_extended(root):
    entries = [{"file": name, "class": "dog", "bbox": boxes} for name, boxes in BOXES.items()]
    tools.make_vggss(root, [], list(BOXES), entries)
    tools.make_pairs(root / "extend_frames", root / "extend_audio", ["n1", "n2"])
    lines = ["video,audio,label", "n1,n1,non-sounding", "t1,n2,non-sounding", "t2,t2,sounding"]
    (root / "vggss_test_plus_silent.csv").write_text("\n".join(lines))
    lists = ["--test-list", root / "vggss_test.csv", "--negatives", root / "vggss_test_plus_silent.csv"]
    return ["--dataset", "vggss-extended", "--data", root, *lists]


def test_extended(tmp_path, capsys):
    assert prepared(*make_extended(tmp_path / "v"), "--out", tmp_path / "out") == 0
    assert "coverage: 4 of the 4 pairs" in capsys.readouterr().out
    manifest = Manifest.load(tmp_path / "out")
    negative = {manifest.key(row) for row in np.flatnonzero(manifest.negative)}
    assert negative == {"n1+n1_000001", "t1+n2_000001"} and len(manifest) == 4
    found = scored(tmp_path / "out")
    assert found["pairs"] == 2 and found["per_class"].keys() == {"dog"}
    assert 0 <= found["negatives"]["average_precision"] <= 1
    assert found["universal"]["negatives"]["own negatives"]["pairs"] == 2


# ---------------------------------------------------------------- what is wrong is said

SILENT = "vggss_test_plus_silent.csv"


def change(file, old, new):
    """Put one text in place of another, once."""

    def harm(root):
        text = (root / file).read_text()
        assert old in text
        (root / file).write_text(text.replace(old, new, 1))

    return harm


WRONG = [  # what is done to a good folder, the arguments' maker, what the line says
    (lambda root: (root / "IS3_annotation.json").unlink(), "is3", "no annotations: looked for"),
    (lambda root: (root / "IS3_annotation.json").write_text("{}"), "is3", "holds no list of entries such as"),
    (lambda root: (root / "IS3_annotation.json").write_text('[{"image": "a.jpg"}]'), "is3", "has not image, audio and"),
    (lambda root: (root / "images").rename(root / "pictures"), "is3", "has no folder images/"),
    (lambda root: (root / "gt_segmentation" / "owl_sea_8_owl.png").write_text("x"), "is3", "cannot be read as a mask"),
    (lambda root: (root / "s4_meta_data.csv").unlink(), "s4", "s4_meta_data.csv: name the table"),
    (lambda root: (root / "s4_meta_data.csv").write_text("name,split\na,train\n"), "s4", "no column category"),
    (lambda root: (root / "s4_data" / "gt_masks").rename(root / "masks"), "s4", "gt_masks is not there"),
    (lambda root: (root / "vggss_test_plus_silent.csv").unlink(), "extended", "there is no list"),
    (lambda root: (root / "vggss_test_plus_silent.csv").write_text("a,b\n1,2\n"), "extended", "no column video"),
    (
        lambda root: (root / "vggss_test_plus_silent.csv").write_text("video,audio,label\na,b,sounding\n"),
        "extended",
        "has no line with the label non-sounding",
    ),
    (change("IS3_annotation.json", "]", ""), "is3", "is no JSON file"),
    (
        change("IS3_annotation.json", ", 110]", "]"),
        "is3",
        "entry 1: gt_box '[10, 20, 90]' is no box of four",
    ),
    (change("IS3_annotation.json", "cat_bus_7_bus", "cat_bus_7_cat"), "is3", "entry 2: 'cat_bus_7_cat' is there twice"),
    (
        change("IS3_annotation.json", "owl_sea_8_owl.wav", "owl"),
        "is3",
        "audio 'elsewhere/owl' is no file's name",
    ),
    (
        lambda root: root.rename(root.with_name("away")),
        "is3",
        "must name the folder with images/",
    ),
    (
        lambda root: root.rename(root.with_name("away")),
        "s4",
        "must name the folder with s4_data/",
    ),
    (
        change("s4_meta_data.csv", "a,dog", "a/b,dog"),
        "s4",
        "'a/b' is no folder's name; write it as",
    ),
    (change("s4_meta_data.csv", "b,dog,val", "b,dog,dev"), "s4", "'dev' is no split; write one of train, val, test"),
    (change("s4_meta_data.csv", "b,dog", "a,dog"), "s4", "'a' is there twice; keep one of the lines"),
    (
        lambda root: (root / "s4_meta_data.csv").write_text("name,category,split\n"),
        "s4",
        "names no video",
    ),
    (change(SILENT, "n1,n1", "../n1,n1"), "extended", "'../n1' is no file's name; write a name without a folder"),
    (change(SILENT, "n1,n1", f"{'n' * 200},{'m' * 200}"), "extended", "is longer than 240 bytes; shorten the names"),
    (change(SILENT, "t1,n2", "n1,n1"), "extended", "'n1+n1' is there twice; keep one of the lines"),
]


@pytest.mark.parametrize("harm, kind, message", WRONG)
def test_one_line_names_what_is_missing(tmp_path, capsys, harm, kind, message):
    root = tmp_path / "data"
    makers = {
        "is3": lambda: ["--dataset", "is3", "--data", make_is3(root)],
        "s4": lambda: ["--dataset", "avsbench-s4", "--data", make_s4(root)],
        "extended": lambda: make_extended(root),
    }
    arguments = makers[kind]()
    harm(root)
    assert prepared(*arguments, "--out", tmp_path / "out") == 2
    said = capsys.readouterr().err.strip()
    assert message in said and len(said.splitlines()) == 1


def harmed(kind, root, harm):
    """The arguments that prepare a data set, of which something is not as published."""
    arguments = ["--dataset", "is3", "--data", make_is3(root)] if kind == "is3" else make_extended(root)
    if kind == "s4":
        arguments = ["--dataset", "avsbench-s4", "--data", make_s4(root)]
    harm(root)
    return arguments


@pytest.mark.parametrize(
    ("kind", "harm", "left", "told"),
    [
        ("s4", lambda root: (root / "s4_data/gt_masks/test/dog/c/c_2.png").unlink(), 14, "no mask"),
        ("s4", lambda root: (root / "s4_data/visual_frames/test/dog/c/c_2.png").unlink(), 14, "no "),
        ("is3", change("IS3_annotation.json", "[0, 0, 60, 60]", "[9, 9, 9, 20]"), 3, ""),  # its mask has one
        (
            "extended",
            lambda root: (root / "extend_audio/n2.wav").unlink(),
            3,
            "t1+n2: no sound n2 in frames/",
        ),
    ],
)
def test_what_a_pair_lacks_is_told(tmp_path, kind, harm, left, told):
    assert prepared(*harmed(kind, tmp_path / "data", harm), "--out", tmp_path / "out") == 0
    assert len(Manifest.load(tmp_path / "out")) == left
    said = left_out(tmp_path / "out") if told else []
    assert [told in one["detail"] for one in said] == [True] * bool(told)


def test_without_masks_a_box_of_nothing_is_left_out(tmp_path):
    root = make_is3(tmp_path / "IS3")
    shutil.rmtree(root / "gt_segmentation")
    change("IS3_annotation.json", "[0, 0, 60, 60]", "[9, 9, 9, 20]")(root)
    assert prepared("--dataset", "is3", "--data", root, "--out", tmp_path / "out") == 0
    manifest = Manifest.load(tmp_path / "out")
    assert len(manifest) == 2 and manifest.mask is None
    (said,) = left_out(tmp_path / "out")
    assert said["detail"].endswith("box [9, 9, 9, 20] covers no pixel")


def test_a_mask_of_a_picture_size_is_refused(tmp_path):
    Image.new("1", (8193, 8192)).save(tmp_path / "mask.png")
    with pytest.raises(InputError, match="mask.png has 8193x8192 pixels: is it a mask"):
        read_mask(tmp_path / "mask.png")
    with pytest.raises(InputError, match="none.png is not there: it should be the mask"):
        read_mask(tmp_path / "none.png")


def test_a_negative_that_is_a_test_pair_too(tmp_path, capsys):
    arguments = make_extended(tmp_path / "v")
    with open(tmp_path / "v" / "vggss_test.csv", "a") as file:
        file.write("\nn1+n1\n")
    assert prepared(*arguments, "--out", tmp_path / "out") == 2
    assert "'n1+n1' is a negative and in another list; keep it in one" in capsys.readouterr().err


def test_flickr_extended(tmp_path):
    root = tools.make_flickr(tmp_path / "f", ["1"], ["2"], {"2": [[20, 20, 120, 120], [30, 30, 130, 130]]})
    tools.make_pairs(root / "extend_frames", root / "extend_audio", ["n1"])
    (root / "silent.csv").write_text("image,audio,label\nn1,n1,non-sounding\n")
    lists = ["--test-list", root / "flickr_test.csv", "--negatives", root / "silent.csv"]
    assert prepared("--dataset", "flickr-extended", "--data", root, *lists, "--out", tmp_path / "out") == 0
    manifest = Manifest.load(tmp_path / "out")
    assert [manifest.key(row) for row in np.flatnonzero(manifest.negative)] == ["n1+n1_000001"] and len(manifest) == 2
