"""CSV files written by people or by pandas: columns are found by header, errors name file, line and column."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from essl_fast.common.errors import InputError, short

LARGEST_TEXT = 1 << 28  # bytes of a file of annotations
_NUMBERS, _BRACKETS = re.compile(r"[\s\d.,eE+()\[\]-]*"), str.maketrans("()", "[]")
_LONGEST_BBOX = 1_000_000  # characters of one bbox cell; limits what the parser builds


class Row:
    """One record of a table. Its methods give the cells as types, and raise InputError with file, line and column.

    A column is given as in the table's `wanted`.
    """

    def __init__(self, table: Table, line: int, cells: list[str]):
        self.table, self.line, self.cells = table, line, cells
        self.where = f"{table.path.name} line {line}"

    def error(self, column, problem: str, remedy: str) -> InputError:
        """The error to raise for a cell."""
        return InputError(f"{self.table.path} line {self.line}, column {self.table.title(column)}: {problem}; {remedy}")

    def has(self, column) -> bool:
        """Whether the column is there and the cell is not empty."""
        at = self.table.columns.get(column)
        return at is not None and bool(self.cells[at].strip())

    def text(self, column) -> str:
        """The cell without surrounding spaces."""
        return self.cells[self.table.columns[column]].strip()

    def label(self, column) -> str:
        """The cell as a class. InputError if it is empty."""
        text = self.text(column)
        if not text:
            raise self.error(column, "the class is empty", "write the sound's class")
        return text

    def number(self, column) -> float:
        """The cell as a finite number, below 1e12. InputError if it is none."""
        text = self.text(column)
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not abs(value) < 1e12:  # nan included
            raise self.error(column, f"{short(text)} is not a number", "write a decimal number")
        return value

    def integer(self, column) -> int:
        """The cell as an integer below 2**31. InputError if it is none."""
        value = self.number(column)  # pandas may write 60 as "60.0"
        if value != int(value) or abs(value) >= 2**31:
            raise self.error(column, f"{short(self.text(column))} is not a frame's number", "write a whole number")
        return int(value)

    def boxes(self, column) -> list[list[float]]:
        """The cell as a list of boxes of four finite numbers; a single box is a list of one. InputError otherwise."""
        text = self.text(column)
        remedy = "write a list of boxes such as [[12, 30, 100, 150]], or [] for none"
        if len(text) > _LONGEST_BBOX:
            raise self.error(column, f"{len(text):,} characters, more than {_LONGEST_BBOX:,}", remedy)
        try:
            value = json.loads(text)  # ten times as fast as the other way, and most tables are JSON
        except (ValueError, RecursionError):
            try:
                value = _python_lists(text)
            except (ValueError, RecursionError):
                wrong = f"cannot read {short(text)} as boxes"
                more = ": it is not a list of boxes of four finite numbers" if text else ""
                raise self.error(column, wrong + more, remedy) from None
        if isinstance(value, (list, tuple)) and len(value) == 4 and all(map(is_number, value)):
            value = [value]
        if not isinstance(value, (list, tuple)) or not all(is_box(box) for box in value):
            raise self.error(column, f"{short(text)} is not a list of boxes of four finite numbers", remedy)
        return [list(box) for box in value]


class Table:
    """A CSV file with a header."""

    def __init__(self, path: Path, wanted: dict, needs_end: str = ""):
        """Read the file and find its columns.

        Args:
            path: the file.
            wanted: column, or a tuple of names that it may have → whether it is required.
            needs_end: what requires the column end_fid, for messages.

        Raises:
            InputError: the file cannot be read, is empty, lacks a required column, or has one twice.
        """
        self.path = path
        text = read_text(path)
        if not text.strip():
            raise InputError(f"{path} is empty: write its header and rows, or take the video out of the lists")
        csv.field_size_limit(max(csv.field_size_limit(), _LONGEST_BBOX + 64))
        self._reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        _, self.header = next(self._records(), (1, [""]))
        names = [name.strip().lower() for name in self.header]
        self.columns: dict = {}
        for column, required in wanted.items():
            spellings = (column,) if isinstance(column, str) else column
            at = next((names.index(name) for name in spellings if name in names), None)
            if at is not None:
                self.columns[column] = at
            elif required:
                found = ", ".join(name.strip() for name in self.header)
                why = f" ({needs_end} needs it)" if column == "end_fid" and needs_end else ""
                raise InputError(
                    f"{path} line 1: no column {self.title(column)}{why}; its columns are {short(found)}; "
                    "add the column or fix its name"
                )
        used = {names[at] for at in self.columns.values()}
        for name, count in Counter(names).items():
            if count > 1 and name in used:
                raise InputError(f"{path} line 1: column {name} is there {count} times; keep one of them")

    def title(self, column) -> str:
        """The column's name in the header; if it is missing, all names that it may have."""
        if isinstance(column, str):
            return column
        at = self.columns.get(column)
        return "|".join(column) if at is None else self.header[at].strip()

    def rows(self) -> Iterator[Row]:
        """The records. InputError if one has another number of cells than the header."""
        for line, cells in self._records():
            if len(cells) != len(self.header):
                raise InputError(
                    f"{self.path} line {line}: {len(cells)} cells under {len(self.header)} columns; "
                    "put a bbox in double quotes and complete the row"
                )
            yield Row(self, line, cells)

    def _records(self) -> Iterator[tuple[int, list[str]]]:
        """(first line, cells) of each record that is not blank."""
        while True:
            line = self._reader.line_num + 1
            try:
                cells = next(self._reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise InputError(f"{self.path} line {line}: {error}; check the double quotes of this row") from None
            if any(cell.strip() for cell in cells):
                yield line, cells


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, without its byte order mark. InputError if it cannot be read or is too large."""
    try:
        if (size := path.stat().st_size) > LARGEST_TEXT:
            raise InputError(f"{path} has {size:,} bytes, more than {LARGEST_TEXT:,}: is it a list of annotations?")
        data = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): check the file and its permissions") from None
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        at = error.start
        line = data.count(b"\n", 0, at) + 1
        column = at - (data.rfind(b"\n", 0, at) + 1) + 1
        raise InputError(
            f"{path} line {line}, column {column} (byte): 0x{data[at]:02x} is not UTF-8; save the file as UTF-8"
        ) from None


def _python_lists(text: str) -> object:
    """Parse Python's lists and tuples of numbers. ValueError for anything else.

    `ast.literal_eval` is not used: it builds a tree of 200 times the text's size, and deep nesting crashes it.
    """
    if not _NUMBERS.fullmatch(text):
        raise ValueError("not only numbers and brackets")
    text = re.sub(r",(\s*(?:\]|$))", r"\1", text.translate(_BRACKETS))  # a comma may precede the bracket
    text = re.sub(r"(?<!\d)\.(?=\d)", "0.", text)  # numbers such as .5 and 5. are allowed
    text = re.sub(r"(?<=\d)\.(?!\d)", ".0", text)
    try:
        return json.loads(text)
    except ValueError:
        if not text.strip():
            raise
        return json.loads(f"[{text}]")  # a tuple needs no brackets


def is_number(value) -> bool:
    """Whether a parsed value is a finite number below 1e9. True and False are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e9  # False for inf and nan


def is_box(box) -> bool:
    """Whether a parsed value is a box: a list or tuple of four such numbers."""
    return isinstance(box, (list, tuple)) and len(box) == 4 and all(map(is_number, box))
