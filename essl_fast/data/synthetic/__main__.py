"""The demo world: real video files in Chaotic World's own layout, made from a seed.

    python -m essl_fast.data.synthetic --out DIR [--codec h264|hevc|vp9|av1|mjpeg] [--seed N]

    OUT/videos/<NAME>.mp4                        320x180 video, AAC sound
    OUT/annotations/annotation/group/<NAME>.csv  start_fid, end_fid, start_time, end_time, bbox, ssl: a row per stretch
    OUT/annotations/annotation/frame/<NAME>.csv  fid, time, bbox, ssl: a row per annotated frame
    OUT/annotations/train_ssl.txt, test_ssl.txt  one video name a line
    OUT/objects.json                             "{video}_{fid:06d}" -> each object's class, box, area, sounding or not
    OUT/world.json                               settings; written last, so a folder without it was never finished

A scene holds three to five moving objects of distinct classes over a cluttered background. One of them sounds; which
one can be told only by knowing which look goes with which sound: classes sound equally often, the sounding object has
every rank in size equally often, objects lie anywhere, and all of them move and change pose alike. `plan_world` draws
all of this without making a pixel; frames and sound are functions of the plan, and encoders run on one thread, so the
files do not depend on the number of workers. Frames are counted from 1 and a frame's time is fid / fps, as in the
published annotations.

Measured: about 80 ms a video on one CPU core (AMD EPYC), of which sound 16, frames 14, H.264 23 and AAC 26 ms.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from essl_fast.common.commands import Options
from essl_fast.common.errors import InputError
from essl_fast.data.synthetic.plan import CODECS, WorldSettings, plan_world
from essl_fast.data.synthetic.world import PROG, _make_videos, make_world


def main(arguments: list[str] | None = None) -> int:
    """The command: makes a world and prints where it is. Returns the exit status, 2 where the input is wrong."""
    default = WorldSettings()
    parser = Options(prog=PROG, description="Makes the demo world from a seed.")
    parser.add_argument("--out", type=Path, required=True, help="folder to make it in")
    parser.add_argument("--codec", default=default.codec, choices=CODECS, help="video codec (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=default.seed, help="seed of everything (default: %(default)s)")
    parser.add_argument(
        "--train-videos", type=int, default=default.train_videos, help="training videos (default: %(default)s)"
    )
    parser.add_argument(
        "--test-videos", type=int, default=default.test_videos, help="test videos (default: %(default)s)"
    )
    parser.add_argument(
        "--seconds", type=float, default=default.seconds, help="length of a video, s (default: %(default)s)"
    )
    parser.add_argument("--fps", type=int, default=default.fps, help="frames a second (default: %(default)s)")
    parser.add_argument("--workers", type=int, help="processes (default: one a CPU)")
    parser.add_argument("--overwrite", action="store_true", help="replace a demo world that is already there")
    parser.add_argument("--job", help=argparse.SUPPRESS)  # a worker's share, given by _make_in_parallel
    given = parser.parse_args(arguments)
    if given.job is not None:
        part = json.loads(given.job)
        for name in _make_videos(
            plan_world(WorldSettings(**part["settings"]))[part["first"] :: part["step"]], given.out
        ):
            os.write(1, f"{name}\n".encode())
        return 0
    options = {k: v for k, v in vars(given).items() if k not in ("out", "job")}
    try:
        world = make_world(given.out, **options)
    except InputError as error:
        print(f"{PROG}: error: {error}", file=sys.stderr)
        return 2
    made = "was already there" if world.reused else f"made in {world.seconds:.1f} s"
    print(
        f"{world.path}: {len(world.train)} training and {len(world.test)} test videos ({world.settings.codec}), {made}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
