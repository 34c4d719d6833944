"""python docs/draw_architecture.py: draws docs/architecture.svg, the rooms of essl_fast and who imports whom.

The rooms' places are in `ROWS`; arrows and words come from the code: imports wherever they stand, and the first
sentence of each `__init__.py`. An arrow that follows from others is left out (train imports evaluate, but also report,
which imports evaluate), and so are those to config and common, which every room may use: what is left can be read.

`--check` writes nothing and ends with 1 if the file is not what would be drawn: `.ci/run` calls it. A room without a
place and an import that would point up end with an error.
"""

from __future__ import annotations

import argparse
import ast
import sys
import textwrap
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.tools.imports import Code, module_of, room_of  # noqa: E402

PICTURE = ROOT / "docs" / "architecture.svg"
EVERYWHERE = ("config", "common")  # arrows to them are not drawn
ROWS = [  # from the top: (what the row is called, {room: its column, of five})
    ("commands", {"app": 0, "doctor": 1, "replay": 2, "reproduce": 3}),
    ("", {"train": 2}),
    ("", {"prepare": 0.5, "localize": 1.5, "report": 2.5, "export": 3.5}),
    ("shared", {"evaluate": 2.5}),
    ("", {"data.synthetic": 0, "data.datasets": 1, "data.loading": 2, "checkpoints": 3, "profiling": 4}),
    ("", {"data.media": 1, "data.shards": 2, "models": 3, "runtime": 4}),
    ("for all", {"common": 0.5, "config": 1.5, "data.remote": 2.5, "kernels": 3.5}),
]
LANES = {("train", "data.synthetic"): 90, ("train", "profiling"): 910}  # x of arrows that would cross others elsewhere
WIDTH, LEFT, BOX, HEIGHT, GAP = 1000, 12, 180, 79, 38  # pixels; GAP is between rows
COLUMN = (WIDTH - 2 * LEFT - BOX) / 4  # from one column to the next
TOP = 34
STYLE = """
.ground{fill:#ffffff} .box{fill:#f4f6fa;stroke:#8a94a6}
.command{fill:#e6effc;stroke:#4a78b8} .data{fill:#eaf5ec;stroke:#5b9467}
.name{font:bold 14px system-ui,sans-serif;fill:#18202b} .job{font:10.5px system-ui,sans-serif;fill:#39434f}
.row{font:italic 12px system-ui,sans-serif;fill:#5a6572}
.line{fill:none;stroke:#5f6b7a;stroke-width:1.3} .tip{fill:#5f6b7a}
@media (prefers-color-scheme: dark){
.ground{fill:#0f141b} .box{fill:#1c2430;stroke:#6f7d90}
.command{fill:#17273f;stroke:#6f9fe0} .data{fill:#15291c;stroke:#74b583}
.name{fill:#eef2f7} .job{fill:#c3ccd8} .row{fill:#98a4b3} .line{stroke:#94a1b2} .tip{fill:#94a1b2}
}"""

Point = tuple[float, float]


def places() -> dict[str, tuple[float, int]]:
    """Room -> left edge of its box in pixels, row."""
    return {room: (LEFT + column * COLUMN, row) for row, (_, held) in enumerate(ROWS) for room, column in held.items()}


def top_of(row: int) -> float:
    return TOP + row * (HEIGHT + GAP)


def arrows_of(code: Code, rooms: list[str]) -> dict[str, set[str]]:
    """Room -> rooms whose arrows are drawn. ValueError for a file in no room, and for an import that points up."""
    found: dict[str, set[str]] = {room: set() for room in rooms}
    place = places()
    for file, uses in code.uses.items():
        mine = room_of(module_of(file), rooms)
        if not mine:
            if file.count("/") == 1 or file == "essl_fast/data/__init__.py":  # the package's own names for all of it
                continue
            raise ValueError(f"{file} is in no room: give its folder a place in ROWS of {Path(__file__).name}")
        for use in uses:
            other = room_of(use.module, rooms)
            if other and other not in (mine, *EVERYWHERE):
                if place[other][1] <= place[mine][1]:
                    raise ValueError(f"{file}:{use.line}: {mine} imports {other}, which stands no lower")
                found[mine].add(other)
    return {room: {other for other in others if not follows(found, room, other)} for room, others in found.items()}


def follows(arrows: dict[str, set[str]], room: str, other: str) -> bool:
    """Whether other arrows lead from the one room to the other."""
    seen, ahead = set(), [each for each in arrows[room] if each != other]
    while ahead:
        at = ahead.pop()
        if at not in seen:
            seen.add(at)
            ahead += arrows[at]
    return other in seen


def job_of(code: Code, room: str) -> str:
    """The first sentence of a room's docstring; of a single file, what stands behind its command."""
    tree = code.trees[code.modules[f"essl_fast.{room}"]]
    first = (ast.get_docstring(tree) or "").split("\n\n")[0].replace("\n", " ").split(". ")[0]
    first = first.split(": ", 1)[1] if first.startswith("python -m ") else first
    return first[:1].upper() + first[1:].rstrip(".")


def free_at(row: int, wanted: float, taken: list[float]) -> float:
    """Where a line that comes at ``wanted`` passes through a row: beside its boxes and beside lines that do so."""
    boxes = [x for x, its in places().values() if its == row]

    def is_free(x: float) -> bool:
        beside = all(x < box - 9 or x > box + BOX + 9 for box in boxes) and all(abs(x - line) > 9 for line in taken)
        return beside and 5 < x < WIDTH - 5

    return min((x for x in range(WIDTH) if is_free(x)), key=lambda x: abs(x - wanted))


def lines_of(arrows: dict[str, set[str]]) -> list[list[Point]]:
    """The points that each arrow passes, from the lower edge of a box to the upper edge of another."""
    place, pairs = places(), [(room, other) for room, others in arrows.items() for other in sorted(others)]

    def port(room: str, other: str, ends: list[str]) -> float:
        """Where on the room's edge the arrow to or from the other one is: in the order in which they stand."""
        ends = sorted(ends, key=lambda each: (place[each][0], place[each][1]))
        return place[room][0] + BOX * (0.5 + 0.6 * ((ends.index(other) + 0.5) / len(ends) - 0.5))

    lines: list[list[Point]] = []
    taken: dict[int, list[float]] = {row: [] for row in range(len(ROWS))}
    for room, other in sorted(pairs, key=lambda pair: place[pair[1]][0]):
        start = port(room, other, [b for a, b in pairs if a == room])
        end = port(other, room, [a for a, b in pairs if b == other])
        first, last = place[room][1], place[other][1]
        line = [(start, top_of(first) + HEIGHT)]
        for row in range(first + 1, last):
            wanted = start + (end - start) * (row - first) / (last - first)
            wanted = LANES.get((room, other), wanted)
            x = free_at(row, wanted, taken[row])
            taken[row].append(x)
            line += [(x, top_of(row)), (x, top_of(row) + HEIGHT)]
        lines.append([*line, (end, top_of(last) - 6)])
    return lines


def path_of(line: list[Point]) -> str:
    """A smooth line through the points that passes rows upright."""
    words = [f"M{line[0][0]:.1f},{line[0][1]:.1f}"]
    for (x0, y0), (x1, y1) in zip(line, line[1:], strict=False):
        if x0 == x1:
            words.append(f"L{x1:.1f},{y1:.1f}")
        else:
            middle = (y0 + y1) / 2
            words.append(f"C{x0:.1f},{middle:.1f} {x1:.1f},{middle:.1f} {x1:.1f},{y1:.1f}")
    return " ".join(words)


def draw(code: Code) -> str:
    """The picture as SVG."""
    place = places()
    arrows, height = arrows_of(code, list(place)), top_of(len(ROWS)) - GAP + 34
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" width="{WIDTH}" '
        f'height="{height:.0f}" role="img" aria-label="The rooms of essl_fast and who imports whom">',
        f"<style>{STYLE}</style>",
        f'<rect class="ground" width="{WIDTH}" height="{height:.0f}" rx="8"/>',
    ]
    for line in lines_of(arrows):
        (x, y) = line[-1]
        out.append(f'<path class="line" d="{path_of(line)}"/>')
        out.append(f'<path class="tip" d="M{x - 4:.1f},{y - 1:.1f} L{x + 4:.1f},{y - 1:.1f} L{x:.1f},{y + 6:.1f} Z"/>')
    for row, (title, _) in enumerate(ROWS):
        if title:
            out.append(f'<text class="row" x="{LEFT}" y="{top_of(row) - 8:.0f}">{escape(title)}</text>')
    for room, (x, row) in place.items():
        kind = "command" if row < 3 or room == "evaluate" else "data" if room.startswith("data.") else "box"
        y, words = top_of(row), textwrap.wrap(job_of(code, room), 28)
        if len(words) > 4:
            words = [*words[:3], textwrap.shorten(" ".join(words[3:]), 26, placeholder=" …")]
        out.append(f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{BOX}" height="{HEIGHT}" rx="6"/>')
        out.append(f'<text class="name" x="{x + 8:.1f}" y="{y + 18:.1f}">{room.replace(".", "/")}</text>')
        for number, text in enumerate(words):
            out.append(f'<text class="job" x="{x + 8:.1f}" y="{y + 33 + 12.5 * number:.1f}">{escape(text)}</text>')
    note = "An arrow means: imports. Arrows that follow from others, and those to config and common, are not drawn."
    out.append(f'<text class="row" x="{LEFT}" y="{height - 12:.0f}">{note}</text>')
    return "\n".join([*out, "</svg>", ""])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; end with 1 if the picture is not current")
    options = parser.parse_args(argv)
    drawn = draw(Code.read(ROOT, ("essl_fast",)))
    if not options.check:
        PICTURE.write_text(drawn, encoding="utf-8")
    elif not PICTURE.is_file() or PICTURE.read_text(encoding="utf-8") != drawn:
        print(f"{PICTURE.relative_to(ROOT)} is not current: run python docs/draw_architecture.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
