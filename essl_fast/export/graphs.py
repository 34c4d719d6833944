"""A model as a graph that runs without essl_fast: ONNX, and a program of torch.export.

Each file is loaded again and run, with two sizes of a batch, before it takes its name.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from essl_fast import checkpoints, config, kernels, models
from essl_fast.common.errors import InputError, reason
from essl_fast.common.files import atomic_file
from essl_fast.export.portable import Portable, sample_inputs

TOLERANCE = 1e-4  # of the cosine
BATCHES = (1, 3)  # which are tried
Run = Callable[[Tensor, Tensor], np.ndarray]


def own_similarity(model: models.Localizer, frames: Tensor, sound: Tensor) -> np.ndarray:
    """What the model itself computes, with the kernels that localize uses: (B, h, w) float32."""
    with torch.inference_mode():
        views = kernels.centre_view(frames, torch.float32)
        return model.attend(views, kernels.log_mel(sound)).similarity[0].float().numpy()


def difference(model: models.Localizer, run: Run, what: str) -> str:
    """Run a graph and compare it with the model; a line for the user.

    Raises:
        InputError: an output differs by more than TOLERANCE, is not finite, or has another shape.
    """
    apart = []
    for batch in BATCHES:
        inputs = sample_inputs(batch, seed=batch)
        expected, found = own_similarity(model, *inputs), run(*inputs)
        if found.shape != expected.shape:
            raise InputError(f"{what} gives {found.shape} where the model gives {expected.shape}; it was not written")
        apart.append(np.abs(found - expected).max())
    largest = float(np.max(apart))
    if not largest <= TOLERANCE:  # NaN is no agreement
        raise InputError(
            f"{what} differs from the model by {largest:.1e}, more than {TOLERANCE:.0e}; it was not written: try "
            "another version of PyTorch or of the runtime"
        )
    return f"its output is within {largest:.1e} of the model's (batches of {' and '.join(map(str, BATCHES))})"


def program_of(model: models.Localizer) -> torch.export.ExportedProgram:
    """The model with its preprocessing as a program of torch.export, for any batch.

    Raises:
        InputError: PyTorch cannot trace it.
    """
    batch = torch.export.Dim("batch", min=1)
    with torch.no_grad(), _quiet():
        try:
            program = torch.export.export(
                Portable(model), sample_inputs(2), dynamic_shapes={"frames": {0: batch}, "sound": {0: batch}}
            )
            return program.run_decompositions({})
        except Exception as error:  # a part of one's own may do what cannot be traced
            raise InputError(
                f"torch.export cannot trace this model ({reason(error)}); a trunk or audio network of your own must "
                "not depend on values, nor on the size of the batch"
            ) from error


def write_pt2(
    out: Path, model: models.Localizer, settings: config.Config, state: dict, source: Path
) -> dict[Path, str]:
    """model.pt2, whose extra file essl_fast.json tells what goes in and comes out. As in `command`."""
    file, extra = io.BytesIO(), {"essl_fast.json": json.dumps(checkpoints.about(settings, state))}
    torch.export.save(program_of(model), file, extra_files=extra)
    file.seek(0)
    module = torch.export.load(file).module()

    def run(frames: Tensor, sound: Tensor) -> np.ndarray:
        with torch.inference_mode():
            return module(frames, sound).numpy()

    path = out / "model.pt2"
    checked = difference(model, run, str(path))
    with atomic_file(path) as target:
        target.write(file.getbuffer())
    return {path: checked}


def write_onnx(
    out: Path, model: models.Localizer, settings: config.Config, state: dict, source: Path
) -> dict[Path, str]:
    """model.onnx, whose metadata tells what goes in and comes out. As in `command`.

    Raises:
        InputError: a package is missing, or the exporter does not know an operator.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"--to onnx: the package {error.name} is missing: pip install onnx onnxruntime onnxscript (or pip install "
            "'.[export]' in the source folder)"
        ) from error
    program, names = program_of(model), ("frames", "sound")
    try:
        with _quiet():
            made = torch.onnx.export(
                program, dynamo=True, input_names=names, output_names=("similarity",), verbose=False
            )
            assert made is not None  # without a file to write to, it returns the model
            proto = made.model_proto
    except Exception as error:  # whatever the exporter does not know
        raise InputError(f"--to onnx: the exporter cannot convert this model ({reason(error)})") from error
    told = checkpoints.about(settings, state)
    for name, value in {"essl_fast": json.dumps(told), **told["inputs"]}.items():
        entry = proto.metadata_props.add()
        entry.key, entry.value = name, value
    data = proto.SerializeToString()
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])

    def run(frames: Tensor, sound: Tensor) -> np.ndarray:
        return session.run(None, dict(zip(names, (frames.numpy(), sound.numpy()), strict=True)))[0]

    path = out / "model.onnx"
    checked = difference(model, run, str(path))
    with atomic_file(path) as file:
        file.write(data)
    return {path: checked}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' advice to their developers."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
