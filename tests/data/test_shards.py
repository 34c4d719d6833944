"""Shards, index files and the manifest: what is written, that DALI reads it, and what is refused."""

import hashlib
import io
import json
import os
import shutil
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from essl_fast.config import InputError
from essl_fast.data import shards

LINE = "jpg 512 9 a.jpg s16 1536 9 a.s16 json 2560 2 a.json row 3584 8 a.row"
CLASSES = ("bark", "clap", "shout")


def jpeg(seed: int, size: tuple[int, int] = (64, 36)) -> bytes:
    """A smooth random picture as the prepared frames are stored: quality 95, 4:4:4."""
    low = np.random.default_rng(seed).integers(0, 256, (5, 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(low).resize(size, Image.Resampling.BICUBIC).save(file, "JPEG", quality=95, subsampling=0)
    return file.getvalue()


def sound(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(-32768, 32768, shards.SAMPLES, dtype=np.int16)


def write_folder(out: Path, train: int = 41, val: int = 5, test: int = 4, pairs_per_shard: int = 16) -> Path:
    """A prepared folder of synthetic pairs; pair r's frame is jpeg(r) and its sound sound(r)."""
    keys, entries, row = [], {}, 0
    for split, count in zip(shards.SPLITS, (train, val, test), strict=True):
        with shards.ShardWriter(out, split, pairs_per_shard) as writer:
            for _ in range(count):
                key = f"vidéo.{row % 3} a_{row:06d}"
                writer.add(key, jpeg(row), sound(row).astype("<i2").tobytes(), {"key": key, "fid": row}, row)
                keys.append(key)
                row += 1
            entries[split] = {"pairs": count, "videos": min(count, 3), "shards": writer.close()}
    total = len(keys)
    boxes = np.zeros((total, 2, 4), np.int32)
    boxes[:, 0] = np.arange(4 * total).reshape(total, 4) % 200
    shards.write_manifest(
        out,
        keys=keys,
        split=np.repeat([0, 1, 2], [train, val, test]),
        class_id=np.arange(total) % 3,
        labelled=np.arange(total) % 2 == 0,
        boxes=boxes,
        time=np.arange(total) / 10,
        classes=CLASSES,
        splits=entries,
        left_out=[{"video": "b", "key": None, "reason": "no audio", "detail": "b.mp4"}],
        settings={"frame": "start", "seconds": 3},
    )
    return out


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("prepared"))


def digests(root: Path) -> dict[str, str]:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_manifest_gives_back_what_was_written(folder):
    manifest = shards.Manifest.load(folder)
    left_out = {"video": "b", "key": None, "reason": "no audio", "detail": "b.mp4"}
    assert len(manifest) == 50 and manifest.classes == CLASSES
    assert [manifest.pairs(name) for name in shards.SPLITS] == [41, 5, 4]
    assert manifest.rows("val").tolist() == [41, 42, 43, 44, 45]
    assert manifest.key(7) == "vidéo.1 a_000007"
    assert manifest.boxes.shape == (50, 2, 4) and manifest.boxes[7, 0].tolist() == [28, 29, 30, 31]
    assert manifest.labelled.dtype == bool and manifest.labelled[:3].tolist() == [True, False, True]
    assert manifest.time[9] == 0.9 and manifest.split[41] == 1 and manifest.class_id[5] == 2
    assert isinstance(manifest.boxes, np.memmap) and not manifest.boxes.flags.writeable
    names = ["train-00000.tar", "train-00001.tar", "train-00002.tar", "test-00000.tar"]
    assert [tar.name for tar, _ in manifest.shards(["train", "test"])] == names
    assert manifest.header["left_out"] == {"no audio": 1}
    assert json.loads((folder / "left_out.jsonl").read_text()) == left_out
    manifest.verify()
    with pytest.raises(InputError, match="no split 'dev'"):
        manifest.rows("dev")


def test_bytes_do_not_depend_on_place_or_time(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("time.time", lambda: 1.0)
    old = os.umask(0o077)
    try:
        again = write_folder(tmp_path / "elsewhere" / "out")
    finally:
        os.umask(old)
    assert digests(again) == digests(folder)
    assert not [p for p in folder.rglob("*") if "partial" in p.name]


def test_members_and_tar_headers(folder):
    with tarfile.open(folder / "train-00000.tar") as tar:
        members = tar.getmembers()
        assert [m.name for m in members[:4]] == [
            f"vid%C3%A9o%2E0%20a_000000.{ext}" for ext in ("jpg", "s16", "json", "row")
        ]
        assert {(m.mtime, m.uid, m.gid, m.mode, m.isreg()) for m in members} == {(0, 0, 0, 0o644, True)}
    pairs = [pair for tar, _ in shards.Manifest.load(folder).shards(shards.SPLITS) for pair in shards.iterate(tar)]
    assert [pair["row"] for pair in pairs] == list(range(50))
    assert pairs[20]["key"] == "vidéo.2 a_000020" and pairs[20]["json"]["fid"] == 20
    assert pairs[20]["jpg"] == jpeg(20) and np.array_equal(np.frombuffer(pairs[20]["s16"], "<i2"), sound(20))


def test_index_is_what_dalis_tool_writes(folder, tmp_path):
    wds2idx = pytest.importorskip("wds2idx")
    for tar, idx in shards.Manifest.load(folder).shards(shards.SPLITS):
        with wds2idx.IndexCreator(str(tar), str(tmp_path / "theirs.idx"), verbose=False) as tool:
            tool.create_index()
        assert (tmp_path / "theirs.idx").read_text() == idx.read_text()


def test_dalis_reader_reads_the_shards(folder):
    from nvidia.dali import fn, pipeline_def, types

    @pipeline_def(batch_size=41, num_threads=1, device_id=None, prefetch_queue_depth=1)
    def pipe(paths, index_paths):
        return tuple(
            fn.readers.webdataset(
                paths=paths,
                index_paths=index_paths,
                ext=["jpg", "s16", "row"],
                dtypes=[types.UINT8, types.INT16, types.INT64],
                missing_component_behavior="error",
            )
        )

    tars, idxs = zip(*shards.Manifest.load(folder).shards("train"), strict=True)
    built = pipe(paths=[str(p) for p in tars], index_paths=[str(p) for p in idxs])
    built.build()
    jpgs, pcm, rows = built.run()
    assert [int(rows.at(i)[0]) for i in range(41)] == list(range(41))
    assert all(jpgs.at(i).tobytes() == jpeg(i) and np.array_equal(pcm.at(i), sound(i)) for i in (0, 16, 40))


def test_read_index_finds_the_bytes(folder):
    tar, idx = shards.Manifest.load(folder).shards("train")[1]
    index, data = shards.read_index(idx), tar.read_bytes()
    assert shards.decode_key(index.stems[3]) == "vidéo.1 a_000019"
    assert data[index.jpg_offset[3] : index.jpg_offset[3] + index.jpg_size[3]] == jpeg(19)
    assert data[index.s16_offset[3] : index.s16_offset[3] + index.s16_size[3]] == sound(19).tobytes()


def test_long_keys_survive(tmp_path):
    key = "ü" * 60 + "_000001"  # 367 characters when encoded: past what a plain tar header holds
    with shards.ShardWriter(tmp_path, "test") as writer:
        writer.add(key, jpeg(1), sound(1).tobytes(), {"key": key}, 0)
    (pair,) = shards.iterate(tmp_path / "test-00000.tar")
    assert pair["key"] == key
    index = shards.read_index(tmp_path / "test-00000.idx")
    assert (tmp_path / "test-00000.tar").read_bytes()[index.s16_offset[0] :][: shards.PCM_BYTES] == sound(1).tobytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"jpg": b"GIF89a"}, "not a JPEG"),
        ({"s16": bytes(95_998)}, "95998 bytes instead of 96000"),
        ({"key": "a_000001"}, "written before"),
        ({"row": 3}, "row 3 does not follow row 0"),
    ],
)
def test_writer_refuses(tmp_path, change, message):
    good = {"key": "a_000002", "jpg": jpeg(1), "s16": bytes(96_000), "meta": {}, "row": 1}
    writer = shards.ShardWriter(tmp_path, "train")
    writer.add("a_000001", jpeg(1), bytes(96_000), {}, 0)
    with pytest.raises(ValueError, match=message):
        writer.add(**(good | change))
    writer.abort()
    assert not list(tmp_path.iterdir())


def test_an_interrupted_write_leaves_no_manifest(tmp_path):
    write_folder(tmp_path)
    with pytest.raises(KeyboardInterrupt), shards.ShardWriter(tmp_path, "train", 1) as writer:
        writer.add("a", jpeg(1), bytes(96_000), {}, 0)
        raise KeyboardInterrupt
    with pytest.raises(InputError, match=r"manifest.json is not there.*prepare"):
        shards.Manifest.load(tmp_path)


def test_write_manifest_refuses_what_does_not_fit(tmp_path):
    with shards.ShardWriter(tmp_path, "train") as writer:
        for row in range(2):
            writer.add(str(row), jpeg(row), bytes(96_000), {}, row)
        entries = {name: {"pairs": 0, "videos": 0, "shards": []} for name in shards.SPLITS}
        entries["train"] = {"pairs": 2, "videos": 1, "shards": writer.close()}
    good = {
        "keys": ["0", "1"],
        "split": [0, 0],
        "class_id": [0, 0],
        "labelled": [True, True],
        "boxes": np.zeros((2, 1, 4)),
        "time": [0.0, 1.0],
        "classes": ["a"],
        "splits": entries,
        "left_out": [],
        "settings": {},
    }
    for change, message in [
        ({"keys": ["0", "0"]}, "not unique"),
        ({"split": [0, 1]}, "order train, val, test"),
        ({"class_id": [0, 1]}, "class_id is out of range"),
        ({"boxes": np.zeros((2, 4))}, "boxes has shape"),
        ({"time": [0.0]}, "time has shape"),
        ({"classes": ["b", "a"]}, "not sorted"),
        ({"splits": entries | {"train": entries["train"] | {"shards": []}}}, "do not hold its 2 pairs"),
    ]:
        with pytest.raises(ValueError, match=message):
            shards.write_manifest(tmp_path, **(good | change))
    shards.write_manifest(tmp_path, **good)
    manifest = shards.Manifest.load(tmp_path)
    assert len(manifest) == 2 and manifest.shards("val") == [] and manifest.rows("test").tolist() == []


def _damage(root: Path, name: str) -> None:
    path = root / name
    if name.endswith(".npy"):
        np.save(path, np.zeros(3, np.uint8))
    else:
        path.write_bytes(path.read_bytes()[:-512])


@pytest.mark.parametrize(
    ("name", "how", "message"),
    [
        ("manifest.json", "remove", "manifest.json is not there"),
        ("manifest.json", "damage", "manifest.json cannot be read"),
        ("manifest.json", "version", "not a manifest of format essl_fast, version 1"),
        ("manifest.json", "entry", "lacks an entry"),
        ("pairs/time.npy", "remove", "time.npy is missing"),
        ("pairs/boxes.npy", "damage", r"boxes.npy has uint8 \(3,\) where 50 pairs"),
        ("train-00001.tar", "remove", "train-00001.tar is missing"),
        ("val-00000.tar", "damage", "val-00000.tar has [0-9]+ bytes instead of"),
        ("test-00000.idx", "remove", "test-00000.idx is missing"),
    ],
)
def test_load_names_the_file_and_the_remedy(folder, tmp_path, name, how, message):
    root = tmp_path / "copy"
    shutil.copytree(folder, root)
    if how == "remove":
        (root / name).unlink()
    elif how == "damage":
        _damage(root, name)
    else:
        header = json.loads((root / name).read_text())
        header = header | {"version": 2} if how == "version" else {k: v for k, v in header.items() if k != "splits"}
        (root / name).write_text(json.dumps(header))
    with pytest.raises(InputError, match=message) as error:
        shards.Manifest.load(root)
    assert "essl_fast.prepare" in str(error.value)


def test_load_does_not_leave_the_folder(folder, tmp_path):
    root = tmp_path / "copy"
    shutil.copytree(folder, root)
    text = (root / "manifest.json").read_text().replace('"train-00000.tar"', '"../train-00000.tar"')
    (root / "manifest.json").write_text(text)
    with pytest.raises(InputError, match="outside its folder"):
        shards.Manifest.load(root)


def test_verify_finds_one_changed_byte(folder, tmp_path):
    root = tmp_path / "copy"
    shutil.copytree(folder, root)
    with open(root / "train-00002.tar", "r+b") as file:
        file.seek(5000)
        byte = file.read(1)
        file.seek(5000)
        file.write(bytes([byte[0] ^ 1]))
    with pytest.raises(InputError, match="train-00002.tar was changed or damaged"):
        shards.Manifest.load(root).verify()


@pytest.mark.parametrize("kind", ["link", "absolute", "parent", "duplicate", "missing", "not tar"])
def test_iterate_refuses(tmp_path, kind):
    path = tmp_path / "bad.tar"
    members = [("a.jpg", b"x"), ("a.s16", b"x"), ("a.json", b"{}"), ("a.row", struct.pack("<q", 0))]
    if kind in ("absolute", "parent"):
        members[0] = ({"absolute": "/a.jpg", "parent": "../a.jpg"}[kind], b"x")
    if kind == "duplicate":
        members += members
    if kind == "missing":
        del members[1]
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            if kind == "link" and name == "a.s16":
                info.type, info.linkname, info.size = tarfile.SYMTYPE, "/etc/hostname", 0
            tar.addfile(info, io.BytesIO(data) if info.isreg() else None)
    if kind == "not tar":
        path.write_bytes(b"no tar at all" * 100)
    with pytest.raises(InputError, match="bad.tar.*run prepare again"):
        list(shards.iterate(path))


@pytest.mark.parametrize(
    "text", ["", "v1.1 1\n", f"v1.2 2\n{LINE}\n", "v1.2 1\njpg 512 9 a.jpg\n", f"v1.2 1\n{LINE.replace('512', 'x')}\n"]
)
def test_read_index_refuses(tmp_path, text):
    (tmp_path / "bad.idx").write_text(text)
    with pytest.raises(InputError, match="bad.idx cannot be used"):
        shards.read_index(tmp_path / "bad.idx")
