"""Shapes, freezing, groups, and weights of the networks."""

import hashlib

import pytest
import torch

from essl_fast import config, models
from essl_fast.models import weights
from essl_fast.models.weights import WeightsError


def batch_of(batch=2, size=224):
    torch.manual_seed(0)
    return torch.randn(2, batch, 3, size, size), torch.randn(batch, 3, 96, 64)


@pytest.mark.parametrize("pcm", ["false", "true"])
def test_small_localizer_shapes_and_gradients(pcm):
    model = models.build(config.load("demo", ["--model.pcm", pcm]).model)
    views, log_mel = batch_of()
    out = model(views, log_mel)
    assert out.p.shape == out.z.shape == (2, 2, 2048)
    assert out.similarity.shape == out.attention.shape == (2, 2, 14, 14)
    (out.attention.sum() + out.p.sum()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    one = model.eval()(views[:1], log_mel)
    torch.testing.assert_close(model.attend(views[:1], log_mel).similarity, one.similarity)


@pytest.mark.slow
def test_the_frozen_trunk_is_in_no_group_and_gets_no_gradient():
    model = models.build(config.load("sspl_pcm", ["--model.pcm_cycles", "1"]).model)
    groups = model.parameter_groups(config.load("sspl_pcm").optim)
    assert [group["name"] for group in groups] == ["sound", "pcm", "pcm_rates", "head"]
    assert [group["weight_decay"] for group in groups] == [1e-4, 1e-4, 0, 1e-4]
    grouped = {id(p) for group in groups for p in group["params"]}
    assert grouped == {id(p) for p in model.parameters() if p.requires_grad}
    assert not any(p.requires_grad for p in model.trunk.parameters())
    views, log_mel = batch_of(size=224)
    out = model(views, log_mel)
    out.p.sum().backward()
    assert all(p.grad is None for p in model.trunk.parameters())


def test_each_view_has_its_own_batch_statistics():
    torch.manual_seed(0)
    model = models.build(config.load("demo").model).train()
    pooled = torch.randn(2, 4, 128)
    p, z = model.head(pooled)
    alone = [models.SimSiamHead(128), models.SimSiamHead(128)]
    for view, head in enumerate(alone):
        head.load_state_dict({k: v for k, v in model.head.state_dict().items()})
        p1, z1 = head.train()(pooled[view : view + 1])
        # Over four samples a variance may be small, by which rounding grows: with another CPU's code to 3e-5.
        torch.testing.assert_close(p1[0], p[view], rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(z1[0], z[view], rtol=1e-3, atol=1e-3)
    other, _ = alone[0](pooled[:, :2].reshape(1, 4, 128))  # of samples of both views
    assert (other[0, :2] - p[0, :2]).abs().max() > 0.1


def test_pcm_refuses_other_map_sizes():
    with pytest.raises(ValueError, match="14, 14"):
        models.PCM(1)(torch.zeros(1, 512, 7, 7), torch.zeros(1, 128))


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty torch.hub cache, and a network that refuses."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))

    def refuse(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(weights.urllib.request, "urlopen", refuse)
    return tmp_path / "hub" / "checkpoints"


def test_a_missing_weight_file_says_which_file_to_put_where(hub, tmp_path):
    with pytest.raises(WeightsError, match="vgg16-397923af.pth is not at .*checkpoints.*Put the file there"):
        weights.find("vgg16")
    with pytest.raises(WeightsError, match="there is no file .*mine.pth"):
        weights.find("vggish", str(tmp_path / "mine.pth"))
    assert weights.find("vgg16", "none") is None


def test_a_damaged_weight_file_is_refused(hub):
    hub.mkdir(parents=True)
    (hub / "vgg16-397923af.pth").write_bytes(b"not the weights")
    with pytest.raises(WeightsError, match="damaged or not the published file"):
        weights.find("vgg16")


def test_a_download_is_checked_before_it_is_kept(hub, monkeypatch):
    import io

    monkeypatch.setattr(weights.urllib.request, "urlopen", lambda *_, **__: io.BytesIO(b"a proxy's error page"))
    with pytest.raises(WeightsError, match="damaged"):
        weights.find("vgg16")
    assert list(hub.iterdir()) == []


def test_weights_load_from_the_cache(hub, monkeypatch):
    torch.manual_seed(1)
    source = models.VGG16Trunk()
    classifier = {"classifier.0.weight": torch.zeros(2, 2)}  # torchvision's file has more than we take
    hub.mkdir(parents=True)
    part = hub / "part"
    torch.save({**source.state_dict(), **classifier}, part)
    digest = hashlib.sha256(part.read_bytes()).hexdigest()[:8]
    part.rename(hub / f"vgg16-{digest}.pth")
    monkeypatch.setitem(weights.SOURCES, "vgg16", f"https://example.org/vgg16-{digest}.pth")
    settings = config.load("sspl", ["--model.vggish_weights", "none"]).model
    model = models.build(settings)
    with pytest.warns(UserWarning, match="vggish_weights is none"):
        done = models.load_pretrained(model, settings)
    assert len(done) == 1 and done[0].startswith("vgg16 from")
    assert all(torch.equal(a, b) for a, b in zip(source.parameters(), model.trunk.parameters(), strict=True))
