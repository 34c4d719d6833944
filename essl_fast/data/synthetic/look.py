"""The looks of the demo world: sprites of the eight classes, cluttered backgrounds, and the frames made of them.

Everything expensive is drawn once per video (sprites in two poses, a background larger than the frame, a noise sheet).
So a frame is a crop, a few pastes and one addition: about 0.1 ms. Every object shows both poses in turn, whether it
sounds or not: nothing in a frame depends on which object sounds.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

WIDTH, HEIGHT = 320, 180  # pixels; the size that Chaotic World's annotations are in
MARGIN_X, MARGIN_Y = 12, 8  # pixels that the background can pan in each direction
NOISE = 10  # grey levels; pictures stay this far from 0 and 255, so that noise is added without clipping

Colour = tuple[int, int, int, int]
Draw = Callable[["Pen", np.random.Generator, int], None]


def _colour(hue: float, saturation: float, value: float) -> Colour:
    red, green, blue = colorsys.hsv_to_rgb(hue % 1.0, min(max(saturation, 0.0), 1.0), min(max(value, 0.0), 1.0))
    return round(255 * red), round(255 * green), round(255 * blue), 255


class Pen:
    """Draws on a (width, height) picture in coordinates 0 to 1; `hue`, `sat` and `val` are the object's colour."""

    def __init__(self, width: int, height: int, hue: float, sat: float, val: float):
        self.image = Image.new("RGBA", (width, height))
        self.canvas = ImageDraw.Draw(self.image)
        self.width, self.height = width - 1, height - 1
        self.hue, self.sat, self.val = hue, sat, val

    def own(self, light: float = 1.0, turn: float = 0.0, pale: float = 1.0) -> Colour:
        """The object's colour, its brightness scaled by `light`, its hue turned, its saturation scaled by `pale`."""
        return _colour(self.hue + turn, self.sat * pale, self.val * light)

    def _at(self, points: tuple[float, ...]) -> list[float]:
        return [p * (self.height if i % 2 else self.width) for i, p in enumerate(points)]

    def oval(self, *box: float, fill: Colour) -> None:
        self.canvas.ellipse(self._at(box), fill=fill)

    def bar(self, *box: float, fill: Colour) -> None:
        self.canvas.rectangle(self._at(box), fill=fill)

    def shape(self, *points: float, fill: Colour) -> None:
        self.canvas.polygon(self._at(points), fill=fill)


INK, PAPER = (22, 22, 26, 255), (236, 236, 230, 255)


def _bell(pen: Pen, rng: np.random.Generator, pose: int) -> None:
    swing = 0.07 if pose else -0.07
    pen.oval(0.42 + swing, 0.78, 0.58 + swing, 1.0, fill=_colour(0.07, 0.8, 0.45))
    pen.oval(0.22, 0.0, 0.78, 0.5, fill=pen.own())
    pen.shape(0.22, 0.25, 0.78, 0.25, 0.86, 0.66, 1.0, 0.88, 0.0, 0.88, 0.14, 0.66, fill=pen.own())
    for y in (0.34, 0.54, 0.74):
        pen.bar(0.2 - 0.1 * y, y, 0.8 + 0.1 * y, y + 0.06, fill=pen.own(0.55, -0.02))


def _bird(pen: Pen, rng: np.random.Generator, pose: int) -> None:
    pen.shape(0.0, 0.3, 0.3, 0.45, 0.3, 0.75, 0.0, 0.85, 0.1, 0.57, fill=pen.own(0.6))
    pen.oval(0.12, 0.22, 0.86, 1.0, fill=pen.own())
    pen.oval(0.6, 0.04, 0.92, 0.56, fill=pen.own(1.0, -0.03))
    pen.shape(0.88, 0.2, 1.0, 0.32, 0.88, 0.42, fill=_colour(0.1, 0.9, 0.95))
    pen.oval(0.76, 0.16, 0.84, 0.3, fill=INK)
    tip = 0.0 if pose else 0.98
    pen.shape(0.24, 0.55, 0.66, 0.55, 0.36, tip, fill=pen.own(0.5, 0.05))
    for x in (0.3, 0.4, 0.5):
        pen.bar(x, 0.62, x + 0.04, 0.84, fill=pen.own(1.2, -0.08, 0.6))


def _car(pen: Pen, rng: np.random.Generator, pose: int) -> None:
    pen.shape(0.18, 0.36, 0.32, 0.0, 0.72, 0.0, 0.86, 0.36, fill=pen.own(0.75))
    pen.shape(0.26, 0.34, 0.36, 0.08, 0.5, 0.08, 0.5, 0.34, fill=_colour(0.55, 0.15, 0.9))
    pen.shape(0.54, 0.34, 0.54, 0.08, 0.68, 0.08, 0.78, 0.34, fill=_colour(0.55, 0.15, 0.9))
    pen.bar(0.0, 0.34, 1.0, 0.8, fill=pen.own())
    pen.bar(0.0, 0.52, 1.0, 0.6, fill=pen.own(0.45))
    for x in (0.1, 0.64):
        pen.oval(x, 0.55, x + 0.26, 1.0, fill=INK)
        pen.oval(x + 0.08, 0.69, x + 0.18, 0.86, fill=PAPER if pose else _colour(0, 0, 0.55))


def _drum(pen: Pen, rng: np.random.Generator, pose: int) -> None:
    pen.oval(0.0, 0.62, 1.0, 1.0, fill=pen.own(0.7))
    pen.bar(0.0, 0.2, 1.0, 0.81, fill=pen.own())
    for i in range(5):
        x = i / 5
        pen.shape(x, 0.22, x + 0.06, 0.22, x + 0.13, 0.86, x + 0.07, 0.86, fill=PAPER)
        pen.shape(x + 0.14, 0.22, x + 0.2, 0.22, x + 0.13, 0.86, x + 0.07, 0.86, fill=PAPER)
    pen.oval(0.0, 0.0, 1.0, 0.42, fill=pen.own(0.6))
    pen.oval(0.05, 0.04, 0.95, 0.36, fill=PAPER)
    x = 0.3 if pose else 0.52
    pen.oval(x, 0.12, x + 0.16, 0.28, fill=pen.own(0.8))


def _fountain(pen: Pen, rng: np.random.Generator, pose: int) -> None:
    pen.shape(0.5, 0.0, 0.88, 0.28, 1.0, 0.74, 0.0, 0.74, 0.12, 0.28, fill=pen.own(0.55))
    for row in range(4):
        y = 0.1 + 0.16 * row + (0.07 if pose else 0.0)
        for column in range(2 + row):
            x = 0.5 + (column - (1 + row) / 2) * 0.19
            pen.oval(x - 0.05, y - 0.07, x + 0.05, y + 0.08, fill=pen.own(1.3, 0.02, 0.35))
    pen.shape(0.0, 0.72, 1.0, 0.72, 0.86, 1.0, 0.14, 1.0, fill=pen.own(0.8, 0.04, 0.6))


def _phone(pen: Pen, rng: np.random.Generator, pose: int) -> None:
    pen.bar(0.0, 0.0, 1.0, 1.0, fill=INK)
    pen.bar(0.03, 0.05, 0.97, 0.95, fill=_colour(pen.hue, 0.06, pen.val))
    for row in range(3):
        for column in range(5):
            x, y = 0.08 + 0.175 * column, 0.12 + 0.28 * row
            lit = pose == (row + column) % 2
            pen.bar(x, y, x + 0.12, y + 0.18, fill=INK if lit else _colour(0, 0, 0.42))


def _siren(pen: Pen, rng: np.random.Generator, pose: int) -> None:
    pen.oval(0.12, 0.0, 0.88, 1.1, fill=pen.own())
    pen.shape(0.5, 0.62, 0.26 if pose else 0.5, 0.05, 0.5 if pose else 0.74, 0.05, fill=_colour(0.13, 0.3, 1.0))
    pen.bar(0.0, 0.6, 1.0, 1.0, fill=_colour(0.63, 0.85, 0.6))
    for i in range(4):
        x = (i + 0.1 + 0.4 * pose) / 4
        pen.bar(x, 0.66, min(x + 0.11, 1.0), 0.94, fill=PAPER)


def _singer(pen: Pen, rng: np.random.Generator, pose: int) -> None:
    pen.oval(0.0, 0.0, 1.0, 1.0, fill=pen.own(0.55, -0.04))
    pen.oval(0.1, 0.14, 0.9, 1.0, fill=pen.own(1.15, 0.03, 0.45))
    for x in (0.26, 0.58):
        pen.oval(x, 0.32, x + 0.17, 0.52, fill=PAPER)
        pen.oval(x + 0.05, 0.36, x + 0.12, 0.5, fill=INK)
    gape = 0.3 if pose else 0.12
    pen.oval(0.34, 0.74 - gape / 2, 0.66, 0.74 + gape / 2, fill=pen.own(0.75, 0.06, 1.2))


# class: (function that draws it, its hue, waves of its texture across and down the sprite)
LOOKS: dict[str, tuple[Draw, float, tuple[float, float]]] = {
    "bell": (_bell, 0.145, (0.0, 9.0)),
    "bird": (_bird, 0.34, (10.0, 6.0)),
    "car": (_car, 0.61, (14.0, 0.0)),
    "drum": (_drum, 0.99, (5.0, 0.0)),
    "fountain": (_fountain, 0.5, (8.0, -8.0)),
    "phone": (_phone, 0.6, (0.0, 0.0)),
    "siren": (_siren, 0.065, (4.0, -10.0)),
    "singer": (_singer, 0.88, (0.0, 5.0)),
}


def sprite(kind: str, rng: np.random.Generator, width: int, height: int) -> list[np.ndarray]:
    """Two poses of one object of class `kind`, RGBA uint8 (height, width, 4); together they touch all four sides."""
    draw, hue, (across, down) = LOOKS[kind]
    hue, sat, val = hue + rng.uniform(-0.03, 0.03), rng.uniform(0.68, 0.98), rng.uniform(0.68, 0.98)
    mirrored = rng.random() < 0.5
    waves = rng.uniform(0.8, 1.25)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    texture = np.sin(2 * np.pi * waves * (across * x / width + down * y / height) + rng.uniform(0, 2 * np.pi))
    shade = (1 + 0.16 * texture + rng.normal(0, 0.05, (height, width))) * rng.uniform(0.82, 1.05)
    poses = []
    for pose in (0, 1):
        pen = Pen(2 * width, 2 * height, hue, sat, val)
        draw(pen, rng, pose)
        poses.append(pen.image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else pen.image)
    box = Image.fromarray(np.maximum(*(np.asarray(p)[..., 3] for p in poses))).getbbox()
    drawn = []
    for picture in poses:
        pixels = np.array(picture.crop(box).resize((width, height), Image.Resampling.BOX))
        pixels[..., :3] = np.clip(pixels[..., :3] * shade[..., None], NOISE, 255 - NOISE)
        drawn.append(pixels)
    return drawn


def background(rng: np.random.Generator) -> np.ndarray:
    """A scene of blotches and many small shapes, RGB uint8 (HEIGHT + 2 * MARGIN_Y, WIDTH + 2 * MARGIN_X, 3)."""
    width, height = WIDTH + 2 * MARGIN_X, HEIGHT + 2 * MARGIN_Y
    corners = np.array(
        [[_colour(rng.random(), rng.uniform(0, 0.6), rng.uniform(0.2, 0.85))[:3] for _ in "ab"] for _ in "ab"]
    )
    ground = np.asarray(
        Image.fromarray(corners.astype(np.uint8)).resize((width, height), Image.Resampling.BILINEAR), np.float32
    )
    for cells, strength in (((9, 6), 26), ((43, 25), 22)):
        blotches = Image.fromarray(rng.integers(0, 256, (cells[1], cells[0], 3), dtype=np.uint8))
        ground += (
            np.asarray(blotches.resize((width, height), Image.Resampling.BICUBIC), np.float32) / 127.5 - 1
        ) * strength
    image = Image.fromarray(np.clip(ground, 0, 255).astype(np.uint8))
    canvas = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(70, 120))):
        x, y, w, h = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(5, 26), rng.uniform(4, 18)
        fill = _colour(rng.random(), rng.uniform(0.1, 1), rng.uniform(0.15, 1))[:3]
        form = int(rng.integers(5))
        if form == 0:
            canvas.rectangle((x, y, x + w, y + h), fill=fill)
        elif form == 1:
            canvas.ellipse((x, y, x + w, y + h), fill=fill)
        elif form == 2:
            canvas.polygon((x, y, x + w, y + h / 3, x + w / 3, y + h), fill=fill)
        elif form == 3:
            canvas.line((x, y, x + w * rng.uniform(-2, 2), y + h * 1.5), fill=fill, width=int(rng.integers(1, 4)))
        else:  # a striped patch, so that there is texture outside the objects, too
            for k in range(0, int(w), 6):
                canvas.rectangle((x + k, y, x + k + 2, y + h), fill=fill)
    grain = rng.normal(0, 7, (height, width, 1)).astype(np.float32)
    return np.clip(np.asarray(image, np.float32) + grain, NOISE, 255 - NOISE).astype(np.uint8)


@lru_cache(maxsize=1)
def noise_sheet() -> np.ndarray:
    """The noise of all videos, uint8 (HEIGHT + 64, WIDTH + 64, 3); frames add it modulo 256, at random offsets."""
    noise = np.random.default_rng(20240419).normal(0, 2.5, (HEIGHT + 64, WIDTH + 64, 3))
    return np.clip(np.rint(noise), -NOISE, NOISE).astype(np.int8).view(np.uint8)


def stamp(picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Prepare a sprite, RGBA uint8 (h, w, 4), for pasting.

    Returns:
        Pixels times opacity, and one minus opacity, both uint16 (h, w, 3) in units of 1/256. With these, a paste is a
        product, a sum and a shift, ten times faster than dividing by 255 each time.
    """
    opacity = picture[..., 3:].astype(np.uint16) + (picture[..., 3:] > 127)
    through = np.ascontiguousarray(np.broadcast_to(256 - opacity, (*picture.shape[:2], 3)))
    return (picture[..., :3] * opacity + 128).astype(np.uint16), through


def paste(frame: np.ndarray, stamped: tuple[np.ndarray, np.ndarray], x: int, y: int) -> None:
    """Blend what `stamp` returned into `frame`, uint8 (H, W, 3), with its top left corner at (x, y), all inside it."""
    pixels, through = stamped
    height, width = pixels.shape[:2]
    under = frame[y : y + height, x : x + width]
    under[...] = (under * through + pixels) >> 8
