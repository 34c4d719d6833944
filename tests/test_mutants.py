"""The list of mutants fits the sources, and the script tells a test that sees a fault from one that does not."""

import pytest

from tests import ROOT, mutants


@pytest.mark.parametrize("mutant", mutants.mutants(), ids=lambda one: one.name)
def test_a_mutant_fits_today_s_sources(mutant):
    assert mutant.applied(ROOT) != (ROOT / mutant.file).read_text(encoding="utf-8")
    for path in mutant.tests:
        assert (ROOT / path).exists(), path


def test_no_name_is_there_twice():
    names = [one.name for one in mutants.mutants()]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(("new", "what"), [("return 2", mutants.KILLED), ("return 1 ", mutants.LIVES)])
def test_killed_and_alive(tmp_path, monkeypatch, new, what):
    source = tmp_path / "source"
    source.mkdir()
    (source / "one.py").write_text("def one():\n    return 1\n")
    (source / "test_one.py").write_text("import one\n\n\ndef test():\n    assert one.one() == 1\n")
    (source / "pytest.ini").write_text("[pytest]\nmarkers = nightly\n")
    monkeypatch.setattr(mutants, "ROOT", source)
    found, _ = mutants.verdict(mutants.Mutant("x", "one.py", "return 1", new, ("test_one.py",)), tmp_path)
    assert found == what


def test_a_text_that_is_not_there_is_an_error():
    with pytest.raises(ValueError, match="0 times"):
        mutants.Mutant("x", "setup.py", "no such text", "", ()).applied(ROOT)
