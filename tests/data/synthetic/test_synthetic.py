"""The demo world: its layout on disk, that its files follow from the seed, that no blind guess is a good one."""

from __future__ import annotations

import ast
import csv
import itertools
import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest

from essl_fast.common.commands import command
from essl_fast.common.errors import InputError
from essl_fast.data.synthetic import World, look, make_world, sound, tables, videos
from essl_fast.data.synthetic import __main__ as synthetic_door
from essl_fast.data.synthetic.plan import CLASSES, ScenePlan, plan_world
from essl_fast.data.synthetic.settings import CODECS, WorldSettings
from tests import ROOT

SMALL = {"train_videos": 5, "test_videos": 3, "seed": 5, "progress": False}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world") / "demo", workers=1, **SMALL)


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def video(path: Path) -> tuple[np.ndarray, list[float]]:
    """Decoded frames (N, 180, 320, 3) uint8 and their times."""
    with av.open(str(path)) as file:
        frames = [(f.to_ndarray(format="rgb24"), f.time) for f in file.decode(video=0)]
    return np.stack([f for f, _ in frames]), [t for _, t in frames]


def track(path: Path) -> tuple[np.ndarray, int]:
    """Decoded sound (channels, n) float32 and its rate."""
    with av.open(str(path)) as file:
        blocks = [b.to_ndarray() for b in file.decode(audio=0)]
        return np.concatenate(blocks, axis=1), file.streams.audio[0].rate


def files(world: World) -> dict[str, bytes]:
    return {str(p.relative_to(world.path)): p.read_bytes() for p in sorted(world.path.rglob("*")) if p.is_file()}


# ---------------------------------------------------------------- files


def test_layout_on_disk(world: World) -> None:
    names = world.train + world.test
    assert len(set(names)) == 8 and all(len(n) == 8 and n.isalpha() and n.isupper() for n in names)
    expected = {"objects.json", "world.json", "annotations/train_ssl.txt", "annotations/test_ssl.txt"}
    for name in names:
        expected |= {
            f"videos/{name}.mp4",
            *(f"annotations/annotation/{kind}/{name}.csv" for kind in ("group", "frame")),
        }
    assert set(files(world)) == expected
    assert (world.annotations / "train_ssl.txt").read_text().split() == world.train
    assert (world.annotations / "test_ssl.txt").read_text().split() == world.test
    held = json.loads((world.path / "world.json").read_text())
    assert held["settings"]["codec"] == "h264" and held["settings"]["seed"] == 5 and held["classes"] == list(CLASSES)


def test_annotations_agree_with_each_other_and_lie_inside_the_video(world: World) -> None:
    objects, annotated = json.loads(world.objects.read_text()), set()
    for name in world.train + world.test:
        sound, rate = track(world.videos / f"{name}.mp4")
        frames, times = video(world.videos / f"{name}.mp4")
        assert frames.shape == (48, 180, 320, 3)
        assert np.allclose(times, np.arange(48) / 12, atol=1e-3)
        rows = table(world.annotations / "annotation" / "group" / f"{name}.csv")
        per_frame = {int(r["fid"]): r for r in table(world.annotations / "annotation" / "frame" / f"{name}.csv")}
        assert 1 <= len(rows) <= 2
        covered = []
        for row in rows:
            fids = list(range(int(row["start_fid"]), int(row["end_fid"]) + 1))
            covered += fids
            boxes = ast.literal_eval(row["bbox"])
            assert len(boxes) == len(fids) >= 2
            for fid, box in zip(fids, boxes, strict=True):
                assert ast.literal_eval(per_frame[fid]["bbox"]) == [box]
                assert per_frame[fid]["ssl"] == row["ssl"]
                assert float(per_frame[fid]["time"]) == fid / 12
                x0, y0, x1, y1 = box
                assert 0 <= x0 < x1 <= 320 and 0 <= y0 < y1 <= 180
                sounding = [o for o in objects[f"{name}_{fid:06d}"] if o["sounding"]]
                assert [(o["box"], o["class"]) for o in sounding] == [(box, row["ssl"])]
                assert fid <= len(frames)
            for which in ("start", "end"):  # either frame's window lies inside the track as it is decoded
                time = float(row[f"{which}_time"])
                assert time == int(row[f"{which}_fid"]) / 12
                assert time >= 1.5 and int((time - 1.5) * rate) + 3 * rate <= sound.shape[1]
        assert sorted(per_frame) == covered, "groups of a video must not share a frame"
        annotated |= {f"{name}_{fid:06d}" for fid in covered}
    assert set(objects) == annotated


def test_files_follow_from_the_seed_whatever_the_workers(world: World, tmp_path: Path) -> None:
    again = make_world(tmp_path / "two", workers=2, **SMALL)
    assert not again.reused
    assert files(again) == files(world)
    other = make_world(tmp_path / "other", workers=1, **{**SMALL, "seed": 6, "train_videos": 1, "test_videos": 1})
    assert not set(other.train + other.test) & set(world.train + world.test)


def test_decoded_pictures_and_sound_are_the_rendered_ones(world: World) -> None:
    for plan in plan_world(world.settings)[:3]:
        frames, _ = video(world.videos / f"{plan.name}.mp4")
        drawn = np.stack(list(videos.render_frames(plan)))
        error = np.abs(frames.astype(int) - drawn).mean((1, 2, 3))
        apart = np.abs(drawn[1:].astype(int) - drawn[:-1]).mean((1, 2, 3))
        assert error.max() < 12 and np.median(apart) > 3
        shifted = np.abs(frames[1:].astype(int) - drawn[:-1]).mean((1, 2, 3))
        assert (error[1:] < shifted).mean() > 0.9, "frame i of the file is frame i of the plan"
        made, (heard, rate) = videos.render_sound(plan), track(world.videos / f"{plan.name}.mp4")
        assert rate == plan.rate and heard.shape[0] == plan.channels
        n = min(made.shape[1], heard.shape[1])
        assert np.corrcoef(made[0, :n], heard[0, :n])[0, 1] > 0.9, "the track is the sound, and not moved in time"


@pytest.mark.parametrize("codec", CODECS)
def test_every_codec_encodes_and_decodes(codec: str, tmp_path: Path) -> None:
    made = make_world(tmp_path / codec, train_videos=1, test_videos=0, seed=1, codec=codec, workers=1, progress=False)
    path = made.videos / f"{made.train[0]}.mp4"
    with av.open(str(path)) as file:
        assert file.streams.video[0].codec_context.codec.canonical_name == codec
    frames, times = video(path)
    drawn = np.stack(list(videos.render_frames(plan_world(made.settings)[0])))
    assert frames.shape == drawn.shape and np.allclose(times, np.arange(48) / 12, atol=1e-3)
    assert np.abs(frames.astype(int) - drawn).mean() < 12


def test_a_finished_world_is_reused_and_a_half_made_one_is_made_anew(tmp_path: Path) -> None:
    settings = {"train_videos": 2, "test_videos": 1, "seed": 2, "workers": 1, "progress": False}
    first = make_world(tmp_path / "w", **settings)
    before = files(first)
    assert make_world(tmp_path / "w", **settings).reused
    with pytest.raises(InputError, match="other settings"):
        make_world(tmp_path / "w", **{**settings, "seed": 3})
    # as an interruption leaves it: marked as begun, one video cut short, another one of an older run
    (first.path / "world.json").rename(first.path / "world.unfinished.json")
    cut = first.videos / f"{first.train[0]}.mp4"
    cut.write_bytes(cut.read_bytes()[:1000])
    (first.videos / "OLDVIDEO.mp4").write_bytes(b"")
    assert not make_world(tmp_path / "w", **settings).reused
    assert files(first) == before
    cut.unlink()
    assert not make_world(tmp_path / "w", **settings).reused
    assert files(first) == before
    assert not make_world(tmp_path / "w", overwrite=True, **{**settings, "seed": 3}).reused
    assert not cut.exists()


def test_wrong_input_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "world.json").write_text("{")
    (tmp_path / "file").write_text("x")
    for folder, message in (("mine", "is not empty"), ("broken", "not a demo world"), ("file", "not a folder")):
        with pytest.raises(InputError, match=message):
            make_world(tmp_path / folder, train_videos=1, test_videos=1)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "x"
    for wrong, message in (
        ({"codec": "mpeg2"}, "unknown codec 'mpeg2'.*h264"),
        ({"seconds": 3.2}, "give at least 3.58 s"),
        ({"train_videos": 0, "test_videos": 0}, "not both 0"),
        ({"train_videos": -1}, "negative"),
        ({"fps": 0}, "fps is 0"),
        ({"seed": -1}, "seed is -1"),
    ):
        with pytest.raises(InputError, match=message):
            make_world(tmp_path / "new", **wrong)
    monkeypatch.setitem(videos.ENCODERS, "av1", (("libnone",), "yuv420p", {}))
    arguments = ["--out", str(tmp_path / "new"), "--codec", "av1"]
    assert command(lambda: synthetic_door.main(arguments), synthetic_door.PROG) == 2
    error = capsys.readouterr().err
    assert error.startswith("python -m essl_fast.data.synthetic: error: ") and "no av1 encoder (libnone)" in error
    assert not (tmp_path / "new").exists()


def test_a_failing_worker_is_an_error_and_leaves_no_finished_world(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(RuntimeError, match="worker ended with status 1"):
        make_world(tmp_path / "w", train_videos=8, test_videos=0, workers=2, progress=False)
    assert not (tmp_path / "w" / "world.json").exists()


def test_the_command(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "essl_fast.data.synthetic", "--out", str(tmp_path / "w"), "--train-videos", "1"]
    command += ["--test-videos", "1", "--codec", "mjpeg", "--seed", "4"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    assert "1 training and 1 test videos (mjpeg)" in ended.stdout
    assert len(list((tmp_path / "w" / "videos").glob("*.mp4"))) == 2


# ---------------------------------------------------------------- the task is fair


def on_grid(box: tuple[int, int, int, int]) -> np.ndarray:
    return np.array(box) * np.array([224 / 320, 224 / 180] * 2)


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two boxes."""
    inner = np.prod(np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None))
    return float(inner / (np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - inner))


def scenes(split: str, seed: int = 0) -> list[ScenePlan]:
    return [p for p in plan_world(WorldSettings(seed=seed)) if p.split == split]


@pytest.mark.parametrize("split", ["train", "test"])
def test_classes_sound_equally_often_and_differ_within_a_scene(split: str) -> None:
    plans = scenes(split)
    counts = Counter(plan.kind for plan in plans)
    assert set(counts) == set(CLASSES) and max(counts.values()) - min(counts.values()) <= 1
    assert all(len({o.kind for o in plan.objects}) == len(plan.objects) for plan in plans)
    assert set(Counter(len(plan.objects) for plan in plans)) == {3, 4, 5}


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_prior_is_a_good_guess(seed: int) -> None:
    plans = scenes("test", seed)
    largest, first, truth = [], [], []
    for plan in plans:
        now = plan.time(plan.groups[0][0])
        boxes = [on_grid(o.box(now)) for o in plan.objects]
        truth.append(boxes[plan.sounding])
        area = [o.width * o.height for o in plan.objects]
        largest.append(overlap(boxes[int(np.argmax(area))], truth[-1]) >= 0.5)
        first.append(plan.sounding == len(plan.objects) - 1)
    assert np.mean(largest) <= 0.32
    assert np.mean(first) <= 0.4, "the object in front sounds no more often than another"
    for side in range(48, 224, 16):
        centre = np.array([112 - side / 2, 112 - side / 2, 112 + side / 2, 112 + side / 2])
        assert np.mean([overlap(centre, box) >= 0.5 for box in truth]) <= 0.1


def test_objects_are_of_the_size_that_a_14_by_14_map_can_hold_and_seldom_overlap() -> None:
    shares = []
    for plan in scenes("train"):
        boxes = [on_grid(o.box(plan.time(plan.groups[0][0]))) for o in plan.objects]
        for box in boxes:
            assert 55 <= box[2] - box[0] <= 97 and 55 <= box[3] - box[1] <= 97
            assert box.min() >= 0 and box.max() <= 224
        shares += [overlap(a, b) for a, b in itertools.combinations(boxes, 2)]
    assert np.mean(np.array(shares) > 0.1) < 0.02


def test_the_picture_does_not_say_which_object_sounds() -> None:
    plan = plan_world(WorldSettings(train_videos=1, test_videos=0, seed=9))[0]
    frames = list(videos.render_frames(plan))
    for other in range(len(plan.objects)):
        again = videos.render_frames(replace(plan, sounding=other))
        assert all(np.array_equal(a, b) for a, b in zip(frames, again, strict=True))
    others = {replace(plan, sounding=i).kind for i in range(len(plan.objects))}
    assert len(others) == len(plan.objects), "while the sound is another one"


def test_every_object_moves_and_changes_pose() -> None:
    for plan in scenes("test")[:20]:
        times = [plan.time(fid) for fid in range(1, plan.frames + 1)]
        for thing in plan.objects:
            assert len({thing.box(t) for t in times}) > 8
            assert {thing.pose(t) for t in times} == {0, 1}


@pytest.mark.parametrize("kind", CLASSES)
def test_a_sprite_fills_its_box_and_differs_between_poses(kind: str) -> None:
    poses = look.sprite(kind, np.random.default_rng(3), 100, 60)
    assert [p.shape for p in poses] == [(60, 100, 4)] * 2
    seen = np.maximum(poses[0][..., 3], poses[1][..., 3]) > 0
    assert seen[0].any() and seen[-1].any() and seen[:, 0].any() and seen[:, -1].any()
    assert seen.mean() > 0.55
    assert np.abs(poses[0].astype(int) - poses[1]).max() > 60


def test_a_paste_is_the_usual_blend() -> None:
    rng = np.random.default_rng(1)
    frame, picture = rng.integers(0, 256, (30, 40, 3), np.uint8), rng.integers(0, 256, (12, 9, 4), np.uint8)
    picture[:2, :, 3], picture[2:4, :, 3] = 0, 255
    expected, opacity = frame.astype(float), picture[..., 3:] / 255
    expected[5:17, 7:16] = expected[5:17, 7:16] * (1 - opacity) + picture[..., :3] * opacity
    before = frame.copy()
    look.paste(frame, look.stamp(picture), 7, 5)
    assert np.abs(frame - expected).max() <= 1.5
    assert np.array_equal(frame[5:7, 7:16], before[5:7, 7:16]) and np.array_equal(frame[7:9, 7:16], picture[2:4, :, :3])


def test_noise_never_wraps_around() -> None:
    plan = plan_world(WorldSettings(train_videos=1, test_videos=0, seed=11))[0]
    noise = look.noise_sheet().view(np.int8)
    assert np.abs(noise.astype(int)).max() <= look.NOISE
    still = look.background(plan.rng("look"))
    assert still.min() >= look.NOISE and still.max() <= 255 - look.NOISE


def spectrum(sound: np.ndarray, rate: int) -> np.ndarray:
    """Mean log magnitude in 24 bands, 100 Hz to 7.5 kHz, its level removed."""
    frames = np.lib.stride_tricks.sliding_window_view(sound, 2048)[::1024] * np.hanning(2048)
    magnitude = np.abs(np.fft.rfft(frames, axis=1))
    edges = np.geomspace(100, 7500, 25) / (rate / 2048)
    bands = [magnitude[:, int(a) : max(int(b), int(a) + 1)].mean(1) for a, b in itertools.pairwise(edges)]
    feature = np.log(np.stack(bands) + 1e-3).mean(1)
    return feature - feature.mean()


@pytest.mark.slow
def test_classes_can_be_told_by_ear() -> None:
    def clips(split: str, count: int) -> tuple[np.ndarray, np.ndarray]:
        plans = scenes(split)[:count]
        features = [spectrum(videos.render_sound(p).mean(0), p.rate) for p in plans]
        return np.stack(features), np.array([CLASSES.index(p.kind) for p in plans])

    known, kinds = clips("train", 96)
    heard, truth = clips("test", 48)
    centroids = np.stack([known[kinds == k].mean(0) for k in range(len(CLASSES))])
    guess = ((heard[:, None] - centroids) ** 2).sum(-1).argmin(1)
    assert (guess == truth).mean() > 0.8


@pytest.mark.parametrize("kind", CLASSES)
def test_a_clip_is_audible_unclipped_and_not_the_same_twice(kind: str) -> None:
    one, two = (sound.clip(kind, np.random.default_rng(s), 4.0, 44100, 2) for s in (1, 2))
    assert one.shape == (2, 176400) and one.dtype == np.float32
    for start in range(0, 176400 - 44100, 22050):  # audible in any second, so in any window
        assert 0.01 < np.sqrt(np.mean(one[:, start : start + 44100] ** 2)) < 0.5
    assert np.abs(one).max() < 1
    assert abs(np.corrcoef(one[0], two[0])[0, 1]) < 0.5


# ---------------------------------------------------------------- worlds of rising difficulty


@pytest.mark.parametrize("objects, numbers", [("one", {1}), ("two", {2}), ("both", {2}), ("several", {3, 4, 5})])
def test_how_many_objects_a_frame_shows(objects: str, numbers: set[int]) -> None:
    plans = plan_world(WorldSettings(train_videos=48, test_videos=16, seed=1, objects=objects))
    assert {len(plan.objects) for plan in plans} == numbers
    train = [plan for plan in plans if plan.split == "train"]
    assert set(Counter(plan.kind for plan in train).values()) == {6}  # all classes sound equally often
    for plan in plans:
        assert len({thing.kind for thing in plan.objects}) == len(plan.objects)
    if objects == "two":  # the larger one sounds as often as the smaller one
        areas = [[thing.width * thing.height for thing in plan.objects] for plan in train]
        largest = sum(area[plan.sounding] == max(area) for area, plan in zip(areas, train, strict=True))
        assert largest == 24


def test_a_world_of_several_objects_is_as_before_the_choice() -> None:
    assert "objects" not in WorldSettings().record() and WorldSettings(objects="one").record()["objects"] == "one"
    with pytest.raises(InputError, match="unknown objects 'none'; choose one of one, two, both, several"):
        WorldSettings(objects="none")


def test_where_both_objects_sound_the_frames_are_those_of_two_and_the_sound_is_mixed(tmp_path: Path) -> None:
    alone, both = (
        plan_world(WorldSettings(train_videos=4, test_videos=2, seed=1, objects=name)) for name in ("two", "both")
    )
    for one, two in zip(alone, both, strict=True):
        assert one.objects == two.objects and one.sources == (one.sounding,)
        assert two.sources[0] == one.sounding and sorted(two.sources) == [0, 1]
    mixed, own = videos.render_sound(both[0]), videos.render_sound(alone[0])
    assert mixed.shape == own.shape and np.abs(mixed).max() < 1
    assert 0.1 < np.corrcoef(mixed[0], own[0])[0, 1] < 0.99
    tables.write_annotations(both, tmp_path)
    rows = (tmp_path / "annotation" / "group" / f"{both[0].name}.csv").read_text().splitlines()[1:]
    assert {row.rsplit(",", 1)[1] for row in rows} == {thing.kind for thing in both[0].objects}
    assert len(rows) == 2 * len(both[0].groups)
