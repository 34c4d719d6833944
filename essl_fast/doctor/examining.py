"""python -m essl_fast.doctor: what training would use on this machine and why, and what stands in its way.

It takes the options of train, so that what it examines is what would run: --config, --data.root (or --data for short)
and every other setting. It changes nothing, and fetches nothing. Exit code 1 if training could not start, 0 otherwise;
2 if the options themselves are wrong.
"""

import argparse
import textwrap

from essl_fast.doctor import checks, room
from essl_fast.doctor.checks import NOTE, OK, SLOWER, STOPS, Case, Finding, guarded

PROG = "python -m essl_fast.doctor"
CHECKS = {
    "Python": checks.check_python,
    "torch": checks.check_torch,
    "GPU": checks.check_gpu,
    "device": checks.check_device,
    "csrc": checks.check_csrc,
    "Triton": checks.check_triton,
    "torch.compile": checks.check_compile,
    "DALI": checks.check_dali,
    "NVDEC": checks.check_nvdec,
    "weights": checks.check_weights,
    "data": room.check_data,
    "host": room.check_host,
    "pool": room.check_pool,
    "disk": room.check_disk,
    "speed": room.check_speed,
}
MARKS = {OK: "ok", NOTE: "--", SLOWER: "SLOWER", STOPS: "STOPS"}
WIDTH = 110


def options_of(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The doctor's own options, and train's."""
    from essl_fast.common.commands import Options

    own = Options(prog=PROG, add_help=False, allow_abbrev=False)
    own.add_argument("--data", default="", metavar="DIR", help="prepared folder, short for --data.root")
    own.add_argument("--json", action="store_true", help="print JSON")
    own.add_argument("--probe", action="store_true", help="measure training itself, for some seconds, on --data")
    own.add_argument("-h", "--help", action="store_true", help="show this help")
    options, others = own.parse_known_args(argv)
    if options.help:
        print(__doc__)
        own.print_help()
        print("\nand the options of train, which `python -m essl_fast.train --help` explains")
        raise SystemExit(0)
    return options, [*others, *(["--data.root", options.data] if options.data else [])]


def settings_of(arguments: list[str]) -> tuple[object, list[Finding]]:
    """The config of train's options. Where the parser itself cannot be imported: the defaults, and a finding."""
    from essl_fast import config

    try:
        settings = config.parse(arguments, PROG)[0]
    except ImportError as error:
        what = f"the options cannot be read ({error}); what follows is of the defaults"
        return config.Config(), [Finding("settings", STOPS, what, checks.INSTALL)]
    method = f"{settings.objective.method} of {settings.epochs} epochs, batches of {settings.data.batch_size}"
    return settings, [Finding("settings", OK, f"{settings.name}: {method}")]


def examine(settings: object, probe: bool = False) -> list[Finding]:
    """All checks, in order. Of those that fail for one and the same reason, the first says so at length."""
    case = Case(settings=settings, probe=probe)
    found = [finding for topic, check in CHECKS.items() for finding in guarded(topic, check, case)]
    first: dict[str, str] = {}
    for finding in found:
        reason = finding.values.get("error")
        if reason in first:
            finding.what, finding.remedy = f"could not be examined, for the same reason as {first[reason]}", ""
        elif reason:
            first[reason] = finding.topic
    return found


def show(findings: list[Finding]) -> str:
    """The findings as text, a paragraph each, and what they come to."""
    wide = max(len(finding.topic) for finding in findings)
    lines = []
    for finding in findings:
        first = f"{MARKS[finding.status]:>6}  {finding.topic:<{wide}}  "
        later = " " * len(first)
        words = finding.what + (f". Remedy: {finding.remedy}" if finding.remedy else "")
        lines += textwrap.wrap(words, WIDTH, initial_indent=first, subsequent_indent=later, break_long_words=False)
    reasons = {(f.status, f.values.get("error") or number) for number, f in enumerate(findings)}
    stops, slower = (sum(have == status for have, _ in reasons) for status in (STOPS, SLOWER))
    end = f"training could not start: {stops} things stand in its way" if stops > 1 else "training could not start"
    if not stops:
        end = "training can start" + (f"; {slower} things make it slower than it could be" if slower else "")
    return "\n".join([*lines, "", end])
