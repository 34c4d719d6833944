"""ONNX and torch.export: any batch, the model's own output, and what the files say of themselves."""

import io
import json
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch

from essl_fast import kernels
from essl_fast.common.errors import InputError
from essl_fast.export import export_checkpoint, graphs
from essl_fast.export.portable import Portable, sample_inputs
from essl_fast.localize import SoundFinder
from tests.export.conftest import make_run

ALONE = """
import json, sys, torch
sys.modules["essl_fast"] = None  # the file needs nothing of ours
extra = {"essl_fast.json": ""}
module = torch.export.load(sys.argv[1], extra_files=extra).module()
frames, sound = torch.load(sys.argv[2])
torch.save(module(frames, sound), sys.argv[3])
print(json.loads(extra["essl_fast.json"])["inputs"]["sound"])
"""


def test_the_spectrogram_inside_is_the_models():
    _, sound = sample_inputs(4)
    sound[3] = 0  # silence
    sound[2, :100] = 32767
    portable = Portable(torch.nn.Identity())
    assert (portable.log_mel(sound) - kernels.reference.log_mel(sound)).abs().max() < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["plain", "pcm"])
def test_onnx(tmp_path, kind):
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    run = make_run(tmp_path / "run", kind)
    (path,) = export_checkpoint(run, "onnx", tmp_path / "out")
    assert path.name == "model.onnx" and [file.name for file in path.parent.iterdir()] == ["model.onnx"]
    proto = onnx.load(str(path))
    onnx.checker.check_model(proto)
    told = {entry.key: entry.value for entry in proto.metadata_props}
    assert "3 s" in told["sound"] and json.loads(told["essl_fast"])["config"]["model"]["trunk"] == "small"
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert {each.name: each.shape[1:] for each in session.get_inputs()} == {
        "frames": [224, 224, 3],
        "sound": [48_000],
    }
    finder = SoundFinder.open(run, "cpu")
    for batch in (1, 2, 5):
        frames, sound = (each.numpy() for each in sample_inputs(batch, seed=9))
        (found,) = session.run(["similarity"], {"frames": frames, "sound": sound})
        assert found.shape == (batch, 14, 14) and np.abs(found - finder.similarity(frames, sound)).max() < 1e-4


@pytest.mark.slow
def test_pt2_runs_without_us(tmp_path):
    run = make_run(tmp_path / "run", "lss")
    (path,) = export_checkpoint(run, "pt2", tmp_path / "out")
    inputs = sample_inputs(4, seed=9)
    torch.save(inputs, tmp_path / "inputs.pt")
    words = [sys.executable, "-c", ALONE, path, tmp_path / "inputs.pt", tmp_path / "found.pt"]
    done = subprocess.run([str(word) for word in words], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "int16 (B, 48000)" in done.stdout
    expected = SoundFinder.open(run, "cpu").similarity(inputs[0], inputs[1].numpy())
    assert np.abs(torch.load(tmp_path / "found.pt").detach().numpy() - expected).max() < 1e-4
    assert zipfile.is_zipfile(io.BytesIO(path.read_bytes()))


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda found: found + 2e-4, "differs from the model by 2.0e-04, more than 1e-04"),
        (lambda found: found * np.nan, "differs from the model by nan"),
        (lambda found: found[:, :7], "where the model gives"),
    ],
)
def test_another_output_is_refused(run, spoil, message):
    model = SoundFinder.open(run, "cpu").model
    assert "within 0.0e+00" in graphs.difference(model, lambda *given: graphs.own_similarity(model, *given), "f.onnx")
    with pytest.raises(InputError, match="f.onnx") as refused:
        graphs.difference(model, lambda *given: spoil(graphs.own_similarity(model, *given)), "f.onnx")
    assert message in str(refused.value)


class Counting(torch.nn.Module):
    """A trunk that asks for values, which no graph can hold."""

    def forward(self, images, views=1):
        return images if images.sum() > 0 else -images


def test_a_model_that_cannot_be_traced_is_told(run):
    model = SoundFinder.open(run, "cpu").model
    model.trunk = Counting()
    with pytest.raises(InputError, match="torch.export cannot trace this model .*a trunk or audio network of your own"):
        graphs.program_of(model)
