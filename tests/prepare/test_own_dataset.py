"""Data sets that a user's module registers, and options that do not fit a data set."""

import inspect
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from essl_fast.common.commands import command
from essl_fast.common.errors import InputError
from essl_fast.data import media
from essl_fast.data.datasets import (
    STILL,
    Annotations,
    Dataset,
    DatasetOptions,
    Files,
    LeftOut,
    Pairs,
    chaotic_world,
    dataset_names,
    read_chaotic_world,
    read_dataset,
    register_dataset,
)
from essl_fast.data.shards import Manifest, iterate
from essl_fast.prepare import prepare, prepare_dataset
from essl_fast.prepare.__main__ import PROG, main
from essl_fast.prepare.options import parser
from tests import ROOT
from tests.tools import datasets as tools
from tests.tools.media import make_video
from tests.tools.prepare import hashes, left_out

SOUNDS = [
    {"video": video, "test": test, "frame": frame, "time": 1.5 + frame / 10, "boxes": boxes, "class": name}
    for video, test in (("a", False), ("b", False), ("c", False), ("t", True), ("gone", True))
    for frame, boxes, name in ((2, [[16, 9, 80, 45]], "siren"), (4, [[0, 0, 160, 90], [8, 9, 80, 45]], "crash"))
]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The current folder, empty; what is imported from it is forgotten."""
    known = set(sys.modules)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    yield tmp_path
    for name in set(sys.modules) - known:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture
def street(here):
    """The example of docs/datasets.md and its data in the current folder. Gives the arguments of its command."""
    text = (ROOT / "docs/datasets.md").read_text()
    (example,) = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    (here / "street.py").write_text(example)
    for video in "abct":
        make_video(here / f"videos/{video}.mp4")
    (here / "sounds.json").write_text(json.dumps(SOUNDS))
    return re.search(r"^python -m essl_fast\.prepare (--dataset street .*)$", text, re.MULTILINE)[1].split()


def test_the_example_of_the_page(street):
    assert main(street) == 0
    manifest = Manifest.load("street")
    assert manifest.header["dataset"] == "street" and manifest.header["settings"]["dataset"] == "street"
    assert [manifest.pairs(split) for split in ("train", "val", "test")] == [4, 2, 2]
    assert manifest.classes == ("crash", "siren")
    (tested,) = (tar for tar, _ in manifest.shards("test"))
    first, second = iterate(tested)
    assert (first["key"], first["json"]["time"], first["json"]["class"]) == ("t_000002", 1.7, "siren")
    assert first["json"]["boxes"] == [[22, 22, 112, 112]]
    assert second["json"]["boxes"] == [[0, 0, 224, 224], [11, 22, 112, 112]]
    assert [(left["video"], left["reason"]) for left in left_out(Path("street"))] == [("gone", media.MISSING)]
    before = hashes(Path("street"))
    assert main(street) == 0 and hashes(Path("street")) == before
    assert "street" in dataset_names()


def test_errors_of_ones_own(street, here, capsys):
    def refused(*arguments: str) -> str:
        assert command(lambda: main([*arguments, "--out", "out"]), PROG) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"{PROG}: error: ") and error.count("\n") == 1 and not (here / "out").exists()
        return error

    nowhere = refused("--dataset", "village")
    assert "--dataset: there is no data set 'village'; known are chaotic, " in nowhere
    assert "flickr-h5" in nowhere and "--import MODULE" in nowhere
    assert "the module nothing_here cannot be imported" in refused("--dataset", "village", "--import", "nothing_here")
    (here / "broken.py").write_text("1 / 0\n")
    assert "broken cannot be imported (ZeroDivisionError" in refused("--dataset", "village", "--import", "broken")
    given = ["--dataset", "street", "--import", "street"]
    assert "--dataset street needs --annotations and --videos" in refused(*given)
    given += ["--videos", "videos", "--annotations", "sounds.json"]
    assert "--frame does not go with --dataset street" in refused(*given, "--frame", "all")
    assert "there is no data set 'street-h5'" in refused(*given, "--from-h5", "videos")


def test_several_modules_and_pictures(here):
    """A data set of pictures and sounds; its options are those that the reader takes."""
    tools.make_pairs(here / "data", here / "data", ["p", "q"])
    (here / "pictures_first.py").write_text("READ = []\n")
    (here / "pictures_then.py").write_text(
        "import pictures_first\n"
        "from essl_fast import register_dataset\n"
        "from tests.prepare.test_own_dataset import pictures\n"
        '@register_dataset("pictures", needs=("data",), takes=("test_list",))\n'
        "def read(options):\n"
        "    pictures_first.READ.append(options)\n"
        "    return pictures(options.data[0])\n"
    )
    asked = ["--dataset", "pictures", "--import", "pictures_first", "--import", "pictures_then", "--data", "data"]
    assert main([*asked, "--test-list", "list", "--seed", "5", "--out", "out"]) == 0
    (options,) = sys.modules["pictures_first"].READ
    assert options == DatasetOptions(data=(Path("data"),), test_list=Path("list"), seed=5)
    manifest = Manifest.load("out")
    assert manifest.consensus == 3 and manifest.sound == "<f4" and len(manifest) == 2
    assert [left["reason"] for left in left_out(Path("out"))] == ["too loud"]


def pictures(folder: Path) -> Dataset:
    pairs = Pairs()
    pairs.add_video("p", "train", [(1, 0.0, [], ("hum",))])
    pairs.add_video("q", "test", [(1, 0.0, [[0, 0, 100, 100]], ("hum",))])
    read = Annotations(pairs, [LeftOut("r", "", "too loud", "said its owner")])

    def files_of(video: str) -> Files:
        return Files(folder / f"{video}.jpg", STILL, folder / f"{video}.wav")

    return Dataset("pictures", read, files_of, consensus=3, float_sound=True, from_videos=False)


@pytest.mark.parametrize(
    ("videos", "match"),
    [
        ([("v", "training", [(1, 0.0, [], ("a",))])], "gave the split 'training': choose from train, val, test"),
        ([("v", "train", []), ("v", "test", [])], "added the video 'v' twice"),
        ([("v", "train", [(3, 0.0, [], ("a",)), (3, 1.0, [], ("a",))])], "two pairs for one frame of 'v'"),
        ([("v", "train", [(1, 0.0, [[0, 0, 300, 9]], ("a",))])], "a box outside of the 224 grid"),
        ([("v", "train", [(1, np.nan, [], ("a",))])], "a time that is no number"),
        ([("v", "train", [(1, 0.0, [], ())])], "a pair without a class"),
    ],
)
def test_a_reader_that_is_wrong_is_told_so(tmp_path, videos, match):
    pairs = Pairs()
    for video in videos:
        pairs.add_video(*video)
    with pytest.raises(InputError, match=f"the reader of data set 'mine' .*{match}"):
        prepare_dataset(Dataset("mine", Annotations(pairs), Files), tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


def test_registering():
    with pytest.raises(ValueError, match="there is no option 'vidoes'; choose from annotation_size, annotations"):
        register_dataset("mine", needs=["vidoes"])
    with pytest.raises(ValueError, match="'chaotic' is registered already"):
        register_dataset("chaotic")(lambda options: None)
    register_dataset("nothing")(lambda options: None)
    with pytest.raises(InputError, match="the reader of --dataset nothing returned NoneType instead of a Dataset"):
        read_dataset({"dataset": "nothing"})


def test_functions_have_the_defaults_of_the_command():
    given = vars(parser(PROG).parse_args(["--out", "out"]))
    defaults = {
        name: parameter.default
        for function in (prepare, prepare_dataset, chaotic_world)
        for name, parameter in inspect.signature(function).parameters.items()
    }
    same = {"visual", "decoder", "validation", "seed", "pairs_per_shard"}
    for name in same:
        assert given[name] == defaults[name] == inspect.signature(prepare).parameters[name].default
    options = DatasetOptions()
    assert (options.validation, options.seed) == (given["validation"], given["seed"])
    # The others have no default of their own in the command, so that of the function stands for it.
    rest = {"videos", "annotations", "out", "dataset", "progress"}
    assert not (defaults.keys() - rest) & (given.keys() - same)
    for function in (prepare, chaotic_world, read_chaotic_world):
        parameters = inspect.signature(function).parameters
        assert parameters["frame"].default == "start" and parameters["row_boxes"].default == "first"
        size = parameters["size"] if "size" in parameters else parameters["annotation_size"]
        assert size.default == (320, 180)
    text = " ".join(parser(PROG).format_help().split())
    for shown in ("(default: start)", "(default: first)", "(default: 320x180)", "one for each core, at most 8"):
        assert shown in text


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["--dataset", "csv"], "csv"),
        (["--dataset", "csv", "--name", "mine"], "mine"),
        (["--dataset", "csv", "--name", " Straße 7 "], "Straße 7"),
        (["--dataset", "csv", "--name", "chaotic"], "chaotic"),
        ([], "chaotic"),
        (["--name", "part of it"], "part of it"),
    ],
)
def test_a_data_set_has_the_name_that_it_was_given(world, words, name):
    options = parser("prepare").parse_args([*words, "--out", "x"])
    given = {key: value for key, value in vars(options).items() if key in ("dataset", "name")}
    found = read_dataset({**given, "videos": world / "videos", "annotations": world / "notes"})
    assert found.name == found.header()["dataset"] == name
    assert found.settings.get("name", "chaotic") == name  # so that the folder of another name is another folder


@pytest.mark.parametrize("name", ["", "  ", "a\nb", "x" * 101, "\x1b[31m"])
def test_a_name_that_nothing_can_show_is_refused(name, capsys):
    with pytest.raises(SystemExit):
        parser("prepare").parse_args(["--name", name, "--out", "x"])
    said = capsys.readouterr().err
    assert "is not a name" in said and said.count("\n") == 1
