"""Videos and annotations → shards that training reads: read every video once.

    python -m essl_fast.prepare --videos DIR --annotations DIR --out DIR
    python -m essl_fast.prepare --dataset flickr|vggss --data DIR --train-list FILE --test-list FILE --out DIR
    python -m essl_fast.prepare --dataset chaotic|flickr|vggss --from-h5 DIR --out DIR
    python -m essl_fast.prepare --verify --out DIR

A pair is one frame and the 3 s of sound around it, 16 kHz PCM16. Its frame is a JPEG picture, decoded with PyAV on the
CPU (or on NVDEC, `--decoder`), or a clip: the packets from the key frame before it on, copied and never decoded, which
training decodes on the GPU. `--visual auto` makes clips of the videos that this machine's GPU decodes, pictures of all
others.

Videos are read in the order in which their pairs lie in the shards (split, video, frame), so a shard is written as soon
as it is full, and the disk holds everything once. Kill it whenever you like: the same command continues, and ends with
the same bytes as if it had never stopped.

A pair whose 3 s leave the sound track is left out, as in the published code. So is, each with a reason of its own, what
a missing, broken or silent file cannot give. `OUT/left_out.jsonl` lists all of it. What a clip copies is not decoded
here, so damage inside of it goes unnoticed: `--verify` decodes everything once and lists what is wrong in
`OUT/quarantine.jsonl`.
"""

from __future__ import annotations

if __name__ == "__main__":
    from essl_fast.common.commands import begin

    begin()

import argparse
import sys
from pathlib import Path

from essl_fast.common.commands import Options, command
from essl_fast.data import datasets, media
from essl_fast.data.datasets import annotations as notes
from essl_fast.data.datasets import published
from essl_fast.data.shards import BAD, QUARANTINE, Manifest
from essl_fast.prepare.preparing import DECODERS, VISUALS, prepare_dataset
from essl_fast.prepare.reporting import print_summary, reporter
from essl_fast.prepare.verify import verify

PROG = "python -m essl_fast.prepare"


def main(arguments: list[str] | None = None) -> int:
    """The command. Returns 0, or 1 where --strict finds something left out or --verify something broken. InputError."""
    parser = _parser()
    asked = vars(parser.parse_args(arguments))
    strict, checked = asked.pop("strict", False), asked.pop("verify", False)
    names = "out", "visual", "decoder", "pairs_per_shard", "workers"
    how = {name: asked.pop(name) for name in names if name in asked}
    making = bool(datasets.SOURCES & asked.keys()) or not checked
    enough = asked["dataset"] != "chaotic" or "from_h5" in asked or {"videos", "annotations"} <= asked.keys()
    if making and not enough:
        parser.error(f"give --videos and --annotations{'' if checked else ', or --verify to check a finished --out'}")
    try:
        manifest = prepare_dataset(datasets.asked_for(asked), **how) if making else Manifest.load(how["out"])
        if making:
            print_summary(manifest)
        found = verify(manifest, how.get("workers"), reporter(True)) if checked else {}
    except KeyboardInterrupt:
        print(f"{PROG}: stopped; the same command goes on", file=sys.stderr)
        return 130
    if checked:
        listed = ", ".join(f"{count} {reason}" for reason, count in found.items()) or "nothing"
        told = f"; they are listed in {manifest.root / QUARANTINE}" if found else ""
        print(f"{len(manifest)} pairs were decoded; wrong with them: {listed}{told}")
    lost = {reason: count for reason, count in manifest.header["left_out"].items() if reason != media.WINDOW}
    if strict and lost:
        print(f"{PROG}: strict: {sum(lost.values())} entries were left out", file=sys.stderr)
    return int(bool((strict and lost) or BAD & found.keys()))


def _parser() -> argparse.ArgumentParser:
    parser = Options(
        prog=PROG,
        description="Read videos once: make the shards that training reads. Interrupted, the same command continues.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    unless = {"default": argparse.SUPPRESS}  # asked_for must see what was given
    folder = {"type": Path, "metavar": "DIR", **unless}
    add("--dataset", choices=datasets.NAMES, default="chaotic", help="Chaotic World, Flickr-SoundNet or VGG-SS")
    add("--videos", help="chaotic: folder of <video>.mp4 (or .mkv, .webm, .avi, .mov)", **folder)
    add(
        "--annotations",
        type=Path,
        metavar="PATH",
        **unless,
        help="chaotic: folder that holds annotation/, train_ssl.txt and test_ssl.txt; flickr: folder of the XML files; "
        "vggss: the JSON file; the latter two are looked for in --data",
    )
    add(
        "--data",
        type=Path,
        metavar="DIR",
        nargs="+",
        **unless,
        help="flickr, vggss: folders that hold frames/ and audio/, or videos/ (docs/datasets.md shows the layouts)",
    )
    for split, what in (
        ("train", "training pairs"),
        ("val", "labelled pairs to choose the best epoch on"),
        ("test", "test pairs"),
    ):
        told = f"flickr, vggss: names of the {what}, one a line"
        add(f"--{split}-list", type=Path, metavar="FILE", help=told, **unless)
    add("--from-h5", help="instead of videos or --data: the published HDF5 files, ChaoticWorld/ and such", **folder)
    add("--subset", choices=published.SUBSETS, help="--from-h5 of flickr, vggss: which training pairs", **unless)
    add("--out", help="folder to make, go on with, or --verify", required=True, **folder)
    add(
        "--visual",
        choices=VISUALS,
        default="auto",
        help="store frames as clips (packets copied from the video, for a GPU to decode), as JPEG pictures, or as clips"
        " where a GPU of this machine decodes the video",
    )
    add(
        "--decoder",
        choices=DECODERS,
        default="pyav",
        help="what decodes the frames of --visual jpeg: PyAV on the CPU, NVDEC on the first GPU, or (auto) NVDEC where"
        " there is one; videos that it does not know are PyAV's either way",
    )
    frames = "which frames: the first of each sound (published code), its middle (paper), or every annotated one"
    add("--frame", choices=notes.FRAMES, help=f"chaotic: {frames} (default: start)", **unless)
    add(
        "--row-boxes",
        choices=notes.ROW_BOXES,
        **unless,
        help="chaotic: which boxes of an annotation row count (default: first)",
    )
    add(
        "--annotation-size",
        type=_size,
        metavar="WxH",
        **unless,
        help="chaotic: pixels of the frames that the boxes were drawn on (default: 320x180)",
    )
    add(
        "--validation",
        type=float,
        default=0.1,
        metavar="SHARE",
        help="share of the training videos that becomes the split val, 0 to 1; of flickr and vggss, and with "
        "--from-h5, of those with boxes",
    )
    add("--seed", type=int, default=0, help="fixes which videos are val")
    add("--pairs-per-shard", type=int, default=1024, metavar="N", help="pairs in a shard; 1024 make about 128 MB")
    add(
        "--workers", type=int, default=argparse.SUPPRESS, metavar="N", help="processes (default: one a core, 8 at most)"
    )
    add(
        "--verify",
        action="store_true",
        default=argparse.SUPPRESS,
        help="decode every pair of the prepared folder once and list what is wrong in quarantine.jsonl; needs no more "
        "than --out; end with code 1 if a pair is broken",
    )
    add(
        "--strict",
        action="store_true",
        default=argparse.SUPPRESS,
        help="end with code 1 if anything was left out but pairs whose 3 s of sound leave the track",
    )
    return parser


def _size(text: str) -> tuple[int, int]:
    width, cross, height = text.lower().partition("x")
    if not (cross and width.isdecimal() and height.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a width and height such as 320x180")
    return int(width), int(height)


if __name__ == "__main__":
    sys.exit(command(main, PROG))
