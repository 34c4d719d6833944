"""python -m essl_fast.doctor: what training would use on this machine and why, and what stands in its way.

It takes the options of train, so that what it examines is what would run: --config, --data.root (or --data for short)
and every other setting. It changes nothing, and fetches nothing. Exit code 1 if training could not start, 0 otherwise;
2 if the options themselves are wrong.
"""

if __name__ == "__main__":
    from essl_fast.common.commands import begin

    begin()

import json
import sys

from essl_fast.common.commands import command
from essl_fast.doctor.checks import STOPS
from essl_fast.doctor.examining import PROG, examine, options_of, settings_of, show


def main(argv: list[str] | None = None) -> int:
    options, arguments = options_of(list(sys.argv[1:] if argv is None else argv))
    settings, findings = settings_of(arguments)
    findings += examine(settings, options.probe)
    could = all(finding.status != STOPS for finding in findings)
    if options.json:
        print(json.dumps({"could_start": could, "findings": [f.record() for f in findings]}, indent=1, default=str))
    else:
        print(show(findings))
    return 0 if could else 1


if __name__ == "__main__":
    sys.exit(command(main, PROG))
