"""python -m benchmarks.phantom: the speed of light of a training step from its code alone, on a machine without a GPU.

    python -m benchmarks.phantom --config sspl_pcm --chip h200
    python -m benchmarks.phantom --config sspl sspl_pcm semipl lss lss_semi --chip a100 h100 h200 b200 --json out.json

The step is compiled for a GPU that is only pretended (tests/phantom/). Every kernel that it would launch and every call
of a library is counted, with its bytes and FLOPs. prediction.py turns them into milliseconds, and says what it assumes.
A step with the PCM takes some minutes to compile; after each step the JSON file has what was made so far. --evaluation
counts a batch that is evaluated instead, of which nothing is compiled.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from essl_fast.common import commands, files
from essl_fast.common.errors import InputError
from tests.phantom.chips import CHIPS

if TYPE_CHECKING:
    from benchmarks.prediction import Part, Prediction

CONFIGS = "sspl, sspl_pcm, semipl, lss, lss_semi"
HEAD = ("step", "launches", "GB", "TFLOP", "GFLOP a pair", "floor, ms", "goal, ms", "expected, ms", "pairs/s", "MFU, %")


def row(each: "Prediction") -> list[str]:
    """A line of the table of all steps."""
    whole = each.whole
    numbers = f"{whole.count} {whole.bytes / 1e9:.1f} {whole.flop / 1e12:.2f} {whole.flop / each.pairs / 1e9:.1f} "
    numbers += f"{1e3 * whole.floor:.1f} {1e3 * whole.goal:.1f} {1e3 * whole.expected:.1f} "
    numbers += f"{each.pairs_per_second:.0f} {100 * each.mfu:.1f}"
    return [each.name, *numbers.split()]


def part_row(part: "Part") -> list[str]:
    """A line of a table of parts."""
    numbers = f"{part.count} {part.bytes / 1e9:.3f} {part.flop / 1e12:.3f} {1e3 * part.floor:.3f} "
    return [part.name, *(numbers + f"{1e3 * part.expected:.3f} {1e3 * part.above:.3f}").split()]


def markdown(head: tuple[str, ...], rows: list[list[str]]) -> str:
    """A table."""
    lines = [list(head), ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def check_module() -> None:
    """InputError where the step would not be the one that a GPU runs."""
    from essl_fast.kernels import native

    if why := native.why_unavailable() or native.why_no_cuda():
        raise InputError(f"without csrc's CUDA kernels a step launches PyTorch's, which this would count: {why}")


def predictions(options: argparse.Namespace) -> Iterator["Prediction"]:
    """Of every configuration on every chip, each when it is made."""
    from benchmarks.prediction import Prediction
    from tests.phantom import budgets
    from tests.phantom.compiled import Case, Step, compile_step

    steps: dict[tuple, Step] = {}
    for config in options.config:
        for name in options.chip:
            about = CHIPS[name]
            key = config, about.arch, about.multiprocessors  # nothing else decides what is generated
            if key not in steps:
                case = Case(name, config, options.pairs, options.set, evaluation=options.evaluation)
                steps[key] = compile_step(case)
                if options.update:
                    budgets.save({steps[key].case.name: steps[key].budget()})
            launches = steps[key].log.launches
            what = f"{config}, evaluation" if options.evaluation else config
            yield Prediction.of(f"{what}, {name}", launches, about, options.pairs)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.phantom", description=__doc__.splitlines()[0])
    parser.add_argument("--config", nargs="+", default=["sspl_pcm"], help=f"such as {CONFIGS}")
    parser.add_argument("--chip", nargs="+", choices=CHIPS, default=["h200"], help="GPUs")
    parser.add_argument("--pairs", type=int, default=128, help="of a step (default: %(default)s)")
    parser.add_argument("--evaluation", action="store_true", help="of a batch, instead of a training step")
    parser.add_argument("--set", default="", help='further settings, such as "--model.pcm_cycles 1"')
    parser.add_argument("--top", type=int, default=10, help="launches to list, the furthest above their floor first")
    parser.add_argument("--update", action="store_true", help="write the steps' numbers into budgets.json, too")
    parser.add_argument("--json", type=Path, help="write everything here")
    options = parser.parse_args(arguments)
    from tests.phantom import chip  # noqa: F401 (before torch)

    check_module()
    source, found = provenance_of_now(), []
    for each in predictions(options):
        found.append(each)
        if options.json:  # what comes after it may take an hour, or be stopped
            write(options, source, [one.record(options.top) for one in found])
    print(markdown(HEAD, [row(each) for each in found]))
    columns = ("launches", "GB", "TFLOP", "floor, ms", "expected, ms", "above, ms")
    for each in found:
        print(f"\n{each.name}: by stage\n\n{markdown(('part', *columns), [part_row(part) for part in each.parts])}")
        rows = [part_row(part) for part in each.worst[: options.top]]
        print(f"\n{each.name}: the furthest above their floor\n\n{markdown(('launch', *columns), rows)}")
    if options.json:
        commands.console().print(f"written to {options.json}", highlight=False)
    return 0


def provenance_of_now() -> dict:
    """Where the predictions are made, and of which source; before anything is written."""
    import torch

    from essl_fast.runtime import provenance

    return provenance.environment(torch.device("cpu"))


def write(options: argparse.Namespace, environment: dict, found: list[dict]) -> None:
    """The predictions, and what they assume of the chips."""
    assumed = {name: CHIPS[name]._asdict() for name in options.chip}
    record = {"pairs": options.pairs, "settings": options.set, "environment": environment, "chips": assumed}
    files.write_json(options.json, {**record, "predictions": found})


if __name__ == "__main__":
    sys.exit(commands.command(main, "python -m benchmarks.phantom"))
