"""The benchmark of moments, tiny: it compares first, and never times frames that are not the video's."""

import json

import pytest
import torch

from benchmarks import moments
from benchmarks.common import Mismatch
from essl_fast.data import media
from essl_fast.data.loading import reels
from essl_fast.data.media import hardware
from essl_fast.data.media.footage import Video
from tests.tools.media import make_video

SMALL = ["--device", "cpu", "--length", "1", "--size", "160x96", "--rates", "5,30", "--repeats", "1", "--seconds", "1"]


@pytest.fixture(autouse=True)
def as_it_was(monkeypatch):
    monkeypatch.setattr(hardware, "BACKEND", hardware.BACKEND)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    hardware._pipeline.cache_clear()


@pytest.mark.nightly  # the whole benchmark
def test_everything_is_measured(tmp_path, capsys):
    assert moments.main([*SMALL, "--json", str(tmp_path / "out.json")]) == 0
    told = json.loads((tmp_path / "out.json").read_text())
    assert [result["items"] for result in told["results"]] == [5, 30]
    for result in told["results"]:
        assert set(result["times"]) == {"ours", "PyAV", "clips"} and result["goals"] == {"clips": 1.0}
        assert result["checked"].startswith("within ") and result["name"].startswith("vp9 160x96")
    assert "moments" in capsys.readouterr().out


def test_what_dali_does_not_decode_is_not_timed(tmp_path):
    """Its decoder for CPUs knows no H.264: PyAV would decode, and the times would be PyAV's."""
    video = Video(media.probe(make_video(tmp_path / "v.mp4", seconds=1)))
    with pytest.raises(Mismatch, match="DALI could not decode"):
        moments.compare(video, 5.0, torch.device("cpu")).check()


def test_other_frames_are_found(tmp_path, monkeypatch):
    video = Video(media.probe(moments.make_video(tmp_path / "v.webm", 1.0, 160, 96, "libvpx-vp9")))
    compared = moments.compare(video, 5.0, torch.device("cpu"))
    assert compared.check().startswith("within ")
    cut = reels.cut_reels

    def shifted(found, places, together):
        for some, reel in cut(found, places, together):
            yield some, reels.Reel(reel.data, reel.places, tuple(max(0, at - 3) for at in reel.targets), reel.quarters)

    monkeypatch.setattr(reels, "cut_reels", shifted)
    with pytest.raises(Mismatch, match="apart from PyAV's"):
        compared.check()
