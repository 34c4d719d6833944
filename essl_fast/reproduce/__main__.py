"""python -m essl_fast.reproduce table1|table2|figures|fractions|all: SemiPL's tables and figures, on your data.

    OUT/runs/ROW/seed-N     the run directory of a row and a seed; interrupted, the same command goes on
    OUT/results.json        every row, every seed, every figure's numbers
    OUT/report.md           the tables beside the published figures
    OUT/report.html         the same with the pictures, in one file
    OUT/*.png               figure3 and figure4 (overlays), figure5 (success by epoch), fractions (success by labels)

Each row is a shipped config (configs/paper/*.yaml) and is trained as `python -m essl_fast.train` does, in a process of
its own. `--reduced` swaps in the demo's small networks and few epochs, so that everything ends in minutes on a CPU: its
rows can be compared with each other, not with the paper's.
"""

from __future__ import annotations

if __name__ == "__main__":
    from essl_fast.common.commands import begin

    begin()

import argparse
import signal
import sys
import threading
from pathlib import Path

from essl_fast.common import commands
from essl_fast.common.commands import Options, command
from essl_fast.common.errors import InputError
from essl_fast.data.shards import Manifest
from essl_fast.reproduce.reproducing import PARTS, PROG, Plan, rows_of, run, stopped
from essl_fast.reproduce.rows import read_published


def main(argv: list[str] | None = None) -> int:
    parser = Options(
        prog=PROG,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        epilog="All other options are train's, for every row: --epochs 3, --data.threads 2.",
    )
    parser.add_argument("parts", choices=(*PARTS, "all"), help="what to reproduce")
    parser.add_argument("--data", default="demo", help="folder that prepare wrote, or demo (default: demo)")
    parser.add_argument("--out", type=Path, default=Path("reproduced"), help="default: reproduced")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], metavar="N", help="seeds (default: 0)")
    text = "choose the best epoch on a validation split, or on the test set as the published code does (default: clean)"
    parser.add_argument("--protocol", choices=("clean", "published"), default="clean", help=text)
    parser.add_argument("--reduced", action="store_true", help="small networks and few epochs, for a CPU")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    text = "YAML file of published figures that this project does not know, shown beside ours: rows: {lss: {success: "
    parser.add_argument("--published", type=Path, metavar="FILE", help=text + "31.4, auc: 37.7}}, in per cent")
    options, more = parser.parse_known_args(argv)
    parts = list(PARTS) if options.parts == "all" else [options.parts]
    if len(set(options.seeds)) < len(options.seeds) or min(options.seeds) < 0:
        raise InputError(f"--seeds: each once, and from 0, got {options.seeds}")
    data = options.data if options.data == "demo" else str(Path(options.data).resolve())
    if data != "demo" and not (Path(data) / "manifest.json").is_file():
        raise InputError(f"--data: {data} is not a prepared folder (it has no manifest.json); see essl_fast.prepare")
    published = read_published(options.published) if options.published else {}
    plan = Plan(data, options.out, options.seeds, options.protocol, options.reduced, more, options.device, published)
    plan.check(rows_of(parts).values())
    if data != "demo":
        manifest, needed = Manifest.load(Path(data)), {"clean": ("val", "test"), "published": ("test",)}
        if missing := [split for split in needed[plan.protocol] if not manifest.pairs(split)]:
            remedy = "; prepare it with --validation above 0, or use --protocol published" * (missing == ["val"])
            raise InputError(f"--data: {data} has no {missing[0]} split{remedy}")
    plan.out.mkdir(parents=True, exist_ok=True)
    own = threading.current_thread() is threading.main_thread()  # no other may catch signals
    before = signal.signal(signal.SIGTERM, stopped) if own else None
    try:
        results = run(plan, parts, commands.console(), options.device)
    finally:
        if own:
            signal.signal(signal.SIGTERM, before)
    return 1 if results.failed else 0


if __name__ == "__main__":
    sys.exit(command(main, PROG))
