"""`python -m tests.faults.table --write`: the table of docs/faults.md, out of the matrix that the tests run."""

import argparse
import sys
from pathlib import Path

from tests.faults import matrix
from tests.tools import pages

PAGE = Path(__file__).resolve().parents[2] / "docs" / "faults.md"
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"


def page_with_table(page: str) -> str:
    """The page's text with the matrix as it is now."""
    return pages.between(page, BEGIN, matrix.markdown(), END, PAGE)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.table", description=__doc__)
    parser.add_argument("--write", action="store_true", help="write it into docs/faults.md (default: print it)")
    if parser.parse_args().write:
        PAGE.write_text(page_with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        print(matrix.markdown())
    return 0


if __name__ == "__main__":
    sys.exit(main())
