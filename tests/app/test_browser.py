"""The page in a real browser, on a desk and on a phone: a video goes in, the results come out, nothing is cut.

Set ESSL_SCREENSHOTS to a folder to keep the pictures.
"""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from essl_fast.app import Limits, page
from essl_fast.app.page import serve
from essl_fast.localize import SoundFinder
from tests.export.conftest import make_run
from tests.tools.media import make_video

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
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
    shots = Path(os.environ.get("ESSL_SCREENSHOTS", tmp_path))
    with playwright.sync_playwright() as run:
        browser = run.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        tab = browser.new_page(viewport={"width": width, "height": 900})
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto(address)
        tab.locator("input[type=file]").first.set_input_files(silent)
        tab.get_by_role("button", name="Localize").click()
        tab.get_by_text("has no audio track").wait_for(timeout=60_000)
        tab.reload()
        tab.locator("input[type=file]").first.set_input_files(good)
        tab.get_by_role("button", name="Localize").click()
        tab.get_by_text("moments are shown").wait_for(timeout=60_000)
        tab.locator("video").nth(1).wait_for(timeout=60_000)
        tab.wait_for_function("[...document.querySelectorAll('video')].every(v => v.readyState > 1)", timeout=60_000)
        tab.wait_for_timeout(500)
        wide = tab.evaluate("document.documentElement.scrollWidth")
        tab.screenshot(path=shots / f"app-{width}.png", full_page=True)
        browser.close()
    assert wide <= width
    assert not [url for url in asked if not url.startswith((address, "data:", "blob:", address.replace("http", "ws")))]
