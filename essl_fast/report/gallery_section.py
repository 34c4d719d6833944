"""The gallery in a report: frames under their heat, with the outline at the threshold and the ground truth.

Everything is inline: a JPEG, a small transparent PNG that the browser enlarges, and vector lines over both.
"""

import base64
import io
from html import escape

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from essl_fast.config import SIZE
from essl_fast.report import plotting
from essl_fast.report.gallery import GROUPS, Picture
from essl_fast.report.sounds import MEDIA_TYPE, MOST_BYTES

HEAT_SIDE = 56  # pixels of the PNG; the browser enlarges it smoothly, and more pixels look the same
THRESHOLD = 0.5  # of the scaled map, as in metrics.ciou
_WORDS = {"best": "Best", "median": "In the middle", "worst": "Worst"}


def heat_of(similarity: np.ndarray, side: int = SIZE) -> np.ndarray:
    """A similarity map (h, w) as the metric thresholds it: (side, side) float64 in [0, 1]; zeros if it is constant."""
    wide = F.interpolate(torch.from_numpy(np.asarray(similarity))[None, None].double(), (side, side), mode="bilinear")
    heat = wide[0, 0].numpy()
    span = heat.max() - heat.min()
    return (heat - heat.min()) / span if span > 0 else np.zeros_like(heat)


def heat_png(heat: np.ndarray) -> bytes:
    """Heat (S, S) in [0, 1] as a PNG: the hotter, the more opaque."""
    pixels = (plotting.load().colormaps["inferno"](0.15 + 0.85 * heat) * 255).astype(np.uint8)
    pixels[..., 3] = (np.clip(heat * 1.15 - 0.1, 0, 0.78) * 255).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels, "RGBA").save(out, "PNG", optimize=True)
    return out.getvalue()


def outline(heat: np.ndarray) -> str:
    """The SVG path, in pixels, of the lines where heat (S, S) crosses THRESHOLD; "" if it crosses it nowhere."""
    from contourpy import contour_generator

    centres = np.arange(heat.shape[0]) + 0.5
    # A rim that is below every threshold closes the lines at the frame's edge.
    rim = np.pad(heat, 1, constant_values=-1.0)
    ends = np.concatenate([[0.0], centres, [float(heat.shape[0])]])
    path = []
    for line in contour_generator(ends, ends, rim).lines(THRESHOLD):
        points = " ".join(f"{x:.1f} {y:.1f}" for x, y in np.asarray(line)[::2] if np.isfinite([x, y]).all())
        path.append(f"M{points}Z")
    return "".join(path)


def playing(pictures: list[Picture], room: int) -> set[int]:
    """The places of the pictures whose sounds fit into ``room`` bytes together, the first ones first."""
    total, fit = 0, set()
    for at, picture in enumerate(pictures):
        total += len(picture.sound)
        if total > room:
            break
        if picture.sound:
            fit.add(at)
    return fit


def picture_figure(picture: Picture, plays: bool = False) -> str:
    """One picture with its caption, as HTML. plays: with its sound."""
    heat = heat_of(picture.similarity)
    boxes = "".join(
        f'<rect class="truth" x="{x1}" y="{y1}" width="{x2 - x1}" height="{y2 - y1}"/>'
        for x1, y1, x2, y2 in picture.boxes.tolist()
        if x2 > x1 and y2 > y1
    )
    edge = outline(heat)
    lines = f'<path class="under" d="{edge}"/><path class="edge" d="{edge}"/>' if edge else ""
    score = "–" if np.isnan(picture.ciou) else f"{picture.ciou:.2f}"
    words = f"{picture.class_name}, cIoU {score}: {picture.key}"
    player = f'<audio controls preload="metadata" src="{uri(MEDIA_TYPE, picture.sound)}"></audio>'
    return (
        f'<figure class="shot"><svg viewBox="0 0 {SIZE} {SIZE}" role="img" aria-label="{escape(words, quote=True)}">'
        f'<image width="{SIZE}" height="{SIZE}" href="{uri("image/jpeg", picture.jpeg)}"/>'
        f'<image class="heat" width="{SIZE}" height="{SIZE}" href="'
        f'{uri("image/png", heat_png(heat_of(picture.similarity, HEAT_SIDE)))}"/>'
        f'<g class="outline">{lines}</g><g class="boxes">{boxes}</g></svg>'
        f"<figcaption><b>{score}</b> {escape(picture.class_name)}<small>{escape(picture.key)}</small></figcaption>"
        f"{player if plays else ''}</figure>"
    )


def gallery_section(pictures: list[Picture], number: int, room: int = MOST_BYTES) -> str:
    """All groups as HTML, with switches for heat, outline and ground truth.

    Args:
        pictures: of one run.
        number: of this gallery in the page, so that no two switches have the same id.
        room: bytes that the sounds may take; the pictures after that are silent.
    """
    heard = playing(pictures, room)
    switches = "".join(
        f'<input class="switch {kind}-on" type="checkbox" id="{kind}{number}" checked>'
        for kind in ("heat", "edge", "truth")
    )
    words = (("heat", "heat"), ("edge", f"outline at {THRESHOLD}"), ("truth", "ground truth"))
    labels = "".join(f'<label class="for-{kind}" for="{kind}{number}">{text}</label>' for kind, text in words)
    groups = []
    for group in GROUPS:
        chosen = [at for at, picture in enumerate(pictures) if picture.group == group]
        if chosen:
            shots = "".join(picture_figure(pictures[at], at in heard) for at in chosen)
            groups.append(f'<h3>{_WORDS[group]}</h3><div class="gallery">{shots}</div>')
    silent = len(pictures) - len(heard)
    if heard and silent:
        groups.append(f'<p class="sub">{silent} of these pictures are silent, to keep the page small.</p>')
    return f'<div>{switches}<div class="switches">{labels}</div><div class="groups">{"".join(groups)}</div></div>'


def uri(kind: str, data: bytes) -> str:
    """A file as a data: URI; kind: its media type."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
