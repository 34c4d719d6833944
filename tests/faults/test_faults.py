"""Each cell of the fault matrix, and the page that shows it."""

import pytest

from tests.faults import cases, damage, matrix, table  # the first two declare the cases
from tests.faults.acts import CASES
from tests.faults.worlds import Bench

assert cases and damage
_passed: set[tuple[str, str]] = set()

# Cells that start several trainings, and whose fault CI's other cells or tests/runtime/test_stopping.py try as well.
NIGHTLY = {
    ("SIGTERM", "training"),
    ("SIGTERM", "checkpoint"),
    ("SIGINT (Ctrl-C)", "training"),
    ("full disk", "checkpoint"),
    ("a file deleted while running", "training"),
    ("one rank of several killed", "training"),
    ("a second process at work on the same", "evaluation"),
    ("shard cut short", "training"),
    ("manifest of another data set", "training"),
}
CELLS = [pytest.param(*cell, marks=pytest.mark.nightly if cell in NIGHTLY else ()) for cell in matrix.cells()]


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    made = Bench(tmp_path_factory.mktemp("faults"))
    yield made
    made.close()


@pytest.mark.slow
@pytest.mark.parametrize(("fault", "stage"), CELLS, ids=lambda name: name.replace(" ", "-"))
def test_what_comes_of_a_fault(bench, fault, stage):
    CASES[fault, stage](bench)
    _passed.add((fault, stage))


def test_the_page_shows_the_matrix_and_every_cell_was_tested(request):
    assert set(CASES) == set(matrix.cells())
    for fault, row in matrix.MATRIX.items():
        assert list(row) == list(matrix.STAGES), fault
        for cell in row.values():
            assert cell.words and cell.outcome in ("", *matrix.OUTCOMES)
    page = table.PAGE.read_text(encoding="utf-8")
    assert table.page_with_table(page) == page, "run python -m tests.faults.table --write"
    assert set(matrix.cells()) >= NIGHTLY
    asked = {item.name for item in request.session.items if item.name.startswith("test_what_comes_of_a_fault")}
    if len(asked) == len(CASES):  # not a part of them
        assert _passed == set(CASES)
