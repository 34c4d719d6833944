"""python -m essl_fast.report RUN [RUN ...]: one HTML page of a run, or of several side by side.

The page contains everything that it shows: no script, no font, no file from elsewhere. Training writes one at its end;
this command makes it again from the run directory. The run may still be going on, and there may be several.
"""

if __name__ == "__main__":
    from essl_fast.common.commands import begin

    begin()

import sys

from essl_fast.common import streams
from essl_fast.common.commands import Options, command, slow_imports
from essl_fast.common.outputs import output_file, to_stdout
from essl_fast.common.values import a_path

PROG = "python -m essl_fast.report"


def parser() -> Options:
    """The options."""
    parser = Options(prog=PROG, description=(__doc__ or "").partition("\n\n")[2])
    text = "run directory that train wrote, or a folder with such below it"
    parser.add_argument("runs", nargs="+", type=a_path, metavar="RUN", help=text)
    text = "the page; - is standard output (default: report.html in RUN; of several: report.html in this folder)"
    parser.add_argument("--out", type=a_path, metavar="FILE", help=text)
    return parser


@streams.kept()  # the page is written, whoever reads the line about it
def main(argv: list[str] | None = None) -> int:
    options = parser().parse_args(argv)
    with slow_imports():
        from essl_fast.report.writing import write_report

    place = options.out and output_file(options.out, "--out", options.runs)
    out, size = write_report(options.runs, place)
    said = sys.stderr if to_stdout(out) else sys.stdout
    print(f"{out}: {size / 1e6:.1f} MB; open it in a browser", file=said)
    return 0


if __name__ == "__main__":
    sys.exit(command(main, PROG))
