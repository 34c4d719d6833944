"""python -m essl_fast.export RUN_OR_CHECKPOINT --to sspl --out DIR: a trained model as another code's files.

sspl    the published SSPL code's frame_best.pth, sound_best.pth, ssl_head_best.pth and, with a PCM, pcm_best.pth:
        whole state dicts, the frozen networks included, which that code's test.py loads as they are
"""

if __name__ == "__main__":
    from essl_fast.common.commands import begin

    begin()

import argparse
import sys
from pathlib import Path

import torch

from essl_fast import checkpoints
from essl_fast.checkpoints import sspl
from essl_fast.checkpoints.restoring import restore
from essl_fast.common import commands
from essl_fast.common.commands import Options, command
from essl_fast.common.errors import InputError

PROG = "python -m essl_fast.export"


def checkpoint_of(given: Path) -> Path:
    """A checkpoint file, or the best.pt of a run directory. InputError if it is not there."""
    if not given.exists():
        raise InputError(f"there is no {given}; give a run directory, or one of its checkpoints")
    if given.is_dir() and not (given / "best.pt").is_file():
        raise InputError(f"{given} has no best.pt; wait for the run's first evaluation, or give {given / 'last.pt'}")
    return given / "best.pt" if given.is_dir() else given


def main(argv: list[str] | None = None) -> int:
    shape = argparse.RawDescriptionHelpFormatter
    parser = Options(prog=PROG, description=__doc__, formatter_class=shape)
    parser.add_argument("checkpoint", type=Path, help="a run directory, whose best.pt is taken, or a checkpoint")
    parser.add_argument("--to", choices=("sspl",), required=True, help="whose files to write")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write them into")
    for name in ("vgg16", "vggish"):
        text = f"the file of {name}'s published weights, if it has moved"
        parser.add_argument(f"--model.{name}_weights", dest=f"{name}_weights", default="", metavar="PATH", help=text)
    options = parser.parse_args(argv)
    path = checkpoint_of(options.checkpoint)
    state = checkpoints.load(path)
    for name in ("vgg16_weights", "vggish_weights"):
        if given := getattr(options, name):
            state["config"]["model"][name] = given
    model, _ = restore(state, torch.device("cpu"))
    written = sspl.write_files(options.out, sspl.sspl_parts(model))
    lines = [f"{path} as {file}, {file.stat().st_size / 1e6:.1f} MB" for file in written]
    commands.console().print("\n".join(lines), highlight=False, soft_wrap=True, markup=False)
    return 0


if __name__ == "__main__":
    sys.exit(command(main, PROG))
