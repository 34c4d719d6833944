"""The benchmark of preparation, tiny: it compares first, and tells costs of all three routes."""

import json

import numpy as np
import pytest

h5py = pytest.importorskip("h5py")

from benchmarks import prepare  # noqa: E402
from benchmarks.baselines import published_prepare  # noqa: E402
from essl_fast.data.media import audio  # noqa: E402
from essl_fast.data.shards import Manifest  # noqa: E402
from tests.tools.media import clicks, make_video, row, write_annotations  # noqa: E402


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Two videos with stereo sound at 44.1 kHz, three pairs, one of which leaves the track."""
    root = tmp_path_factory.mktemp("world")
    for name, at in (("a", 2.0), ("t", 1.8)):
        sound = np.stack([clicks(4, 44_100, at=(at,)), clicks(4, 44_100, at=(at,), level=0.4)])
        make_video(root / f"videos/{name}.mp4", sound=sound, rate=44_100)
    write_annotations(root / "notes", {"a": [row(20, 2.0), row(40, 3.9)]}, {"t": [row(22, 2.2)]})
    return root


@pytest.mark.nightly  # the whole benchmark
def test_everything_is_measured(world, tmp_path, capsys):
    places = ["--videos", str(world / "videos"), "--annotations", str(world / "notes"), "--work", str(tmp_path)]
    path = tmp_path / "prepare.json"
    how = "--processes 1 --repeats 1 --parts 2".split()
    assert prepare.main([*places, *how, "--json", str(path)]) == 0
    told = json.loads(path.read_text())
    assert told["pairs"] == 2 and told["frames"] == 80
    assert set(told["results"]) == {"clip", "jpeg", "published", "parts"}
    assert all(
        cost["seconds"] > 0 and cost["cpu_seconds"] > 0 and cost["bytes"] > 0
        for costs in told["results"].values()
        for cost in costs
    )
    assert told["checked"]["clip"].startswith("2 pairs, frames within 0 grey levels")
    bytes_of = {name: costs[0]["bytes"] for name, costs in told["results"].items()}
    assert bytes_of["published"] > 5 * bytes_of["clip"]  # 80 PNG files and 2 MB of HDF5, for so small a world
    assert "as fast" in told["headline"] and told["headline"] in capsys.readouterr().out
    assert [file.name for file in tmp_path.iterdir()] == ["prepare.json"]  # it tidied up


@pytest.mark.slow
def test_the_comparison_finds_what_is_not_the_same(world, tmp_path):
    wanted = {"a": [("a_000020", 20, 2.0)], "t": [("t_000022", 22, 2.2)]}
    keys = published_prepare.prepare(world / "videos", wanted, tmp_path / "published", 2)
    assert keys == ["a_000020", "t_000022"]
    prepare.ours(world / "videos", world / "notes", "jpeg", 1)(tmp_path / "out")
    manifest, packed = Manifest.load(tmp_path / "out"), tmp_path / "published/pairs.h5"
    assert prepare.compare(manifest, packed, keys).startswith("2 pairs, frames within ")
    with pytest.raises(prepare.Mismatch, match="2 pairs here, 1 in the baseline; 1 differ, first t_000022"):
        prepare.compare(manifest, packed, keys[:1])
    for name, wrong in (("frames", 128), ("audios", 0)):
        with h5py.File(packed, "r+") as held:
            good = held[name][0]
            held[name][0] = wrong
        with pytest.raises(prepare.Mismatch, match="frames differ by"):
            prepare.compare(manifest, packed, keys)
        with h5py.File(packed, "r+") as held:
            held[name][0] = good


def test_the_baseline_extracts_what_the_decoder_gives(world, tmp_path):
    video = world / "videos/a.mp4"
    published_prepare.extract(video, tmp_path / "frames", tmp_path / "sound/a.wav")
    assert sorted(path.name for path in (tmp_path / "frames").iterdir()) == [f"{n:06d}.png" for n in range(1, 41)]
    kept = published_prepare.select(
        [("x", 20, 2.0), ("y", 3, 0.2), ("z", 40, 3.9)],
        tmp_path / "frames",
        tmp_path / "sound/a.wav",
        tmp_path / "pairs",
    )
    assert kept == ["x"]
    frame, sound = published_prepare.read_pair(tmp_path / "pairs", "x")
    assert frame.shape == (256, 256, 3) and sound.shape == (48_000,) and sound.min() == -1
    ours = audio.decode_sound(video)
    window = audio.to_stored(audio.sound_window(ours.mono, ours.rate, 2.0), ours.rate)
    assert np.abs(published_prepare.normalized(window) - sound).max() < 1e-3


def test_a_process_that_fails_is_told(world, tmp_path, capfd):
    with pytest.raises(RuntimeError, match="its process ended with status 1; its message is above"):
        published_prepare.prepare(world / "videos", {"none": [("none_000001", 1, 2.0)]}, tmp_path / "out", 1)
    assert "video file missing" in capfd.readouterr().err


def test_options_that_belong_together(capsys):
    with pytest.raises(SystemExit, match="2"):
        prepare.main(["--videos", "somewhere"])
    assert "both --videos and --annotations" in capsys.readouterr().err
