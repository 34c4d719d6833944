"""docs/architecture.md and its picture: what they show is what there is."""

import importlib.util
import re

import pytest

from tests import ROOT
from tests.tools.imports import Code

PAGE = ROOT / "docs" / "architecture.md"
spec = importlib.util.spec_from_file_location("draw_architecture", ROOT / "docs" / "draw_architecture.py")
draw_architecture = importlib.util.module_from_spec(spec)
spec.loader.exec_module(draw_architecture)


def test_the_picture_is_current(capsys):
    assert draw_architecture.main(["--check"]) == 0, capsys.readouterr().err


def test_an_old_picture_is_told_of(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(draw_architecture, "ROOT", tmp_path)
    monkeypatch.setattr(draw_architecture, "PICTURE", tmp_path / "architecture.svg")
    monkeypatch.setattr(draw_architecture, "draw", lambda code: "<svg>now</svg>")
    assert draw_architecture.main(["--check"]) == 1
    assert "architecture.svg is not current: run python docs/draw_architecture.py" in capsys.readouterr().err
    assert draw_architecture.main([]) == 0 and draw_architecture.main(["--check"]) == 0
    (tmp_path / "architecture.svg").write_text("<svg>then</svg>")
    assert draw_architecture.main(["--check"]) == 1


def test_arrows_point_down_and_every_file_has_a_place():
    def arrows(**files: str) -> dict[str, set[str]]:
        sources = {f"essl_fast/{room}/bad.py": text for room, text in files.items()}
        empty = {f"essl_fast/{room}/__init__.py": "" for room in ("train", "evaluate", "report", "models")}
        return draw_architecture.arrows_of(Code(empty | sources), list(draw_architecture.places()))

    found = arrows(
        train="import essl_fast.report, essl_fast.evaluate", report="def late():\n import essl_fast.evaluate"
    )
    assert found["train"] == {"report"} and found["report"] == {"evaluate"}  # the third follows from these
    with pytest.raises(ValueError, match="models/bad.py:1: models imports train, which stands no lower"):
        arrows(models="import essl_fast.train")
    with pytest.raises(ValueError, match="essl_fast/attic/bad.py is in no room"):
        arrows(attic="")


def named_files(text: str) -> set[str]:
    """What a page says in backticks that is a file or a folder of the repository."""
    files = re.findall(r"`([\w./-]+/[\w.-]+\.(?:py|cu|h|cpp|md|yaml|json))`", text)
    return {*files, *re.findall(r"`((?:essl_fast|benchmarks|tests|csrc|docs|configs|examples)/[\w./]*)`", text)}


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda page: page.name
)
def test_files_that_a_page_names_exist(page):
    places = [ROOT, ROOT / "essl_fast"]  # a file of the package may be named from there
    named = {name for name in named_files(page.read_text()) if not name.startswith(("annotation/", "runs/"))}
    assert not [name for name in sorted(named) if not any((place / name).exists() for place in places)]


def test_the_page_shows_the_picture_and_names_many_files():
    assert "](architecture.svg)" in PAGE.read_text()
    assert len(named_files(PAGE.read_text())) > 60
    assert "attic/none.py" in named_files("see `attic/none.py`") and "csrc/none" in named_files("see `csrc/none`")


def test_the_page_answers_twenty_questions():
    rows = re.findall(r"^\| ([a-z][^|]*) \| ([^|]*) \|$", PAGE.read_text().split("## Where do I")[1], re.MULTILINE)
    assert len(rows) >= 20
    assert not [question for question, answer in rows if "`" not in answer]
