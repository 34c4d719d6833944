"""The progress of a pass: a bar on a terminal, lines elsewhere."""

import io

from rich.console import Console

from essl_fast.common.progress import PassProgress


def shown(terminal: bool) -> str:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, width=100, color_system=None)
    with PassProgress(console) as progress:
        step = progress.over("moments of [a]", 10)
        step(4)
        step(6)
        progress.finish("10 moments of [a]")
    return stream.getvalue()


def test_a_bar_on_a_terminal():
    text = shown(terminal=True)
    assert "moments of [a]" in text and "10/10" in text
    assert "10 moments of [a] in 0." in text.splitlines()[-1]


def test_a_line_elsewhere():
    text = shown(terminal=False)
    assert text.startswith("10 moments of [a] in 0.") and text.count("\n") == 1 and "\x1b" not in text
