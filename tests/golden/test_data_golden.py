"""Annotations, windows, sound and frames against what the published code's data scripts made."""

import json
from pathlib import Path

import numpy as np
import pytest

from essl_fast.data import media
from essl_fast.data.datasets import boxes_to_grid, read_chaotic_world
from essl_fast.data.media import audio
from essl_fast.data.shards import iterate
from essl_fast.prepare import prepare
from tests.golden.store import golden
from tests.tools.media import make_video, write_annotations


def box_map(boxes):
    """uint8 (224, 224): 1 inside a box."""
    image = np.zeros((224, 224), np.uint8)
    for left, top, right, bottom in boxes:
        image[top:bottom, left:right] = 1
    return image


def normalized(sound):
    """The published code's normalisation of a clip: minimum to -1, maximum near 1."""
    sound = sound - sound.min()
    return (sound / (sound.max() + np.float32(1e-3)) - np.float32(0.5)) * np.float32(2)


def test_box_maps():
    data = golden("gt_maps")
    boxes, maps = data["chaotic_boxes320x180"], data["chaotic_map"]
    grid = boxes_to_grid(boxes, 320, 180)
    # A corner that scales to -1 or less wraps around in NumPy; ours is clamped to 0. Everywhere else: equal.
    wraps = ((boxes / [320, 180, 320, 180] * 224).astype(np.int64) < 0).any(axis=1)
    assert 5 <= wraps.sum() <= 10
    for box, expected in zip(grid[~wraps], maps[~wraps], strict=True):
        np.testing.assert_array_equal(box_map([box]), expected)
    clamped = np.clip(boxes[wraps], 0, None)
    np.testing.assert_array_equal(grid[wraps], boxes_to_grid(clamped, 320, 180))


def test_box_rounding():
    data = golden("gt_maps")
    x, y = np.arange(-20, 361), np.arange(-20, 221)
    assert int(data["chaotic_int_x0"]) == -20
    for column, values, expected in ((0, x, data["chaotic_int_x"]), (1, y, data["chaotic_int_y"])):
        boxes = np.zeros((len(values), 4))
        boxes[:, column] = values
        np.testing.assert_array_equal(boxes_to_grid(boxes, 320, 180)[:, column], np.clip(expected, 0, 224))


@pytest.mark.parametrize("name", ["short_16k", "exact_16k", "stereo_44k1"])
def test_sound_of_a_file(tmp_path, name):
    data = golden("audio_load")
    rate, expected = int(data[f"{name}_sr"]), data[f"{name}_audio"]
    sound = data[f"{name}_pcm16"].T.astype(np.float32) / 32768
    path = make_video(tmp_path / "v.mkv", sound=sound, sound_codec="pcm_s16le", rate=rate, seconds=1)
    decoded = audio.decode_sound(path)
    assert decoded.rate == rate and len(decoded.mono) == sound.shape[1]
    stored = audio.to_stored(decoded.mono, rate)
    tolerance = 1e-6 if rate == 16_000 else 5e-2
    assert np.abs(normalized(stored) - expected).max() <= tolerance
    # soxr is what librosa used, so the resampled file is far within its tolerance; one step of PCM16 is 2**-15
    assert np.abs(normalized(stored) - expected).max() <= 2e-6
    gain = 2 / (stored.max() - stored.min() + 1e-3)
    assert np.abs(normalized(audio.to_pcm16(stored) / np.float32(32768)) - expected).max() <= 1.5 * gain * 2**-15


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Golden's synthetic set as real files (lossless), prepared: (golden, manifest, {key: pair as written})."""
    data = golden("prep")
    root = tmp_path_factory.mktemp("prep")
    rng = np.random.default_rng(int(data["wave_seed"]))

    def picture(fid):
        draw = np.random.default_rng([int(data["wave_seed"]), fid]).uniform(0.01, 0.3, (3, 2))
        y, x = np.mgrid[:180, :320]
        bgr = [np.clip(127 + 100 * np.sin(a * x + b * y), 0, 255).round() for a, b in draw]
        return np.stack(bgr[::-1], axis=-1).astype(np.uint8)

    wanted = {int(fid) for fid in data["row_start_fid"]}
    blank = np.zeros((180, 320, 3), np.uint8)
    waves = {}
    for index, video in enumerate(map(str, data["videos"])):
        shape = int(data["video_channels"][index]), int(data["video_samples"][index])
        rate = int(data["video_sr"][index])
        wave = np.float32(0.2) * rng.standard_normal(shape, dtype=np.float32)
        assert wave.sum(dtype=np.float64) == pytest.approx(float(data["wave_sum"][index]), abs=1e-2)
        waves[video] = wave, rate
        make_video(
            root / "videos" / f"{video}.mkv",
            codec="ffv1",
            pix_fmt="bgr0",
            fps=30,
            seconds=shape[1] / rate,
            sound=wave,
            sound_codec="pcm_f32le",
            rate=rate,
            picture=lambda n: picture(n) if n in wanted else blank,
        )
    rows: dict[str, list[str]] = {str(video): [] for video in data["videos"]}
    for video, fid, time, boxes, label in zip(
        *(data[f"row_{name}"] for name in ("video", "start_fid", "start_time", "bbox", "ssl")), strict=True
    ):
        rows[str(video)].append(f'{fid},{time},"{boxes}",{label}')
    write_annotations(root / "notes", {}, rows, header="start_fid,start_time,bbox,ssl")
    manifest = prepare(root / "videos", root / "notes", root / "out", workers=1, progress=False)
    pairs = {pair["key"]: pair for tar, _ in manifest.shards("test") for pair in iterate(tar)}
    return data, manifest, pairs, waves, root


def test_the_same_pairs_are_kept_and_left_out(published):
    data, manifest, pairs, _, root = published
    assert set(pairs) == set(map(str, data["dataset_csv"])) and len(manifest) == 5
    with open(manifest.root / "left_out.jsonl") as file:
        left = [json.loads(line) for line in file]
    # the published script lists these too, and writes no wav for them
    assert {entry["key"] for entry in left} == set(map(str, data["list_csv"])) - set(map(str, data["saved_name"]))
    assert {entry["reason"] for entry in left} == {"sound window leaves the audio track"}
    read = read_chaotic_world(root / "notes", validation=0)
    assert [pair.key for pair in read.pairs] == list(map(str, data["list_csv"]))


def test_window_offsets(published):
    data, _, _, waves, root = published
    read = read_chaotic_world(root / "notes", validation=0)
    time = {pair.key: pair.time for pair in read.pairs}
    for name, offset, length, rate in zip(*(data[f"saved_{n}"] for n in ("name", "offset", "len", "sr")), strict=True):
        assert audio.window_span(time[str(name)], int(rate)) == (offset, length)
    assert 35_279 in data["saved_offset"]


def test_boxes_and_classes(published):
    data, manifest, pairs, _, _ = published
    for key, used in zip(map(str, data["dataset_csv"]), data["gt_bbox_used"], strict=True):
        row = pairs[key]["row"]
        stored = manifest.boxes[row].tolist()
        # the published code keeps the last row's box of a frame, ours all rows'
        rows = [index for index, name in enumerate(map(str, data["json_file"])) if name == key]
        expected = boxes_to_grid(data["json_bbox"][rows], 320, 180).tolist()
        assert [box for box in stored if box[2] > box[0]] == expected
        assert boxes_to_grid([used], 320, 180).tolist()[0] == expected[-1]
        assert manifest.classes[manifest.class_id[row]] == str(data["json_class"][rows[0]])
        assert pairs[key]["json"]["classes"] == list(dict.fromkeys(str(data["json_class"][at]) for at in rows))


def test_sound(published):
    data, _, pairs, waves, root = published
    keys = list(map(str, data["dataset_csv"]))
    times = {pair.key: pair.time for pair in read_chaotic_world(root / "notes", validation=0).pairs}
    for index, key in enumerate(keys):
        wave, rate = waves[key.split("_")[0]]
        decoded = audio.decode_sound(root / "videos" / f"{key.split('_')[0]}.mkv")
        np.testing.assert_array_equal(decoded.mono, wave.mean(axis=0, dtype=np.float32))
        exact = audio.to_stored(audio.sound_window(decoded.mono, rate, times[key]), rate)
        result = normalized(exact)
        if index == 0:
            assert np.abs(result - data["h5_audios_row0"]).max() <= 1e-6
        assert result.sum(dtype=np.float64) == pytest.approx(float(data["h5_audios_sum"][index]), abs=5e-2)
        stored = np.frombuffer(pairs[key]["s16"], "<i2")
        assert np.abs(stored / 32768.0 - np.clip(exact, -1, 32767 / 32768)).max() <= 0.5001 / 32768


def test_frame(published):
    data, _, pairs, _, root = published
    expected = data["frame_row0_rgb"]
    ((_, rgb),) = media.decode_frames(Path(root / "videos" / "AAAAAAAA.mkv"), [(60, 2.0)])
    np.testing.assert_array_equal(rgb, expected)
    import io

    from PIL import Image

    stored = np.asarray(Image.open(io.BytesIO(pairs["AAAAAAAA_000060"]["jpg"])))
    assert stored.shape == expected.shape
    assert np.abs(stored.astype(int) - expected).mean() < 4  # quality 95 on dense sine waves
