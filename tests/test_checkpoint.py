"""Checkpoints: atomic, refused when damaged or foreign; the published code's state dicts."""

import pytest
import torch

from essl_fast import checkpoint, config, models
from essl_fast.config import InputError


def small_model(seed=0, **overrides):
    torch.manual_seed(seed)
    settings = config.load("demo", [f"{k}={v}" for k, v in overrides.items()])
    return models.build(settings.model)


def test_round_trip(tmp_path):
    model = small_model()
    checkpoint.save(tmp_path / "a.pt", {"model": checkpoint.trained_state(model, keep_frozen=False), "epoch": 3})
    state = checkpoint.load(tmp_path / "a.pt")
    other = small_model(seed=1)
    checkpoint.load_trained(other, state["model"])
    assert state["epoch"] == 3
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))
    assert [file.name for file in tmp_path.iterdir()] == ["a.pt"]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.pt"
    checkpoint.save(path, {"epoch": 1})
    with pytest.raises(Exception, match="pickle"):
        checkpoint.save(path, {"epoch": 2, "bad": lambda: None})
    assert checkpoint.load(path)["epoch"] == 1
    assert [file.name for file in tmp_path.iterdir()] == ["a.pt"]


def test_wrong_files_are_refused(tmp_path):
    with pytest.raises(InputError, match="there is no checkpoint"):
        checkpoint.load(tmp_path / "none.pt")
    whole = tmp_path / "a.pt"
    checkpoint.save(whole, {"x": torch.arange(10000)})
    cut = tmp_path / "cut.pt"
    cut.write_bytes(whole.read_bytes()[:2000])
    with pytest.raises(InputError, match="cut.pt is not a readable checkpoint"):
        checkpoint.load(cut)
    torch.save({"x": 1}, tmp_path / "foreign.pt")
    with pytest.raises(InputError, match="not an essl_fast checkpoint"):
        checkpoint.load(tmp_path / "foreign.pt")

    class Evil:
        def __reduce__(self):
            return (print, ("ran",))

    torch.save(Evil(), tmp_path / "evil.pt")
    with pytest.raises(InputError, match="not a readable checkpoint"):
        checkpoint.load(tmp_path / "evil.pt")


def test_another_architecture_is_refused():
    state = checkpoint.trained_state(small_model(), keep_frozen=False)
    with pytest.raises(InputError, match="another architecture"):
        checkpoint.load_trained(small_model(**{"model.out_dim": 64}), state)


def sspl_names(module, part):
    """The published names of a module's entries, from ours."""
    import re

    names = {}
    for ours in module.state_dict():
        for theirs, pattern in checkpoint._SSPL_NAMES[part]:
            template = re.escape(pattern).replace(r"\\1", "(.+?)").replace(r"\\2", "(.+?)")
            if match := re.fullmatch(template, ours):
                groups = list(match.groups())
                name = re.sub(r"\((?:\?:)?[^()]*(?:\([^()]*\)[^()]*)*\)", lambda _, g=groups: g.pop(0), theirs)
                name = name.replace("\\", "")
                if checkpoint.from_sspl_name(part, name) == ours:
                    names[ours] = name
                    break
    return names


@pytest.mark.parametrize("prefix", ["", "module."])
def test_published_state_dicts_load_with_and_without_the_ddp_prefix(prefix):
    torch.manual_seed(0)
    source, target = models.PCM(2, 8, 16), models.PCM(2, 8, 16)
    names = sspl_names(source, "pcm")
    assert set(names) == set(source.state_dict())
    sd = {prefix + names[ours]: value for ours, value in source.state_dict().items()}
    assert checkpoint.load_sspl_part(target, "pcm", sd) is None
    assert all(
        torch.equal(a, b) for a, b in zip(source.state_dict().values(), target.state_dict().values(), strict=True)
    )


def test_published_state_dicts_that_do_not_fit_are_refused():
    trunk = models.VGG16Trunk()
    sd = {f"feat_extractor.{k.removeprefix('features.')}": v for k, v in trunk.state_dict().items()}
    checkpoint.load_sspl_part(models.VGG16Trunk(), "frame", sd)
    with pytest.raises(InputError, match="lacks 1 entries"):
        checkpoint.load_sspl_part(trunk, "frame", {k: v for k, v in sd.items() if k != "feat_extractor.0.bias"})
    with pytest.raises(InputError, match="has no place"):
        checkpoint.load_sspl_part(trunk, "frame", {**sd, "fc.weight": torch.zeros(1)})
    with pytest.raises(InputError, match="has shape"):
        checkpoint.load_sspl_part(trunk, "frame", {**sd, "feat_extractor.0.bias": torch.zeros(3)})
    with pytest.raises(InputError, match="not 'video'"):
        checkpoint.load_sspl_part(trunk, "video", sd)
    with pytest.raises(InputError, match="needs the SSPL parts"):
        checkpoint.load_sspl(small_model(), {"frame": sd})
