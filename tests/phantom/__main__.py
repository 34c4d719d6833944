"""python -m tests.phantom [--all] [--update] [--only PART ...]: the training step on a GPU that is not there.

It prints the table of the compiled steps and a line a fault, and ends with 1 if there is a fault.
"""

import argparse
import sys
import time

from tests.phantom import chip  # noqa: F401 (before torch)

PARTS = ("selftest", "eager", "launchers", "compiled")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.phantom", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--all", action="store_true", help="every method, precision, chip and size: 14 minutes of a core"
    )
    parser.add_argument("--update", action="store_true", help="write the compiled steps' numbers into budgets.json")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts to run")
    parser.add_argument("--case", default="", help="of the compiled steps, the one of this name, or all that hold it")
    options = parser.parse_args()

    from tests.phantom import selftest

    begin, faults = time.process_time(), selftest.check()
    report("selftest", begin)
    if not faults:  # otherwise nothing else would mean anything
        parts = {"eager": eager_part, "launchers": launchers_part, "compiled": compiled_part}
        for name in options.only:
            faults += parts[name](options) if name in parts else []
        if set(options.only) == set(PARTS):
            from tests.phantom import entering

            faults += entering.faults()
    for fault in faults:
        print(f"FAULT {fault}")
    return bool(faults)


def report(what: str, begin: float) -> None:
    print(f"{what}: {time.process_time() - begin:.1f} CPU s", flush=True)


def eager_part(options: argparse.Namespace) -> list[str]:
    """The steps that are not compiled."""
    from tests.phantom import eager

    begin, found, count = time.process_time(), [], 0
    for name, faults in eager.check(options.all):
        found += faults
        if faults:
            print(f"{name}: {len(faults)} faults, the first: {faults[0]}", flush=True)
        count += 1
    report(f"eager: {count} steps and evaluations, {len(found)} faults", begin)
    return found


def launchers_part(options: argparse.Namespace) -> list[str]:
    """The project's own Triton launchers and CUDA entries."""
    from tests.phantom import launchers

    begin, found = time.process_time(), launchers.check(options.all)
    report(f"launchers: {len(launchers.Launcher.launches)} launches, {len(found)} faults", begin)
    return found


def compiled_part(options: argparse.Namespace) -> list[str]:
    """The compiled steps, their kernels as machine code, and the budgets."""
    from tests.phantom import budgets, compiled, cubins

    cases = [*compiled.QUICK, *(compiled.FULL if options.all else ())]
    cases = [c for c in cases if c.name == options.case] or [c for c in cases if options.case in c.name]
    before, version, numbers, found = budgets.load(), budgets.made_with(), {}, compiled.wide_faults()
    for case in cases:
        begin = time.process_time()
        try:
            step = compiled.compile_step(case)
        except Exception as error:  # whatever ends a compile here would end it on a GPU
            found.append(f"{case.name}: {type(error).__name__}: {error}")
            continue
        numbers[case.name] = step.budget()
        found += [f"{case.name}: {step.breaks} graph breaks"] if step.breaks else []
        found += [f"{case.name}: {name} counts its places with 32 bits" for name in sorted(step.log.narrow)]
        if options.update:
            budgets.save({case.name: step.budget()})
        elif case in compiled.QUICK or case.name in before:
            how = "as it stands" if case in compiled.QUICK else "add --all"
            found += budgets.faults(case.name, step.budget(), before, version, how)
        else:
            print(f"{case.name} has no budget yet: its numbers are shown and not held (--update keeps them)")
        report(f"{case.name}: {step.budget()}, atomics in {step.log.atomics}", begin)
        if step.log.kernels and not options.update and (options.all or case == compiled.QUICK[0]):
            begin = time.process_time()
            codes = list(cubins.compile_kernels(step.log.kernels, case.chip, options.all))
            found += [f"{case.name}: {fault}" for fault in cubins.faults(codes, case.chip)]
            most, spilled = max(code.registers for code in codes), sum(code.local > 0 for code in codes)
            report(f"{len(codes)} kernels compiled, at most {most} registers, {spilled} spill", begin)
    print(budgets.table(numbers))
    if not options.update and not budgets.holds(version):
        print(f"budgets.json is of PyTorch {version}: nothing was held to it")
    return found


sys.exit(main())
