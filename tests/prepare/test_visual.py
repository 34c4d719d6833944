"""Frames as clips or pictures, every annotated frame, and what --verify finds."""

import json
import re
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import av
import numpy as np
import pytest

from essl_fast.common.errors import InputError
from essl_fast.data import media, shards
from essl_fast.data.media import decode_clip, nvdec
from essl_fast.data.shards import Manifest, iterate
from essl_fast.prepare import finishing, prepare
from essl_fast.prepare.__main__ import main
from tests import ROOT
from tests.prepare.test_assembly import KILLER, interrupted
from tests.tools.media import make_video, number_of, numbered, row, write_annotations
from tests.tools.prepare import arguments, hashes, left_out, make_world, run, workers_that

H264 = {"h264": [48, 16, 4096, 4096]}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """As `make_world`, but one of the training videos is MJPEG, and one is AVI, whose packets have no times. H.264 has
    96 rows in all but one, so that what is coded is what is shown."""
    root = make_world(tmp_path_factory.mktemp("world"))
    for name in ("a", "d", "ü f"):
        make_video(root / f"videos/{name}.mp4", picture=partial(numbered, height=96))
    make_video(root / "videos/b.mp4", codec="mjpeg", pix_fmt="yuvj420p")
    (root / "videos/c.mp4").unlink()
    make_video(root / "videos/c.avi", sound_codec="pcm_s16le", picture=partial(numbered, height=96))
    return root


@pytest.fixture(scope="module")
def clips(world, tmp_path_factory):
    out = tmp_path_factory.mktemp("clips") / "out"
    run(world, out, visual="clip")
    return out


def pairs_of(out: Path) -> dict[str, dict]:
    return {pair["key"]: pair for tar, _ in Manifest.load(out).shards(shards.SPLITS) for pair in iterate(tar)}


def test_clips_give_the_frames_of_the_videos(world, clips):
    manifest, pairs = Manifest.load(clips), pairs_of(clips)
    assert len(pairs) == 21
    for key, pair in pairs.items():
        video, fid = key.rsplit("_", 1)
        assert ("mp4" in pair) == (video != "c") == (manifest.visual[pair["row"]] == shards.CLIP)
        place = manifest.target[pair["row"]], manifest.quarters[pair["row"]]
        crc = shards.pair_crc(pair.get("mp4") or pair["jpg"], pair["s16"])
        assert crc == manifest.crc[pair["row"]]
        if video == "c":
            assert place == (0, 0)
            continue
        assert place == (pair["target"], pair["quarters"])
        frame = decode_clip(pair["mp4"], pair["target"])
        path = media.find_video(world / "videos", video)
        ((_, original),) = media.decode_frames(path, [(int(fid), pair["json"]["time"])])
        assert number_of(frame) == int(fid) and np.array_equal(frame, original)
    assert manifest.header["settings"]["visual"] == "clip" and manifest.header["settings"]["decoders"] is None
    ((reason, told),) = manifest.header["jpeg_instead"].items()
    assert reason == "no clip can be cut for this frame" and told["pairs"] == len([k for k in pairs if k[0] == "c"])
    assert told["first"].startswith("c.avi: ")


def test_the_summary_tells_of_pictures_among_clips(world, clips, capsys):
    assert main([*arguments(world, clips), "--visual", "clip"]) == 0
    told = capsys.readouterr().out
    assert "stored as JPEG and not as a clip" in told and "c.avi: " in told
    splits = {line.split()[1]: line.split()[3::2] for line in told.splitlines() if line.startswith("│ t")}
    assert splits["test"][1:3] == ["6", "6"] and int(splits["train"][1]) == int(splits["train"][2]) + 4


def test_sound_and_columns_are_those_of_pictures(world, clips, tmp_path):
    pictures = run(world, tmp_path / "out")
    assert not pictures.visual.any() and pictures.header["jpeg_instead"] == {}
    one, other = pairs_of(clips), pairs_of(tmp_path / "out")
    assert all(one[key]["s16"] == other[key]["s16"] and one[key]["json"] == other[key]["json"] for key in other)
    for name in ("keys", "split", "class_id", "labelled", "boxes", "time"):
        assert np.array_equal(getattr(pictures, name), getattr(Manifest.load(clips), name))


def test_clips_killed_and_continued(world, clips, tmp_path):
    options = [*arguments(world, tmp_path / "out"), "--visual", "clip", "--workers"]
    command = [sys.executable, "-c", KILLER, "essl_fast.data.shards.tars", "ShardWriter.add", "13", *options, "1"]
    killed = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=300)
    assert killed.returncode == -signal.SIGKILL
    subprocess.run([sys.executable, "-m", "essl_fast.prepare", *options, "2"], cwd=ROOT, check=True)
    assert hashes(tmp_path / "out") == hashes(clips)


def test_a_clip_that_is_too_large_becomes_a_picture(world, clips, tmp_path, monkeypatch):
    sizes = sorted(len(pair["mp4"]) for pair in pairs_of(clips).values() if "mp4" in pair)
    most = sizes[len(sizes) // 2]
    workers_that(monkeypatch, f"decoding.LARGEST_CLIP = {most}")
    manifest = run(world, tmp_path / "out", visual="clip")
    told = manifest.header["jpeg_instead"]["clip too large"]
    assert told["pairs"] > 0 and told["first"].endswith("MB from one key frame to the frame")
    kept = [len(pair["mp4"]) for pair in pairs_of(tmp_path / "out").values() if "mp4" in pair]
    assert sorted(kept) == [size for size in sizes if size <= most] and len(kept) + told["pairs"] == len(sizes)
    assert len(manifest) == 21


# ---------------------------------------------------------------- auto


def test_auto_without_a_gpu_makes_pictures(world, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(nvdec, "detect", lambda: ({}, "there is no NVIDIA driver with NVDEC"))
    manifest = run(world, tmp_path / "out", visual="auto", progress=True)
    told = "frames become JPEG, since there is no NVIDIA driver with NVDEC; --visual clip copies clips nevertheless"
    assert told in capsys.readouterr().err
    assert not manifest.visual.any() and manifest.header["settings"]["decoders"] == {}
    assert manifest.header["jpeg_instead"] == {}  # nobody asked for clips
    # what a machine with a GPU makes of it later changes nothing
    monkeypatch.setattr(nvdec, "detect", lambda: pytest.fail("it asked again"))
    assert not run(world, tmp_path / "out", visual="auto").visual.any()


def test_auto_makes_clips_of_what_the_gpu_decodes(world, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(nvdec, "detect", lambda: (H264, ""))
    manifest = run(world, tmp_path / "out", visual="auto", progress=True)
    assert "GPU decodes h264: frames of such videos become clips, others JPEG" in capsys.readouterr().err
    clip = {key for key, pair in pairs_of(tmp_path / "out").items() if "mp4" in pair}
    assert {key[0] for key in clip} == {"a", "d", "ü"}
    told = manifest.header["jpeg_instead"]
    count = len([key for key in manifest.keys if key.startswith(b"b")])
    why = "b.mp4: mjpeg is not decoded by this machine's GPU"
    assert told.pop("no GPU here decodes the video") == {"pairs": count, "first": why}
    slow = told.pop("no decoder of the GPU is used again at this size")
    why = "e.1.mp4: DALI makes a new decoder for each clip of 160x90 pixels, coded as 160x96"
    assert slow == {"pairs": len([key for key in manifest.keys if key.startswith(b"e")]), "first": why}
    assert list(told) == ["no clip can be cut for this frame"]  # of the AVI file
    assert len(clip) + count + slow["pairs"] + told.popitem()[1]["pairs"] == 21


@pytest.mark.slow
@pytest.mark.parametrize("first, then", [(H264, {}), ({}, H264)])
def test_a_run_that_goes_on_elsewhere_does_not_change_its_mind(world, tmp_path, monkeypatch, first, then):
    monkeypatch.setattr(nvdec, "detect", lambda: (first, "no GPU"))
    whole = run(world, tmp_path / "whole", visual="auto").root
    with interrupted(monkeypatch, shards.ShardWriter, "add", 8):
        run(world, tmp_path / "out", visual="auto")
    monkeypatch.setattr(nvdec, "detect", lambda: (then, "no GPU"))
    run(world, tmp_path / "out", visual="auto")
    assert hashes(tmp_path / "out") == hashes(whole)
    # other settings are another run, which asks anew
    with interrupted(monkeypatch, finishing, "write_manifest"):
        run(world, tmp_path / "new", visual="auto")
    assert run(world, tmp_path / "new", visual="auto", seed=1).header["settings"]["decoders"] == then


# ---------------------------------------------------------------- every annotated frame


def test_every_annotated_frame(tmp_path):
    """A frame table's rows, two of them on some frames, in shards that end in the middle of a video."""
    for name in "ab":
        make_video(tmp_path / f"videos/{name}.mp4", seconds=6)
    notes = write_annotations(tmp_path / "notes", {"a": [row(16, 1.5)]}, {"b": [row(16, 1.5)]})
    (notes / "annotation/frame").mkdir()
    for name, last in (("a", 55), ("b", 19)):
        lines = [f'{fid},{(fid - 1) / 10:g},"[[32, 18, 160, 90]]",siren' for fid in range(last, 15, -1)]
        lines += [f'{fid},{(fid - 1) / 10:g},"[[0, 0, 160, 90]]",crash' for fid in range(20, 40)] * (name == "a")
        (notes / f"annotation/frame/{name}.csv").write_text("\n".join(["fid,time,bbox,ssl", *lines]) + "\n")
    settings = {"frame": "all", "validation": 0, "pairs_per_shard": 7, "progress": False}
    manifest = prepare(tmp_path / "videos", notes, tmp_path / "out", workers=2, visual="clip", **settings)
    train = [pair for tar, _ in manifest.shards("train") for pair in iterate(tar)]
    assert [pair["json"]["fid"] for pair in train] == list(range(16, 47))  # then the 3 s leave the track
    assert [shard["pairs"] for shard in manifest.header["splits"]["train"]["shards"]] == [7, 7, 7, 7, 3]
    assert all(number_of(decode_clip(pair["mp4"], pair["target"])) == pair["json"]["fid"] for pair in train)
    assert manifest.boxes.shape == (35, 2, 4) and [len(pair["json"]["boxes"]) for pair in train[3:6]] == [1, 2, 2]
    assert train[4]["json"]["classes"] == ["siren", "crash"] and manifest.pairs("test") == 4
    assert {entry["reason"] for entry in left_out(tmp_path / "out")} == {media.WINDOW}

    folders = ["--videos", str(tmp_path / "videos"), "--annotations", str(notes), "--out", str(tmp_path / "again")]
    options = [*folders, *"--frame all --validation 0 --pairs-per-shard 7 --visual clip".split()]
    command = [sys.executable, "-c", KILLER, "essl_fast.data.shards.tars", "ShardWriter.add", "17", *options]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, timeout=300).returncode == -signal.SIGKILL
    assert main(options) == 0
    assert hashes(tmp_path / "again") == hashes(tmp_path / "out")


# ---------------------------------------------------------------- --verify


def listed(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "quarantine.jsonl").read_text().splitlines()]


def overwrite(out: Path, row_: int, member: str, at: int, data: bytes) -> str:
    """Put bytes into a member of a pair. Returns its key."""
    manifest = Manifest.load(out)
    name = f" {shards.encode_key(manifest.key(row_))}.row"
    ((tar, words),) = [
        (tar, line.split())
        for tar, idx in manifest.shards(shards.SPLITS)
        for line in idx.read_text().splitlines()
        if line.endswith(name)
    ]
    place = int(words[words.index(member) + 1])
    with open(tar, "r+b") as file:
        file.seek(place + at)
        file.write(data)
    return manifest.key(row_)


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """A prepared world of clips and pictures where one video is black, and one is silent."""
    root = tmp_path_factory.mktemp("odd")
    for name in ("good", "test"):
        make_video(root / f"videos/{name}.mp4")
    make_video(root / "videos/black.mp4", picture=lambda n: np.full((90, 160, 3), 3, np.uint8))
    make_video(root / "videos/silent.avi", sound=np.full(64_000, 1e-4, np.float32), sound_codec="pcm_s16le")
    rows = [row(20, 2.0), row(22, 2.2)]
    write_annotations(root / "notes", {"black": rows, "good": rows, "silent": rows}, {"test": rows})
    prepare(root / "videos", root / "notes", root / "out", workers=2, visual="clip", validation=0, progress=False)
    return root / "out"


def test_verify_warns_of_black_and_silent_pairs(odd, capsys):
    assert main(["--verify", "--out", str(odd)]) == 0
    told = capsys.readouterr()
    listing = odd / "quarantine.jsonl"
    assert f"8 pairs were decoded; wrong with them: 2 black, 2 silent; they are listed in {listing}" in told.out
    assert "8/8 pairs verified (100%)" in told.err
    assert [(entry["row"], entry["key"], entry["reason"]) for entry in listed(odd)] == [
        (0, "black_000020", "black"),
        (1, "black_000022", "black"),
        (4, "silent_000020", "silent"),
        (5, "silent_000022", "silent"),
    ]
    assert "no pixel is brighter than" in listed(odd)[0]["detail"] and listed(odd)[2]["detail"].endswith("3 of 32767")
    assert Manifest.load(odd).quarantine() == {0: "black", 1: "black", 4: "silent", 5: "silent"}


def test_verify_finds_what_is_broken(odd, tmp_path, capsys):
    out = tmp_path / "out"
    shutil.copytree(odd, out)
    keys = [
        overwrite(out, 2, "mp4", 500, bytes(range(256))),  # packets of the clip
        overwrite(out, 3, "s16", 1000, b"\1"),  # a bit of sound, which decodes as well as any
        overwrite(out, 4, "jpg", 0, b"\0\0"),
        overwrite(out, 5, "jpg", 700, b"\xff\xd9" * 200),  # the picture ends there
    ]
    assert main(["--verify", "--out", str(out), "--workers", "2"]) == 1
    assert re.search(r"wrong with them: \d corrupt", capsys.readouterr().out)
    found = {(entry["row"], entry["reason"]) for entry in listed(out)}
    assert {row_ for row_, reason in found if reason in shards.BAD} == {2, 3, 4, 5}
    assert {(3, "corrupt"), (4, "corrupt"), (5, "corrupt"), (0, "black"), (1, "black")} <= found
    assert {entry["key"] for entry in listed(out) if entry["reason"] in shards.BAD} == set(keys)
    worst = Manifest.load(out).quarantine()
    assert [worst[row_] in shards.BAD for row_ in range(6)] == [False, False, True, True, True, True]
    assert 6 not in worst and 7 not in worst


def test_verify_finds_a_clip_that_was_damaged_before_it_was_copied(tmp_path):
    """Its bytes are as they were written, and they do not decode: what --visual clip cannot notice."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (40, 90, 160, 3), dtype=np.uint8)
    for name in "at":
        make_video(tmp_path / f"videos/{name}.mp4", picture=lambda n: noise[n - 1])
    path = tmp_path / "videos/a.mp4"
    with av.open(str(path)) as file:
        packet = next(bytes(packet) for packet in file.demux(video=0) if packet.pts and packet.is_keyframe)
    assert (data := path.read_bytes()).count(packet) == 1
    path.write_bytes(data.replace(packet, packet[:100] + bytes(len(packet) - 100)))
    rows = [row(fid, (fid - 1) / 10) for fid in range(16, 26)]
    write_annotations(tmp_path / "notes", {"a": rows}, {"t": rows})
    out = tmp_path / "out"
    options = ["--videos", str(tmp_path / "videos"), "--annotations", str(tmp_path / "notes"), "--out", str(out)]
    assert main([*options, "--visual", "clip", "--validation", "0", "--workers", "1", "--verify"]) == 1
    bad = {row_ for row_, reason in Manifest.load(out).quarantine().items() if reason in shards.BAD}
    train = set(Manifest.load(out).rows("train").tolist())
    assert bad and bad <= train
    assert "the frame cannot be decoded" in (out / "quarantine.jsonl").read_text()
    assert main([*options[:-1], str(tmp_path / "jpeg"), "--visual", "jpeg", "--validation", "0", "--verify"]) == 0
    assert {entry["key"] for entry in left_out(tmp_path / "jpeg")} == {Manifest.load(out).key(n) for n in bad}


def test_verify_finds_a_shard_that_was_changed_beside_its_pairs(odd, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(odd, out)
    overwrite(out, 6, "json", 2, b"K")
    assert main(["--verify", "--out", str(out)]) == 1
    fault = listed(out)[-1]
    assert (fault["row"], fault["key"], fault["reason"]) == (None, None, "corrupt")
    assert "test-00000.tar was changed (its SHA-256 differs), outside of its frames and sounds" == fault["detail"]
    assert 6 not in Manifest.load(out).quarantine()


def test_verify_finds_a_column_that_was_changed(odd, tmp_path):
    """A value that a disk has changed trains a wrong model, and no picture tells."""
    out, name = tmp_path / "out", "pairs/time.npy"
    shutil.copytree(odd, out)
    data = bytearray((out / name).read_bytes())
    data[-1] ^= 1
    (out / name).write_bytes(data)
    assert main(["--verify", "--out", str(out)]) == 1
    fault = listed(out)[0]
    assert (fault["row"], fault["detail"]) == (None, f"{name} was changed (its SHA-256 differs)")


def test_verify_of_what_is_no_prepared_folder(odd, tmp_path):
    with pytest.raises(InputError, match="manifest.json is not there"):
        main(["--verify", "--out", str(tmp_path)])
    shutil.copytree(odd, tmp_path / "out")
    tar = tmp_path / "out/train-00000.tar"
    tar.write_bytes(tar.read_bytes()[:-10_240])
    with pytest.raises(InputError, match="train-00000.tar has"):
        main(["--verify", "--out", str(tmp_path / "out")])
    shutil.copytree(odd, tmp_path / "other")
    (tmp_path / "other/train-00000.idx").write_text("v1.2 0\n")
    with pytest.raises(InputError, match="train-00000.idx does not list the pairs of the manifest"):
        main(["--verify", "--out", str(tmp_path / "other")])


def test_preparing_again_forgets_the_old_list(world, tmp_path):
    out = tmp_path / "out"
    run(world, out)
    assert main(["--verify", "--out", str(out)]) == 0 and (out / "quarantine.jsonl").read_text() == ""
    (out / "test-00000.tar").unlink()
    run(world, out)
    assert not (out / "quarantine.jsonl").exists()
    with pytest.raises(InputError, match="prepared differently"):
        run(world, out, visual="auto")
