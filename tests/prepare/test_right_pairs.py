"""Prepared pairs hold the right picture and the right sound, and a run tells where files or tables are doubtful."""

import io
import json
import re
import shutil
import unicodedata

import numpy as np
import pytest
from PIL import Image

from essl_fast.common.errors import InputError
from essl_fast.data.media import decode_clip
from essl_fast.data.shards import SPLITS, Manifest, iterate
from essl_fast.prepare import __main__ as door
from essl_fast.prepare import compare, prepare, preview, reporter
from essl_fast.prepare.against import _lag
from tests.tools.clocks import BFRAMES, COARSE, SKIPPING, amid, amid_refresh, decoding_order
from tests.tools.fields import field_coded, hevc_fields, reordered
from tests.tools.media import join_tracks, make_sound, make_video, number_of, numbered, row, write_annotations
from tests.tools.prepare import left_out

QUIET = {"workers": 1, "progress": False, "validation": 0.0}


def sounding(seconds: float) -> np.ndarray:
    return np.random.default_rng(0).uniform(-0.5, 0.5, round(seconds * 16_000)).astype(np.float32)


def with_sound(folder, silent, seconds: float, kind: str = "mkv"):
    """A file without sound, and a noise beside it, in one file."""
    sound = make_sound(folder / "sound.mkv", sounding(seconds), "pcm_s16le", 16_000)
    return join_tracks(folder / f"joined.{kind}", silent, sound)


def _plain(folder):
    return decoding_order(folder, "mp4"), [(fid, (fid - 1) / 10) for fid in (16, 17, 18, 19, 41)]


def _fields(folder):
    path = with_sound(folder, field_coded(folder / "f.mkv", 50), 5)
    return path, [(fid, (fid - 1) / 10) for fid in (16, 17, 30)]


def _fields_in_avi(folder):
    path = with_sound(folder, field_coded(folder / "f.avi", 50), 5, "avi")
    return path, [(fid, (fid - 1) / 10) for fid in (16, 17, 30)]


def _hevc_fields(folder):
    return hevc_fields(folder / "f.mp4", 5, sound=sounding(5)), [(fid, (fid - 1) / 10) for fid in (16, 17, 30)]


def _p_pictures(folder):
    path = with_sound(folder, reordered(folder / "f.mp4", groups=5), 5)
    return path, [(fid, (fid - 1) / 10) for fid in (16, 17, 18, 19, 30)]


def _dropped(folder):
    sound = {"sound": sounding(6), "sound_codec": "pcm_s16le"}
    path = make_video(folder / "d.avi", pts=SKIPPING, ticks=10, **sound, **BFRAMES)
    return path, [(place + 1, SKIPPING[place] / 10) for place in (14, 20, 31)]


def _coarse(folder):
    path = make_video(folder / "c.mp4", pts=COARSE, ticks=10, sound=sounding(7), **BFRAMES)
    return path, [(place + 1, COARSE[place] / 10) for place in (14, 20, 26)]


def _amid(folder):
    return amid(folder), [(fid, (fid - 1) / 10) for fid in (16, 30)]


def _refresh(folder):
    return with_sound(folder, amid_refresh(folder, "mkv"), 6), [(fid, (fid - 1) / 10) for fid in (16, 24)]


KINDS = {  # name → (makes a file and frames to ask for, number that the first shows - 1, pictures are counted)
    "plain": (_plain, 0, True),
    "fields": (_fields, 0, True),
    "fields in AVI": (_fields_in_avi, 0, True),
    "HEVC fields": (_hevc_fields, 0, False),
    "P pictures": (_p_pictures, 0, True),
    "dropped": (_dropped, 0, True),
    "coarse": (_coarse, 0, False),
    "amid": (_amid, 10, False),
    "amid a refresh": (_refresh, 18, True),
}


def pairs_of(manifest):
    return {pair["key"]: pair for tar, _ in manifest.shards(SPLITS) for pair in iterate(tar)}


def picture_of(pair) -> np.ndarray:
    if "mp4" in pair:
        return decode_clip(pair["mp4"], pair["target"])
    return np.asarray(Image.open(io.BytesIO(pair["jpg"])))


@pytest.mark.parametrize("kind", KINDS)
def test_both_forms_hold_the_right_pictures(tmp_path, kind):
    make, before, counted = KINDS[kind]
    path, asked = make(tmp_path)
    (tmp_path / "videos").mkdir()
    shutil.move(path, tmp_path / "videos" / f"v{path.suffix}" if path.suffix != ".ts" else tmp_path / "videos/v.mkv")
    make_video(tmp_path / "videos" / "z.mp4", sound=sounding(4))
    notes = write_annotations(tmp_path / "notes", {"v": [row(*one) for one in asked]}, {"z": [row(21, 2.0)]})
    for visual in ("jpeg", "clip"):
        out = tmp_path / visual
        manifest = prepare(tmp_path / "videos", notes, out, visual=visual, **QUIET)
        found = pairs_of(manifest)
        assert not left_out(out) and len(found) == len(asked) + 1
        for fid, _ in asked:
            assert number_of(picture_of(found[f"v_{fid:06d}"])) == fid + before
        assert compare(manifest, tmp_path / "videos", reporter(False)) == (len(found), 0)
        assert (out / "against.jsonl").read_bytes() == b""
        if visual == "clip" and counted:
            ((reason, entry),) = manifest.header["jpeg_instead"].items()
            assert reason == "no clip can be cut for this frame" and entry["pairs"] == len(asked)
            assert manifest.header["clocks"].keys() == {"v"}


def test_against_finds_what_is_wrong(tmp_path, capsys):
    for name in ("a", "z"):
        make_video(tmp_path / "videos" / f"{name}.mp4", seconds=8, sound=sounding(8), options={"bf": "0"})
    asked = [row(fid, (fid - 1) / 10) for fid in (21, 31, 41)]
    notes = write_annotations(tmp_path / "notes", {"a": asked}, {"z": [row(21, 2.0)]})
    manifest = prepare(tmp_path / "videos", notes, tmp_path / "out", visual="jpeg", **QUIET)
    ask = ["--verify", "--against", str(tmp_path / "videos"), "--out", str(tmp_path / "out")]
    assert door.main(ask) == 0
    assert "4 pairs were compared with" in capsys.readouterr().out
    later = make_video(
        tmp_path / "other" / "a.mp4", seconds=8, sound=sounding(8)[800:], picture=lambda n: numbered(n + 1)
    )
    shutil.copy(tmp_path / "videos" / "z.mp4", later.parent)
    assert compare(manifest, later.parent, reporter(False)) == (4, 6)
    listed = [json.loads(line) for line in (tmp_path / "out" / "against.jsonl").read_text().splitlines()]
    assert [(entry["key"], entry["what"]) for entry in listed[:2]] == [("a_000021", "picture"), ("a_000031", "picture")]
    assert "frame 20 is nearest" in listed[0]["detail"]
    assert listed[3]["detail"] == "it is what the video has 0.050 s earlier"
    ask[2] = str(later.parent)
    assert door.main(ask) == 1
    (later.parent / "z.mp4").unlink()
    assert compare(manifest, later.parent, reporter(False)) == (4, 7)
    with pytest.raises(InputError, match="--against: .* is not a folder"):
        compare(manifest, tmp_path / "nowhere", reporter(False))
    with pytest.raises(SystemExit):
        door.main(["--against", str(tmp_path), "--out", str(tmp_path / "out")])


def test_the_lag_of_a_sound():
    around = sounding(7)
    for shift in (0, 31, 32_000):
        lag, alike = _lag(around, around[shift : shift + 48_000])
        assert lag == pytest.approx(shift / 16_000) and alike == pytest.approx(1)
        assert _lag(around, around[shift : shift + 48_000], 0.5) == (lag, alike)
    hum = np.sin(np.arange(112_000) * 2 * np.pi * 50 / 16_000).astype(np.float32)  # fits every 20 ms
    assert _lag(hum, hum[1600:49_600], 0.1)[0] == pytest.approx(0.1, abs=1e-3)


CONTRADICTIONS = {  # rows of the video a: (fid, time); what is said of it
    "right": ([(16, 1.5), (41, 4.0)], ""),
    "published": ([(16, 1.6), (41, 4.1)], ""),  # time = fid / rate, in every video
    "another rate": ([(25, 2.0), (49, 4.0)], "in 2 of 2 pairs, by 0.40 to 0.80 s: .*as if numbered at a rate of 12 a"),
    "shifted": ([(31, 2.0), (41, 3.0)], "in 2 of 2 pairs, by 1.00 s: .*as if numbered from 11 on"),
    "from 0": ([(20, 2.0), (40, 4.0)], "one frame after .* as if its frames were numbered from 0 on"),
}


@pytest.mark.parametrize("kind", CONTRADICTIONS)
def test_numbers_and_times_that_contradict_each_other(tmp_path, capsys, kind):
    asked, said = CONTRADICTIONS[kind]
    for name in ("a", "b", "z"):
        make_video(tmp_path / "videos" / f"{name}.mp4", seconds=8, sound=sounding(8))
    late = 0.1 if kind == "published" else 0.0
    others = [row(31, 3.0 + late), row(36, 3.5 + late)]
    write_annotations(tmp_path / "notes", {"a": [row(*one) for one in asked], "b": others}, {"z": others})
    ask = ["--videos", str(tmp_path / "videos"), "--annotations", str(tmp_path / "notes"), "--visual", "jpeg"]
    ask += ["--validation", "0", "--workers", "1", "--out", str(tmp_path / "out")]
    assert door.main(ask) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("a: ")]
    told = Manifest.load(tmp_path / "out").header.get("contradictions", {})
    assert door.main([*ask, "--strict"]) == int(bool(said))
    assert ("contradict each other in 1 videos" in capsys.readouterr().err) == bool(said)
    if not said:
        assert not told and not lines
        return
    assert lines == [f"a: {told['a']}"] and told.keys() == {"a"}
    assert told["a"].endswith("the picture follows the number, the sound the time")
    assert re.search(said, told["a"])


VARYING = {  # rows of a video of 40 pictures whose rate varies: (picture, seconds too late); what is said of it
    "right": (lambda n, t: (n, t), ""),
    "one step late, rounded": (lambda n, t: (n, round(t + 0.05, 1)), ""),
    "from 0": (lambda n, t: (n - 1, t), ""),  # could be published times
    "from 11": (lambda n, t: (n + 10, t), "by 2.20 to 3.00 s: .* as if numbered from 11 on"),
    "a constant rate": (
        lambda n, t: (round(t * 25) + 1, t),
        "as if numbered at a constant rate of 2[45][.0-9]* a second",
    ),
    "mean rate": (lambda n, t: (n, (n - 1) / 5.3), "by 0.[0-9]+ to "),
}


@pytest.mark.parametrize("kind", VARYING)
def test_numbers_and_times_where_the_rate_varies(tmp_path, capsys, kind):
    rows_of, said = VARYING[kind]
    stamps = [*range(0, 20), *range(20, 80, 3)]  # 10 a second, then a third of that
    make_video(tmp_path / "videos" / "a.mp4", pts=stamps, ticks=10, sound=sounding(9))
    make_video(tmp_path / "videos" / "z.mp4", sound=sounding(4))
    asked = [row(*rows_of(place + 1, stamps[place] / 10)) for place in (16, 19, 22, 25, 30)]
    write_annotations(tmp_path / "notes", {"a": asked}, {"z": [row(21, 2.0)]})
    ask = ["--videos", str(tmp_path / "videos"), "--annotations", str(tmp_path / "notes"), "--visual", "jpeg"]
    ask += ["--validation", "0", "--workers", "1", "--strict", "--out", str(tmp_path / "out")]
    assert door.main(ask) == int(bool(said))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("a: ")]
    assert len(lines) == bool(said) and all(re.search(said, line) for line in lines)
    assert all(
        "the rate varies" in line and line.endswith("the picture and the sound follow the time") for line in lines
    )


LATE, EXACT, ZERO, LAST = (21, 2.1), (21, 2.0), (0, 0.0), (40, 4.0)
NUMBERINGS = {  # frames asked for in two videos of 40; what is said of all
    "right": ([EXACT], [EXACT], ""),
    "published": ([LATE], [LATE, LAST], ""),
    "from 0, perhaps": ([LATE], [LATE], "n / rate in all 2 videos .* as in Chaotic World"),
    "from 0": (
        [ZERO, LATE],
        [LATE],
        "frame 0 is asked for in 1 videos, .* in all 2 videos .* seem to be numbered from 0",
    ),
    "frame 0 alone": (
        [ZERO, EXACT],
        [EXACT],
        "asked for in 1 videos, the first is a: frames seem to be numbered from 0",
    ),
    "both": ([ZERO, LATE], [LATE, LAST], "yet in 1 videos the last frame is asked for"),
}


@pytest.mark.parametrize("kind", NUMBERINGS)
def test_all_numbers_from_0(tmp_path, capsys, kind):
    *asked, said = NUMBERINGS[kind]
    strict = int(ZERO in asked[0])  # that row is left out
    for name in ("a", "z"):
        make_video(tmp_path / "videos" / f"{name}.mp4", sound=sounding(6))
    some, others = ([row(*one) for one in rows] for rows in asked)
    notes = write_annotations(tmp_path / "notes", {"a": some}, {"z": others})
    ask = ["--videos", str(tmp_path / "videos"), "--annotations", str(notes), "--visual", "jpeg", "--validation", "0"]
    assert door.main([*ask, "--workers", "1", "--strict", "--out", str(tmp_path / "out")]) == strict
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("frame numbers: ")]
    assert len(lines) == bool(said) and all(re.search(said, line) for line in lines)


def test_names_in_either_form_and_any_case(tmp_path):
    composed, apart = (unicodedata.normalize(form, "Café") for form in ("NFC", "NFD"))
    base = make_video(tmp_path / "videos" / "z.mp4", sound=sounding(4))
    for name in (f"{apart}.mp4", "a.Mp4", "B.mp4"):
        shutil.copy(base, tmp_path / "videos" / name)
    rows = [row(21, 2.0)]
    notes = write_annotations(tmp_path / "notes", {composed: rows, "a": rows, "b": rows}, {"z": rows})
    group = notes / "annotation" / "group"
    (group / f"{composed}.csv").rename(group / f"{apart}.csv")
    manifest = prepare(tmp_path / "videos", notes, tmp_path / "out", visual="jpeg", **QUIET)
    assert sorted(manifest.key(at) for at in range(3)) == sorted(["a_000021", f"{composed}_000021", "z_000021"])
    (entry,) = left_out(tmp_path / "out")
    assert entry["video"] == "b" and "there is 'B.mp4', and the name asked for is 'b'" in entry["detail"]


def test_boxes_of_another_size_are_doubted(tmp_path, capsys):
    for name in ("a", "z"):
        make_video(tmp_path / "videos" / f"{name}.mp4", sound=sounding(4))
    boxes = {"large": "[[700, 300, 1280, 715]]", "small": "[[10, 10, 70, 40]]", "right": "[[20, 20, 318, 179]]"}
    said = {
        "large": "warning: 26 of 26 boxes (100%) leave frames of 320x180 and are clamped; the largest coordinates are "
        "1280 and 715; sizes of the videos: 160x90 (2)",
        "small": "warning: all 26 boxes lie in the upper left quarter of frames of 320x180; the largest coordinates",
        "right": "",
    }
    for kind, box in boxes.items():
        rows = [row(fid, (fid - 1) / 10, box) for fid in range(16, 26)]
        box = box.replace("700, 300", "10, 10")
        rows += [row(fid, (fid - 1) / 10, box) for fid in range(26, 29)]
        notes = write_annotations(tmp_path / kind, {"a": rows}, {"z": rows})
        ask = ["--videos", str(tmp_path / "videos"), "--annotations", str(notes), "--visual", "jpeg"]
        assert door.main([*ask, "--validation", "0", "--workers", "1", "--out", str(tmp_path / f"{kind}_out")]) == 0
        warned = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning")]
        assert len(warned) == bool(said[kind]) and all(line.startswith(said[kind]) for line in warned)
        assert all("--annotation-size" in line for line in warned)


@pytest.mark.parametrize("visual", ["jpeg", "clip"])
def test_the_preview_shows_pairs_with_their_boxes(tmp_path, visual):
    grey = np.full((90, 160, 3), 90, np.uint8)
    for name in ("a", "z"):
        make_video(tmp_path / "videos" / f"{name}.mp4", seconds=6, sound=sounding(6), picture=lambda number: grey)
    rows = [row(fid, (fid - 1) / 10, "[[80, 45, 240, 135]]") for fid in range(16, 36)]
    notes = write_annotations(tmp_path / "notes", {"a": rows}, {"z": rows[:1]})
    manifest = prepare(tmp_path / "videos", notes, tmp_path / "out", visual=visual, **QUIET)
    sheet = np.asarray(Image.open(tmp_path / "out" / "preview.png").convert("RGB")).astype(int)
    green = (sheet[..., 1] > 200) & (sheet[..., 0] < 60)
    assert sheet.shape == (4 * 134, 4 * 160, 3) and len(manifest) == 21
    first = np.argwhere(green[:120, :160])  # 160 x 90 pixels are shown as they are
    assert first.min(0).tolist() == [22, 40] and first.max(0).tolist() == [66, 119]
    assert all(green[134 * y :, 160 * x :][:120, :160].any() for y in range(4) for x in range(4))


def test_prepare_ends_well_without_its_preview(tmp_path, monkeypatch, capsys):
    make_video(tmp_path / "videos" / "a.mp4", seconds=4, sound=sounding(4))
    notes = write_annotations(tmp_path / "notes", {"a": [row(21, 2.0)]}, {})

    def fail(*_, **__):
        raise TypeError("expected string")  # of a Pillow whose font takes no bytes

    monkeypatch.setattr(preview.ImageDraw.ImageDraw, "text", fail)
    options = {**QUIET, "progress": True}
    assert len(prepare(tmp_path / "videos", notes, tmp_path / "out", visual="jpeg", **options)) == 1
    said = capsys.readouterr().err
    assert "preview.png could not be written (TypeError: expected string); the data are complete" in said
    assert not (tmp_path / "out" / "preview.png").exists()


@pytest.mark.parametrize(("key", "shown"), [("a_1", "a_1"), ("x" * 40, "x" * 26), ("影像_7", "??_7")])
def test_a_key_is_shown_in_letters_that_every_font_has(key, shown):
    assert preview._shown(key) == shown
