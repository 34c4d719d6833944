"""The page in a real browser, on a desk and on a phone: a video goes in, the results come out, nothing is cut.

Set ESSL_SCREENSHOTS to a folder to keep the pictures.
"""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from essl_fast.app import Limits, page
from essl_fast.app.blocks import serve
from essl_fast.localize import SoundFinder
from tests.export.conftest import make_run
from tests.tools.media import make_video

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
ARGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking"]
ARGS += ["--disable-component-update", "--disable-sync"]
# What is outside the window, unless a box around it scrolls, and the buttons over the label of a block (the whole block
# may be a button to upload).
CUT = """() => {
    const wide = document.documentElement.clientWidth, found = [];
    const scrolls = e => e && (/auto|scroll/.test(getComputedStyle(e).overflowX) || scrolls(e.parentElement));
    const seen = e => e.checkVisibility({opacityProperty: true, visibilityProperty: true}) && e.getClientRects().length;
    const name = e => `${e.tagName} ${e.className} ${(e.innerText || "").slice(0, 40)}`;
    for (const e of document.querySelectorAll(".gradio-container, .gradio-container *")) {
        const {left, right} = e.getBoundingClientRect();
        if (seen(e) && (left < -0.5 || right > wide + 0.5) && !scrolls(e.parentElement)) found.push(name(e));
    }
    for (const label of document.querySelectorAll("[data-testid=block-label]")) {
        const a = label.getBoundingClientRect();
        for (const button of label.parentElement.querySelectorAll("button:not(.upload-container)")) {
            const b = button.getBoundingClientRect();
            if (seen(button) && b.left < a.right && a.left < b.right && b.top < a.bottom && a.top < b.bottom)
                found.push(`over ${name(label)}: ${name(button)}`);
        }
    }
    if (document.documentElement.scrollWidth > wide) found.push(`scrolls to ${document.documentElement.scrollWidth}`);
    return found;
}"""
pytest.importorskip("gradio", reason="gradio is not installed")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = [
    pytest.mark.slow,  # a browser
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine to look at the page with"),
]


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """Where the page is served."""
    place = tmp_path_factory.mktemp("app")
    (place / "work").mkdir()
    finder, limits = SoundFinder.open(make_run(place / "run"), "cpu"), Limits(megabytes=5, seconds=30)
    blocks = page(finder, place / "work", limits)
    yield serve(blocks, "127.0.0.1", None, limits)
    blocks.close(verbose=False)


@pytest.mark.parametrize("width", [1280, 390])
def test_a_video_goes_in_and_the_results_come_out(address, tmp_path, width):
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 48_000).astype(np.float32)
    good = make_video(tmp_path / "good.mp4", seconds=3, sound=noise)
    silent = make_video(tmp_path / "silent.mp4", seconds=1, sound=None)
    asked: list[str] = []
    cut: dict[str, list[str]] = {}
    shots = Path(os.environ.get("ESSL_SCREENSHOTS", tmp_path))
    with playwright.sync_playwright() as run:
        browser = run.chromium.launch(executable_path=CHROMIUM, args=ARGS)
        tab = browser.new_page(viewport={"width": width, "height": 900})

        def look(name: str) -> None:
            tab.wait_for_timeout(500)
            tab.screenshot(path=shots / f"app-{width}-{name}.png", full_page=True)
            cut[name] = tab.evaluate(CUT)

        tab.on("request", lambda request: asked.append(request.url))
        tab.goto(address)
        tab.get_by_role("button", name="Options").click()
        tab.get_by_text("threshold of the heat").wait_for()
        look("options")
        tab.locator("input[type=file]").first.set_input_files(silent)
        tab.get_by_role("button", name="Localize").click()
        tab.get_by_text("has no audio track").wait_for(timeout=60_000)
        look("error")
        tab.reload()
        tab.locator("input[type=file]").first.set_input_files(good)
        tab.get_by_role("button", name="Localize").click()
        tab.get_by_text("moments are shown").wait_for(timeout=60_000)
        tab.locator("video").nth(1).wait_for(timeout=60_000)
        tab.wait_for_function("[...document.querySelectorAll('video')].every(v => v.readyState > 1)", timeout=60_000)
        look("results")
        browser.close()
    assert not any(cut.values()), cut
    assert not [url for url in asked if not url.startswith((address, "data:", "blob:", address.replace("http", "ws")))]
