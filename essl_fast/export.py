"""python -m essl_fast.export RUN_OR_CHECKPOINT --to sspl --out DIR: a trained model as another code's files.

sspl    the published SSPL code's frame_best.pth, sound_best.pth, ssl_head_best.pth and, with a PCM, pcm_best.pth:
        complete state dicts, with the frozen networks, which that code's test.py can load
"""

if __name__ == "__main__":
    from essl_fast.common.commands import begin

    begin()

import argparse
import sys

from essl_fast.common.commands import Options, command, console, say_imports, slow_imports
from essl_fast.common.outputs import output_folder
from essl_fast.common.registry import import_modules
from essl_fast.common.values import a_path

PROG = "python -m essl_fast.export"


def parser() -> Options:
    """The options."""
    shape = argparse.RawDescriptionHelpFormatter
    parser = Options(prog=PROG, description=__doc__, formatter_class=shape)
    parser.add_argument("checkpoint", type=a_path, help="a run directory, whose best.pt is taken, or a checkpoint")
    parser.add_argument("--to", choices=("sspl",), required=True, help="whose files to write")
    parser.add_argument("--out", type=a_path, required=True, metavar="DIR", help="folder to write them into")
    parser.add_weights()
    parser.add_imports()
    return parser


def main(argv: list[str] | None = None) -> int:
    options = parser().parse_args(argv)
    with slow_imports():
        import torch

        from essl_fast import checkpoints
        from essl_fast.checkpoints import sspl

    import_modules(options.imports)
    path = checkpoints.checkpoint_of(options.checkpoint)
    output_folder(options.out, "--out")
    model, settings = checkpoints.restore(checkpoints.load(path), torch.device("cpu"), options.weights)
    out = console()
    say_imports(out, settings.imports)
    written = sspl.write_files(options.out, sspl.sspl_parts(model))
    lines = [f"{path} as {file}, {file.stat().st_size / 1e6:.1f} MB" for file in written]
    out.print("\n".join(lines), highlight=False, soft_wrap=True, markup=False)
    return 0


if __name__ == "__main__":
    sys.exit(command(main, PROG))
