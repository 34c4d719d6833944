"""python -m essl_fast.train: train a localizer, evaluate it, and leave everything in a run directory.

run directory   config.yaml     the settings, all of them
                log.jsonl       environment, every epoch, every evaluation
                last.pt         the state that --resume continues from, exactly
                last-1.pt       the one before it, from which --resume continues should last.pt be damaged
                best.pt         the weights of the best epoch on the selection split
                summary.json    results of the trained model and of what it must beat
                curves.png, overlays.png
                test_pairs.jsonl, gallery.npz      cIoU of every test pair; frames and maps of some, for the report
                report.html     all of it to look at; `python -m essl_fast.report` makes it again, or of several runs
                tensorboard/    with --tensorboard true
                profile/        with --profile: trace.json, for Perfetto
                nonfinite-E-S.pt    a step that was not finite, for `python -m essl_fast.replay`
"""

if __name__ == "__main__":
    from essl_fast.common.commands import begin

    begin()

import sys
from pathlib import Path

from essl_fast import checkpoints, config
from essl_fast.common import commands
from essl_fast.common.commands import command
from essl_fast.common.errors import InputError
from essl_fast.runtime import distributed
from essl_fast.runtime.devices import pick_device
from essl_fast.train import tensorboard
from essl_fast.train.running import PROG, find_run, report, run


def main(argv: list[str] | None = None) -> int:
    argv = list(sys.argv[1:] if argv is None else argv)

    def extra(parser) -> None:
        parser.add_argument("--resume", default="", help="run directory to continue, with its own settings (type: str)")
        parser.add_argument(
            "--profile",
            type=int,
            default=0,
            metavar="STEPS",
            help="trace so many training steps into the run directory, and print where their time went (type: int)",
        )

    description = (
        "Train a localizer of event sound sources. Without --config it trains the demo: SemiPL on a synthetic world."
    )
    at = next((i for i, a in enumerate(argv) if a == "--resume" or a.startswith("--resume=")), None)
    default = "demo"
    if at is not None:
        folder = Path(argv[at].split("=", 1)[1] if "=" in argv[at] else (argv[at + 1] if at + 1 < len(argv) else ""))
        default = str(folder / "config.yaml")
        if not Path(default).is_file():
            raise InputError(f"--resume: {folder} is not a run directory (it has no config.yaml)")
    settings, options = config.parse(argv, PROG, description, extra, default)
    if options.profile < 0:
        raise InputError(f"--profile: {options.profile} steps cannot be traced; give 1 or more")
    if settings.tensorboard:
        tensorboard.writer_class()  # what is missing is said before anything is done
    world = distributed.world_of()
    device = pick_device(distributed.own_device(settings.device, world))
    console = commands.console(quiet=not world.leads)
    with distributed.joined(world, device):
        out, resume = find_run(settings, options.resume, world)
        try:
            summary = run(settings, out, resume, console, device, world, options.profile)
        except KeyboardInterrupt as error:
            if (out / "last.pt").exists():
                again = PROG if world.size == 1 else f"torchrun --nproc-per-node={world.size} -m essl_fast.train"
                console.print(f"stopped; continue with: {again} --resume {out}", highlight=False, soft_wrap=True)
            distributed.give_up(world, device, getattr(error, "code", 130))
            raise
        except Exception as error:
            if isinstance(error, OSError):
                again = f"mend that, then go on with: {PROG} --resume {out}" if out.is_dir() else "choose another --out"
                name, why = error.filename or out, error.strerror or str(error)
                error = InputError(f"cannot write or read {name}: {why}; {again}")
            if world.size > 1:
                told = f"{PROG}: error: rank {world.rank}: {type(error).__name__}: {error}"
                if checkpoints.kept(out / "last.pt"):  # also where the reason is that another rank is gone
                    told += f"; to go on: torchrun --nproc-per-node={world.size} -m essl_fast.train --resume {out}"
                print(told, file=sys.stderr)
                distributed.give_up(world, device, 1)
            raise error
    report(summary, out, console)
    return 0


if __name__ == "__main__":
    sys.exit(command(main, PROG))
