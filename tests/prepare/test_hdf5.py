"""The published HDF5 files: prepared, loaded, and nothing of them lost."""

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from essl_fast import config, kernels, models
from essl_fast.common.errors import InputError
from essl_fast.data import media
from essl_fast.data.datasets import hdf5, listed
from essl_fast.data.loading import Loader, Pools, resize_host
from essl_fast.data.shards import CLIP, CORRUPT, JPEG, PNG, Manifest
from essl_fast.evaluate import evaluate
from essl_fast.prepare import verify
from tests import ROOT
from tests.golden.store import golden
from tests.prepare.test_datasets import BOXES, TEST, TRAIN, VGG, pairs_of, prepared
from tests.tools import datasets as tools
from tests.tools.media import row, truncate, write_annotations
from tests.tools.prepare import left_out

h5py = pytest.importorskip("h5py")

NAMES = ["AAAAAAAA_000127", "AAAAAAAA_000300", "BBBBBBBB_000005", "CCCCCCCC_001000"]
TESTED = ["TTTTTTTT_000060", "TTTTTTTT_000061", "UUUUUUUU_000002"]
JSON = [
    {"file": TESTED[0], "class": "siren", "bbox": [10, 20, 100, 120]},
    {"file": TESTED[0], "class": "crash", "bbox": [61, 61, 122, 122]},
    {"file": TESTED[2], "class": "crash", "bbox": [-20, 30.5, 160, 179]},
]


@pytest.fixture(scope="module")
def chaotic_h5(tmp_path_factory):
    return tools.make_chaotic_h5(tmp_path_factory.mktemp("h5"), [*NAMES, "DDDDDDDD_000001"], TESTED, JSON, extra=1)


def rows_of(root: Path, kind: str, split: str) -> np.ndarray:
    folder = {"train": "all_unlabeled", "test": "labeled/Data"}[split]
    with h5py.File(root / "ChaoticWorld" / folder / f"h5py_{split}_{kind}.h5") as file:
        return file[f"{split}_{kind}"][:]


@pytest.mark.parametrize("resident", ["never", "always"])
def test_frames_and_log_mels_are_the_published_ones(chaotic_h5, tmp_path, resident):
    out = tmp_path / "out"
    assert prepared("--from-h5", chaotic_h5, "--out", out) == 0
    manifest = Manifest.load(out)
    assert manifest.sound == "<f4" and manifest.consensus == 1 and set(manifest.visual.tolist()) == {PNG}
    assert PNG not in (JPEG, CLIP) and verify(manifest, 1) == {}
    told = {entry["key"]: entry["reason"] for entry in left_out(out)}
    assert told == {"DDDDDDDD_000001": "no row in the HDF5 file", TESTED[1]: listed.NO_LABEL}
    for split, names, side in (("train", NAMES, 246), ("test", [TESTED[0], TESTED[2]], 224)):
        frames, spects = rows_of(chaotic_h5, "frames", split), rows_of(chaotic_h5, "spects", split)
        listing = NAMES if split == "train" else TESTED
        how, seen = {"pools": Pools(resident), "sound": kernels.log_mel}, set()
        with Loader(manifest, split, batch_size=3, side=side, shuffle=True, **how) as loader:
            for batch in loader:
                for at, row in zip(batch.rows.tolist(), batch.index.tolist(), strict=True):
                    place = listing.index(manifest.key(row))
                    expected = resize_host(torch.from_numpy(frames[place].astype(np.uint8))[None], side)[0]
                    assert torch.equal(batch.frames[at], expected)
                    seen.add(manifest.key(row))
                for mel, row in zip(batch.sound, batch.index.tolist(), strict=True):
                    place = listing.index(manifest.key(row))
                    assert np.abs(mel.numpy() - spects[place]).max() < 1e-3
        assert seen == set(names)
    pair = next(pair for pair in pairs_of(manifest, "train") if pair["key"] == NAMES[1])
    with Image.open(io.BytesIO(pair["png"])) as image:
        np.testing.assert_array_equal(np.asarray(image), rows_of(chaotic_h5, "frames", "train")[1])
    assert pair["json"]["fid"] == 300 and pair["json"]["video"] == "AAAAAAAA"


def test_boxes(chaotic_h5, tmp_path):
    out = tmp_path / "out"
    assert prepared("--from-h5", chaotic_h5 / "ChaoticWorld", "--out", out) == 0
    manifest = Manifest.load(out)
    assert (manifest.pairs("train"), manifest.pairs("val"), manifest.pairs("test")) == (4, 0, 2)
    boxes = {manifest.key(row): manifest.boxes[row].tolist() for row in manifest.rows("test")}
    scaled = [[7, 24, 70, 149], [42, 75, 85, 151]]  # int(x / 320 * 224), int(y / 180 * 224)
    assert boxes == {TESTED[0]: scaled, TESTED[2]: [[0, 37, 112, 222], [0, 0, 0, 0]]}
    assert not manifest.labelled[manifest.rows("train")].any()
    settings, device = config.load("demo"), torch.device("cpu")
    model = models.build(settings.model)
    found = evaluate(model, manifest, "test", settings, device, torch.float32, show=1)
    assert len(found.rows) == 2 and np.isfinite(found.ciou).all() and len(found.samples) == 1


def test_with_annotations(chaotic_h5, tmp_path):
    """Chaotic World's annotations label training rows; a labelled training video becomes val."""
    box = "[[61, 115, 122, 122]]"
    notes = write_annotations(
        tmp_path / "notes",
        {"AAAAAAAA": [row(127, 4, box), row(128, 4, box)], "BBBBBBBB": [row(5, 2, box)], "CCCCCCCC": [row(9, 9, box)]},
        {"TTTTTTTT": [row(60, 2, box, "siren"), row(61, 2, box)]},
    )
    arguments = ["--annotations", notes, "--validation", 0.5, "--out", tmp_path / "out"]
    assert prepared("--from-h5", chaotic_h5, *arguments) == 0
    manifest = Manifest.load(tmp_path / "out")
    labelled = {manifest.key(at) for at in range(len(manifest)) if manifest.labelled[at]}
    assert labelled == {NAMES[0], NAMES[2], TESTED[0], TESTED[1]} and manifest.pairs("val") == 1
    assert manifest.boxes[manifest.rows("test")].tolist() == [[[42, 143, 85, 151]]] * 2


@pytest.mark.slow
def test_a_damaged_png_is_told(chaotic_h5, tmp_path):
    out = tmp_path / "out"
    assert prepared("--from-h5", chaotic_h5, "--out", out) == 0
    manifest = Manifest.load(out)
    tar, _ = manifest.shards("test")[0]
    data, pair = bytearray(tar.read_bytes()), pairs_of(manifest, "test")[1]
    at = data.index(pair["png"])
    data[at + 70_000 : at + 90_000] = bytes(20_000)
    tar.write_bytes(data)
    assert verify(manifest, 1) == {CORRUPT: 2}  # the sum, and the picture
    with Loader(manifest, "test", batch_size=2, side=224, shuffle=False) as loader:
        with pytest.raises(InputError, match=f"frame of pair '{TESTED[2]}' in shard .* cannot be decoded"):
            next(iter(loader))
    data[at : at + 8] = b"\x89PNG\r\n\x1a_"
    tar.write_bytes(data)
    lost = []
    how = {"on_error": "skip", "max_errors": 0.5, "least": 1, "on_fault": lambda row, why: lost.append((row, why))}
    with Loader(manifest, "test", batch_size=2, side=224, shuffle=False, **how) as loader:
        (batch,) = loader
    assert batch.index.tolist() == [4] and lost == [(5, "it is no JPEG file")]


def test_vggss_and_flickr(tmp_path, capsys):
    for base in ("VGG-Sound", "SoundNet_Flickr"):
        folder = tmp_path / base / "144k_unlabeled"
        for number in (1, 2):  # the published set has 10 files
            pattern = f"h5py_train_{{}}_144k_{number}.h5"
            tools.write_h5(folder, pattern, "train", tools.published_rows([2 * number, 2 * number + 1]))
        (folder / "train.csv").write_text("".join(f"videos2/1/{name}.mp4\n" for name in TRAIN[:4]))
    vgg = tmp_path / "VGG-Sound"
    tools.write_h5(vgg / "5k_labeled" / "Data", "h5py_test_{}.h5", "test", tools.published_rows([9, 10]))
    (vgg / "vggss_test_4692.csv").write_text("".join(f"{name}\n" for name in VGG[:2]))
    (vgg / "5k_labeled" / "Annotations").mkdir()
    entries = [{"file": name, "class": "dog", "bbox": [[0.1, 0.2, 0.5, 0.9]]} for name in VGG]
    (vgg / "5k_labeled" / "Annotations" / "vggss_test_5158.json").write_text(json.dumps(entries))
    assert prepared("--dataset", "vggss", "--from-h5", tmp_path, "--out", tmp_path / "v") == 0
    manifest = Manifest.load(tmp_path / "v")
    assert [manifest.key(row) for row in range(6)] == [f"{name}_000001" for name in [*TRAIN[:4], *sorted(VGG[:2])]]
    for at, pair in enumerate(pairs_of(manifest, "train")):  # of both files
        with Image.open(io.BytesIO(pair["png"])) as image:
            np.testing.assert_array_equal(np.asarray(image), tools.picture(2 + at, 256, 256))

    flickr = tools.make_flickr(tmp_path / "SoundNet_Flickr", TRAIN, TEST, BOXES)
    tested = ["--test-list", flickr / "flickr_test.csv"]
    assert prepared("--dataset", "flickr", "--from-h5", tmp_path, *tested, "--out", tmp_path / "f") == 0
    manifest = Manifest.load(tmp_path / "f")
    assert (manifest.pairs("train"), manifest.pairs("test")) == (4, 3) and manifest.consensus == 2
    for pair in pairs_of(manifest, "test"):  # a picture and a sound file beside rows
        wave = tools.sound(TEST.index(pair["json"]["video"]))[8_000:56_000]
        assert "jpg" in pair and np.abs(np.frombuffer(pair["f32"], "<f4") - wave).max() <= 1.01 * 2**-16
    with Loader(manifest, "test", batch_size=2, side=32, shuffle=False, pools=Pools("always")) as loader:
        assert all(batch.sound.dtype == torch.float32 for batch in loader)

    capsys.readouterr()
    again = ["--dataset", "vggss", "--from-h5", tmp_path, "--out", tmp_path / "w"]
    (vgg / "vggss_test_other.csv").write_text("a\nb\n")
    assert prepared(*again) == 2
    assert "vggss_test_4692.csv and vggss_test_other.csv: name one with --test-list" in capsys.readouterr().err
    for name in ("vggss_test_4692.csv", "vggss_test_other.csv"):
        (vgg / name).rename(tmp_path / name)
    assert prepared(*again) == 2
    assert "vggss_test_4692.csv is not there: it names the test rows" in capsys.readouterr().err
    for kind in ("frames", "audios"):
        files = vgg / "144k_unlabeled"
        (files / f"h5py_train_{kind}_144k_1.h5").rename(files / f"h5py_train_{kind}_144k_3.h5")
    assert prepared(*again) == 2
    assert "h5py_train_frames_144k_3.h5 is there, and one with a lower number is not" in capsys.readouterr().err
    (files / "h5py_train_frames_144k_last.h5").touch()
    assert prepared(*again) == 2
    assert "144k_last.h5 is not numbered as the published files are" in capsys.readouterr().err
    assert prepared("--dataset", "vggss", "--from-h5", tmp_path / "none", "--out", tmp_path / "w") == 2
    assert "none is not a folder: --from-h5 must name the one that holds" in capsys.readouterr().err

    (tmp_path / "VGG-Sound" / "10k_unlabeled").mkdir()
    capsys.readouterr()
    assert prepared("--dataset", "vggss", "--from-h5", tmp_path, "--out", tmp_path / "w") == 2
    assert "holds both 10k_unlabeled and 144k_unlabeled: choose one with --subset" in capsys.readouterr().err
    assert prepared("--dataset", "vggss", "--from-h5", tmp_path, "--out", tmp_path / "w", "--subset", "10k") == 2
    assert "10k_unlabeled holds 0 CSV files" in capsys.readouterr().err


def test_rows_that_are_no_pairs_are_left_out(tmp_path):
    rows = tools.published_rows([0, 1, 2, 3])
    rows["frames"][0] += 200
    rows["audios"][1] *= 0.5
    rows["audios"][2] = -1  # silence, as the published code normalises it
    frames, audios = tmp_path / "h5py_train_frames.h5", tmp_path / "h5py_train_audios.h5"
    tools.write_h5(tmp_path, "h5py_train_{}.h5", "train", rows)
    left = []
    requests = [(f"k{row}", row, 0.0) for row in range(5)]
    kept = list(hdf5.stored_rows(frames, audios, requests, list(range(5)), left))
    assert [key for key, _, _ in kept] == ["k2", "k3"] and not np.frombuffer(kept[0][2], "<f4").any()
    assert [(key, reason) for key, reason, _ in left] == [
        ("k0", hdf5.NOT_PIXELS),
        ("k1", hdf5.NOT_NORMALISED),
        ("k4", hdf5.DAMAGED),
    ]
    with pytest.raises(media.MediaError, match="from 300 to 300"):  # whole numbers do not wrap around either
        hdf5.to_pixels(np.full((2, 2, 3), 300, np.uint16))


def test_restored_sound_normalises_to_the_row():
    for scale in (1e-4, 0.01, 0.3, 1.0):
        wave = tools.sound(1, 3.0) * scale
        row = tools.normalized(wave)
        again = tools.normalized(hdf5.restored(row))
        assert np.abs(again - row).max() < 2e-6
        centred = wave - (wave.max() + wave.min()) / 2
        assert np.abs(hdf5.restored(row) - centred).max() <= 1e-4 * np.abs(centred).max() + 1e-7


def test_goldens_row():
    """What the published script packed: its log-mel comes out of the sound that is stored of it."""
    data = golden("prep")
    sound = torch.from_numpy(hdf5.restored(data["h5_audios_row0"]))[None]
    assert np.abs(kernels.log_mel(sound)[0].numpy() - data["h5_spects_row0"]).max() < 1e-3
    pixels = hdf5.to_pixels(data["h5_frames_row0"].astype(np.float32))
    np.testing.assert_array_equal(pixels, data["h5_frames_row0"])
    with Image.open(io.BytesIO(hdf5.png_file(pixels))) as image:
        np.testing.assert_array_equal(np.asarray(image), pixels)


def test_errors_of_h5(chaotic_h5, tmp_path, capsys):
    root = tmp_path / "copy"
    shutil.copytree(chaotic_h5, root)
    base = root / "ChaoticWorld"
    frames, audios = (base / "all_unlabeled" / f"h5py_train_{kind}.h5" for kind in ("frames", "audios"))

    def error_of(*more) -> str:
        capsys.readouterr()
        assert prepared("--from-h5", root, "--out", tmp_path / "out", *more) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        return said

    assert "--frame does not go with --dataset chaotic with --from-h5" in error_of("--frame", "all")
    assert "--val-list does not go with --from-h5" in error_of("--val-list", root / "x")
    assert "--row-boxes does not go with --dataset chaotic with --from-h5" in error_of("--row-boxes", "all")
    assert "--validation is 1.0: give a share" in error_of("--validation", "1")
    (base / "labeled" / "Annotations" / "ChaoticWorld_test.json").unlink()
    assert "ChaoticWorld_test.json is not there" in error_of()
    names = base / "all_unlabeled" / "ChaoticWorld_train.csv"
    names.write_text("a\nb\nc\n")
    assert "names 3 different pairs, and the arrays have 4 rows" in error_of()
    names.write_text("a\nb\na\nc\n")
    assert "line 3: 'a' is there twice" in error_of()
    with h5py.File(audios, "w") as file:
        file["train_audios"] = np.zeros((3, 48_000), np.float32)
    assert "has 4 rows and h5py_train_audios.h5 has 3" in error_of()
    spects = base / "all_unlabeled" / "h5py_train_spects.h5"
    held = spects.read_bytes()
    shutil.copy(chaotic_h5 / "ChaoticWorld" / "all_unlabeled" / audios.name, audios)
    with h5py.File(spects, "w") as file:
        file["train_spects"] = np.zeros((5, 3, 96, 64), np.float32)
    assert "has 4 rows and h5py_train_spects.h5 has 5" in error_of()
    spects.write_bytes(held)
    with h5py.File(audios, "w") as file:
        file["train_audios"] = np.zeros((4, 16_000), np.float32)
    assert "float32 (4, 16000) instead of float32 (N, 48000)" in error_of()
    with h5py.File(audios, "w") as file:
        file["train_audios"] = h5py.ExternalLink(
            str(chaotic_h5 / "ChaoticWorld/all_unlabeled/h5py_train_audios.h5"), "train_audios"
        )
    assert "train_audios is no array in this file" in error_of()
    with h5py.File(frames, "w") as file:
        file["train_frames"] = np.zeros((4, 0, 256, 3), np.float32)
    assert "float32 (4, 0, 256, 3) instead of float32 (N, height, width, 3)" in error_of()
    with h5py.File(frames, "w") as file:
        file.create_dataset("train_frames", (4, 4096, 4096, 3), np.float32, chunks=(4, 4096, 4096, 3))
    assert "train_frames is stored in chunks of (4, 4096, 4096, 3): rewrite it with smaller ones" in error_of()
    with h5py.File(frames, "w") as file:
        file["pictures"] = np.zeros(3)
    assert "holds pictures instead of train_frames or test_frames" in error_of()
    truncate(frames, 0.3)
    assert "is no HDF5 file, or an incomplete one" in error_of()
    frames.unlink()
    assert "h5py_train_frames.h5 is not there: --from-h5 needs the published files" in error_of()


def test_without_h5py_the_error_names_it(tmp_path):
    run = "runpy.run_module('essl_fast.prepare', run_name='__main__')"
    script = f"import runpy, sys; sys.modules['h5py'] = None; {run}"
    command = [sys.executable, "-c", script, "--from-h5", str(tmp_path), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "pip install 'essl_fast[h5]'" in done.stderr and done.stderr.count("\n") == 1
