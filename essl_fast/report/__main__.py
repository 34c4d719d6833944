"""python -m essl_fast.report RUN [RUN ...]: one HTML page of a run, or of several side by side.

The page contains everything that it shows: no script, no font, no file from elsewhere. Training writes one at its end;
this command makes it again from the run directory. The run may still be going on, and there may be several.
"""

if __name__ == "__main__":
    from essl_fast.common.commands import begin

    begin()

import sys
from pathlib import Path

from essl_fast.common.commands import Options, command, slow_imports

PROG = "python -m essl_fast.report"


def main(argv: list[str] | None = None) -> int:
    parser = Options(prog=PROG, description=__doc__.split("\n\n", 1)[1])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run directory that train wrote")
    parser.add_argument(
        "--out", type=Path, help="the page (default: report.html in RUN; of several: report.html in this folder)"
    )
    options = parser.parse_args(argv)
    with slow_imports():
        from essl_fast.report.writing import write_report

    out, size = write_report(options.runs, options.out)
    print(f"{out}: {size / 1e6:.1f} MB; open it in a browser")
    return 0


if __name__ == "__main__":
    sys.exit(command(main, PROG))
