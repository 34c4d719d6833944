"""What stays dark: silence, pictures of one colour, and moments whose score is too small to be believed."""

import io
import json

import av
import numpy as np
import pytest
import torch
from PIL import Image

from essl_fast import checkpoints
from essl_fast.data.media import blank, decode_frames
from essl_fast.localize import localize
from essl_fast.localize import result as results
from essl_fast.localize.heat import HeatScale
from essl_fast.localize.moments import Localization, Moment
from essl_fast.localize.trust import Trust
from tests.localize.conftest import noise
from tests.tools.media import make_video, numbered

BLACK, SILENT = range(81, 121), (4.0, 8.0)  # frames from 1; seconds


def half_empty(folder):
    """12 s at 10 frames/s: sound but for 4 to 8 s, where a noise of -70 dB is left; pictures but for 8 to 12 s."""
    sound = noise(12)
    sound[:, 64_000:128_000] *= 0.0006
    rng = np.random.default_rng(1)

    def picture(number):
        dark = rng.integers(0, 4, (90, 160, 3), dtype=np.uint8)
        return dark if number in BLACK else numbered(number)

    return make_video(folder / "v.mkv", seconds=12, sound=sound, sound_codec="pcm_s16le", picture=picture)


def test_silence_and_black_frames_stay_dark(run, tmp_path):
    path = half_empty(tmp_path)
    found = localize(path, run, tmp_path / "out", rate=2)
    told = json.loads((tmp_path / "out" / "v.moments.json").read_text())["moments"]
    why = {moment["time"]: moment.get("why") for moment in told}
    assert [why[time] for time in (5.5, 6.0, 6.5)] == ["the sound is silent"] * 3
    assert {why[time] for time in np.arange(8, 12, 0.5)} == {"the picture is one colour"}
    dark = [moment for moment in found.moments if moment.time in (5.5, 6.0, 6.5) or moment.time >= 8]
    assert not any(moment.shown or moment.regions or found.heat(moment) is not None for moment in dark)
    assert all(moment.shown for moment in found.moments if moment.time < 5)
    with av.open(str(path)) as file:
        before = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
    for index, after in decode_frames(tmp_path / "out" / "v.overlay.mp4", [(11, 0.0), (61, 0.0), (101, 0.0)]):
        changed = np.abs(after.astype(int) - before[(10, 60, 100)[index]]).mean()
        assert changed > 10 if index == 0 else changed < 4  # the codec's
    sheet = Image.open(io.BytesIO(results.sheet(found)))
    assert sheet.width > 4 * 160


def test_the_sheet_explains_green_only_where_it_is_drawn(monkeypatch):
    monkeypatch.setattr(results, "contact_sheet", lambda pictures, titles, columns, legend: legend.encode())
    moments = [Moment(1, 0.0), Moment(2, 0.5, truth=((10.0, 10.0, 40.0, 40.0),))]
    thumbs = [(moment, np.zeros((90, 160, 3), np.uint8)) for moment in moments]
    drawn = [results.sheet(Localization(160, 90, moments, [], thumbs=thumbs[:count])) for count in (1, 2)]
    assert [b"green" in legend for legend in drawn] == [False, True]


def test_one_scale_for_the_whole_video():
    loud, faint = np.zeros((14, 14), np.float32), np.zeros((14, 14), np.float32)
    loud[3:6, 3:6], faint[8:11, 8:11] = 0.9, 0.3
    moments = [Moment(1, 0.0, similarity=loud, shown=True), Moment(2, 0.5, similarity=faint, shown=True)]
    found = Localization(160, 90, moments, [], scale=HeatScale.of(faint).over(HeatScale.of(loud)))
    assert found.heat(moments[0]).max() == 1 and found.heat(moments[0]).min() == 0
    assert found.heat(moments[1]).max() == pytest.approx(1 / 3, abs=1e-6)
    assert not HeatScale.of(np.full((14, 14), 0.4)).heat(np.full((14, 14), 0.4)).any()


@pytest.mark.parametrize("given, shown", [(None, "some"), (-1.0, "all"), (1.0, "none")])
def test_the_smallest_score(run, tmp_path, given, shown):
    """The default is the checkpoint's; JSON, sheet and overlay show the same moments."""
    path = make_video(tmp_path / "v.mp4", seconds=6, sound=noise(6))
    scores = [moment.score for moment in localize(path, run, tmp_path / "all", video=False).moments]
    least = sorted(scores)[len(scores) // 2]
    state = checkpoints.load(run / "best.pt")
    best = {"epoch": 3, "score": [0.9, 0.7], "split": "val", "min_score": least}
    checkpoints.save(tmp_path / "best.pt", {"kind": "best", **state, "best": best})
    found = localize(path, tmp_path / "best.pt", tmp_path / "out", min_score=given)
    told = json.loads((tmp_path / "out" / "v.moments.json").read_text())
    expected = {
        "some": [score >= least for score in scores],
        "all": [True] * len(scores),
        "none": [False] * len(scores),
    }
    assert [moment.shown for moment in found.moments] == expected[shown]
    assert told["min_score"] == (least if given is None else given)
    assert any("stay dark" in note for note in told["notes"]) is (given is None)
    for moment, entry, visible in zip(found.moments, told["moments"], expected[shown], strict=True):
        assert entry["score"] == pytest.approx(moment.score, abs=1e-4)
        assert visible or (entry["regions"] == [] and "is below" in entry["why"] and found.heat(moment) is None)


BEST = {"epoch": 3, "score": [0.9, 0.7], "split": "val"}
DEMO = {"config": {"data": {"root": "demo"}}, "data": {"classes": ["bell", "car"]}, "data_root": "/worlds/w/prepared"}


def test_what_a_checkpoint_says_of_itself(tmp_path):
    def of(state):
        return Trust.of(state, tmp_path / "best.pt")

    assert of({"kind": "best", "best": BEST | {"min_score": 0.25}})[0] == 0.25
    assert of({"kind": "last", "epoch": 3, "best": BEST | {"min_score": 0.25}})[0] == 0.25
    later = of({"kind": "last", "epoch": 4, "best": BEST | {"min_score": 0.25}})  # other weights than the best epoch's
    old = of({"kind": "best", "best": BEST})
    assert later[0] is old[0] is None and "does not say" in later.reason and "essl_fast.evaluate" in old.reason
    never = of({"kind": "best", "best": BEST | {"min_score": None}})
    assert never.min_score is None and "none can be trusted" in never.reason
    assert of({}).toys == () and not of({}).warning(tmp_path)


def test_a_model_of_the_demo_says_that_it_knows_toys_only(tmp_path):
    trust = Trust.of(DEMO | {"data_root": str(tmp_path / "w" / "prepared")}, tmp_path / "best.pt")
    said = trust.warning(tmp_path / "cat.mp4")
    assert "2 toy objects only (bell, car)" in said and "means nothing" in said
    assert trust.warning(tmp_path / "w" / "world" / "a.mp4") == ""


@pytest.mark.parametrize(
    "pcm, silent",
    [
        (np.zeros(99, np.int16), True),
        (np.full(99, 900, np.int16), True),  # an offset is no sound
        (np.array([32, -32, 0], np.int16), True),
        (np.array([40, -40, 0], np.int16), False),
        (np.array([32767, -32768], np.int16), False),
    ],
)
def test_what_is_silent(pcm, silent):
    assert blank.is_silent(pcm) is silent


def test_what_is_plain():
    frames = torch.zeros(5, 8, 8, 3, dtype=torch.uint8)
    frames[1], frames[2, ..., 0] = 255, 200  # white, red
    frames[3, 2, 2] = 12  # noise of a codec
    frames[4, 2, 2, 1] = 60
    assert blank.are_plain(frames).tolist() == [True] * 4 + [False]
