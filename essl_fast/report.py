"""python -m essl_fast.report RUN [RUN ...]: one HTML page of a run, or of several side by side.

The page holds everything it shows: no script, no font, no file from elsewhere. Training writes one at its end; this
command makes it again from the run directory, also of a run that is still going on, or of several.
"""

if __name__ == "__main__":
    from essl_fast.commands import begin

    begin()

import sys
from pathlib import Path

from essl_fast.commands import command
from essl_fast.config import InputError, Options
from essl_fast.files import atomic_file
from essl_fast.report_page import page
from essl_fast.report_runs import read_all

PROG = "python -m essl_fast.report"


def write_report(folders: list[Path], out: Path) -> int:
    """Write the page of the runs in ``folders``; its size in bytes. InputError if one of them is none, or if the page
    cannot be written."""
    data = page(read_all(folders)).encode()
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(out) as file:
            file.write(data)
    except OSError as error:
        raise InputError(f"--out: {out} cannot be written ({error}); give another place") from error
    return len(data)


def main(argv: list[str] | None = None) -> int:
    parser = Options(prog=PROG, description=__doc__.split("\n\n", 1)[1])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run directory that train wrote")
    parser.add_argument(
        "--out", type=Path, help="the page (default: report.html in RUN; of several: report.html in this folder)"
    )
    options = parser.parse_args(argv)
    out = options.out or (options.runs[0] / "report.html" if len(options.runs) == 1 else Path("report.html"))
    size = write_report(options.runs, out)
    print(f"{out}: {size / 1e6:.1f} MB; open it in a browser")
    return 0


if __name__ == "__main__":
    sys.exit(command(main, PROG))
