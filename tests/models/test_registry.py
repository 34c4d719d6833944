"""Networks and objectives of a user's own: found by name, built, trained, checkpointed, and taken up again."""

import sys
from dataclasses import replace

import pytest
import torch

from essl_fast import checkpoints, config, load_checkpoint, models
from essl_fast.common.errors import InputError
from essl_fast.models import audio_input, objectives
from tests.tools.modules import own_module

PARTS = """
import torch
from torch import nn

from essl_fast import register_audio, register_objective, register_trunk


class Patches(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.channels = channels
        self.conv = nn.Conv2d(3, channels, 16, stride=16)

    def forward(self, images, views=1):
        return self.conv(images)


class Bands(nn.Module):
    embedding_dim = 64

    def __init__(self, channels):
        super().__init__()
        self.fc = nn.Linear(64, channels)

    @torch.no_grad()
    def embed(self, log_mel):
        return log_mel.mean(dim=2)

    def forward(self, sound):
        examples = self.embed(sound) if sound.ndim == 4 else sound
        return nn.functional.normalize(examples.mean(dim=1), dim=1), self.fc(examples).mean(dim=1)


@register_trunk("patches")
def patches(config):
    return Patches(config.out_dim)


@register_trunk("frozen_patches", frozen=True)
def frozen_patches(config):
    return Patches(config.out_dim)


@register_audio("bands", frozen_front=True)
def bands(config, channels):
    return Bands(channels)


@register_objective("peak", trains_head=False)
def peak(config):
    def objective(forward, boxes, labelled, shares=None):
        return {"loss": -forward.similarity.amax(dim=(2, 3)).mean()}

    return objective
"""
NAMES = {"model.trunk": "patches", "model.audio": "bands", "objective.method": "peak"}


@pytest.fixture
def my_parts(tmp_path, monkeypatch):
    """A folder with a user's module, as the current one; forgotten after the test."""
    with own_module(tmp_path, monkeypatch, "my_parts_of_a_test", PARTS):
        yield "my_parts_of_a_test"


def settings_with(module: str, **more: str) -> config.Config:
    chosen = {**NAMES, **more}
    return config.load("demo", ["--import", module, *(f"{name}={value}" for name, value in chosen.items())])


def test_parts_of_ones_own_are_built_and_trained(my_parts):
    settings = models.check(settings_with(my_parts))
    assert settings.imports == [my_parts]
    model = models.build(settings.model)
    objective = objectives.build(settings.objective)
    sound = audio_input.sound_of(settings, model, torch.float32)(torch.zeros(2, 48000, dtype=torch.int16))
    assert sound.shape == (2, 3, 64)  # what embed gave, in place of the log-mel
    found = model(torch.randn(2, 2, 3, 224, 224), sound)
    assert found.similarity.shape == (2, 2, 14, 14)
    objective(found, torch.zeros(2, 1, 4, dtype=torch.int32), torch.ones(2, dtype=torch.bool))["loss"].backward()
    assert model.trunk.conv.weight.grad.abs().sum() > 0
    assert objectives.facts("peak") == models.registry.ObjectiveFacts(trains_head=False)
    assert [group["name"] for group in model.parameter_groups(settings.optim)] == ["sound", "head", "trunk"]


def test_a_checkpoint_brings_its_modules_back(my_parts, tmp_path):
    settings = models.check(settings_with(my_parts))
    model = models.build(settings.model)
    state = {"config": config.to_dict(settings), "model": checkpoints.trained_state(model)}
    checkpoints.save(tmp_path / "best.pt", state)
    sys.modules.pop(my_parts)
    for registry in (models.registry.TRUNKS, models.registry.AUDIO, models.registry.OBJECTIVES):
        for name in {"patches", "frozen_patches", "bands", "peak"} & set(registry.names()):
            registry.remove(name)
    with pytest.raises(InputError, match="model.trunk: there is no trunk 'patches'"):
        models.check(replace(settings, imports=[]))
    again, found = load_checkpoint(tmp_path, device="cpu")
    assert found == settings and my_parts in sys.modules
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)


def test_weights_that_no_published_file_holds_stay_in_the_checkpoint(my_parts):
    settings = models.check(settings_with(my_parts, **{"model.trunk": "frozen_patches"}))
    model = models.build(settings.model)
    assert not any(p.requires_grad for p in model.trunk.parameters())
    model.prepare(torch.float32)  # a trunk need not have a form for inference
    assert models.unpublished_parts(settings.model) == ["trunk.", "audio."]
    kept = checkpoints.trained_state(model, keep=models.unpublished_parts(settings.model))
    assert kept.keys() == model.state_dict().keys()
    assert models.unpublished_parts(config.ModelConfig()) == []
    assert models.unpublished_parts(config.ModelConfig(vggish_weights="none")) == ["audio."]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model.trunk", "resnet"], "model.trunk: there is no trunk 'resnet'; known are vgg16, small"),
        (["--model.audio", "wav2vec"], "model.audio: there is no audio network 'wav2vec'; known are vggish, small"),
        (["--model.head", "mlp"], "model.head: there is no head 'mlp'; known are simsiam, lss, classes"),
        (
            ["--objective.method", "clip"],
            "known are sspl, semipl, supervised, lss, lss_semi, multisource. .*--import MODULE",
        ),
        (["--model.trunk", "vgg16"], "model.out_dim: vgg16 has 512 channels, got 128"),
        (["--model.trunk_fp8", "true"], "model.trunk_fp8: needs the frozen trunk vgg16, got small"),
        (["--data.embeddings", "on"], "on needs a frozen audio network, model.audio vggish or small_frozen, not small"),
        (
            ["--objective.supervised_map", "sigmoid", "--objective.method", "sspl"],
            "objective.supervised_map: is for semipl and supervised, got it with method sspl",
        ),
        (["--import", "no_such_module_anywhere"], "the module no_such_module_anywhere cannot be imported"),
    ],
)
def test_what_does_not_exist_or_go_together_is_named(arguments, said):
    with pytest.raises(InputError, match=said):
        models.check(config.load("demo", arguments))


def test_facts_of_our_own():
    facts = {name: objectives.facts(name) for name in models.registry.OBJECTIVES.names()}
    assert [name for name, fact in facts.items() if fact.compares_views] == ["sspl", "semipl"]
    assert [name for name, fact in facts.items() if fact.head == "lss"] == ["lss", "lss_semi"]
    assert [name for name, fact in facts.items() if not fact.trains_head] == ["supervised"]
    assert [name for name, fact in facts.items() if fact.needs_labels] == ["supervised", "multisource"]
    boxed = ["semipl", "supervised", "lss_semi", "multisource"]
    assert [name for name, fact in facts.items() if fact.uses_boxes] == boxed
    assert models.trunk_facts("vgg16").frozen and not models.trunk_facts("small").frozen
    assert models.audio_facts("vggish").frozen_front and not models.audio_facts("small").frozen_front
