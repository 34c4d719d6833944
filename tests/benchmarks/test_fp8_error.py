"""The error of 8-bit convolutions is measured on the trunk's 3x3 layers, and leaves the trunk as it was."""

import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from benchmarks import fp8_error
from essl_fast import checkpoints, config, models
from essl_fast.data.shards import Manifest
from essl_fast.kernels import fp8


def small(tiny):
    torch.manual_seed(0)
    settings = config.load("demo", ["--data.root", str(tiny[1])])
    return models.build(settings.model), settings


def test_a_trunk_computes_in_8_bits_within_the_context_only():
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.Conv2d(8, 4, 1))
    x = torch.randn(2, 3, 12, 12)
    exact = trunk(x)
    assert fp8_error.convolutions(trunk) == [trunk[1]]
    with fp8_error.rounded(trunk) as layers:
        assert layers == 1
        inside = trunk(x)
    assert torch.equal(trunk(x), exact)
    values, weight = (each.float() * scale for each, scale in map(fp8.quantize, (trunk[0](x), trunk[1].weight)))
    want = trunk[2](nn.functional.conv2d(values, weight, trunk[1].bias, stride=2, padding=1))
    torch.testing.assert_close(inside, want)
    assert not torch.allclose(inside, exact, rtol=1e-3)


def test_vgg16_computes_in_8_bits_in_evaluation_too():
    """Evaluation makes its form for inference, which calls no layer."""
    torch.manual_seed(0)
    trunk, images = models.VGG16Trunk().requires_grad_(False), torch.randn(1, 3, 32, 32)
    with torch.inference_mode():
        exact = trunk(images)
        with fp8_error.rounded(trunk) as layers:
            trunk.prepare(torch.float32)
            inside = trunk(images)
        after = trunk(images)
    assert layers == 12 and (inside - exact).norm() > 0.02 * exact.norm()
    torch.testing.assert_close(after, exact)


def test_a_run_with_8_bits_is_compared_with_float32(tmp_path, monkeypatch):
    """`model.trunk_fp8` rounds by itself."""
    model = SimpleNamespace(trunk=models.VGG16Trunk(fp8=True))
    settings, seen = SimpleNamespace(model=SimpleNamespace(trunk="vgg16")), []
    monkeypatch.setattr(checkpoints, "load", lambda path: {})
    monkeypatch.setattr(checkpoints, "checkpoint_of", lambda run: run)
    monkeypatch.setattr(checkpoints, "restore", lambda state, device: (model, settings))
    monkeypatch.setattr(Manifest, "load", lambda place: None)
    monkeypatch.setattr(fp8_error, "error_of", lambda *given: fp8_error.Error(12, 0.1, 0.1, 0.1))
    monkeypatch.setattr(
        fp8_error, "scores", lambda *given: seen.append(model.trunk.fp8) or {"success_at_half": 0.5, "auc": 0.5}
    )
    assert fp8_error.main([str(tmp_path), "--data", str(tmp_path)]) == 0
    assert seen == [False, False]


def test_no_more_pairs_than_asked_for(tiny, monkeypatch):
    model, settings = small(tiny)
    seen, view = [], fp8_error.centre_view
    monkeypatch.setattr(
        fp8_error, "centre_view", lambda frames, dtype, rows: seen.append(len(rows)) or view(frames, dtype, rows)
    )
    fp8_error.error_of(model, Manifest.load(tiny[1]), settings, 3)
    assert seen == [3]


def test_an_error_is_that_of_rounding(tiny, monkeypatch):
    """Numbers of 11 bits instead of 4 are nearer; numbers that are kept have no error."""
    model, settings = small(tiny)
    manifest = Manifest.load(tiny[1])
    eight = fp8_error.error_of(model, manifest, settings, 4)
    assert eight.layers == 4 and 0.003 < eight.features < 0.15 and 0 < eight.map_mean < eight.map_most < 0.2
    with monkeypatch.context() as patch:
        patch.setattr(fp8, "quantize", lambda x: (x.half(), torch.ones(())))
        half = fp8_error.error_of(model, manifest, settings, 4)
    assert half.features < eight.features / 10
    monkeypatch.setattr(fp8, "quantize", lambda x: (x, torch.ones(())))
    kept = fp8_error.error_of(model, manifest, settings, 4)
    assert kept.features < 1e-6 and kept.map_most < 1e-5


@pytest.mark.slow  # VGG-16 over a batch of frames
def test_the_command(tiny, tmp_path, monkeypatch, capsys):
    state = {"data_root": str(tiny[1])}
    monkeypatch.setattr(checkpoints, "checkpoint_of", lambda run: run)
    monkeypatch.setattr(checkpoints, "load", lambda path: state)
    monkeypatch.setattr(checkpoints, "restore", lambda found, device: small(tiny))
    out = tmp_path / "fp8.json"
    assert fp8_error.main([str(tmp_path / "best.pt"), "--pairs", "1", "--json", str(out)]) == 0
    networks = json.loads(out.read_text())["networks"]
    assert list(networks) == ["small, trained", "vgg16, random"]
    assert (
        networks["vgg16, random"]["error"]["layers"] == 12
        and 0.01 < networks["vgg16, random"]["error"]["features"] < 0.2
    )
    assert set(networks["small, trained"]["float32"]) == set(networks["small, trained"]["e4m3"]) != set()
    assert "e4m3 beside float32" in capsys.readouterr().out
