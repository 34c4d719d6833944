"""python -m essl_fast.export RUN_OR_CHECKPOINT --to FORMAT --out DIR: a trained model as files for other programs.

onnx         model.onnx, for ONNX Runtime and others; the preprocessing is inside
pt2          model.pt2, for torch.export.load, without essl_fast; the preprocessing is inside
safetensors  model.safetensors: all weights, the frozen ones too, and the settings; essl_fast.load_checkpoint reads it
hub          a folder for the Hugging Face Hub: model.safetensors, config.json, and README.md, a model card with the
             results. --push ORG/NAME uploads it; others then load hf://ORG/NAME
sspl         the published SSPL code's frame_best.pth, sound_best.pth, ssl_head_best.pth and, with a PCM, pcm_best.pth:
             complete state dicts, with the frozen networks, which that code's test.py can load

Inputs of onnx and pt2, for any batch B: frames, uint8 (B, 224, 224, 3), RGB, and sound, int16 (B, 48000), the 3 s
around each frame, mono at 16 kHz. Output: similarity, float32 (B, h, w), the cosine of each place with the sound. Both
are run on the spot: an output that differs from the model's own by more than 1e-4 is an error.
"""

if __name__ == "__main__":
    from essl_fast.common.commands import begin

    begin()

import argparse
import sys

from essl_fast.common.commands import Options, command, console, slow_imports
from essl_fast.common.errors import InputError
from essl_fast.common.outputs import output_folder
from essl_fast.common.registry import import_modules
from essl_fast.common.values import a_model, a_path

PROG = "python -m essl_fast.export"
FORMATS = ("onnx", "pt2", "safetensors", "hub", "sspl")


def parser() -> Options:
    """The options."""
    shape = argparse.RawDescriptionHelpFormatter
    parser = Options(prog=PROG, description=__doc__, formatter_class=shape)
    parser.add_argument("checkpoint", type=a_model, help="a run directory, whose best.pt is taken, or a checkpoint")
    parser.add_argument("--to", choices=FORMATS, required=True, help="what to write")
    parser.add_argument("--out", type=a_path, required=True, metavar="DIR", help="folder to write it into")
    text = "with --to hub: upload the folder as this model, which is private until you change that on its page"
    parser.add_argument("--push", metavar="ORG/NAME", help=text)
    parser.add_weights()
    parser.add_imports()
    return parser


def main(argv: list[str] | None = None) -> int:
    options = parser().parse_args(argv)
    if options.push and options.to != "hub":
        raise InputError("--push: it uploads a folder for the hub; add --to hub")
    with slow_imports():
        from essl_fast.export import export_checkpoint

    import_modules(options.imports)
    output_folder(options.out, "--out")
    export_checkpoint(
        options.checkpoint,
        options.to,
        options.out,
        weights=options.weights,
        push_to=options.push,
        console=console(kept=True),
    )
    return 0


if __name__ == "__main__":
    sys.exit(command(main, PROG))
