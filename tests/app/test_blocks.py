"""The page as it is served, without a browser."""

import json
import urllib.request

import pytest

from essl_fast.app import Answer, Limits, blocks, page
from essl_fast.app import __main__ as door
from essl_fast.app.blocks import serve
from essl_fast.common.errors import InputError
from essl_fast.localize import SoundFinder
from tests.export.conftest import make_run
from tests.tools.ports import free_port

pytest.importorskip("gradio", reason="gradio is not installed")


@pytest.fixture(scope="module")
def finder(tmp_path_factory):
    return SoundFinder.open(make_run(tmp_path_factory.mktemp("run")), "cpu")


def test_it_is_served_with_its_model_and_limits(finder, tmp_path):
    limits = Limits(megabytes=3, seconds=4)
    blocks = page(finder, tmp_path, limits)
    address = serve(blocks, "127.0.0.1", free_port(), limits)
    try:
        with urllib.request.urlopen(f"{address}config", timeout=300) as answer:
            served = json.load(answer)
        words = json.dumps(served["components"])
        assert json.dumps(str(finder.path))[1:-1] in words and "of up to 3 MB and 4 s" in words
        least = next(one for one in served["components"] if "smallest score" in str(one["props"].get("label")))
        assert (
            least["props"]["value"] == finder.trust.min_score and "(the model's own is set)" in least["props"]["label"]
        )
        with pytest.raises(InputError, match="--host 127.0.0.1, --port [0-9]+: it cannot listen there"):
            serve(page(finder, tmp_path, limits), "127.0.0.1", int(address.rstrip("/").rpartition(":")[2]), limits)
    finally:
        blocks.close(verbose=False)


def test_the_button_shows_what_was_found(finder, tmp_path, monkeypatch):
    asked = []

    def found(*given):
        asked.append(given)
        files = {"overlay": tmp_path / "o.mp4", "moments": tmp_path / "m.json"}
        return Answer(["4 of 4 moments are shown."], rows=[["0", "1", "", "x"]], **files)

    monkeypatch.setattr(blocks, "answer", found)
    limits = Limits()
    made = page(finder, tmp_path, limits)
    (run,) = [one.fn for one in made.fns.values() if one.fn is not None and one.fn.__name__ == "run"]
    said, overlay, sheet, moments, table = run("v.mp4", 5, 0.5, -1)
    assert asked == [(finder, "v.mp4", tmp_path, limits, 5, 0.5, -1)]
    assert said == "<p>4 of 4 moments are shown.</p>" and table.count("<td>") == 4
    assert (overlay, sheet, moments) == (str(tmp_path / "o.mp4"), None, str(tmp_path / "m.json"))


def test_the_command_says_where_the_page_is_and_closes_it(finder, monkeypatch, capsys):
    closed = []

    class Blocks:
        def close(self, **_):
            closed.append(self)

    class Ended:
        def wait(self):
            raise KeyboardInterrupt

    monkeypatch.setattr(blocks, "page", lambda *_: Blocks())
    monkeypatch.setattr(blocks, "serve", lambda page, host, port, limits: f"http://{host}:{port}/")
    monkeypatch.setattr(door.threading, "Event", Ended)
    with pytest.raises(KeyboardInterrupt):
        door.main(["--checkpoint", str(finder.path), "--device", "cpu", "--host", "0.0.0.0", "--port", "7999"])
    said = capsys.readouterr().out.splitlines()
    assert said[-2:] == [
        "open http://0.0.0.0:7999/ (Ctrl-C ends it)",
        "whoever reaches 0.0.0.0 may upload videos: the page has no passwords",
    ]
    assert len(closed) == 1
