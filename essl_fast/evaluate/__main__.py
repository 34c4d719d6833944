"""python -m essl_fast.evaluate CHECKPOINT: how well a checkpoint localizes on a split, as a table and JSON."""

if __name__ == "__main__":
    from essl_fast.common.commands import begin

    begin()

import argparse
import contextlib
import sys

from essl_fast.common import commands, streams
from essl_fast.common.commands import Options, command, slow_imports
from essl_fast.common.errors import InputError
from essl_fast.common.outputs import output_file, to_stdout
from essl_fast.common.registry import import_modules
from essl_fast.common.values import a_model, a_path, a_place

PROG = "python -m essl_fast.evaluate"


def main(argv: list[str] | None = None) -> int:
    options = parse(argv)
    with slow_imports():
        import essl_fast.evaluate.command  # noqa: F401  # the longest import

    import_modules(options.imports)
    with streams.kept() if options.json else contextlib.nullcontext():  # a closed terminal does not cost the file
        return _run(options)


def _run(options: argparse.Namespace) -> int:
    from essl_fast.common.files import write_json
    from essl_fast.evaluate import evaluate_checkpoint, evaluate_published, extra_tables, table, trust

    console = commands.console(on_stderr=to_stdout(options.json))
    more = (options.split, options.device, options.precision, options.extra)
    if options.sspl_checkpoint:
        result = evaluate_published(options.sspl_checkpoint, options.data, *more, console=console)
    else:
        result = evaluate_checkpoint(options.checkpoint, options.data, *more, weights=options.weights, console=console)
    rows = {"all": result, **result["per_class"]}
    console.print(table(f"{result['checkpoint']} on {result['split']}", rows))
    curve = " ".join(f"{100 * x:.1f}" for x in result["curve"])
    console.print(f"success at cIoU >= 0, 0.05, ..., 1, %: {curve}", highlight=False, soft_wrap=True)
    console.print(trust(result["min_score"]), highlight=False, soft_wrap=True)
    for further in extra_tables(result["extra"]) if options.extra else ():
        console.print(further)
    if options.json:
        write_json(options.json, result)
        console.print(f"written to {options.json}", highlight=False, soft_wrap=True, markup=False)
    return 0


def parser() -> Options:
    """The options."""
    parser = Options(prog=PROG, description=__doc__)
    parser.add_argument("checkpoint", type=a_model, nargs="?", help="a run directory (its best.pt), or a checkpoint")
    parser.add_argument(
        "--sspl-checkpoint",
        type=a_path,
        metavar="DIR",
        help="instead: folder with the published SSPL code's frame_best.pth, sound_best.pth, ssl_head_best.pth and, "
        "with a PCM, pcm_best.pth",
    )
    parser.add_argument(
        "--data",
        type=a_place,
        metavar="DIR",
        help="prepared folder, or its URL (default: the one the run was trained on)",
    )
    parser.add_argument("--split", default="test", choices=("train", "val", "test"), help="split (default: test)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    precisions = ("auto", "bf16", "fp16", "fp32", "tf32")
    parser.add_argument("--precision", default="auto", choices=precisions, help="default: auto")
    parser.add_weights()
    parser.add_imports()
    parser.add_argument(
        "--extra",
        action="store_true",
        help="further metrics: cIoU with an adaptive threshold, LocAcc, success by size, average precision and max-F1 "
        "against silence, noise and another pair's sound, pIA and AOC at one threshold, object guidance, and masks and "
        "interactive IoU where the data set has them (docs/metrics.md)",
    )
    text = "write the result here; - is standard output (default: print the table alone)"
    parser.add_argument("--json", type=a_path, metavar="FILE", help=text)
    return parser


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The options. InputError for those that do not go together."""
    options = parser().parse_args(argv)
    if (options.checkpoint is None) == (options.sspl_checkpoint is None):
        raise InputError("give a checkpoint, or --sspl-checkpoint DIR, and not both")
    if options.sspl_checkpoint and not options.data:
        raise InputError("--sspl-checkpoint: say on which prepared folder to evaluate it, with --data DIR")
    if options.json is not None:
        options.json = output_file(options.json, "--json", [options.checkpoint or options.sspl_checkpoint])
    return options


if __name__ == "__main__":
    sys.exit(command(main, PROG))
