"""Shards, index files and the manifest: what is written, that DALI reads it, and what is refused."""

import hashlib
import io
import json
import os
import shutil
import struct
import tarfile
import time
import zlib
from collections.abc import Container
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from essl_fast.common.errors import InputError
from essl_fast.data import shards

CLIP_LINE = "mp4 512 9 a.mp4 fid 1536 8 a.fid s16 2560 9 a.s16 json 3584 2 a.json row 4608 8 a.row"
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


def clip(seed: int) -> bytes:
    """What passes for an MP4 as long as nobody decodes it."""
    return struct.pack(">I4s", 16, b"ftyp") + np.random.default_rng(seed).bytes(700 + seed)


def write_folder(
    out: Path, train: int = 41, val: int = 5, test: int = 4, pairs_per_shard: int = 16, clips: Container[int] = ()
) -> Path:
    """A prepared folder of synthetic pairs; pair r's frame is jpeg(r), or frame r of clip(r), turned r % 4 times, where
    `clips` has r; its sound is sound(r)."""
    keys, entries, crc, row = [], {}, [], 0
    for split, count in zip(shards.SPLITS, (train, val, test), strict=True):
        with shards.ShardWriter(out, split, pairs_per_shard) as writer:
            for _ in range(count):
                key = f"vidéo.{row % 3} a_{row:06d}"
                visual, pcm = clip(row) if row in clips else jpeg(row), sound(row).astype("<i2").tobytes()
                place = (row, row % 4) if row in clips else None
                writer.add(key, visual, pcm, {"key": key, "fid": row}, row, place)
                crc.append(shards.pair_crc(visual, pcm))
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
        visual=[row in clips for row in range(total)],
        target=[row if row in clips else 0 for row in range(total)],
        quarters=[row % 4 if row in clips else 0 for row in range(total)],
        crc=crc,
        classes=CLASSES,
        splits=entries,
        left_out=[{"video": "b", "key": None, "reason": "no audio", "detail": "b.mp4"}],
        settings={"frame": "start", "seconds": 3},
    )
    return out


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("prepared"))


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips and pictures, also in one shard."""
    return write_folder(tmp_path_factory.mktemp("mixed"), clips={*range(14, 40), 43})


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
    assert not manifest.visual.any() and not manifest.target.any() and not manifest.quarters.any()
    assert manifest.crc[7] == zlib.crc32(jpeg(7) + sound(7).astype("<i2").tobytes())
    assert isinstance(manifest.boxes, np.memmap) and not manifest.boxes.flags.writeable
    names = ["train-00000.tar", "train-00001.tar", "train-00002.tar", "test-00000.tar"]
    assert [tar.name for tar, _ in manifest.shards(["train", "test"])] == names
    assert manifest.header["left_out"] == {"no audio": 1}
    assert json.loads((folder / "left_out.jsonl").read_text()) == left_out
    manifest.verify()
    with pytest.raises(InputError, match="no split 'dev'"):
        manifest.rows("dev")


def test_bytes_do_not_depend_on_place_or_time(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 1.0)
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


def test_clips_and_pictures_in_one_folder(mixed):
    manifest, clips = shards.Manifest.load(mixed), {*range(14, 40), 43}
    assert np.flatnonzero(manifest.visual == shards.CLIP).tolist() == sorted(clips)
    some = [13, 14, 43]
    assert manifest.target[some].tolist() == [0, 14, 43] and manifest.quarters[some].tolist() == [0, 2, 3]
    with tarfile.open(mixed / "train-00000.tar") as tar:
        names = [member.name.partition(".")[2] for member in tar.getmembers()]
    assert names == ["jpg", "s16", "json", "row"] * 14 + ["mp4", "fid", "s16", "json", "row"] * 2
    pairs = [pair for tar, _ in manifest.shards(shards.SPLITS) for pair in shards.iterate(tar)]
    assert [pair["row"] for pair in pairs] == list(range(50))
    for row in (13, 14, 40, 43):
        pair = pairs[row]
        assert np.array_equal(np.frombuffer(pair["s16"], "<i2"), sound(row))
        if row in clips:
            assert (pair["mp4"], pair["target"], pair["quarters"]) == (clip(row), row, row % 4) and "jpg" not in pair
        else:
            assert pair["jpg"] == jpeg(row) and not {"mp4", "target", "quarters"} & pair.keys()
    tar, idx = manifest.shards("train")[0]
    index, data = shards.read_index(idx), tar.read_bytes()
    assert index.visual.tolist() == [shards.JPEG] * 14 + [shards.CLIP] * 2
    assert shards.decode_key(index.stems[15]) == manifest.key(15)
    assert data[index.visual_offset[15] :][: index.visual_size[15]] == clip(15)
    assert data[index.s16_offset[15] :][: index.s16_size[15]] == sound(15).tobytes()


@pytest.mark.parametrize("which", ["folder", "mixed"])
def test_index_is_what_dalis_tool_writes(request, which, tmp_path):
    wds2idx = pytest.importorskip("wds2idx")
    for tar, idx in shards.Manifest.load(request.getfixturevalue(which)).shards(shards.SPLITS):
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
    assert data[index.visual_offset[3] :][: index.visual_size[3]] == jpeg(19)
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
        ({"visual": b"GIF89a"}, "not a JPEG"),
        ({"clip": (0, 0)}, "not an MP4"),
        ({"visual": clip(1), "clip": (0, 4)}, "4 quarter turns"),
        ({"sound": bytes(95_998)}, "95998 bytes instead of 96000"),
        ({"key": "a_000001"}, "written before"),
        ({"row": 3}, "row 3 does not follow row 0"),
    ],
)
def test_writer_refuses(tmp_path, change, message):
    good = {"key": "a_000002", "visual": jpeg(1), "sound": bytes(96_000), "meta": {}, "row": 1}
    writer = shards.ShardWriter(tmp_path, "train")
    writer.add("a_000001", jpeg(1), bytes(96_000), {}, 0)
    with pytest.raises(ValueError, match=message):
        writer.add(**(good | change))
    writer.abort()
    assert not list(tmp_path.iterdir())


def test_a_writer_of_no_split_and_of_no_pairs(tmp_path):
    with pytest.raises(ValueError, match="split is one of .*, not 'dev'"):
        shards.ShardWriter(tmp_path, "dev")
    with pytest.raises(InputError, match="pairs_per_shard is at least 1, not 0"):
        shards.ShardWriter(tmp_path, "train", 0)


def test_an_interrupted_write_leaves_no_manifest(tmp_path):
    write_folder(tmp_path)
    with pytest.raises(KeyboardInterrupt), shards.ShardWriter(tmp_path, "train", 3) as writer:
        writer.add("a", jpeg(1), bytes(96_000), {}, 0)
        writer.add("b", jpeg(2), bytes(96_000), {}, 1)
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.glob(".train*")] == []
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
        "visual": [0, 0],
        "target": [0, 0],
        "quarters": [0, 0],
        "crc": [0, 0],
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
        ({"target": [[0, 0]]}, "target has shape"),
        ({"classes": ["b", "a"]}, "not sorted"),
        ({"depth": [0, 0]}, "the columns are .*depth.* instead of"),
        ({"splits": {name: entries[name] for name in ("train", "val")}}, r"splits are \['train', 'val'\] instead of"),
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
        ("manifest.json", "version", "not a manifest of format essl_fast, version 2"),
        ("manifest.json", "entry", "lacks an entry"),
        ("pairs/time.npy", "remove", "time.npy is missing"),
        ("pairs/visual.npy", "range", "has a value out of range"),
        ("pairs/boxes.npy", "damage", r"boxes.npy has uint8 \(3,\) in 3 bytes where 50 pairs"),
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
    elif how == "range":
        np.save(root / name, np.full(50, 3, np.uint8))
    else:
        header = json.loads((root / name).read_text())
        header = header | {"version": 1} if how == "version" else {k: v for k, v in header.items() if k != "splits"}
        (root / name).write_text(json.dumps(header))
    with pytest.raises(InputError, match=message) as error:
        shards.Manifest.load(root)
    assert "essl_fast.prepare" in str(error.value)


def test_load_does_not_leave_the_folder(folder, tmp_path):
    root = tmp_path / "copy"
    shutil.copytree(folder, root)
    text = (root / "manifest.json").read_text().replace('"train-00000.tar"', '"../train-00000.tar"')
    (root / "manifest.json").write_text(text)
    with pytest.raises(InputError, match="is no name of a shard in its folder"):
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


def test_a_writer_goes_on_behind_finished_shards(folder, tmp_path):
    whole, root = shards.Manifest.load(folder).header["splits"]["train"]["shards"], tmp_path / "out"
    root.mkdir()
    with shards.ShardWriter(root, "train", 16, finished=whole[:1]) as writer:
        for row in range(16, 41):
            key = f"vidéo.{row % 3} a_{row:06d}"
            full = writer.add(key, jpeg(row), sound(row).astype("<i2").tobytes(), {"key": key, "fid": row}, row)
            assert full == (whole[1] if row == 31 else None)
        assert writer.close() == whole
    assert digests(root).items() < digests(folder).items() and not (root / "train-00000.tar").exists()


def quarantine(root: Path, *entries: tuple) -> dict[int, str]:
    lines = [json.dumps(dict(zip(("row", "key", "reason", "detail"), (*entry, "x"), strict=True))) for entry in entries]
    (root / shards.QUARANTINE).write_text("\n".join(lines))
    return shards.Manifest.load(root).quarantine()


def test_quarantine_gives_the_worst_reason_of_each_pair(folder, tmp_path):
    root = tmp_path / "copy"
    shutil.copytree(folder, root)
    assert shards.Manifest.load(root).quarantine() == {}
    key = shards.Manifest.load(root).key
    lines = [(3, key(3), "silent"), (3, key(3), "black"), (9, key(9), "corrupt"), (None, None, "corrupt")]
    listed = quarantine(root, *lines)
    assert listed == {3: shards.BLACK, 9: shards.CORRUPT} and shards.BLACK not in shards.BAD
    good, other = key(3), key(4)
    for entry in [
        (3, other, "black"),
        (50, other, "black"),
        (-1, other, "black"),
        (3, good, "odd"),
        ("3", good, "black"),
    ]:
        with pytest.raises(InputError, match=r"quarantine.jsonl .*prepare --verify --out .*copy'?` again"):
            quarantine(root, entry)


KINDS = [
    "link",
    "absolute",
    "parent",
    "duplicate",
    "missing",
    "two pictures",
    "not tar",
    "list",
    "short sound",
    "names",
]


@pytest.mark.parametrize("kind", KINDS)
def test_iterate_refuses(tmp_path, kind):
    path = tmp_path / "bad.tar"
    members = [("a.jpg", b"x"), ("a.s16", b"x"), ("a.json", b"{}"), ("a.row", struct.pack("<q", 0))]
    if kind in ("absolute", "parent"):
        members[0] = ({"absolute": "/a.jpg", "parent": "../a.jpg"}[kind], b"x")
    if kind == "duplicate":
        members += members
    if kind == "two pictures":
        members[1:1] = [("a.mp4", b"x"), ("a.fid", bytes(8))]
    if kind == "missing":
        del members[1]
    if kind == "list":
        members[1:3] = [("a.s16", bytes(96_000)), ("a.json", b"[]")]
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            if kind == "names":  # a name of the next member, twice
                info.type = tarfile.GNUTYPE_LONGNAME
            if kind == "link" and name == "a.s16":
                info.type, info.linkname, info.size = tarfile.SYMTYPE, "/etc/hostname", 0
            tar.addfile(info, io.BytesIO(data) if info.isreg() else None)
    if kind == "not tar":
        path.write_bytes(b"no tar at all" * 100)
    with pytest.raises(InputError, match="bad.tar.*run prepare again"):
        list(shards.iterate(path))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "v1.1 1\n",
        f"v1.2 2\n{LINE}\n",
        "v1.2 1\njpg 512 9 a.jpg\n",
        f"v1.2 1\n{LINE.replace('512', 'x')}\n",
        f"v1.2 1\n{CLIP_LINE.replace('fid 1536 8 a.fid ', '')}\n",
    ],
)
def test_read_index_refuses(tmp_path, text):
    (tmp_path / "bad.idx").write_text(text)
    with pytest.raises(InputError, match="bad.idx cannot be used"):
        shards.read_index(tmp_path / "bad.idx")


def test_an_index_is_read_up_to_a_size(tmp_path, monkeypatch):
    from essl_fast.data.shards import tars

    (tmp_path / "bad.idx").write_text(f"v1.2 1\n{LINE}\n")
    monkeypatch.setattr(tars, "_LARGEST_INDEX", 10)
    with pytest.raises(InputError, match="bad.idx cannot be used .*it has more than 10 bytes"):
        shards.read_index(tmp_path / "bad.idx")


def test_what_a_split_holds_is_the_same_however_it_lies_in_shards(tmp_path):
    found = shards.Manifest.load(write_folder(tmp_path / "a")).contents()
    assert {split: held["pairs"] for split, held in found.items()} == {"train": 41, "val": 5, "test": 4}
    assert len({held["sha256"] for held in found.values()}) == 3
    place = write_folder(tmp_path / "b", test=0, pairs_per_shard=7)
    assert shards.Manifest.load(place).contents() == {split: found[split] for split in ("train", "val")}
    for column, row in (("labelled", 3), ("class_id", 2), ("crc", 1), ("boxes", 4)):
        path = place / "pairs" / f"{column}.npy"
        was = np.load(path)
        other = was.copy()
        other[row] = ~other[row] if column == "labelled" else 1 if column == "class_id" else other[row] + 1
        np.save(path, other)
        changed = shards.Manifest.load(place).contents()
        assert changed["val"] == found["val"] and changed["train"] != found["train"], column
        np.save(path, was)
