"""Pictures, clips, videos and HDF5 arrays, as targets of `tests.fuzz.targets`."""

from __future__ import annotations

import contextlib
import io
import shutil
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from essl_fast.data import media
from essl_fast.data.media import errors, jpeg
from essl_fast.data.shards import tars
from essl_fast.prepare.parts import make_part
from essl_fast.prepare.tasks import Task
from tests.fuzz.target import Parts
from tests.tools.media import clicks, make_video, noisy


def jpegs(place: Path) -> Parts:
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
            Image.fromarray(frame).convert(mode).save(out, "JPEG", quality=60, **options)
            found[f"{name}-{mode}.jpg"] = out.getvalue()
    return found


def read_jpeg(place: Path, name: str, data: bytes) -> None:
    from essl_fast.prepare import verifying

    try:
        width, height = jpeg.jpeg_size(np.frombuffer(data, np.uint8))
    except ValueError:
        return
    assert 0 < width * height <= jpeg.MOST_PIXELS
    with contextlib.suppress(media.MediaError, ValueError, OSError):  # what `verify` lists as a fault of the pair
        assert verifying.decode_frame(data, tars.JPEG, 0).shape == (height, width, 3)


def for_dali(place: Path) -> Parts:
    found = jpegs(place)
    read_by_dali(place, "baseline-RGB.jpg", found["baseline-RGB.jpg"])  # its imports take longer than an input may
    return found


def read_by_dali(place: Path, name: str, data: bytes) -> None:
    import torch

    from essl_fast.data.loading import DecodeError, FrameDecoder
    from essl_fast.data.shards import Picture

    sound, bad = (np.frombuffer(some, np.uint8) for some in (jpegs(place)["baseline-RGB.jpg"], data))
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


def still_pictures(place: Path) -> Parts:
    found = dict(list(jpegs(place).items())[:4])
    for kind in ("png", "bmp", "webp"):
        for mode in ("RGB", "L"):
            out = io.BytesIO()
            Image.fromarray(noisy(3)).convert(mode).save(out, kind)
            found[f"{mode}.{kind}"] = out.getvalue()
    return found


def read_still(place: Path, name: str, data: bytes) -> None:
    from essl_fast.data.media import stills

    path = place / name
    path.write_bytes(data)
    stored = stills.picture_file(path)
    width, height = jpeg.jpeg_size(np.frombuffer(stored, np.uint8))
    assert 0 < width * height <= jpeg.MOST_PIXELS


def arrays(place: Path) -> Parts:
    import h5py

    rng, found = np.random.default_rng(0), {}
    for kind, shape in (("frames", (3, 24, 32, 3)), ("audios", (3, 48_000))):
        out = io.BytesIO()
        with h5py.File(out, "w") as file:
            values = rng.integers(0, 256, shape).astype(np.float32)
            file.create_dataset(f"train_{kind}", data=values, chunks=(1, *shape[1:]), compression="gzip")
        found[f"{kind}.h5"] = out.getvalue()
    return found


def read_array(place: Path, name: str, data: bytes) -> None:
    from essl_fast.data.datasets import hdf5

    root = place / "h5"
    root.mkdir(exist_ok=True)
    for other, sound in _arrays_of(place).items():
        (root / other).write_bytes(data if other == name else sound)
    left_out: list = []
    requests = [(f"v_{row:06d}", row + 1, 0.0) for row in range(3)]
    for _, picture, heard in hdf5.stored_rows(root / "frames.h5", root / "audios.h5", requests, range(3), left_out):
        assert len(heard) == 4 * tars.SAMPLES and jpeg.picture_size(np.frombuffer(picture, np.uint8))


_arrays_of = cache(arrays)

_CODECS = {
    "h264": {"codec": "libx264", "options": {"bf": "2", "preset": "veryfast"}},
    "hevc": {"codec": "libx265", "options": {"x265-params": "log-level=none:pools=1", "preset": "ultrafast"}},
    "vp9": {"codec": "libvpx-vp9", "options": {"deadline": "realtime", "cpu-used": "8"}},
    "av1": {"codec": "libsvtav1", "options": {"preset": "12", "svtav1-params": "lp=1"}},
    "mjpeg": {"codec": "mjpeg", "pix_fmt": "yuvj420p"},
}


def make_clips(place: Path) -> Parts:
    found = {}
    for name, how in _CODECS.items():
        path = make_video(place / "clips" / f"{name}.mp4", seconds=1, sound=None, picture=noisy, **how)
        _, clip = next(media.cut_clips(path, [(8, 0.7)]))
        found[f"{name}-{clip.target}.mp4"] = clip.data
    return found


def read_clip(place: Path, name: str, data: bytes) -> None:
    target = int(Path(name).stem.rpartition("-")[2])
    try:
        frame = media.decode_clip(data, target)
    except ValueError as error:  # of which MediaError is one; training and `verify` know both
        assert type(error) in (ValueError, media.MediaError), repr(error)
        return
    assert frame.dtype == np.uint8 and frame.shape[2] == 3 and frame.size


def videos(place: Path) -> Parts:
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


def read_video(place: Path, name: str, data: bytes) -> None:
    folder, path = place / "parts", place / "in" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    wanted = tuple((f"v_{fid:06d}", fid, (fid - 1) / 5) for fid in (2, 9, 10))
    for copied in (True, False):
        task = Task("v", str(path), wanted, clips=copied)
        part = make_part(task, folder)
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
        assert reasons <= {value for value in vars(errors).values() if isinstance(value, str)}, reasons
    shutil.rmtree(folder)
