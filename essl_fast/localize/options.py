"""The command line of `python -m essl_fast.localize`. Nothing heavy is imported to read it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from essl_fast.common.commands import Options
from essl_fast.common.errors import InputError
from essl_fast.common.values import a_model, a_path, frame_size, number_between, whole_number

DECODERS = ("auto", "nvdec", "pyav")
PRECISIONS = ("auto", "bf16", "fp16", "fp32")


def parser(prog: str, description: str) -> Options:
    """The parser; the first paragraph of the description stands above the options, the others below."""
    first, _, more = description.partition("\n\n")
    style = argparse.RawDescriptionHelpFormatter
    parser = Options(prog=prog, description=first.partition(": ")[2], epilog=more, formatter_class=style)
    add = parser.add_argument
    add("input", nargs="?", type=a_path, metavar="VIDEO", help="a video, or a picture with --sound")
    add("--image", type=a_path, metavar="FILE", help="a picture instead of a video (with --sound)")
    add("--sound", type=a_path, metavar="FILE", help="take the sound from this file (default: the video's own)")
    add(
        "--checkpoint",
        required=True,
        type=a_model,
        metavar="RUN",
        help="a run directory (its best.pt), or a checkpoint",
    )
    add("--out", type=a_path, default=Path("localized"), metavar="DIR", help="for the results (default: localized)")
    add("--rate", type=number_between(0.01, 1000), default=5.0, help="moments a second of video (default: 5)")
    add("--threshold", type=number_between(0, 1), default=0.5, help="of the heat, scaled over the video (default: 0.5)")
    text = "moments with a smaller largest cosine stay dark (default: what the checkpoint's validation found)"
    add("--min-score", type=number_between(-1, 1), metavar="COSINE", help=text)
    add("--opacity", type=number_between(0, 1), default=0.6, help="of the hottest place (default: 0.6)")
    add("--boxes", type=a_path, metavar="FILE", help="ground truth: a JSON or CSV file, or Chaotic World's annotations")
    add(
        "--boxes-size", type=frame_size, metavar="WxH", help="frame of the boxes (default: the video; folders: 320x180)"
    )
    add("--no-video", action="store_true", help="write no overlay video: much faster")
    add(
        "--batch",
        type=whole_number(0, unit="moments"),
        default=0,
        metavar="N",
        help="moments per forward pass (default: 64 on a GPU, 8 on a CPU)",
    )
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    text = "of the moments: nvdec is the GPU's video decoder (default: auto, nvdec where it can)"
    add("--decoder", default="auto", choices=DECODERS, help=text)
    add("--precision", default="auto", choices=PRECISIONS, help="default: auto")
    parser.add_weights()
    parser.add_imports()
    return parser


def read_options(prog: str, description: str, argv: Sequence[str] | None) -> argparse.Namespace:
    """The options of a command line. InputError where they contradict each other."""
    options = parser(prog, description).parse_args(argv)
    if (options.input is None) == (options.image is None):
        raise InputError("give one VIDEO, or --image FILE with --sound FILE")
    return options
