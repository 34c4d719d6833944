"""python -m essl_fast.localize VIDEO --checkpoint RUN --out DIR: where in a video its sound comes from, by the moment.

DIR/<name>.overlay.mp4    the video with its sound: heat, a white contour at the threshold, ground truth in green
DIR/<name>.sheet.png      a contact sheet of up to 12 moments
DIR/<name>.moments.json   each moment with the boxes of its regions at or above the threshold, in the video's pixels

A moment is a frame with the 3 s of sound around it, as a pair is in training. In the first and the last 1.5 s these are
the first and the last 3 s of the track, whole: the network was trained on nothing else. A track below 3 s is repeated,
as for training. Where the track has ended, or holds nothing but one value, nothing is localized.

The file is decoded twice: once for the moments, which go through the network in batches, and once to draw, when the
heat of each moment is known and can fade into the next one's. So memory holds a batch of 224 x 224 frames and the few
frames between decoder and encoder, whatever the length, the resolution and the rate. On a GPU its video decoder (NVDEC,
by DALI) decodes the moments, and their frames stay there; what is drawn is needed on the host, and PyAV decodes it.
"""

from __future__ import annotations

if __name__ == "__main__":
    from essl_fast.common.commands import begin

    begin()

import argparse
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NoReturn

from essl_fast.common import commands
from essl_fast.common.commands import command
from essl_fast.common.errors import InputError
from essl_fast.common.files import atomic_file
from essl_fast.data import media
from essl_fast.data.datasets.truth import read_truth
from essl_fast.data.media.footage import is_picture
from essl_fast.localize.finder import SoundFinder
from essl_fast.localize.moments import (
    DECODERS,
    MOST_LINES,
    _Bars,
    as_json,
    draw,
    localize,
    moments_of,
    open_input,
    pick_decoder,
    prepare_folder,
    sheet,
)

PROG = "python -m essl_fast.localize"


def _between(low: float, high: float) -> Callable[[str], float]:
    def read(text: str) -> float:
        value = float(text)  # argparse reports a ValueError by the function's name
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"must be from {low:g} to {high:g}, got {text}")
        return value

    read.__name__ = "number"
    return read


def _size(text: str) -> tuple[int, int]:
    width, x, height = text.partition("x")
    if not (x and width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise argparse.ArgumentTypeError(f"must be like 320x180, got {text}")
    return int(width), int(height)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; --help explains the options")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    text, _, more = __doc__.partition("\n\n")
    style = argparse.RawDescriptionHelpFormatter
    parser = _Parser(prog=PROG, description=text.partition(": ")[2], epilog=more, formatter_class=style)
    add = parser.add_argument
    add("input", nargs="?", type=Path, metavar="VIDEO", help="a video, or a picture with --sound")
    add("--image", type=Path, metavar="FILE", help="a picture instead of a video (with --sound)")
    add("--sound", type=Path, metavar="FILE", help="take the sound from this file (default: the video's own)")
    add("--checkpoint", required=True, type=Path, metavar="RUN", help="a run directory (its best.pt), or a checkpoint")
    add("--out", type=Path, default=Path("localized"), metavar="DIR", help="for the results (default: localized)")
    add("--rate", type=_between(0.01, 1000), default=5.0, help="moments a second of video (default: 5)")
    add("--threshold", type=_between(0, 1), default=0.5, help="of the scaled map (default: 0.5, the metric's)")
    add("--opacity", type=_between(0, 1), default=0.6, help="of the hottest place (default: 0.6)")
    add("--boxes", type=Path, metavar="FILE", help="ground truth: a JSON or CSV file, or Chaotic World's annotations")
    add("--boxes-size", type=_size, metavar="WxH", help="frame of those boxes (default: the video; folders: 320x180)")
    add("--no-video", action="store_true", help="write no overlay video: much faster")
    add("--batch", type=int, default=0, help="moments a forward pass (default: 64 on a GPU, 8 on a CPU)")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    add(
        "--decoder",
        default="auto",
        choices=DECODERS,
        help="of the moments: nvdec is the GPU's video decoder (default: auto, nvdec where it can)",
    )
    add("--precision", default="auto", choices=("auto", "bf16", "fp16", "fp32"), help="default: auto")
    for name in ("vgg16", "vggish"):
        help_ = f"the file of {name}'s published weights, if it has moved"
        add(f"--model.{name}_weights", dest=f"{name}_weights", default="", metavar="PATH", help=help_)
    options = parser.parse_args(argv)
    if (options.input is None) == (options.image is None):
        raise InputError("give one VIDEO, or --image FILE with --sound FILE")
    if options.batch < 0:
        raise InputError(f"--batch: {options.batch} moments cannot be run; give 1 or more")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(argv)
    try:
        return run(options)
    except media.MediaError as error:
        raise InputError(str(error)) from error
    except OSError as error:  # what is read gives MediaErrors: this is a full disk or the like
        raise InputError(f"--out: writing into {options.out} failed ({error.strerror or error})") from error


def run(options: argparse.Namespace) -> int:
    given = options.image or options.input
    if options.image and not is_picture(given):
        raise InputError(f"--image: {given} has no picture's ending; give a JPEG or PNG file")
    footage, sound = open_input(given, options.sound)
    truth = read_truth(options.boxes, given.stem, options.boxes_size) if options.boxes else None
    files = {kind: options.out / f"{given.stem}.{kind}" for kind in ("overlay.mp4", "sheet.png", "moments.json")}
    read = {path.resolve(): path for path in (given, sound, options.boxes) if path}
    if taken := [read[path.resolve()] for path in files.values() if path.resolve() in read]:
        raise InputError(f"--out: {taken[0]} is an input and would be overwritten; choose another folder")
    prepare_folder(options.out)
    weights = {name: file for name in ("vgg16", "vggish") if (file := getattr(options, f"{name}_weights"))}
    finder = SoundFinder.open(options.checkpoint, options.device, options.precision, weights)
    dali, why = pick_decoder(options.decoder, footage, finder.device)
    look = {"threshold": options.threshold, "opacity": options.opacity}
    with ExitStack() as stack:
        bars = _Bars(commands.console())
        stack.callback(bars.close)
        total = len(moments_of(footage.times, options.rate))
        found = localize(
            finder,
            footage,
            sound,
            rate=options.rate,
            threshold=options.threshold,
            batch=options.batch,
            truth=truth,
            dali=dali,
            step=bars.over("localizing", total),
        )
        count = sum(moment.similarity is not None for moment in found.moments)
        decoder = "PyAV" if not dali else "NVDEC and PyAV" if found.helped else "NVDEC"
        decoder += f" ({why})" if why and finder.device.type == "cuda" else ""
        bars.line(f"localized {count} of {len(found.moments)} moments on {finder.device}, decoded by {decoder}")
        with atomic_file(files["sheet.png"]) as file:
            file.write(sheet(found, **look))
        if options.no_video:
            del files["overlay.mp4"]
        else:
            step = bars.over("drawing", len(footage.times))
            lost = draw(files["overlay.mp4"], found, footage, sound, truth=truth, step=step, **look)
            bars.line(f"drew {len(footage.times) - lost} frames of {found.width}x{found.height}")
            if lost:
                found.faults.append(f"{lost} frames cannot be decoded: the overlay leaves them out")
        faults = [*found.faults, *footage.faults]
        told = {
            "format": "essl_fast localization",
            "version": 1,
            "input": str(given),
            "sound": str(sound),
            "checkpoint": str(finder.path),
            "width": found.width,
            "height": found.height,
            "frames": len(footage.times),
            "frame_rate": footage.frame_rate,
            "rate": options.rate,
            "threshold": options.threshold,
            "faults": faults,
            "moments": list(as_json(found)),
        }
        files.write_json(files["moments.json"], told)
        if len(faults) > MOST_LINES:
            faults[MOST_LINES:] = [f"{len(faults) - MOST_LINES} more faults are in {files['moments.json']}"]
        for line in [*faults, f"written: {', '.join(map(str, files.values()))}"]:
            bars.console.print(line, highlight=False, soft_wrap=True, markup=False)
    return 0


if __name__ == "__main__":
    sys.exit(command(main, PROG))
