"""The page, built with Gradio. It loads no font and no script from elsewhere, and sends no statistics."""

from __future__ import annotations

import os
from html import escape
from pathlib import Path
from typing import Any

from essl_fast.app.work import HEADS, STEP, Answer, Limits, answer
from essl_fast.common.errors import InputError
from essl_fast.localize import SoundFinder

TITLE = "Where does the sound come from?"
# Without the width, margins of `auto` let the page be as wide as the table's words, wider than a phone.
CSS = """
.gradio-container { width: 100% !important; max-width: 1180px !important; margin: 0 auto; }
.said p, .about { overflow-wrap: anywhere; }
.said p { margin: 0 0 6px; }
.said .wrong { color: #b3261e; font-weight: 600; }
.moments { overflow: auto; max-height: 360px; }
.prose .moments table { width: 100%; font-size: .86rem; border-collapse: collapse; }
.prose .moments :is(th, td) { text-align: left; padding: 3px 6px; vertical-align: top; }
footer { display: none !important; }
"""


def gradio() -> Any:
    """The package gradio. InputError if it is missing or cannot be imported."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # it is read at the import
    try:
        import gradio
    except ImportError as error:
        raise InputError(
            f"gradio cannot be imported ({error}); run `pip install 'gradio>=6,<7'` (or `pip install '.[app]'` in the "
            "source folder)"
        ) from error
    return gradio


def said(found: Answer) -> str:
    """The lines of an answer as HTML."""
    kind = ' class="wrong"' if found.failed else ""
    return "".join(f"<p{kind}>{escape(sentence(line))}</p>" for line in found.said)


def sentence(line: str) -> str:
    """A line of ours with a full stop at its end and, unless it begins with the name of a file, a capital."""
    begun = line[:1].upper() + line[1:] if line.partition(" ")[0].isalpha() else line
    return begun + ("" if not line or line.endswith(".") else ".")


def about(finder: SoundFinder, limits: Limits) -> str:
    """What stands above the page, as Markdown: the model, and what may be uploaded."""
    warning = escape(sentence(finder.trust.warning(Path("-"))))
    taken = f"Upload a video with sound, of up to {limits.megabytes} MB and {limits.seconds:g} s."
    return f"# {TITLE}\n\nModel: `{finder.path}`\n\n{warning} {taken}"


def table(found: Answer) -> str:
    """The moments of an answer as an HTML table, which scrolls by itself; "" if there are none."""
    if not found.rows:
        return ""
    heads = "".join(f"<th>{escape(head)}</th>" for head in HEADS)
    rows = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in found.rows)
    return f'<div class="moments"><table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>'


def page(finder: SoundFinder, folder: Path, limits: Limits) -> Any:
    """The page as Gradio's Blocks, not yet served.

    Args:
        finder: the model.
        folder: for results.
        limits: of the videos.

    Raises:
        InputError: gradio cannot be imported.
    """
    gr = gradio()
    least = finder.trust.min_score

    def run(video: str | None, rate: float, threshold: float, min_score: float) -> list:
        found = answer(finder, video, folder, limits, rate, threshold, min_score)
        files = [None if path is None else str(path) for path in (found.overlay, found.sheet, found.moments)]
        return [said(found), *files, table(found)]

    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(3600, 3600)) as blocks:
        gr.Markdown(about(finder, limits), elem_classes="about")
        with gr.Row():
            with gr.Column(min_width=300):
                video = gr.Video(label="Your video", sources=["upload"])  # longer words hide under its buttons
                with gr.Accordion("Options", open=False):
                    rate = gr.Slider(0.5, 25, 5, step=0.5, label="moments a second")
                    threshold = gr.Slider(0.05, 0.95, 0.5, step=0.05, label="threshold of the heat")
                    text = "smallest score that is shown" + ("" if least is None else " (the model's own is set)")
                    min_score = gr.Slider(-1, 1, -1 if least is None else least, step=STEP, label=text)
                button = gr.Button("Localize", variant="primary")
                lines = gr.HTML(elem_classes="said", label="Result")
            with gr.Column(min_width=300):
                overlay = gr.Video(label="Heat over the video", interactive=False)
                sheet = gr.Image(show_label=False, interactive=False, type="filepath", buttons=[])
        rows = gr.HTML(label="Moments")
        moments = gr.File(label="All of it as JSON", interactive=False)
        button.click(
            run,
            [video, rate, threshold, min_score],
            [lines, overlay, sheet, moments, rows],
            concurrency_limit=1,  # one network, one video at a time
            api_visibility="private",
        )
    return blocks


def serve(blocks: Any, host: str, port: int | None, limits: Limits) -> str:
    """Start to serve a page, and return its address.

    Args:
        blocks: of :func:`page`.
        host: the address to listen on.
        port: None takes the first free one from 7860 on.
        limits: of the videos; a larger upload is cut off.

    Raises:
        InputError: the port is taken, or the address is none of this machine.
    """
    gr = gradio()
    system = ["system-ui", "sans-serif"]  # the default theme fetches its fonts from Google
    try:
        _, address, _ = blocks.launch(
            server_name=host,
            server_port=port,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            max_file_size=f"{limits.megabytes}mb",
            theme=gr.themes.Default(font=system, font_mono=["ui-monospace", "monospace"]),
            css=CSS,
            footer_links=[],
            ssr_mode=False,
        )
    except OSError as error:
        raise InputError(
            f"--host {host}, --port {port or '7860 and up'}: it cannot listen there ({error.strerror or error})"
        ) from error
    return address
