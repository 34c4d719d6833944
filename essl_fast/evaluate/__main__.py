"""python -m essl_fast.evaluate CHECKPOINT: how well a checkpoint localizes on a split, as a table and JSON."""

if __name__ == "__main__":
    from essl_fast.common.commands import begin

    begin()

import sys
from pathlib import Path

import numpy as np

from essl_fast import checkpoints
from essl_fast.checkpoints import sspl
from essl_fast.checkpoints import restore, restore_published
from essl_fast.common import commands, files
from essl_fast.common.commands import Options, command
from essl_fast.common.errors import InputError
from essl_fast.data.shards import Manifest
from essl_fast.evaluate.evaluation import evaluate
from essl_fast.evaluate.protocol import consensus_of, warn_of_consensus
from essl_fast.evaluate.tables import extra_tables, table
from essl_fast.runtime.devices import pick_device, pick_precision

PROG = "python -m essl_fast.evaluate"


def main(argv: list[str] | None = None) -> int:
    parser = Options(prog=PROG, description=__doc__)
    parser.add_argument("checkpoint", type=Path, nargs="?", help="a run directory (its best.pt), or a checkpoint")
    parser.add_argument(
        "--sspl-checkpoint",
        type=Path,
        metavar="DIR",
        help=f"instead: folder with the published SSPL code's {', '.join(sspl.FILES.values())}",
    )
    parser.add_argument("--data", default="", help="prepared folder (default: the one the run was trained on)")
    parser.add_argument("--split", default="test", choices=("train", "val", "test"), help="split (default: test)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    precisions = ("auto", "bf16", "fp16", "fp32", "tf32")
    parser.add_argument("--precision", default="auto", choices=precisions, help="default: auto")
    for name in ("vgg16", "vggish"):
        text = f"the file of {name}'s published weights, if it has moved"
        parser.add_argument(f"--model.{name}_weights", dest=f"{name}_weights", default="", metavar="PATH", help=text)
    parser.add_argument(
        "--extra",
        action="store_true",
        help="further metrics: cIoU with an adaptive threshold, success by size, and average precision and max-F1 "
        "against silence and another pair's sound",
    )
    parser.add_argument("--json", type=Path, help="write the result here (default: print the table alone)")
    options = parser.parse_args(argv)
    device = pick_device(options.device)
    if (options.checkpoint is None) == (options.sspl_checkpoint is None):
        raise InputError("give a checkpoint, or --sspl-checkpoint DIR, and not both")
    if options.json and options.json.is_dir():
        raise InputError(f"--json: {options.json} is a folder; name a file")
    if options.sspl_checkpoint:
        if not options.data:
            raise InputError("--sspl-checkpoint: say on which prepared folder to evaluate it, with --data DIR")
        model, settings = restore_published(options.sspl_checkpoint, device)
        manifest = Manifest.load(Path(options.data))
    else:
        if options.checkpoint.is_dir():
            options.checkpoint /= "best.pt"
        state = checkpoints.load(options.checkpoint)
        root = Path(options.data or state["data_root"])
        if not root.is_dir():
            raise InputError(
                f"there is no folder {root}, which {options.checkpoint} was trained on; say where it is with --data DIR"
            )
        for name in ("vgg16_weights", "vggish_weights"):
            if given := getattr(options, name):
                state["config"]["model"][name] = given
        model, settings = restore(state, device)
        manifest = Manifest.load(root)
        if not options.data and state["data"] != manifest.header:
            raise InputError(
                f"{root} is no longer the data set that {options.checkpoint} was trained on; say which one to evaluate "
                "on with --data DIR"
            )
    name = str(options.checkpoint or options.sspl_checkpoint)
    console = commands.console()
    warn_of_consensus(settings, manifest, console)

    def skipped(row: int, reason: str) -> None:
        console.print(f"skipped {manifest.key(row)}, which does not decode: {reason}", soft_wrap=True, markup=False)

    precision = pick_precision(options.precision, device)
    found = evaluate(
        model, manifest, options.split, settings, device, precision, on_fault=skipped, foreign=options.extra
    )
    result = found.result(manifest)
    console.print(table(f"{name} on {options.split}", {"all": result, **result["per_class"]}))
    curve = " ".join(f"{100 * x:.1f}" for x in result["curve"])
    console.print(f"success at cIoU >= 0, 0.05, ..., 1, %: {curve}", highlight=False, soft_wrap=True)
    if options.extra:
        result["extra"] = found.extra(manifest, consensus_of(settings, manifest))
        for further in extra_tables(result["extra"]):
            console.print(further)
    if options.json:
        pairs = [
            {"key": manifest.key(row), "ciou": None if np.isnan(score) else float(score)}
            for row, score in zip(found.rows.tolist(), found.ciou, strict=True)
        ]
        files.write_json(options.json, {"checkpoint": name, "split": options.split, **result, "each": pairs})
        console.print(f"written to {options.json}")
    return 0


if __name__ == "__main__":
    sys.exit(command(main, PROG))
