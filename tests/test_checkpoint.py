"""Checkpoints: atomic, refused when damaged or foreign; the published code's state dicts."""

import pytest
import torch

from essl_fast import checkpoint, config, models
from essl_fast.config import InputError
from tests.golden.store import golden


def small_model(seed=0, **overrides):
    torch.manual_seed(seed)
    settings = config.load("demo", [f"{k}={v}" for k, v in overrides.items()])
    return models.build(settings.model)


def test_round_trip(tmp_path):
    model = small_model()
    checkpoint.save(tmp_path / "a.pt", {"model": checkpoint.trained_state(model), "epoch": 3})
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
    state = checkpoint.trained_state(small_model())
    with pytest.raises(InputError, match="another architecture"):
        checkpoint.load_trained(small_model(**{"model.out_dim": 64}), state)


PARTS = {"frame": models.VGG16Trunk, "pcm": models.PCM, "ssl_head": models.SimSiamHead}


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("part", PARTS)
def test_published_state_dicts_load_with_and_without_the_ddp_prefix(part, prefix):
    names = golden("e2e_w_pcm")[f"{'head' if part == 'ssl_head' else part}_recipe_param_names"]
    source, target = PARTS[part](), PARTS[part]()
    for buffer in source.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(1, 2)
    own = source.state_dict()
    checkpoint.load_sspl_part(target, part, {prefix + n: own[checkpoint.from_sspl_name(part, n)] for n in names})
    assert all(torch.equal(value, target.state_dict()[name]) for name, value in own.items())


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
