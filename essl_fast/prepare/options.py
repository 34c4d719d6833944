"""The options of `python -m essl_fast.prepare`. Nothing heavy is imported, so that --help is fast."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from essl_fast.common.commands import Options
from essl_fast.common.urls import is_url, redacted
from essl_fast.common.values import a_path, a_place, frame_size, number_between, whole_number
from essl_fast.data.datasets import FRAMES, ROW_BOXES, SOURCES, SUBSETS
from essl_fast.prepare.slices import parse_slice

VISUALS = ("auto", "clip", "jpeg")
DECODERS = ("auto", "nvdec", "pyav")
ENGINES = ("local", "ray")
RUN = (
    "out",
    "visual",
    "decoder",
    "pairs_per_shard",
    "workers",
    "join",
)  # options of `prepare_dataset`; others are the data's
_UNSET: dict[str, Any] = {"default": argparse.SUPPRESS}  # the option is in the result only if it was given
_FOLDER: dict[str, Any] = {"type": a_path, "metavar": "DIR", **_UNSET}
_FILE: dict[str, Any] = {"type": a_path, "metavar": "FILE", **_UNSET}


def parser(prog: str) -> Options:
    """The parser of the command `prog`."""
    made = Options(
        prog=prog,
        description="Read videos once: make the shards that training reads. Interrupted, the same command continues.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    _add_dataset(made.add_argument_group("data set"))
    _add_files(made.add_argument_group("files"))
    _add_pairs(made.add_argument_group("which pairs"))
    _add_shards(made.add_argument_group("what is stored, and how"))
    _add_machines(made.add_argument_group("several machines"))
    _add_checks(made.add_argument_group("checks"))
    return made


def _add_dataset(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--dataset",
        default="chaotic",
        metavar="NAME",
        help="chaotic (Chaotic World), csv (videos of your own with tables like Chaotic World's), flickr "
        "(Flickr-SoundNet), vggss (VGG-SS), flickr-extended, vggss-extended (with negatives), is3, avsbench-s4, "
        "avsbench-ms3, or one that a module of --import registers",
    )
    group.add_argument(
        "--name",
        type=_name,
        metavar="NAME",
        help="what reports call the data set (default: that of --dataset); published results stand beside the data set "
        "that they are of",
        **_UNSET,
    )
    group.add_argument(
        "--import",
        dest="imports",
        action="append",
        metavar="MODULE",
        help="import a module of your own first, which registers a data set; may be repeated",
        **_UNSET,
    )


def _add_files(group: argparse._ArgumentGroup) -> None:
    text = "folder or URL to make, to continue, or to --verify; of --check: for preview.png (default: this folder)"
    group.add_argument("--out", help=text, **{**_FOLDER, "type": a_place})
    group.add_argument("--videos", help="chaotic, csv: folder of <video>.mp4 (or .mkv, .webm, .avi, .mov)", **_FOLDER)
    group.add_argument(
        "--annotations",
        type=a_path,
        metavar="PATH",
        help="chaotic, csv: folder that holds annotation/, train_ssl.txt and test_ssl.txt; flickr: folder of the XML "
        "files; vggss: the JSON file; for the last two, --data is searched if it is not given",
        **_UNSET,
    )
    group.add_argument(
        "--data",
        type=a_path,
        metavar="DIR",
        nargs="+",
        help="flickr, vggss: folders that hold frames/ and audio/, or videos/ (docs/datasets.md shows the layouts)",
        **_UNSET,
    )
    for split, what in (
        ("train", "training pairs"),
        ("val", "labelled pairs to choose the best epoch on"),
        ("test", "test pairs"),
    ):
        group.add_argument(f"--{split}-list", help=f"flickr, vggss: names of the {what}, one on each line", **_FILE)
    group.add_argument(
        "--negatives",
        help="flickr-extended, vggss-extended: the published list of test pairs whose sound is not in the frame",
        **_FILE,
    )
    group.add_argument(
        "--from-h5", help="instead of videos or --data: the published HDF5 files, such as ChaoticWorld/", **_FOLDER
    )


def _add_pairs(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--frame",
        choices=FRAMES,
        help="chaotic, csv: which frames: the first of each sound (published code), its middle (paper), or every "
        "annotated one (default: start)",
        **_UNSET,
    )
    group.add_argument(
        "--row-boxes",
        choices=ROW_BOXES,
        help="chaotic, csv: which boxes of an annotation row count (default: first)",
        **_UNSET,
    )
    group.add_argument(
        "--annotation-size",
        type=frame_size,
        metavar="WxH",
        help="chaotic, csv: pixels of the frames that the boxes were drawn on (default: 320x180)",
        **_UNSET,
    )
    group.add_argument("--subset", choices=SUBSETS, help="--from-h5 of flickr, vggss: which training pairs", **_UNSET)
    group.add_argument(
        "--validation",
        type=number_between(0, 1),
        default=0.1,
        metavar="SHARE",
        help="share of the training videos that becomes the split val, at least 0 and below 1; for flickr and vggss, "
        "and with --from-h5, of those with boxes",
    )
    group.add_argument(
        "--seed", type=whole_number(0, 2**63 - 1), default=0, metavar="N", help="decides which videos are val"
    )


def _add_shards(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--visual",
        choices=VISUALS,
        default="auto",
        help="store frames as clips (packets copied from the video, for a GPU to decode), as JPEG pictures, or (auto) "
        "as clips if a GPU of this machine decodes the video",
    )
    group.add_argument(
        "--decoder",
        choices=DECODERS,
        default="pyav",
        help="what decodes the frames of --visual jpeg: PyAV on the CPU, NVDEC on the first GPU, or (auto) NVDEC if "
        "there is one; PyAV always decodes the videos that NVDEC does not know",
    )
    group.add_argument(
        "--pairs-per-shard",
        type=whole_number(1),
        default=1024,
        metavar="N",
        help="pairs in a shard; 1024 make about 128 MB",
    )
    group.add_argument(
        "--workers",
        type=whole_number(1, 1024),
        metavar="N",
        help="processes (default: one for each core, at most 8)",
        **_UNSET,
    )


def _add_machines(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--part",
        type=parse_slice,
        metavar="I/N",
        help="make only part I (1 to N) of N, each on a machine of its own, into the same --out; slurm: the number and "
        "the count of the job array",
        **_UNSET,
    )
    group.add_argument(
        "--engine",
        choices=ENGINES,
        default="local",
        help="where to prepare: on this machine, or in parts on the machines of a Ray cluster (package ray; without a "
        "cluster, on this machine alone), and join them",
    )
    group.add_argument(
        "--parts",
        type=whole_number(1, 100_000),
        metavar="N",
        help="--engine ray: how many parts (default: as many as the cluster makes at the same time)",
        **_UNSET,
    )
    group.add_argument(
        "--join",
        action="store_true",
        help="make the shards of the parts in --out when all are there; reads no video",
        **_UNSET,
    )


def _add_checks(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--check",
        action="store_true",
        help="read the annotations against the headers of the videos, which takes seconds, say what is missing or "
        "wrong, and draw preview.png; prepare nothing; end with code 1 if something is wrong",
        **_UNSET,
    )
    group.add_argument(
        "--verify",
        action="store_true",
        help="decode every pair of the prepared folder once and list what is wrong in quarantine.jsonl; needs only "
        "--out; end with code 1 if a pair is broken",
        **_UNSET,
    )
    group.add_argument(
        "--against",
        help="with --verify: also compare some pairs with the videos in this folder, decoded from their start on, and "
        "list differences in against.jsonl; end with code 1 if there are any",
        **_FOLDER,
    )
    group.add_argument(
        "--strict",
        action="store_true",
        help="end with code 1 if anything was left out except pairs whose 3 s of sound leave the track, or if numbers "
        "and times of frames contradict each other",
        **_UNSET,
    )


def parse(arguments: list[str] | None, prog: str) -> dict[str, Any]:
    """The options that were given or have a default. SystemExit if some lack, or do not go together."""
    options = parser(prog)
    given = vars(options.parse_args(arguments))
    verifies = "verify" in given
    making = SOURCES & given.keys() or not verifies
    tables = given["dataset"] in ("chaotic", "csv")
    enough = not tables or "from_h5" in given or {"videos", "annotations"} <= given.keys()
    if "against" in given and not verifies:
        options.error("--against goes with --verify")
    if given.get("check") and verifies:
        options.error("--check is for what was not prepared yet, --verify for a prepared folder: give one of them")
    if given.get("check") and "join" in given:
        options.error("--check is for what was not prepared yet, --join for parts that were: give one of them")
    if "part" in given and (others := {"join", "verify", "check", "strict"} & given.keys()):
        options.error(f"--part does not go with --{min(others)}: join the parts first, that makes the folder")
    if given["engine"] == "ray":
        if others := {"part", "join", "check"} & given.keys():
            options.error(f"--engine ray does not go with --{min(others)}: it makes all parts and joins them")
        if not making:
            options.error("--engine ray is for preparing: it does not go with --verify alone")
    elif "parts" in given:
        options.error("--parts goes with --engine ray; elsewhere give each machine its part, with --part I/N")
    if "out" not in given and not given.get("check"):
        options.error("the following arguments are required: --out")
    given.setdefault("out", Path())
    chosen = {*given, f"engine {given['engine']}"}
    if is_url(given["out"]) and (others := {"check", "part", "join", "engine ray"} & chosen):
        options.error(f"--{min(others)} needs a folder of this machine, and --out is {redacted(given['out'])}")
    if making and not enough:
        options.error(f"give --videos and --annotations{'' if verifies else ', or --verify to check a finished --out'}")
    return given


def _name(text: str) -> str:
    if not text.strip() or not text.isprintable() or len(text) > 100:
        raise argparse.ArgumentTypeError(f"{text!r} is not a name: give 1 to 100 characters that can be printed")
    return text.strip()
