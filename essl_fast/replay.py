"""python -m essl_fast.replay RUN/nonfinite-E-S.pt: where a training step that was not finite went wrong.

Runs that one step again, with the weights that it began with, the same pairs and the same views, and says where the
first value appears that is infinite or not a number: a weight, an input, a module's output, a loss, or a gradient. No
weight is changed. Exit code 0 if the fault shows again, 1 if everything is finite this time.
"""

if __name__ == "__main__":
    from essl_fast.common.commands import begin

    begin()

import sys
import typing

from essl_fast import config
from essl_fast.common import commands
from essl_fast.common.commands import Options, command, slow_imports
from essl_fast.common.errors import InputError
from essl_fast.common.urls import lacks, placed
from essl_fast.common.values import a_path, a_place

PROG = "python -m essl_fast.replay"


def parser() -> Options:
    """The options."""
    parser = Options(prog=PROG, description=(__doc__ or "").partition("\n\n")[2])
    parser.add_argument("file", type=a_path, help="nonfinite-EPOCH-STEP.pt of a run directory")
    parser.add_argument(
        "--data",
        type=a_place,
        metavar="DIR",
        help="prepared folder, or its URL (default: the one the run was trained on)",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    kinds = typing.get_args(typing.get_type_hints(config.Config)["precision"])
    parser.add_argument("--precision", default="", choices=kinds, help="default: the run's")
    return parser


def main(argv: list[str] | None = None) -> int:
    options = parser().parse_args(argv)
    with slow_imports():
        from essl_fast import checkpoints
        from essl_fast.runtime.devices import pick_device
        from essl_fast.train import replay, report_lines

    device = pick_device(options.device)
    state = checkpoints.load(options.file)
    if state.get("kind") != "nonfinite":
        raise InputError(f"{options.file} is no step to replay: give a nonfinite-EPOCH-STEP.pt of a run directory")
    root = placed(options.data or state["data_root"])
    if lacks(root):
        raise InputError(f"there is no folder {root}, which {options.file} was trained on; give it with --data DIR")
    console = commands.console()
    commands.say_imports(console, state["config"].get("imports", []))
    report = replay(state, root, device, options.precision)
    for line in report_lines(report):
        console.print(line, highlight=False, soft_wrap=True, markup=False)
    return 0 if report.places or report.operation else 1


if __name__ == "__main__":
    sys.exit(command(main, PROG))
