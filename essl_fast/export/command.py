"""What `python -m essl_fast.export` does, as a function."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from rich.console import Console

from essl_fast import checkpoints, config, models
from essl_fast.checkpoints import sspl
from essl_fast.common import commands
from essl_fast.common.errors import InputError
from essl_fast.export import graphs, hub


def export_checkpoint(
    checkpoint: str | Path,
    to: str,
    out: str | Path,
    *,
    weights: Mapping[str, str] | None = None,
    push_to: str | None = None,
    console: Console | None = None,
) -> list[Path]:
    """Write a trained model as another program's files.

    Args:
        checkpoint: a run directory, whose best.pt is taken, a checkpoint file, or hf://ORG/NAME.
        to: "onnx", "pt2", "safetensors", "hub" or "sspl"; `python -m essl_fast.export --help` says what each is.
        out: folder of the files; it is made.
        weights: {"vgg16": path, "vggish": path} where the published files have moved since the training.
        push_to: with "hub", the ORG/NAME to upload the folder to.
        console: the files are printed here; by default nothing is printed.

    Returns:
        The files.

    Raises:
        InputError: the checkpoint or the folder cannot be used, a package is missing, or a file that was written does
            not compute what the model does.
    """
    console, out = console or commands.console(quiet=True), Path(out)

    def say(line: str) -> None:
        console.print(line, highlight=False, soft_wrap=True, markup=False)

    writers: dict[str, Callable[..., dict[Path, str]]] = {"onnx": graphs.write_onnx, "pt2": graphs.write_pt2}
    writers |= {"safetensors": _safetensors, "hub": hub.write_folder, "sspl": _sspl}
    if to not in writers:
        raise InputError(f"--to: there is no format {to}; give {', '.join(writers)}")
    if to == "hub" and push_to:
        hub.check_name(push_to)
    path = checkpoints.checkpoint_of(checkpoint)
    state = checkpoints.load(path)
    model, settings = checkpoints.restore(state, torch.device("cpu"), weights)
    commands.say_imports(console, settings.imports)
    try:
        out.mkdir(parents=True, exist_ok=True)
        written = writers[to](out, model.eval(), settings, state, path)
    except OSError as error:
        raise InputError(f"--out: {out} cannot be written ({error.strerror or error}); give another folder") from error
    for file, about in written.items():
        say(f"{path} as {file}, {file.stat().st_size / 1e6:.1f} MB" + (f": {about}" if about else ""))
    if to == "hub" and push_to:
        say(hub.push(out, push_to))
    return list(written)


def _sspl(out: Path, model: models.Localizer, settings: config.Config, state: dict, source: Path) -> dict[Path, str]:
    return dict.fromkeys(sspl.write_files(out, sspl.sspl_parts(model)), "")


def _safetensors(
    out: Path, model: models.Localizer, settings: config.Config, state: dict, source: Path
) -> dict[Path, str]:
    path = out / checkpoints.MODEL_FILE
    checkpoints.save_safetensors(path, model, settings, state)
    return {path: checkpoints.check_safetensors(path, model)}
