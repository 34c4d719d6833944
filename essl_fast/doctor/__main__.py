"""python -m essl_fast.doctor: what training would use on this machine and why, and what prevents it or makes it slow.

It takes the options of train, and examines what would run with them: --config, --data.root (or --data for short) and
every other setting. It changes nothing and downloads nothing. The exit code is 0; 1 if training could not start; 2 if
the options are wrong.
"""

if __name__ == "__main__":
    from essl_fast.common.commands import begin

    begin()

import json
import sys

from essl_fast.common.commands import Options, command
from essl_fast.doctor import options as options_of
from essl_fast.doctor.examination import examine, show
from essl_fast.doctor.findings import STOPS
from essl_fast.doctor.options import read_options, read_settings

PROG = "python -m essl_fast.doctor"


def parser() -> Options:
    """The doctor's own options; it takes train's, too."""
    return options_of.parser(PROG)


def main(argv: list[str] | None = None) -> int:
    options, arguments = read_options(PROG, __doc__, list(sys.argv[1:] if argv is None else argv))
    settings, findings = read_settings(PROG, arguments)
    findings += examine(settings, options.probe)
    could = all(finding.status != STOPS for finding in findings)
    if options.json:
        print(json.dumps({"could_start": could, "findings": [f.record() for f in findings]}, indent=1, default=str))
    else:
        print(show(findings))
    return 0 if could else 1


if __name__ == "__main__":
    sys.exit(command(main, PROG))
