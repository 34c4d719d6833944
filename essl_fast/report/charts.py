"""Charts as inline SVG: no script, no font, no file. Colours are CSS variables, so they follow light and dark.

A chart is drawn for a width of about 380 pixels, so that its text is readable on a phone and on a desk.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from essl_fast.report.formatting import duration, number

WIDTH, HEIGHT = 380, 230  # of a chart, in SVG units
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 10, 36  # margins around the plot
COLOURS = 8  # --c0 ... --c7 in `style`


@dataclass(frozen=True)
class Series:
    """A line of a chart.

    points: (x, y); one that is not finite leaves a gap. colour: from 0 on, one of the style's. dashed: drawn less
    prominently than the others. dots: mark the points.
    """

    name: str
    points: Sequence[tuple[float, float]]
    colour: int = 0
    dashed: bool = False
    dots: bool = False


def nice_ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten) from at most low to at least high; low < high, both finite."""
    raw = (high - low) / max(1, about)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str = "",
    x_range: tuple[float, float] | None = None,
    y_range: tuple[float, float] | None = None,
    mark_x: float | None = None,
) -> str:
    """Lines over a grid, with a legend, as an HTML figure.

    Args:
        title: above the chart.
        series: the lines.
        x_label, y_label: names of the axes; y_label stands beside the title.
        x_range, y_range: ends of the axes; None takes them from the values.
        mark_x: a thin vertical line at that x.

    Returns:
        The HTML; if no point is finite, it says so in place of the chart.
    """
    finite = [(x, y) for line in series for x, y in line.points if math.isfinite(x) and math.isfinite(y)]
    if not finite:
        return _figure(title, '<p class="empty">no values</p>')
    xs, ys = zip(*finite, strict=True)
    x_ticks, x0, x1 = _axis(xs, x_range, whole=all(float(x).is_integer() for x in xs))
    y_ticks, y0, y1 = _axis(ys, y_range)

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT)
        return LEFT + across, TOP + (1 - (y - y0) / (y1 - y0)) * (HEIGHT - TOP - BOTTOM)

    parts = [_grid_line(place(x0, tick)[1], tick) for tick in y_ticks]
    for tick in x_ticks:
        x = place(tick, y0)[0]
        parts.append(
            f'<text class="tick" x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{number(tick)}</text>'
        )
    if mark_x is not None and x0 <= mark_x <= x1:
        x = place(mark_x, y0)[0]
        parts.append(
            f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}">'
            f"<title>{escape(x_label)} {number(mark_x)}</title></line>"
        )
    parts.append(_x_axis(x_label))
    parts += [_line(line, place, x_label) for line in series]
    return _figure(f"{title}{', ' + y_label if y_label else ''}", _drawing(title, parts) + legend(series))


def _axis(
    values: Sequence[float], given: tuple[float, float] | None, whole: bool = False
) -> tuple[list[float], float, float]:
    """(ticks, low, high): the ends of the axis are the given ones, or enclose all values."""
    low, high = given or (min(values), max(values))
    if low == high:
        pad = 1.0 if whole else (abs(low) / 10 or 1.0)
        low, high = low - pad, high + pad
    ticks = nice_ticks(low, high)
    if whole:  # epochs: no ticks at halves, and no empty margin
        ticks = [tick for tick in ticks if float(tick).is_integer() and low <= tick <= high]
        return ticks, low, high
    if given:
        return [tick for tick in ticks if low <= tick <= high], low, high
    return ticks, ticks[0], ticks[-1]


def _grid_line(y: float, tick: float) -> str:
    """A horizontal line at y, with its number."""
    line = f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
    return line + f'<text class="tick" x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{number(tick)}</text>'


def _x_axis(label: str) -> str:
    """The line of the x axis, and its name."""
    base, middle = HEIGHT - BOTTOM, (LEFT + WIDTH - RIGHT) / 2
    line = f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{base}" y2="{base}"/>'
    return line + f'<text class="label" x="{middle}" y="{HEIGHT - 3}" text-anchor="middle">{escape(label)}</text>'


def _drawing(title: str, parts: list[str]) -> str:
    """The SVG of a chart."""
    head = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title, quote=True)}">'
    return head + "".join(parts) + "</svg>"


def _line(line: Series, place, x_label: str) -> str:
    path, pen_down = [], False
    for x, y in line.points:
        if math.isfinite(x) and math.isfinite(y):
            path.append(f"{'L' if pen_down else 'M'}{place(x, y)[0]:.1f} {place(x, y)[1]:.1f}")
            pen_down = True
        else:
            pen_down = False
    points = [(x, y) for x, y in line.points if math.isfinite(x) and math.isfinite(y)]
    kind = "series dashed" if line.dashed else "series"
    out = f'<path class="{kind} s{line.colour % COLOURS}" d="{" ".join(path)}"/>'
    shown = line.dots or len(points) == 1
    for x, y in points if len(points) <= 400 else ():  # a tooltip for each point, except in long runs
        tip = f"{escape(line.name)}: {number(y)} at {escape(x_label)} {number(x)}"
        radius, look = (2.6, f"dot s{line.colour % COLOURS}") if shown else (6, "touch")
        across, down = place(x, y)
        out += f'<circle class="{look}" cx="{across:.1f}" cy="{down:.1f}" r="{radius}"><title>{tip}</title></circle>'
    return out


def histogram(title: str, values: Sequence[float], bins: int, x_label: str, split_at: float) -> str:
    """Counts of values in [0, 1] in equal bins, as an HTML figure. Bins from ``split_at`` on have another colour."""
    counts = [0] * bins
    for value in values:
        counts[min(bins - 1, max(0, int(value * bins + 1e-9)))] += 1
    ticks = nice_ticks(0, max(1, *counts), 4)
    top, base = ticks[-1], HEIGHT - BOTTOM
    span, width = HEIGHT - TOP - BOTTOM, (WIDTH - LEFT - RIGHT) / bins
    parts = [_grid_line(base - tick / top * span, tick) for tick in ticks]
    for at, count in enumerate(counts):
        low, high = at / bins, (at + 1) / bins
        tall = count / top * span
        good = low >= split_at - 1e-9
        parts.append(
            f'<rect class="bar {"s2" if good else "s1"}" x="{LEFT + at * width + 1:.1f}" y="{base - tall:.1f}" '
            f'width="{width - 2:.1f}" height="{tall:.1f}"><title>{count} of {len(values)} from {number(low)} to '
            f"{number(high)}</title></rect>"
        )
    for tick in (0, 0.25, 0.5, 0.75, 1):
        x = LEFT + tick * (WIDTH - LEFT - RIGHT)
        parts.append(f'<text class="tick" x="{x:.1f}" y="{base + 16}" text-anchor="middle">{number(tick)}</text>')
    parts.append(_x_axis(x_label))
    return _figure(title, _drawing(title, parts))


def stacked_bar(parts: Sequence[tuple[str, float]]) -> str:
    """Parts (name, seconds) of a whole as one bar, with a legend of each part's seconds and share."""
    whole = sum(value for _, value in parts) or 1.0
    pieces, keys = [], []
    for at, (name, value) in enumerate(parts):
        share = 100 * value / whole
        text = f"{escape(name)} {duration(value)}, {share:.1f}%"
        pieces.append(f'<span class="piece b{at % COLOURS}" style="width:{share:.3f}%" title="{text}"></span>')
        keys.append(f'<li><i class="key b{at % COLOURS}"></i>{text}</li>')
    return f'<div class="stack">{"".join(pieces)}</div><ul class="legend">{"".join(keys)}</ul>'


def legend(series: Sequence[Series]) -> str:
    """The lines' names with their colours; "" for a single line."""
    if len(series) < 2:
        return ""
    keys = (
        f'<li><i class="key b{line.colour % COLOURS}{" thin" if line.dashed else ""}"></i>{escape(line.name)}</li>'
        for line in series
    )
    return f'<ul class="legend">{"".join(keys)}</ul>'


def _figure(title: str, inside: str) -> str:
    return f'<figure class="chart"><figcaption>{escape(title)}</figcaption>{inside}</figure>'
