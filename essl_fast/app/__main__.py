"""python -m essl_fast.app --checkpoint RUN: a page in the browser that localizes the sound of a video.

A video goes in; the overlay, the contact sheet, and the score of each moment come out, as `python -m
essl_fast.localize` makes them. The page is for this machine alone unless --host says otherwise: it has no passwords.
"""

from __future__ import annotations

if __name__ == "__main__":
    from essl_fast.common.commands import begin

    begin()

import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

from essl_fast.common.commands import Options, command, slow_imports
from essl_fast.common.registry import import_modules
from essl_fast.common.values import a_model, number_between, whole_number

PROG = "python -m essl_fast.app"
HERE = "127.0.0.1"


def parser() -> Options:
    """The options."""
    parser = Options(prog=PROG, description=__doc__)
    add = parser.add_argument
    text = "a run directory (its best.pt), a checkpoint, or hf://org/name"
    add("--checkpoint", required=True, type=a_model, metavar="RUN", help=text)
    add("--host", default=HERE, metavar="ADDRESS", help=f"listen on this address (default: {HERE}, this machine alone)")
    add("--port", type=whole_number(1), default=None, metavar="N", help="default: the first free one from 7860 on")
    add("--max-mb", type=whole_number(1, unit="MB"), default=200, metavar="N", help="of an upload (default: 200)")
    add("--max-seconds", type=number_between(1, 86_400), default=600.0, help="of a video (default: 600)")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    parser.add_weights()
    parser.add_imports()
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    options = parser().parse_args(argv)
    with slow_imports():
        from essl_fast.app.blocks import gradio, page, serve
        from essl_fast.app.work import Limits
        from essl_fast.localize import SoundFinder
    gradio()  # if it is missing, that is said first
    import_modules(options.imports)
    finder = SoundFinder.open(options.checkpoint, options.device, weights=options.weights)
    limits = Limits(options.max_mb, options.max_seconds)
    with tempfile.TemporaryDirectory(prefix="essl_fast-app-") as folder:
        blocks = page(finder, Path(folder), limits)
        address = serve(blocks, options.host, options.port, limits)
        print(f"open {address} (Ctrl-C ends it)", flush=True)
        if options.host != HERE:
            print(f"whoever reaches {options.host} may upload videos: the page has no passwords", flush=True)
        try:
            threading.Event().wait()
        finally:
            blocks.close(verbose=False)
    return 0


if __name__ == "__main__":
    sys.exit(command(main, PROG))
