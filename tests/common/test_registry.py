"""Parts by name: what a registry refuses, what it says, and how modules of a user's own are imported."""

import sys

import pytest

from essl_fast.common.errors import InputError
from essl_fast.common.registry import Registry, import_modules


@pytest.fixture
def things():
    registry = Registry("thing", "model.thing")

    @registry.register("plain", color="grey")
    def plain():
        return "a plain thing"

    return registry


def test_a_part_is_found_by_its_name_with_its_facts(things):
    assert things.get("plain")() == "a plain thing"
    assert things.facts("plain") == {"color": "grey"} and things.names() == ["plain"]


def test_an_unknown_name_lists_the_known_ones_and_how_to_add_one(things):
    with pytest.raises(
        InputError,
        match="model.thing: there is no thing 'plian'; known are plain. .*--import MODULE; did you mean plain.$",
    ) as raised:
        things.get("plian")
    assert "\n" not in str(raised.value)
    with pytest.raises(InputError, match="there is no thing"):
        things.facts("plian")


def test_a_name_stands_for_one_part(things):
    with pytest.raises(ValueError, match="the thing 'plain' is registered already, by tests.common.test_registry"):
        things.register("plain")(lambda: None)
    things.register("plain", color="red")(things.get("plain"))  # the same object: its facts may change
    assert things.facts("plain") == {"color": "red"}


def test_a_definition_that_is_run_again_replaces_the_first_one(things):
    cell = "def mine():\n    return 1\n"
    for _ in range(2):
        scope = {"__name__": "a_notebook"}
        exec(cell, scope)
        things.register("mine")(scope["mine"])
    assert things.get("mine") is scope["mine"]


def test_our_own_are_registered_when_a_name_is_looked_up(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "LATER", Registry("part", own=["own_parts_of_a_test"]))
    text = f"from {__name__} import LATER\n\n\n@LATER.register('one')\ndef one():\n    pass\n"
    (tmp_path / "own_parts_of_a_test.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    assert "own_parts_of_a_test" not in sys.modules
    assert LATER.names() == ["one"]  # noqa: F821 of globals()
    sys.modules.pop("own_parts_of_a_test")


def test_modules_of_the_current_folder_are_imported_once(tmp_path, monkeypatch):
    (tmp_path / "parts_here.py").write_text("import pathlib\nwith open('count', 'a') as file:\n    file.write('x')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    try:
        assert import_modules(["parts_here", "parts_here"]) == ["parts_here"]
        assert import_modules(["parts_here"]) == []
    finally:
        sys.modules.pop("parts_here", None)
    assert (tmp_path / "count").read_text() == "x"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "ModuleNotFoundError"),
        ("this is no Python\n", "SyntaxError"),
        ("raise RuntimeError('two\\nlines')\n", "RuntimeError: two lines"),
        ("raise SystemExit(3)\n", "SystemExit: 3"),
    ],
)
def test_a_module_that_cannot_be_imported_is_one_line(tmp_path, monkeypatch, text, reason):
    if text is not None:
        (tmp_path / "broken_parts.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(InputError, match=f"the module broken_parts cannot be imported .{reason}") as raised:
        import_modules(["broken_parts"])
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["", "parts.py/x", "../parts", "a..b", "rm -rf"])
def test_what_is_no_module_name_is_refused(name):
    with pytest.raises(InputError, match="is no module name"):
        import_modules([name])
