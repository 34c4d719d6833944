"""Values as text for the page."""

import math
from html import escape


def text(value: object) -> str:
    """Any value as text that is safe in HTML, also inside a quoted attribute."""
    return escape(str(value), quote=True)


def per_cent(value: float | None) -> str:
    """A share in per cent with one decimal; a dash if there is none."""
    return "–" if value is None or not math.isfinite(value) else f"{100 * value:.1f}"


def speed(rate: float) -> str:
    """Pairs per second, to three digits."""
    return f"{rate:.3g}" if rate < 1000 else f"{rate:,.0f}"


def number(value: float) -> str:
    """A number for an axis or a tooltip: short, and without an exponent where possible."""
    if value == 0 or 1e-3 <= abs(value) < 1e6:
        return f"{value:.4g}"
    return f"{value:.2g}"


def duration(seconds: float) -> str:
    """Seconds in words: 8.4 s, 12 min 5 s, 3 h 20 min."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
