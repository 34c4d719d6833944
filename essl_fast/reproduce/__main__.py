"""python -m essl_fast.reproduce table1|table2|figures|fractions|all|worlds: SemiPL's tables and figures, on your data.

    OUT/runs/ROW/seed-N     the run directory of a row and a seed; after an interruption, the same command goes on
    OUT/results.json        every row, every seed, every figure's numbers
    OUT/report.md           the tables beside the published figures
    OUT/report.html         the same with the pictures, in one file
    OUT/*.png               figure3 and figure4 (overlays), figure5 (success by epoch), fractions (success by labels)

Each row is a shipped config (configs/paper/*.yaml) and is trained as `python -m essl_fast.train` does, in another
process. `--reduced` takes the demo's small networks and few epochs instead, so that everything ends in minutes on a
CPU: its rows can be compared with each other, not with the paper's.

`worlds` is a table of its own, which is not in the paper and not in `all`: every method on synthetic worlds of rising
difficulty, with pretrained small networks, beside baselines that do not hear (OUT/worlds.html, .md and .json).

`--sweep SETTING=VALUE,VALUE` in place of a table trains the recipe of `--config` once for each point of a grid of
settings, and writes one report that compares them (and sweep.png, success by epoch).
"""

from __future__ import annotations

if __name__ == "__main__":
    from essl_fast.common.commands import begin

    begin()

import argparse
import sys
from pathlib import Path

from essl_fast import config
from essl_fast.common import commands
from essl_fast.common.commands import Options, command, slow_imports
from essl_fast.common.errors import InputError
from essl_fast.common.values import a_path, a_place, whole_number
from essl_fast.reproduce.rows import PARTS

PROG = "python -m essl_fast.reproduce"


def parser(sweeps: bool = False) -> Options:
    """The command's own options.

    sweeps: there is no word for what to reproduce, so that none is taken for it.
    """
    parser = Options(
        prog=PROG,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="All other options are train's, for every row: --epochs 3, --data.threads 2.",
    )
    if sweeps:
        parser.set_defaults(parts="")
    else:
        parser.add_argument("parts", choices=(*PARTS, "all", "worlds"), help="what to reproduce")
    parser.add_argument(
        "--sweep",
        action="append",
        metavar="SETTING=VALUE,VALUE",
        help="instead: train the recipe of --config with each of these values; more than one make a grid",
    )
    text = "with --sweep: the recipe, a shipped one or a YAML file (default: demo, on the demo's world)"
    parser.add_argument("--config", action="append", default=[], metavar="NAME", help=text)
    parser.add_argument(
        "--data", type=_data, default="demo", help="folder that prepare wrote, its URL, or demo (default: demo)"
    )
    parser.add_argument("--out", type=a_path, default=Path("reproduced"), help="default: reproduced")
    parser.add_argument(
        "--seeds", type=whole_number(0, 2**63 - 1), nargs="+", metavar="N", help="seeds (default: 0; of worlds: 0 1 2)"
    )
    text = "choose the best epoch on a validation split, or on the test set as the published code does (default: clean)"
    parser.add_argument("--protocol", choices=("clean", "published"), default="clean", help=text)
    parser.add_argument("--reduced", action="store_true", help="small networks and few epochs, for a CPU")
    text = "with worlds: runs that are trained side by side; they share the cores (default: 1)"
    parser.add_argument("--workers", type=whole_number(1, 1024), metavar="N", help=text)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    text = "YAML file of published figures that this project does not know, shown beside ours: rows: {lss: {success: "
    parser.add_argument("--published", type=a_path, metavar="FILE", help=text + "31.4, auc: 37.7}}, in per cent")
    return parser


def _data(text: str) -> str:
    return text if text == "demo" else str(a_place(text))


def parse(argv: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """The command's own options, and those of train."""
    words = list(sys.argv[1:] if argv is None else argv)
    sweeps = any(word.partition("=")[0] == "--sweep" for word in words)
    options, others = parser(sweeps).parse_own(words, config.parser(PROG))
    if not sweeps:
        options.sweep, options.config, others = [], [], [*(f"--config={name}" for name in options.config), *others]
    return options, others


def main(argv: list[str] | None = None) -> int:
    options, overrides = parse(argv)
    if options.parts == "worlds":
        return worlds(options, overrides)
    if options.workers:
        raise InputError("--workers goes with worlds; the runs of a table are trained one after the other")
    with slow_imports():
        from essl_fast.reproduce.command import reproduce

    results = reproduce(
        () if options.sweep else options.parts,
        sweep=options.sweep,
        configs=options.config,
        data=options.data,
        out=options.out,
        seeds=options.seeds or [0],
        protocol=options.protocol,
        reduced=options.reduced,
        device=options.device,
        published=options.published,
        overrides=overrides,
        console=commands.console(kept=True),
    )
    return 1 if results.failed else 0


def worlds(options: argparse.Namespace, overrides: list[str]) -> int:
    """The table of methods and worlds."""
    given = {"--data": options.data != "demo", "--reduced": options.reduced, "--published": bool(options.published)}
    given["--protocol"] = options.protocol != "clean"
    if wrong := [name for name, is_given in given.items() if is_given]:
        raise InputError(f"{wrong[0]} does not go with worlds, which are synthetic, small, and in no paper")
    with slow_imports():
        from essl_fast.reproduce.worlds_command import reproduce_worlds

    more = {
        "device": options.device,
        "overrides": overrides,
        "console": commands.console(kept=True),
        "workers": options.workers or 1,
    }
    grid = reproduce_worlds(out=options.out, seeds=options.seeds or (0, 1, 2), **more)
    return 1 if grid.failed else 0


if __name__ == "__main__":
    sys.exit(command(main, PROG))
