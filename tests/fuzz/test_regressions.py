"""What fuzzing and reading found: each input once ended a command with a traceback, a hang, or worse."""

import io
import json
import shutil
import struct
import sys
import tarfile
import zipfile

import numpy as np
import pytest

from essl_fast import checkpoints, config
from essl_fast.common.errors import InputError
from essl_fast.common.files import parse_json
from essl_fast.data import media, shards
from essl_fast.data.datasets import read_chaotic_world, truth
from essl_fast.data.media import jpeg
from essl_fast.data.media.limits import DEMUXER
from essl_fast.data.shards import Shards, tars
from essl_fast.evaluate import table
from essl_fast.prepare.reporting import print_summary
from tests.fuzz.mutate import seal
from tests.fuzz.target_folders import prepared_folder
from tests.fuzz.target_media import jpegs, make_clips
from tests.tools.media import make_video, row, write_annotations


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return prepared_folder(tmp_path_factory.mktemp("prepared"))


@pytest.fixture
def root(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "prepared")


def edit(root, change):
    header = json.loads((root / "manifest.json").read_bytes())
    change(header)
    (root / "manifest.json").write_text(json.dumps(header))


def put(path, array) -> None:
    np.save(path, array)


@pytest.mark.parametrize(
    "change",
    [
        lambda h: h.update(pairs=float("inf")),
        lambda h: h.update(pairs=10**13),
        lambda h: h.update(classes=[["x"]]),
        lambda h: h["splits"]["train"].update(pairs=3.0),
        lambda h: h["splits"]["train"]["shards"][0].update(file=5),
        lambda h: h["splits"]["train"]["shards"][0].update(file="..", bytes=None),
        lambda h: h.update(left_out=[]),
        lambda h: h["splits"]["train"]["shards"][0].update(index="train-00000.tar"),
        lambda h: h.update(settings=None),
        lambda h: h.update(jpeg_instead={"x": 1}),
        lambda h: h.update(classes=[]),
        lambda h: h.update(consensus=True),
    ],
)
def test_a_manifests_header_is_checked_before_it_is_trusted(root, change):
    edit(root, change)
    with pytest.raises(InputError, match="prepare"):
        shards.Manifest.load(root)


def test_json_nested_without_end_is_refused(root):
    (root / "manifest.json").write_text("[" * 100_000)
    with pytest.raises(InputError, match="nested too deep"):
        shards.Manifest.load(root)
    for text in ("[NaN]", '"\\ud800"', "[" * 100_000):
        with pytest.raises(ValueError):
            parse_json(text)


def pickled(array) -> bytes:
    out = io.BytesIO()
    np.save(out, array, allow_pickle=True)
    return out.getvalue()


def header(text: str, data: bytes = b"") -> bytes:
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(text) + 1) + text.encode() + b"\n" + data


def zipped() -> bytes:
    out = io.BytesIO()
    np.savez(out, x=np.zeros(3))
    return out.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        pickled(np.array([{}] * 9, object)),
        zipped(),
        header("{'descr': '<f8', 'fortran_order': False, 'shape': (1 << 60,), }"),
        header("{'descr': '<f8', 'fortran_order': False, 'shape': (99999999999,), }"),
        header("{{'"),
        b"",
        b"\x93NUMPY",
        header("{'descr': '<f8', 'fortran_order': False, 'shape': __import__('os').getpid(), }"),
    ],
)
def test_a_column_is_plain_numbers_of_the_files_size(root, data):
    (root / "pairs" / "time.npy").write_bytes(data)
    with pytest.raises(InputError, match="time.npy"):
        shards.Manifest.load(root)


@pytest.mark.parametrize(
    "name, array",
    [
        ("class_id", np.full(9, 1, np.int32)),
        ("class_id", np.full(9, -1, np.int32)),
        ("time", np.full(9, np.nan)),
        ("boxes", np.full((9, 1, 4), 225, np.int32)),
        ("boxes", np.full((9, 1, 4), -1, np.int32)),
    ],
)
def test_a_columns_values_are_in_range(root, name, array):
    put(root / "pairs" / f"{name}.npy", array)
    with pytest.raises(InputError, match=name):
        shards.Manifest.load(root)


def test_a_key_that_is_no_text_is_an_error(root):
    keys = np.load(root / "pairs" / "key.npy")
    keys[0] = b"\xff"
    put(root / "pairs" / "key.npy", keys)
    with pytest.raises(InputError, match="no UTF-8"):
        Shards(shards.Manifest.load(root), ["train"])


@pytest.mark.parametrize(
    "entry",
    [
        '{"row": 0.5, "key": "x", "reason": "black"}',
        '{"row": true, "key": "x", "reason": "black"}',
        "[" * 100_000,
        "3",
    ],
)
def test_a_quarantine_of_something_else_is_an_error(root, entry):
    (root / shards.QUARANTINE).write_text(entry)
    with pytest.raises(InputError, match="prepare --verify"):
        shards.Manifest.load(root).quarantine()


@pytest.mark.parametrize("line", ["x", "3", "{}", "[" * 100_000])
def test_a_list_of_what_was_left_out_that_is_none_is_an_error(root, line):
    (root / "left_out.jsonl").write_text(line + "\n")
    with pytest.raises(InputError, match="left_out.jsonl cannot be read"):
        print_summary(shards.Manifest.load(root))


@pytest.mark.parametrize(
    "words",
    [
        (1, "99999999999999999999"),
        (1, "-512"),
        (2, "4611686018427387904"),
        (5, "0"),
        (5, "9999999999"),
    ],
)
def test_an_index_file_cannot_ask_for_what_the_shard_does_not_hold(root, words):
    path = root / "train-00001.idx"
    first, line, *rest = path.read_text().splitlines()
    at, word = words
    cells = line.split()
    cells[at] = word
    path.write_text("\n".join([first, " ".join(cells), *rest, ""]))
    with pytest.raises(InputError, match="prepare"):
        Shards(shards.Manifest.load(root), ["train"])


def tar_of(path, change):
    """A shard of one pair, whose headers went through `change`(member's name, TarInfo)."""
    sound = bytes(tars.PCM_BYTES)
    with open(path, "wb") as file:
        for name, data in (("a.jpg", b"x"), ("a.s16", sound), ("a.json", b"{}"), ("a.row", bytes(8))):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            change(name, info)
            file.write(info.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % 512))
        file.write(bytes(1024))
    return path


def test_a_shard_of_one_pair_is_read(tmp_path):
    (pair,) = tars.iterate(tar_of(tmp_path / "a.tar", lambda name, info: None))
    assert pair["key"] == "a" and pair["row"] == 0 and len(pair["s16"]) == tars.PCM_BYTES


@pytest.mark.parametrize(
    "change",
    [
        lambda name, info: setattr(info, "size", 1 << 40),
        lambda name, info: setattr(info, "type", tarfile.SYMTYPE),
        lambda name, info: setattr(info, "type", tarfile.GNUTYPE_SPARSE),
        lambda name, info: setattr(info, "type", b"x"),
        lambda name, info: setattr(info, "type", tarfile.LNKTYPE),
        lambda name, info: setattr(info, "name", "../" + name),
        lambda name, info: setattr(info, "name", "/" + name),
        lambda name, info: setattr(info, "name", "a.jpg"),
        lambda name, info: setattr(info, "name", "%ff" + name[1:]),
        lambda name, info: setattr(info, "type", b"L"),
    ],
)
def test_a_tars_members_are_what_the_writer_writes(tmp_path, change):
    with pytest.raises(InputError, match="cannot be read"):
        list(tars.iterate(tar_of(tmp_path / "a.tar", change)))


def test_a_name_that_no_file_has_is_an_error(tmp_path):
    write_annotations(tmp_path, {"v": [row(16, 1.5)]}, {})
    (tmp_path / "train_ssl.txt").write_text("v" * 300)
    with pytest.raises(InputError, match="is longer than"):
        read_chaotic_world(tmp_path)


@pytest.mark.parametrize("cell", ["[" * 90_000, "-" * 90_000 + "1", "1" * 5000, "[[1,2,3,__import__('os')]]", "1+1"])
def test_a_cell_is_never_evaluated(tmp_path, cell):
    write_annotations(tmp_path, {"v": [row(16, 1.5, cell)]}, {})
    with pytest.raises(InputError, match="column bbox"):
        read_chaotic_world(tmp_path)


def test_a_sound_of_a_billion_frames_is_an_error(tmp_path):
    group = tmp_path / "annotation" / "group"
    group.mkdir(parents=True)
    (group / "v.csv").write_text('start_fid,end_fid,bbox\n1,2000000000,"[[1, 2, 3, 4]]"\n')
    with pytest.raises(InputError, match="2,000,000,000 frames"):
        truth.read_truth(tmp_path, "v")


@pytest.mark.parametrize(
    "text, why",
    [
        ("model: &m {x: *m}\n", "contains itself"),
        ("seed: 1\nseed: 2\n", "there twice"),
        ("name: " + "[" * 5000, "deep|depth"),
        (
            "a: &a [x,x,x,x,x,x,x,x,x,x]\n"
            "b: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b,*b]\n"
            "d: [*c,*c,*c,*c,*c,*c,*c,*c,*c,*c]\n",
            "values",
        ),
        ("seed: " + "9" * 5000, "digits"),
        ("model: 3\n", "no group of settings"),
        ("model: {class_path: this.s}\n", "there is no setting model.class_path"),
        ("config: x.yaml\n", "config is no setting"),
        ("out: !!python/object/apply:os.system [true]\n", "constructor"),
        ("name: \xff\n", "c.yaml|utf-8"),
    ],
)
def test_a_config_cannot_hang_or_import(tmp_path, text, why):
    (tmp_path / "c.yaml").write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=why):
        config.load(str(tmp_path / "c.yaml"))
    assert "this" not in sys.modules


@pytest.mark.parametrize(
    "values",
    [
        3,
        {"model": 3},
        {"seed": "1"},
        {"seed": 1.5},
        {"model": {"trunk": "evil"}},
        {"device": 3},
        {"baselines": 1},
        {3: 4},
    ],
)
def test_settings_of_a_checkpoint_are_of_their_kinds(values):
    with pytest.raises(InputError):
        checkpoints.settings_of({"config": values, "model": {}})


def test_a_packed_checkpoint_is_not_unpacked(tmp_path):
    state = {"config": config.to_dict(config.Config()), "model": {}}
    checkpoints.save(tmp_path / "a.pt", state)
    out = io.BytesIO()
    with zipfile.ZipFile(tmp_path / "a.pt") as whole, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as packed:
        for name in whole.namelist():
            packed.writestr(name, whole.read(name))
    (tmp_path / "b.pt").write_bytes(seal(out.getvalue()))
    with pytest.raises(InputError, match="packed"):
        checkpoints.load(tmp_path / "b.pt")
    with pytest.raises(InputError, match="no model"):
        checkpoints.settings_of({"config": {}})


@pytest.mark.parametrize("kind, begin", [(b"ctts", 0xFFFFFFF0)])
def test_a_clip_cannot_say_that_it_has_billions_of_frames(tmp_path, kind, begin):
    name, data = next((n, d) for n, d in make_clips(tmp_path).items() if n.startswith("h264"))
    at = data.index(kind)
    data = data[: at + 12] + struct.pack(">I", begin) + data[at + 16 :]
    with pytest.raises(media.MediaError, match="its .* frames are shown"):
        media.decode_clip(data, 0)


def test_boxes_within_boxes_without_end_are_refused():
    data = b"".join(struct.pack(">I4s", 8 * (20_000 - n), b"moov") for n in range(20_000))
    with pytest.raises(media.MediaError, match="no clip"):
        media.decode_clip(data, 0)


def test_a_progressive_picture_of_many_scans_is_refused(tmp_path):
    data = jpegs(tmp_path)["progressive-RGB.jpg"]
    assert jpeg.jpeg_size(np.frombuffer(data, np.uint8)) == (160, 96)
    at = data.rindex(b"\xff\xda")
    with pytest.raises(ValueError, match="scans"):
        jpeg.jpeg_size(np.frombuffer(data[:at] + data[at:-2] * 101 + data[-2:], np.uint8))


@pytest.mark.parametrize("text", ["ffconcat version 1.0\nfile v.mp4\n", "#EXTM3U\n#EXTINF:10,\nv.mp4\n"])
def test_a_list_of_other_files_is_no_video(tmp_path, text):
    """FFmpeg chooses its reader by the content: such a file would have others read that nobody named."""
    make_video(tmp_path / "v.mp4", seconds=1)
    (tmp_path / "list.mp4").write_text(text)
    with pytest.raises(media.MediaError, match="video file unreadable"):
        media.probe(tmp_path / "list.mp4")
    assert DEMUXER["protocol_whitelist"] == "file"


def test_a_class_may_look_like_markup(capsys):
    from rich.console import Console

    result = {"pairs": 1, "success_at_half": 1.0, "auc": 1.0}
    Console().print(table("t", {"[/x] horn": result}))
    assert "[/x] horn" in capsys.readouterr().out
