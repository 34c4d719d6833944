"""python -m essl_fast.train: train a localizer, evaluate it, and leave everything in a run directory.

essl_fast/train/rundir.py lists what a run directory holds.
"""

if __name__ == "__main__":
    from essl_fast.common.commands import begin

    begin()

import argparse
import os
import sys
from pathlib import Path

from essl_fast import config
from essl_fast.common import streams
from essl_fast.common.commands import Options, command, slow_imports
from essl_fast.common.errors import InputError
from essl_fast.common.urls import redacted
from essl_fast.common.values import path, shown, whole_number

PROG = "python -m essl_fast.train"
DESCRIPTION = (
    "Train a localizer of event sound sources. Without --config it trains the demo: SemiPL on a synthetic world. A "
    "recipe, such as --config semipl, needs the folder of your data, with --data.root DIR."
)


def add_options(parser) -> None:
    """The command's own options, beside the settings."""
    parser.add_argument(
        "--resume",
        default="",
        metavar="RUN",
        help="run directory to continue, with its own settings; auto: the one of --out if it has a checkpoint, with "
        "the settings given here, else begin",
    )
    parser.add_argument(
        "--profile",
        type=whole_number(0, unit="steps"),
        default=0,
        metavar="STEPS",
        help="trace this many training steps into the run directory, and print where their time went",
    )


def parser() -> Options:
    """The settings and the command's own options."""
    return config.parser(PROG, DESCRIPTION, add_options)


def parse(argv: list[str]) -> tuple[config.Config, argparse.Namespace]:
    """Settings and options. A resumed run has its own settings, which the command line may override."""
    at = next((i for i, a in enumerate(argv) if a == "--resume" or a.startswith("--resume=")), None)
    default = "demo"
    given = "" if at is None else argv[at].split("=", 1)[1] if "=" in argv[at] else "".join(argv[at + 1 : at + 2])
    if at is not None and (not given or given.startswith("--")):
        raise InputError("--resume: needs a run directory, or auto")
    if at is not None and given != "auto":
        default = str(run_of(given) / "config.yaml")
    settings, options = config.parse(argv, PROG, DESCRIPTION, add_options, default)
    if options.resume not in ("", "auto"):
        options.resume = str(run_of(options.resume))
    named = any(word == "--config" or word.startswith("--config=") for word in argv)
    if not named and default == "demo" and settings.data.root not in ("demo", ""):
        raise InputError(
            f"data.root: to train on {redacted(settings.data.root)}, name a recipe with --config (the demo's small "
            f"networks are for the demo): {', '.join(config.shipped_names())}"
        )
    return settings, options


def run_of(given: str) -> Path:
    """The run directory that --resume names; InputError if it is none."""
    try:
        folder = Path(path(given))
    except ValueError as error:
        raise InputError(f"--resume: {error}, got {shown(given)}") from None
    if os.path.isfile(folder / "config.yaml"):  # Path.is_file raises an error for a name that is too long
        return folder
    inside = os.path.isfile(folder.parent / "config.yaml")
    more = f"give the directory {folder.parent}" if inside else "it has no config.yaml"
    raise InputError(f"--resume: {folder} is not a run directory ({more})")


def report(summary: dict, out: Path, console) -> None:
    """Print the results of a run."""
    from essl_fast.evaluate import table
    from essl_fast.report import RESULTS

    rows = {label: summary[name] for name, label in RESULTS.items() if name in summary}
    selected = summary["selected"]
    console.print(table(f"test split (epoch {selected['epoch']}, chosen on the {selected['split']} split)", rows))
    if summary["config"]["select_on"] == "test":
        console.print("published protocol: the epoch was chosen on the test set itself, so its figures are optimistic")
    text = f"{summary['seconds']:.0f} s in all, training at {summary['pairs_per_second']:.1f} pairs/s"
    console.print(
        f"{text}; results, checkpoints, log and pictures in {out}", highlight=False, soft_wrap=True, markup=False
    )


def main(argv: list[str] | None = None) -> int:
    settings, options = parse(list(sys.argv[1:] if argv is None else argv))
    with slow_imports():
        from essl_fast.train.run import fit

    with streams.kept():  # a run of days does not end because a terminal is closed
        fit(settings, resume=options.resume, profile=options.profile, report=report)
    return 0


if __name__ == "__main__":
    sys.exit(command(main, PROG))
