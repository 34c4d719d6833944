"""python -m essl_fast.data.synthetic: make the demo world, real video files in Chaotic World's own layout, from a seed.

    python -m essl_fast.data.synthetic --out DIR [--codec h264|hevc|vp9|av1|mjpeg] [--seed N]

essl_fast/data/synthetic/world.py lists the files that it writes.
"""

if __name__ == "__main__":
    from essl_fast.common.commands import begin

    begin()

import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from essl_fast.common import streams
from essl_fast.common.commands import Options, command, slow_imports
from essl_fast.common.errors import InputError
from essl_fast.common.outputs import output_folder
from essl_fast.common.values import a_path, number_between, whole_number
from essl_fast.data.synthetic.settings import CODECS, OBJECTS, WorldSettings

if TYPE_CHECKING:
    from essl_fast.data.synthetic.world import World

PROG = "python -m essl_fast.data.synthetic"


@streams.kept()
def main(argv: list[str] | None = None) -> int:
    default = WorldSettings()
    parser = Options(prog=PROG, description="Makes the demo world from a seed.")
    add = parser.add_argument
    add("--out", type=a_path, required=True, help="folder to make it in")
    add("--codec", default=default.codec, choices=CODECS, help="video codec (default: %(default)s)")
    add(
        "--seed",
        type=whole_number(0, 2**63 - 1),
        metavar="N",
        default=default.seed,
        help="seed of everything (default: %(default)s)",
    )
    add(
        "--train-videos",
        type=whole_number(0),
        metavar="N",
        default=default.train_videos,
        help="training videos (default: %(default)s)",
    )
    add(
        "--test-videos",
        type=whole_number(0),
        metavar="N",
        default=default.test_videos,
        help="test videos (default: %(default)s)",
    )
    add(
        "--seconds",
        type=number_between(0, 1e6),
        metavar="S",
        default=default.seconds,
        help="length of a video, s (default: %(default)s)",
    )
    add(
        "--fps",
        type=whole_number(1, 1000),
        metavar="N",
        default=default.fps,
        help="frames per second (default: %(default)s)",
    )
    add(
        "--objects",
        default=default.objects,
        choices=tuple(OBJECTS),
        help="objects in a frame; several: three to five; one of them sounds, of both two (default: %(default)s)",
    )
    add("--workers", type=whole_number(1, 1024), metavar="N", help="processes (default: one per CPU)")
    add("--overwrite", action="store_true", help="replace a world of other settings")
    options = vars(parser.parse_args(argv))
    world = _made(options.pop("out"), options)
    made = "was already there" if world.reused else f"made in {world.seconds:.1f} s"
    videos = f"{len(world.train)} training and {len(world.test)} test videos ({world.settings.codec})"
    print(f"{world.path}: {videos}, {made}")
    return 0


def _made(out: Path, options: dict[str, Any]) -> "World":
    """The world. An error in what was asked for leaves no new folder."""
    with slow_imports():
        from essl_fast.data.synthetic.world import make_world

    was_there = out.exists()
    try:
        return make_world(_folder(out), say=print, **options)
    except InputError:
        if not was_there:
            with suppress(OSError):  # a half-made world stays, to be continued
                out.rmdir()
        raise


def _folder(out: Path) -> Path:
    """The world's folder, made and seen to take files. A finished world may be on a disk that cannot be written."""
    return out if (out / "world.json").exists() else output_folder(out, "--out")


if __name__ == "__main__":
    sys.exit(command(main, PROG))
