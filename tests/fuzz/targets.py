"""What is fuzzed: each target reads one kind of input that others may have made, the way that the commands do.

`Target.parts(place)` makes sound inputs, file name → bytes; `Target.run(place, name, data)` reads `data` in the place
of the part of that name. What it may raise is `allowed`; anything else is a failure, and so is an AssertionError, which
says that something was accepted that should not have been.
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from essl_fast import config
from essl_fast.common.errors import InputError
from essl_fast.data import media, shards
from essl_fast.data.datasets import annotations
from essl_fast.data.media import clips, jpeg
from essl_fast.data.shards import tars
from essl_fast.data.shards.reading import Shards
from essl_fast.prepare import parts
from tests.fuzz.target_moments import FIGURES, read_figures, read_moments
from tests.tools.media import clicks, make_video, noisy, row, write_annotations

Parts = dict[str, bytes]


@dataclass(frozen=True)
class Target:
    """native: a decoder that is not Python reads the bytes. slow: an execution takes 10 ms or more."""

    name: str
    parts: Callable[[Path], Parts]
    run: Callable[[Path, str, bytes], None]
    allowed: tuple[type[Exception], ...] = (InputError,)
    native: bool = False
    slow: bool = False


# ---------------------------------------------------------------- annotations

HEADER_ALL = "fid,time,bbox,ssl"


def _notes(place: Path) -> Parts:
    rows = [row(16, 1.5), row(18, 1.7, "[]"), row(21, 2.0, "((1, 2, 30, 40), [5.5, 6, 70, 80],)", end=22), row(21, 2.0)]
    root = write_annotations(place / "notes", {"v": rows, "ü w": rows[:1]}, {"t": rows[1:3]})
    frames = [HEADER_ALL, *(f'{n},{n / 10},"[[{n}, 2, 90, 80]]",horn' for n in range(16, 24))]
    (root / "annotation" / "frame").mkdir(exist_ok=True)
    (root / "annotation" / "frame" / "v.csv").write_text("\n".join(frames) + "\n")
    names = ("annotation/group/v.csv", "annotation/frame/v.csv", "train_ssl.txt", "test_ssl.txt")
    return {name: (root / name).read_bytes() for name in names}


def _read_notes(place: Path, name: str, data: bytes) -> None:
    root = place / "notes"
    with _changed(root / name, data):
        for frame in annotations.FRAMES:
            read = annotations.read_chaotic_world(root, frame=frame, row_boxes="all", frame_rate=lambda video: 25.0)
            _check_pairs(read)


def _check_pairs(read: annotations.Annotations) -> None:
    keys = [pair.key for pair in read.pairs]
    assert len(keys) == len(set(keys)), "two pairs have one key"
    for pair in read.pairs:
        left, top, right, bottom = pair.boxes.T
        assert (0 <= left).all() and (left < right).all() and (right <= 224).all(), pair
        assert (0 <= top).all() and (top < bottom).all() and (bottom <= 224).all(), pair
        assert pair.fid >= 1 and np.isfinite(pair.time) and pair.class_name, pair
        assert "/" not in pair.video and "\0" not in pair.video, pair
    for left in read.left_out:
        json.dumps(left.as_json(), ensure_ascii=False).encode()
    annotations.digest(read)


_XML = """<?xml version="1.0"?><annotation><annotator><bbox><type/><xmin>10</xmin><ymin>20</ymin><xmax>100</xmax>
<ymax>120</ymax></bbox><bbox><type>x</type><xmin>-3</xmin><ymin>2.5</ymin><xmax>1e2</xmax><ymax>256</ymax></bbox>
</annotator><annotator/></annotation>"""
_LISTS = {
    "flickr.xml": _XML.encode(),
    "flickr.csv": b"12,a\n/mnt/x/34.mp4\n5,b,c\n",
    "vggss.json": json.dumps(
        [
            {"file": "v_000030", "class": "horn", "bbox": [[0.1, 0.2, 0.5, 0.9], [0, 0, 1, 1]]},
            {"file": "w", "class": "dog", "bbox": [0.1, 0.2, 0.3, 0.4]},
        ]
    ).encode(),
    "truth.csv": b'fid,bbox\n3,"[[1, 2, 30, 40]]"\n5,[]\n',
    "spans.csv": b'start_fid,end_fid,bbox\n3,5,"[[1, 2, 30, 40]]"\n',
    "truth.json": json.dumps([{"fid": 3, "boxes": [[1, 2, 30, 40]]}, {"time": 0.5, "boxes": []}]).encode(),
}


def _lists(place: Path) -> Parts:
    return _LISTS


def _read_list(place: Path, name: str, data: bytes) -> None:
    from essl_fast.data.datasets import flickr, listed, truth, vggss

    path = place / name
    path.write_bytes(data)
    if name == "flickr.csv":
        for once in (True, False):
            assert all(name and "/" not in name for name in listed.read_names(path, once))
    elif name == "flickr.xml":
        label = listed.Label(flickr.read_boxes(path), flickr.SIDE, (listed.UNKNOWN,), name)
        assert all(len(box) == 4 for box in listed.on_grid(label, "v", "v_000001", []))
    elif name == "vggss.json":
        for key, label in vggss.read_boxes(path, 1).items():
            assert all(len(box) == 4 for box in listed.on_grid(label, key, key, []))
    elif name == "spans.csv":
        table = place / "truth" / "annotation" / "group" / "v.csv"
        table.parent.mkdir(parents=True, exist_ok=True)
        path.replace(table)
        truth.read_truth(place / "truth", "v")
    else:
        truth.read_truth(path, "v", (320, 180))


# ---------------------------------------------------------------- a prepared folder


@cache
def _prepared(place: Path) -> Path:
    """A prepared folder of pictures and clips, as `prepare` and `prepare --verify` leave it."""
    root = place / "prepared"
    video = make_video(place / "videos" / "v.mp4", sound=clicks(4, 16_000, at=(2.0,)))
    frame = next(rgb for _, rgb in media.decode_frames(video, [(17, 1.6)]))
    cut = next(clip for _, clip in clips.cut_clips(video, [(15, 1.4)]))
    picture = io.BytesIO()
    parts.Image.fromarray(frame).save(picture, "JPEG", **parts.JPEG)
    sound = (np.sin(np.arange(48_000) / 9) * 9000).astype("<i2").tobytes()
    kinds, splits, row, crc = [], {}, 0, []
    for split in tars.SPLITS:
        with tars.ShardWriter(root, split, 2) as writer:
            for number in range(3):
                clip = (cut.target, 0) if number == 1 else None
                told = {"key": f"{split}.v_{number:06d}", "boxes": [[1, 2, 30, 40]], "classes": ["horn"]}
                data = picture.getvalue() if clip is None else cut.data
                writer.add(told["key"], data, sound, told, row, clip)
                kinds.append((tars.JPEG, 0) if clip is None else (tars.CLIP, cut.target))
                crc.append(tars.pair_crc(data, sound))
                row += 1
            splits[split] = {"pairs": 3, "videos": 1, "shards": writer.close()}
    visual, target = np.array(kinds).T
    shards.write_manifest(
        root,
        keys=[f"{split}.v_{n:06d}" for split in tars.SPLITS for n in range(3)],
        split=np.repeat(range(3), 3),
        class_id=np.zeros(row),
        labelled=np.ones(row, bool),
        boxes=np.tile(np.int32([1, 2, 30, 40]), (row, 1, 1)),
        time=np.full(row, 1.6),
        visual=visual,
        target=target,
        quarters=np.zeros(row),
        crc=np.array(crc, np.uint32),
        classes=["horn"],
        splits=splits,
        settings={"visual": "clip", "seed": 0},
        more={"jpeg_instead": {}},
        left_out=[{"video": "v", "key": None, "reason": media.WINDOW, "detail": "v.mp4: 3 s around 0 s"}],
    )
    entries = [
        {"row": 0, "key": "train.v_000000", "reason": "black", "detail": "x"},
        {"row": None, "key": None, "reason": "corrupt", "detail": "x"},
    ]
    (root / shards.QUARANTINE).write_bytes(b"".join(map(tars.json_bytes, entries)))
    return root


def _folder(place: Path) -> Parts:
    root = _prepared(place)
    names = ["manifest.json", "left_out.jsonl", "quarantine.jsonl", "train-00000.idx"]
    names += [f"pairs/{path.name}" for path in sorted((root / "pairs").iterdir())]
    return {name: (root / name).read_bytes() for name in names}


def _open_folder(place: Path, name: str, data: bytes) -> None:
    from essl_fast.prepare import preparing, reporting

    root = _prepared(place)
    with _changed(root / name, data), contextlib.redirect_stdout(io.StringIO()):
        with contextlib.suppress(InputError):
            preparing._finished(root, {"visual": "clip", "seed": 0}, preparing.Reporter())
        manifest = shards.Manifest.load(root)
        assert all(0 <= number < len(manifest.classes) for number in manifest.class_id)
        assert not len(manifest) or (manifest.boxes.min() >= 0 and manifest.boxes.max() <= 224)
        assert np.isfinite(manifest.time).all()
        manifest.quarantine()
        reporting.print_summary(manifest)
        _read_pairs(manifest)


def _read_pairs(manifest: shards.Manifest) -> None:
    for splits in (["train", "val"], ["test"]):
        found = Shards(manifest, splits, "bad")
        pcm = np.empty((len(found), tars.SAMPLES), np.int16)
        with ThreadPoolExecutor(1) as pool:
            pictures = found.read(np.arange(len(found)), pcm, pool, 1)
        shard_bytes = sum(path.stat().st_size for path in found.paths)
        assert sum(len(picture.file) for picture in pictures) <= shard_bytes


def _shard(place: Path) -> Parts:
    root = _prepared(place)
    return {"train-00000.tar": (root / "train-00000.tar").read_bytes()}


def _walk_shard(place: Path, name: str, data: bytes) -> None:
    path = place / "walk.tar"
    path.write_bytes(data)
    for pair in tars.iterate(path):
        assert len(pair["s16"]) == tars.PCM_BYTES and len(pair.get("jpg", pair.get("mp4"))) <= len(data)
        assert isinstance(pair["json"], dict)


def _verified(place: Path) -> Parts:
    root = _prepared(place)
    names = ("train-00000.tar", "train-00000.idx", "pairs/target.npy", "pairs/visual.npy", "manifest.json")
    return {name: (root / name).read_bytes() for name in names}


def _verify(place: Path, name: str, data: bytes) -> None:
    from essl_fast.prepare.verify import verify

    root = _prepared(place)
    with _changed(root / name, data), _changed(root / shards.QUARANTINE):
        verify(shards.Manifest.load(root), workers=1)


# ---------------------------------------------------------------- pictures, clips and videos


def _jpegs(place: Path) -> Parts:
    frame = noisy(3)
    found = {}
    for name, options in {
        "baseline": {},
        "subsampled": {"subsampling": 2},
        "progressive": {"progressive": True},
        "restart": {"restart_marker_blocks": 4},
        "exif": {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0"},
    }.items():
        for mode in ("RGB", "L"):
            out = io.BytesIO()
            parts.Image.fromarray(frame).convert(mode).save(out, "JPEG", quality=60, **options)
            found[f"{name}-{mode}.jpg"] = out.getvalue()
    return found


def _jpeg(place: Path, name: str, data: bytes) -> None:
    from essl_fast.prepare import verify

    try:
        width, height = jpeg.jpeg_size(np.frombuffer(data, np.uint8))
    except ValueError:
        return
    assert 0 < width * height <= jpeg.MOST_PIXELS
    with contextlib.suppress(media.MediaError, ValueError, OSError):  # what `verify` lists as a fault of the pair
        assert verify._decode(data, tars.JPEG, 0).shape == (height, width, 3)


def _for_dali(place: Path) -> Parts:
    found = _jpegs(place)
    _dali(place, "baseline-RGB.jpg", found["baseline-RGB.jpg"])  # its imports take longer than an input may
    return found


def _dali(place: Path, name: str, data: bytes) -> None:
    import torch

    from essl_fast.data.loading.pipeline import DecodeError, FrameDecoder
    from essl_fast.data.shards.reading import Picture

    sound, bad = (np.frombuffer(some, np.uint8) for some in (_jpegs(place)["baseline-RGB.jpg"], data))
    batch = [Picture(sound), Picture(bad)]
    with ThreadPoolExecutor(1) as pool:
        decoder = FrameDecoder(iter([batch]).__next__, 2, 32, torch.device("cpu"), 1, 1, pool, clips=False)
        try:
            assert next(decoder).shape == (2, 32, 32, 3)
        except DecodeError as error:
            assert set(error.faults) <= {1}, error.faults
            decoder.drop([1])
            assert next(decoder).shape == (1, 32, 32, 3)
        finally:
            decoder.close()


def _stills(place: Path) -> Parts:
    found = dict(list(_jpegs(place).items())[:4])
    for kind in ("png", "bmp", "webp"):
        for mode in ("RGB", "L"):
            out = io.BytesIO()
            parts.Image.fromarray(noisy(3)).convert(mode).save(out, kind)
            found[f"{mode}.{kind}"] = out.getvalue()
    return found


def _still(place: Path, name: str, data: bytes) -> None:
    from essl_fast.data.media import stills

    path = place / name
    path.write_bytes(data)
    stored = stills.picture_file(path)
    width, height = jpeg.jpeg_size(np.frombuffer(stored, np.uint8))
    assert 0 < width * height <= jpeg.MOST_PIXELS


def _arrays(place: Path) -> Parts:
    import h5py

    rng, found = np.random.default_rng(0), {}
    for kind, shape in (("frames", (3, 24, 32, 3)), ("audios", (3, 48_000))):
        out = io.BytesIO()
        with h5py.File(out, "w") as file:
            values = rng.integers(0, 256, shape).astype(np.float32)
            file.create_dataset(f"train_{kind}", data=values, chunks=(1, *shape[1:]), compression="gzip")
        found[f"{kind}.h5"] = out.getvalue()
    return found


def _array(place: Path, name: str, data: bytes) -> None:
    from essl_fast.data.datasets import hdf5

    root = place / "h5"
    root.mkdir(exist_ok=True)
    for other, sound in _arrays_of(place).items():
        (root / other).write_bytes(data if other == name else sound)
    left_out: list = []
    requests = [(f"v_{row:06d}", row + 1, 0.0) for row in range(3)]
    for _, picture, heard in hdf5.stored_rows(root / "frames.h5", root / "audios.h5", requests, range(3), left_out):
        assert len(heard) == 4 * tars.SAMPLES and jpeg.picture_size(np.frombuffer(picture, np.uint8))


_arrays_of = cache(_arrays)

_CODECS = {
    "h264": {"codec": "libx264", "options": {"bf": "2", "preset": "veryfast"}},
    "hevc": {"codec": "libx265", "options": {"x265-params": "log-level=none:pools=1", "preset": "ultrafast"}},
    "vp9": {"codec": "libvpx-vp9", "options": {"deadline": "realtime", "cpu-used": "8"}},
    "av1": {"codec": "libsvtav1", "options": {"preset": "12", "svtav1-params": "lp=1"}},
    "mjpeg": {"codec": "mjpeg", "pix_fmt": "yuvj420p"},
}


def _clips(place: Path) -> Parts:
    found = {}
    for name, how in _CODECS.items():
        path = make_video(place / "clips" / f"{name}.mp4", seconds=1, sound=None, picture=noisy, **how)
        _, clip = next(clips.cut_clips(path, [(8, 0.7)]))
        found[f"{name}-{clip.target}.mp4"] = clip.data
    return found


def _clip(place: Path, name: str, data: bytes) -> None:
    target = int(Path(name).stem.rpartition("-")[2])
    try:
        frame = clips.decode_clip(data, target)
    except ValueError as error:  # of which MediaError is one; training and `verify` know both
        assert type(error) in (ValueError, media.MediaError), repr(error)
        return
    assert frame.dtype == np.uint8 and frame.shape[2] == 3 and frame.size


def _videos(place: Path) -> Parts:
    made = {
        "h264.mp4": {**_CODECS["h264"]},
        "front.mp4": {**_CODECS["h264"], "container": {"movflags": "faststart"}},
        "hevc.mkv": {**_CODECS["hevc"], "sound_codec": "flac"},
        "vp9.webm": {**_CODECS["vp9"], "sound_codec": "libopus", "rate": 48_000},
        "mjpeg.avi": {**_CODECS["mjpeg"], "sound_codec": "pcm_s16le"},
        "av1.mp4": _CODECS["av1"],
        "fragments.mp4": {**_CODECS["h264"], "container": {"movflags": "frag_keyframe+empty_moov"}},
    }
    found = {}
    for name, how in made.items():
        rate = how.get("rate", 16_000)
        sound = clicks(3.5, rate, at=(1.0,))
        path = make_video(place / "made" / name, seconds=3.5, fps=5, picture=noisy, sound=sound, **how)
        found[name] = path.read_bytes()
    return found


def _video(place: Path, name: str, data: bytes) -> None:
    folder, path = place / "parts", place / "in" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    wanted = tuple((f"v_{fid:06d}", fid, (fid - 1) / 5) for fid in (2, 9, 10))
    for copied in (True, False):
        task = parts.Task("v", str(path), wanted, clips=copied)
        part = parts.make_part(task, folder)
        held = (folder / "v.part").stat().st_size
        answered = [*part["members"], *(key for key, *_ in part["left_out"] if key)]
        rest = {key for key, *_ in wanted}.difference(answered)  # of the whole video: "... (2 pairs)"
        assert len(answered) + len(rest) == len(wanted), "a pair is there twice"
        whole = [told for key, _, told in part["left_out"] if not key]
        assert all(f"({len(rest)} pair" in told for told in whole) and len(whole) == bool(rest), (rest, whole)
        for offset, frame, sound, *_ in part["members"].values():
            assert sound == tars.PCM_BYTES
            assert 0 <= offset and offset + frame + sound <= held
        reasons = {reason for _, reason, _ in part["left_out"]}
        assert reasons <= {value for value in vars(media).values() if isinstance(value, str)}, reasons
    shutil.rmtree(folder)


# ---------------------------------------------------------------- settings and checkpoints


def _configs(place: Path) -> Parts:
    return {path.name: path.read_bytes() for path in sorted(config.configs_folder().glob("*.yaml"))}


def _config(place: Path, name: str, data: bytes) -> None:
    path = place / "config" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    _check_config(config.load(str(path)))


def _check_config(settings: config.Config) -> None:
    assert config.from_dict(json.loads(json.dumps(config.to_dict(settings)))) == settings


def _settings(place: Path) -> Parts:
    return {"settings.json": json.dumps(config.to_dict(config.Config())).encode()}


def _from_dict(place: Path, name: str, data: bytes) -> None:
    try:
        values = json.loads(data)
    except (ValueError, RecursionError):
        return
    _check_config(config.from_dict(values))


@cache
def _network():
    import torch
    from torch import nn

    torch.set_num_threads(1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def _checkpoints(place: Path) -> Parts:
    from essl_fast import checkpoints

    network = _network()
    state = {
        "config": config.to_dict(config.load("demo")),
        "model": checkpoints.trained_state(network),
        "epoch": 3,
        "data_root": "x",
        "best": 0.5,
        "history": [{"epoch": 1, "loss": 0.1}],
    }
    checkpoints.save(place / "seed.pt", state)
    shapes = {key: {"shape": list(value.shape)} for key, value in state["model"].items()}
    return {"seed.pt": (place / "seed.pt").read_bytes(), "state.json": json.dumps(state | {"model": shapes}).encode()}


def _tensors(values):
    """Values of JSON with tensors for the shapes in them, which share one number however large they are."""
    import torch

    if isinstance(values, dict) and values.keys() == {"shape"}:
        return torch.zeros(1).expand(values["shape"])
    return {key: _tensors(value) for key, value in values.items()} if isinstance(values, dict) else values


def _checkpoint(place: Path, name: str, data: bytes) -> None:
    from essl_fast import checkpoints

    path = place / "last.pt"
    path.write_bytes(data)
    if name == "state.json":  # its values are what is damaged; the file is sound
        try:
            checkpoints.save(path, _tensors(json.loads(data)))
        except (ValueError, TypeError, RecursionError, RuntimeError, OverflowError):
            return
    state = checkpoints.load(path)
    checkpoints.settings_of(state)
    before = {key: value.clone() for key, value in _network().state_dict().items()}
    try:
        checkpoints.load_trained(_network(), state["model"])
    finally:
        _network().load_state_dict(before)


# ----------------------------------------------------------------


@contextlib.contextmanager
def _changed(path: Path, data: bytes | None = None):
    """A file with other content, for a while."""
    before = path.read_bytes()
    path.write_bytes(before if data is None else data)
    try:
        yield
    finally:
        path.write_bytes(before)


TARGETS = {
    target.name: target
    for target in (
        Target("annotations", _notes, _read_notes),
        Target("lists", _lists, _read_list),
        Target("folder", _folder, _open_folder),
        Target("shard", _shard, _walk_shard),
        Target("verify", _verified, _verify, native=True),
        Target("moments", _videos, read_moments, allowed=(media.MediaError,), native=True, slow=True),
        Target("figures", lambda place: FIGURES, read_figures),
        Target("config", _configs, _config, slow=True),
        Target("settings", _settings, _from_dict),
        Target("checkpoint", _checkpoints, _checkpoint),
        Target("jpeg", _jpegs, _jpeg, allowed=(), native=True),
        Target("still", _stills, _still, allowed=(media.MediaError,), native=True),
        Target("hdf5", _arrays, _array, allowed=(InputError, media.MediaError), native=True, slow=True),
        Target("clip", _clips, _clip, allowed=(), native=True),
        Target("video", _videos, _video, allowed=(), native=True, slow=True),
        Target("dali", _for_dali, _dali, allowed=(), native=True, slow=True),
    )
}
