"""The pictures of a demo run in the docs, all of one run, which the text quotes.

    python -m essl_fast.train --out runs/demo
    python docs/draw_pictures.py runs/demo          needs Chromium for report.jpg
    python docs/draw_pictures.py --check            whether the text quotes the run of the pictures

demo_overlays.jpg   the six pairs in the middle of its test scores, under their heat
localize_demo.jpg   its heat on the first twelve test clips of the demo's world, each at an annotated moment
report.jpg          its report in a browser, on a desk and on a phone
pictures.json       the figures of this run, and how many of the clips' moments with boxes are right
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
DOCS = ROOT / "docs"
FIGURES = DOCS / "pictures.json"
DESK, PHONE = (1280, 1900), (390, 1900)  # width and height of a window, pixels
CLIPS, COLUMNS = 12, 4


def save(name: str, picture: Image.Image, width: int) -> None:
    """A JPEG in docs, at most `width` pixels wide."""
    if picture.width > width:
        size = width, round(picture.height * width / picture.width)
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    picture.convert("RGB").save(DOCS / name, quality=85, optimize=True)
    print(f"{name}: {picture.width} x {picture.height}")


def screenshot(page: Path, size: tuple[int, int]) -> Image.Image:
    """A page in a window of headless Chromium."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        sys.exit("report.jpg: there is no Chromium on this machine")
    with tempfile.TemporaryDirectory() as place:
        shot = Path(place) / "shot.png"
        words = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--screenshot={shot}"]
        words += [f"--window-size={size[0]},{size[1]}", f"--user-data-dir={place}/profile", page.resolve().as_uri()]
        environment = {**os.environ, "HOME": place}
        subprocess.run([browser, *words], check=True, capture_output=True, timeout=120, env=environment)
        return Image.open(io.BytesIO(shot.read_bytes())).convert("RGB")


def report_picture(run: Path) -> Image.Image:
    """The report on a desk, and on a phone beside it."""
    desk, phone = screenshot(run / "report.html", DESK), screenshot(run / "report.html", PHONE)
    gap = 24
    whole = Image.new("RGB", (desk.width + phone.width + 3 * gap, DESK[1] + 2 * gap), (205, 210, 218))
    whole.paste(desk, (gap, gap))
    whole.paste(phone, (desk.width + 2 * gap, gap))
    return whole


def strip(run: Path) -> Image.Image:
    """The pairs of the report's gallery that are in the middle by their cIoU, side by side."""
    from essl_fast.localize import Overlay, heat_of
    from essl_fast.report import gallery

    pictures = [picture for picture in gallery.load(run / "gallery.npz") if picture.group == "median"]
    drawn = []
    for picture in pictures:
        frame = np.asarray(Image.open(io.BytesIO(picture.jpeg)).convert("RGB"))
        boxes = [box for box in picture.boxes.tolist() if box[2] > box[0]]
        drawn.append(Overlay.of(frame).blend(frame, heat_of(picture.similarity), boxes))
    return Image.fromarray(np.concatenate(drawn, axis=1))


def clips_picture(run: Path) -> tuple[Image.Image, dict]:
    """Twelve test clips under their heat, and how many of their annotated moments are right.

    What is drawn of a clip is its annotated moment in the middle.
    """
    from essl_fast import checkpoints
    from essl_fast.localize import Overlay, SoundFinder, contact_sheet, localize

    finder = SoundFinder.open(run, "cpu")
    world = Path(checkpoints.load(finder.path)["data_root"]).parent / "world"
    names = sorted((world / "annotations" / "test_ssl.txt").read_text().split())[:CLIPS]
    pictures, titles, scores, shown = [], [], {}, {}
    for name in names:
        video = world / "videos" / f"{name}.mp4"
        with tempfile.TemporaryDirectory() as out:
            found = localize(video, finder, out, boxes=world / "annotations", video=False)
        judged = [moment for moment in found.moments if moment.ciou is not None]
        scores[name] = [moment.ciou for moment in judged]
        moment = judged[len(judged) // 2]
        shown[name] = moment.ciou
        picture = frame_of(video, moment.frame, moment.time)
        pictures.append(Overlay.of(picture).blend(picture, found.heat(moment), moment.truth))
        titles.append(f"{name} {moment.time:.2f} s: cIoU {moment.ciou:.2f}")
    legend = "heat: similarity with the sound; white: threshold; green: ground truth"
    sheet = Image.open(io.BytesIO(contact_sheet(pictures, titles, COLUMNS, legend)))
    everything = [score for each in scores.values() for score in each]
    wrong = [name for name, score in shown.items() if score < 0.5]
    right = sum(score >= 0.5 for score in everything)
    return sheet, {"clips": len(names), "moments": len(everything), "right": right, "shown_wrong": wrong}


def caption(localized: dict) -> str:
    """What docs/training.md says below localize_demo.jpg."""
    wrong = localized["shown_wrong"]
    failures = f"Failures: {', '.join(wrong)}." if wrong else "None of the twelve pictures shows a failure."
    return (
        f"{localized['moments']} of these moments have boxes (`--boxes`), and in {localized['right']} of them cIoU is "
        f"at least 0.5. {failures}*"
    )


def frame_of(video: Path, number: int, time: float) -> np.ndarray:
    """A frame of a video, (H, W, 3) uint8."""
    from essl_fast.data.media import decode_frames

    ((_, frame),) = decode_frames(video, [(number, time)])
    return frame


def quotes(figures: dict) -> list[str]:
    """What README.md and docs/training.md say that is not of the run of the pictures."""
    test = figures["test"]
    expected = {
        "README.md": [
            f"│ {name} │ {found['pairs']} │ {100 * found['success_at_half']:.1f} │ {100 * found['auc']:.1f} │"
            for name, found in {"trained": test, "untrained": figures["untrained"]}.items()
        ],
        "docs/training.md": [caption(figures["localize"])],
    }
    missing = []
    for file, texts in expected.items():
        said = " ".join((ROOT / file).read_text(encoding="utf-8").split())
        missing += [f"{file} does not say: {text}" for text in texts if " ".join(text.split()) not in said]
    return missing


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", type=Path, help="the run directory")
    parser.add_argument("--check", action="store_true", help="only compare the text with pictures.json")
    options = parser.parse_args()
    if options.check:
        missing = quotes(json.loads(FIGURES.read_text()))
        print("\n".join(missing) or "the text quotes the run of the pictures")
        return bool(missing)
    if options.run is None:
        parser.error("give the run directory")
    summary = json.loads((options.run / "summary.json").read_text())
    save("demo_overlays.jpg", strip(options.run), 1080)
    save("report.jpg", report_picture(options.run), 1000)
    sheet, localized = clips_picture(options.run)
    save("localize_demo.jpg", sheet, 990)
    kept = {
        name: {key: one[key] for key in ("pairs", "success_at_half", "auc")}
        for name, one in summary.items()
        if name in ("test", "untrained", "centre_prior", "largest_object_prior")
    }
    figures = {**kept, "epoch": summary["selected"]["epoch"], "localize": localized}
    FIGURES.write_text(json.dumps(figures, indent=1) + "\n")
    print("\n".join(quotes(figures)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
