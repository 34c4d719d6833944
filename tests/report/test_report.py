"""The report of a run: whole, self-contained, and harmless whatever a run is called."""

import base64
import dataclasses
import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from essl_fast.common.errors import InputError, Notice
from essl_fast.data.media.audio import decode_sound
from essl_fast.report import __main__ as report_door
from essl_fast.report import gallery, write_report
from essl_fast.report.charts import Series, histogram, line_chart, nice_ticks, stacked_bar
from essl_fast.report.formatting import duration
from essl_fast.report.gallery_section import gallery_section, heat_of, outline
from essl_fast.report.runs import differences, read, read_all
from essl_fast.report.sounds import encode_sound

EVIL = "</style><script>alert('x')</script>&\""
VOID = {"meta", "input", "br", "img", "link", "hr"}
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Page(HTMLParser):
    """Balanced tags, and everything that would be loaded."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.loads, self.words = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.loads += [value for name, value in attributes if name in ("src", "href", "xlink:href", "srcset", "data")]
        assert not [name for name, _ in attributes if name.startswith("on")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        self.open.pop()

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, tag

    def handle_data(self, data):
        self.words.append(data)


def make_run(folder, name="run", epochs=4, ended=True, root="/data/chaotic", select_on="val", rng=None):
    """A run directory with everything that train writes for a report, in small.

    One function, since it is one table of values, which tests read together.
    """
    rng = rng or np.random.default_rng(0)
    folder.mkdir(parents=True)
    config = {
        "name": name,
        "epochs": epochs,
        "select_on": select_on,
        "objective": {"method": "semipl"},
        "model": {"trunk": "vgg16", "audio": "vggish", "pcm": True},
        "optim": {"lr_head": 1e-3},
        "data": {"root": root, "batch_size": 16},
    }
    environment = {"machine": {"cpu": "a <CPU>"}, "packages": {"torch": "2.11.0"}, "device": "cpu"}
    ciou = rng.random(30)
    ciou[3] = np.nan
    curve = [float((np.nan_to_num(ciou, nan=-1) >= 0.05 * i).mean()) for i in range(21)]
    result = {
        "pairs": 30,
        "success_at_half": 0.6,
        "auc": 0.5,
        "curve": curve,
        "per_class": {
            EVIL: {"pairs": 10, "success_at_half": 0.7, "auc": 0.6},
            "siren": {"pairs": 20, "success_at_half": 0.5, "auc": 0.4},
        },
    }
    log = [
        {"event": "start", "time": 1, "config": config, "environment": environment},
        {"event": "baseline", "time": 2, "name": "untrained", "result": {**result, "auc": 0.1}},
    ]
    for epoch in range(1, epochs + 1):
        log.append(
            {
                "event": "epoch",
                "time": 3,
                "epoch": epoch,
                "losses": {"loss": 5 / epoch, "supervised": 1 / epoch},
                "pairs": 100,
                "pairs_per_second": 50.0,
                "waiting": 0.01,
                "selection": {"success_at_half": 0.1 * epoch, "auc": 0.05 * epoch},
            }
        )
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    if not ended:
        return folder
    summary = {
        "test": result,
        "untrained": {**result, "auc": 0.1},
        "selected": {"epoch": 3, "split": "val"},
        "seconds": 100.0,
        "stage_seconds": {"data": 5, "train": 70.0, "eval": 9.0, "wait": 1.0},
        "pairs_per_second": 51.5,
        "left_out": {"quarantined": 0, "skipped": 2},
        "config": config,
        "environment": environment,
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    keys = [f"clip{i}" for i in range(29)] + [EVIL]
    with (folder / "test_pairs.jsonl").open("w") as file:
        for key, score in zip(keys, ciou, strict=True):
            file.write(json.dumps({"key": key, "class": "siren", "ciou": None if np.isnan(score) else score}) + "\n")
    tone = (np.sin(np.arange(48_000) * 0.3) * 9000).astype(np.int16)
    pictures = [
        gallery.Picture(
            group,
            keys[-1 - at],
            EVIL,
            float(ciou[at]),
            gallery.encode(rng.integers(0, 255, (224, 224, 3), np.uint8)),
            rng.random((14, 14), np.float32),
            np.array([[20, 30, 120, 160], [0, 0, 0, 0]], np.int32),
            encode_sound(tone),
        )
        for group, places in gallery.pick(ciou, 2).items()
        for at in places
    ]
    gallery.save(folder / "gallery.npz", pictures)
    return folder


def page_of(*folders, out):
    assert report_door.main([*map(str, folders), "--out", str(out)]) == 0
    text = out.read_text()
    return text, Page(text)


def check_self_contained(text, page):
    assert all(load.startswith(("data:image/", "data:audio/")) for load in page.loads)
    assert not re.search(r"""(?:src|href|url)\s*[=(]\s*["']?(?:https?:)?//""", text)
    assert "@import" not in text and "script" not in page.tags and "default-src 'none'" in text


def test_one_run(tmp_path, capsys):
    folder = make_run(tmp_path / "one")
    (folder / "profile").mkdir()
    (folder / "profile/stages.json").write_text(json.dumps({"gaps": [f"forward is {EVIL}"]}))
    text, page = page_of(folder, out=tmp_path / "page.html")
    assert "open it in a browser" in capsys.readouterr().out
    check_self_contained(text, page)
    words = "".join(page.words)
    for wanted in (
        "60.0%",
        "50.0%",
        "51.5/s",
        "1 min 40 s",
        "epoch 3",
        "a <CPU>",
        "2 skipped",
        "optim.lr_head",
        "SSPL with PCM, Chaotic World",
        "47.7",
        f"forward is {EVIL}",
        "clip",
        "torch",
    ):
        assert wanted in words, wanted
    assert page.tags.count("svg") == 6 + 6 and len(page.loads) == 18  # charts and pictures; two images and a sound each
    assert EVIL in words and EVIL not in text  # shown, but as text
    again, size = write_report([str(folder)])  # the same run gives the same page
    assert again == folder / "report.html" and size == len(again.read_bytes())
    assert (tmp_path / "page.html").read_bytes() == again.read_bytes()


def test_several_runs_side_by_side(tmp_path):
    names = ("a", EVIL.replace("/", "|"), "c")
    folders = [make_run(tmp_path / name, name, root="demo", epochs=2 + at) for at, name in enumerate(names)]
    shutil.copytree(folders[0], tmp_path / "again" / "a")
    folders.append(tmp_path / "again" / "a")
    runs = read_all(folders)
    assert len({run.label for run in runs}) == 4
    assert differences(runs) == [("epochs", ["2", "3", "4", "2"])]
    text, page = page_of(*folders, out=tmp_path / "deep" / "page.html")
    check_self_contained(text, page)
    words = "".join(page.words)
    assert "4 runs side by side" in words and names[1] in words and "Chaotic World" not in words
    assert "other data than the demo" in words and len(page.loads) == 4 * 18  # frame, heat and sound of six pairs
    ids = re.findall(r' id="([^"]+)"', text)
    assert len(ids) == len(set(ids)) == 12


def test_a_run_that_is_not_over(tmp_path):
    folder = make_run(tmp_path / "going", ended=False, select_on="test")
    with (folder / "log.jsonl").open("a") as file:
        file.write(json.dumps({"event": "resume", "config": read(folder).config, "environment": {}}) + "\n")
        file.write('{"event": "epoch", "epo')  # cut short by a kill
    text, page = page_of(folder, out=tmp_path / "page.html")
    words = "".join(page.words)
    assert "not finished: 4 of 4 epochs" in words and "published protocol" in words and "40.0%" in words
    assert "50/s" in words
    (folder / "log.jsonl").write_text((folder / "log.jsonl").read_text().splitlines(keepends=True)[0])
    assert "no values" in "".join(page_of(folder, out=tmp_path / "page.html")[1].words)


def test_what_is_missing_is_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where the page of several runs goes
    with pytest.raises(InputError, match="not a run directory"):
        report_door.main([str(tmp_path)])
    folder = make_run(tmp_path / "run")
    with pytest.raises(InputError, match="given twice"):
        report_door.main([str(folder), str(folder / ".")])
    (folder / "taken").write_text("")
    with pytest.raises(InputError, match="--out: .* cannot be written"):
        report_door.main([str(folder), "--out", str(folder / "taken" / "page.html")])
    whole = (folder / "gallery.npz").read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:20], b"damaged"):
        (folder / "gallery.npz").write_bytes(damaged)
        with pytest.warns(Notice, match="gallery.npz is not what train wrote"):
            report_door.main([str(folder), "--out", str(tmp_path / "page.html")])
    (folder / "test_pairs.jsonl").unlink()
    with pytest.warns(Notice):
        words = "".join(page_of(folder, out=tmp_path / "page.html")[1].words)
    assert "gallery.npz is not what train wrote" in words and "test_pairs.jsonl is not there" in words
    (folder / "log.jsonl").write_text("{}}\n")
    with pytest.raises(InputError, match="log.jsonl cannot be read"):
        report_door.main([str(folder)])


def test_charts():
    assert nice_ticks(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1.0] and nice_ticks(-0.9, 5.3)[0] == -2
    assert [duration(s) for s in (8.44, 725, 12000)] == ["8.44 s", "12 min 5 s", "3 h 20 min"]
    gap = line_chart("t", [Series("a", [(1, 1), (2, float("nan")), (3, 2), (4, 3)])], x_label="x")
    path = re.search(r'd="([^"]+)"', gap)[1]
    assert path.count("M") == 2 and path.count("L") == 1 and "nan" not in gap
    for constant in ([(1, 5.0)], [(1, 0.0), (2, 0.0)]):
        assert "nan" not in line_chart("t", [Series("a", constant)], x_label="x")
    bars = histogram("t", [0, 1, 1, 0.5], 4, "x", 0.5)
    heights = [float(height) for height in re.findall(r'<rect [^>]*height="([^"]+)"', bars)]
    assert heights[0] == heights[2] > heights[1] == 0 and heights[3] == 2 * heights[0]
    assert "75.0%" in stacked_bar([("a", 3.0), ("b", 1.0)])


def test_the_outline_is_where_the_metric_cuts():
    """The area within the lines is that of the pixels at or above the threshold."""
    similarity = np.zeros((14, 14), np.float32)
    similarity[2:6, 0:5] = 1  # it touches the frame's edge
    heat = heat_of(similarity)
    area = 0.0
    for line in outline(heat).split("Z")[:-1]:
        x, y = np.array(line[1:].replace(",", " ").split(), float).reshape(-1, 2).T
        area += 0.5 * abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1)))
    assert area == pytest.approx((heat >= 0.5).sum(), rel=0.03)
    assert outline(heat_of(np.ones((14, 14), np.float32))) == ""


def test_each_picture_plays_its_sound(tmp_path):
    folder = make_run(tmp_path / "run")
    pictures = gallery.load(folder / "gallery.npz")
    text = gallery_section(pictures, 0)
    held = [base64.b64decode(data) for data in re.findall(r'src="data:audio/mp4;base64,([^"]+)"', text)]
    assert held == [picture.sound for picture in pictures] and len(held) == 6
    assert all(len(sound) < 16_000 for sound in held)
    (tmp_path / "a.mp4").write_bytes(held[0])
    heard = decode_sound(tmp_path / "a.mp4")
    assert heard.rate == 16_000 and heard.seconds == pytest.approx(3, abs=0.1)
    spectrum = np.abs(np.fft.rfft(heard.mono[:48_000]))
    assert spectrum.argmax() == pytest.approx(0.3 / (2 * np.pi) * 48_000, rel=0.01)  # the tone


def test_the_sounds_of_a_page_are_bounded(tmp_path):
    pictures = gallery.load(make_run(tmp_path / "run") / "gallery.npz")
    few = gallery_section(pictures, 0, room=2 * len(pictures[0].sound))
    assert few.count("<audio") == 2 and "4 of these pictures are silent" in few
    old = [dataclasses.replace(picture, sound=b"") for picture in pictures]
    assert "<audio" not in gallery_section(old, 0) and "silent" not in gallery_section(old, 0)
    gallery.save(tmp_path / "g.npz", old)
    with np.load(tmp_path / "g.npz") as file:
        held = {name: file[name] for name in file.files if not name.startswith("sound")}
    np.savez(tmp_path / "old.npz", **held)  # as an earlier version wrote it
    assert [picture.sound for picture in gallery.load(tmp_path / "old.npz")] == [b""] * 6


def test_pick():
    scores = np.array([0.1, 0.9, np.nan, 0.5, 0.5, 0.2, 0.7, 0.6, 0.3])
    chosen = gallery.pick(scores, 2)
    assert {name: places.tolist() for name, places in chosen.items()} == {
        "best": [1, 6],
        "median": [3, 4],
        "worst": [0, 2],
    }
    for count in range(8):
        places = np.concatenate(list(gallery.pick(np.linspace(0, 1, count), 3).values()))
        assert len(set(places.tolist())) == len(places) == count
    assert all(not len(places) for places in gallery.pick(scores, 0).values())


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine to look at the page with")
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_it_looks_right_in_a_browser(tmp_path, width, dark):
    """On a desk and on a phone, light and dark: drawn, in the scheme's colours, and no wider than the window."""
    folder = make_run(tmp_path / "run")
    page_of(folder, out=tmp_path / "page.html")
    shot = tmp_path / "shot.png"
    command = [
        CHROMIUM,
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--force-device-scale-factor=1",
        f"--blink-settings=preferredColorScheme={0 if dark else 1}",
        f"--user-data-dir={tmp_path / 'profile'}",
        f"--window-size={width},4000",  # whatever the machine's fonts, the curves are on it
        f"--screenshot={shot}",
        f"file://{tmp_path / 'page.html'}",
    ]
    subprocess.run(command, check=True, capture_output=True, timeout=300, env={**os.environ, "HOME": str(tmp_path)})
    pixels = np.asarray(Image.open(shot).convert("RGB")).astype(int)
    assert pixels.shape[1] == width
    page = np.array([0x12, 0x15, 0x1B] if dark else [0xF6, 0xF7, 0xF9])
    margin = pixels[:, -8:]  # nothing reaches the window's right edge
    assert np.abs(margin - page).max() <= 2
    blue = np.array([0x7A, 0xA7, 0xFF] if dark else [0x2F, 0x6F, 0xDE])  # a chart's first line
    assert (np.abs(pixels - blue).max(axis=2) <= 2).sum() > 100
