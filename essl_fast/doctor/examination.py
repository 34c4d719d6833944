"""All checks in order, and their findings as text."""

import textwrap

from essl_fast.doctor import installation, machine, media_files, places, prepared_data, speed, weight_files
from essl_fast.doctor.findings import NOTE, OK, SLOWER, STOPS, Case, Finding, guarded

CHECKS = {
    "Python": installation.check_python,
    "torch": installation.check_torch,
    "modules": installation.check_modules,
    "GPU": machine.check_gpu,
    "device": machine.check_device,
    "csrc": installation.check_csrc,
    "Triton": installation.check_triton,
    "torch.compile": installation.check_compile,
    "DALI": installation.check_dali,
    "media": media_files.check_media,
    "NVDEC": machine.check_nvdec,
    "user": places.check_user,
    "files": places.check_files,
    "weights": weight_files.check_weights,
    "data": prepared_data.check_data,
    "host": machine.check_host,
    "pool": prepared_data.check_pool,
    "disk": machine.check_disk,
    "speed": speed.check_speed,
}
MARKS = {OK: "ok", NOTE: "--", SLOWER: "SLOWER", STOPS: "STOPS"}
WIDTH = 110  # characters of a line


def examine(settings: object, probe: bool = False) -> list[Finding]:
    """Run all checks, in order. If several fail for the same reason, only the first of them says it in full.

    settings: a config.Config. probe: measure training itself.
    """
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
    """The findings as text, one paragraph each, and what follows from them."""
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
