"""Embeddings of the frozen audio network, kept beside the frames: the same bits whatever they were computed with."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from essl_fast import config, kernels, models
from essl_fast.common.errors import InputError
from essl_fast.data.loading import Loader, Pools, bytes_per_pair
from essl_fast.data.shards import Manifest
from essl_fast.models.audio_input import Embeddings, log_mel, sound_of
from essl_fast.train import Trainer, train_epoch
from essl_fast.train.state import last_state, resume
from tests.data.shards.test_shards import write_folder


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return models.VGGish(16)


def small_vggish(out_dim):
    """VGGish with other layers in its frozen part, which take milliseconds."""
    with torch.device("meta"):
        network = models.VGGish(out_dim)
    torch.manual_seed(7)
    network.features = nn.Sequential(nn.Conv2d(1, 4, 8, stride=8), nn.ReLU(inplace=True)).requires_grad_(False)
    network.embeddings = nn.Sequential(nn.Linear(4 * 12 * 8, 128), nn.ReLU(inplace=True)).requires_grad_(False)
    network.fc = nn.Linear(128, out_dim)
    return network


@pytest.fixture(scope="module")
def pcm():
    rng = np.random.default_rng(5)
    sound = torch.from_numpy(rng.integers(-(2**15), 2**15, (3, 48_000), dtype=np.int16))
    sound[1], sound[2] = 0, sound[2] // 1000
    return sound


@pytest.mark.parametrize(
    "dtype",
    # Most CPUs convolve bf16 very slowly.
    [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.nightly)],
    ids=str,
)
def test_an_embedding_knows_no_batch(network, pcm, dtype, one_thread):
    """Whatever the place and the neighbours of a pair, to the bit; and it is what the network computes by itself."""
    embed = Embeddings(network, dtype)
    alone = torch.cat([embed(pcm[i : i + 1]) for i in range(3)])
    assert alone.shape == (3, 3, 128) and alone.dtype == dtype and not alone.requires_grad
    assert alone.std(dim=0).max() > 0, "every pair sounds the same"
    assert torch.equal(embed(pcm), alone)
    assert torch.equal(embed(pcm[[2, 0, 2]]), alone[[2, 0, 2]])
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        mel = kernels.log_mel(pcm)
        embedding, projection = network(alone)
        for one, all_at_once in zip((embedding, projection), network(mel), strict=True):
            torch.testing.assert_close(one, all_at_once, rtol=0.02 if dtype == torch.bfloat16 else 1e-4, atol=1e-5)
        for kept, computed in zip(network(alone[1:2]), network(mel[1:2]), strict=True):
            assert torch.equal(kept, computed), "the way from the embedding on is another one"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_an_embedding_on_a_gpu_knows_no_neighbours(network, pcm):
    embed = Embeddings(network.cuda(), torch.bfloat16)
    try:
        many = pcm.cuda().repeat(10, 1)
        other = many.flip(1)
        other[17] = many[17]
        assert torch.equal(embed(many)[17], embed(other)[17])
        torch.testing.assert_close(embed(many)[:4], embed(many[:4]), rtol=0.02, atol=1e-3)
    finally:
        network.cpu()


def test_a_batch_of_embeddings_has_their_shape(network):
    with pytest.raises(ValueError, match=r"takes \(B, E, 96, 64\) or \(B, E, 128\), got \(2, 3, 64\)"):
        network(torch.zeros(2, 3, 64))


@pytest.mark.slow
def test_a_pool_of_embeddings_gives_the_streamed_batches(tmp_path, one_thread):
    """Streamed, resident, and resident filled after a resume, which decodes pairs in other batches."""
    manifest = Manifest.load(write_folder(tmp_path, train=7, val=2, test=0))
    calls, network = [], small_vggish(16)
    handle = network.features.register_forward_hook(lambda *_: calls.append(1))

    def batches(count, pools, state=None):
        sound = Embeddings(network, torch.float32)
        with Loader(
            manifest, "train", batch_size=3, side=32, shuffle=True, seed=1, threads=1, pools=pools, sound=sound
        ) as loader:
            if state:
                loader.load_state_dict(state)
            found = []
            while len(found) < count:
                for raw in loader:
                    found.append((raw.index, raw.frames[raw.rows].clone(), raw.sound))
                    if len(found) == count:
                        state = loader.state_dict()
                        break
            return found, state

    pools = Pools("always", 1)
    streamed, _ = batches(6, None)
    resident, _ = batches(6, pools)
    first, state = batches(2, None)
    calls.clear()
    again, _ = batches(4, Pools("always", 1), state)
    assert len(calls) == 7 + 1, "once a pair, and once for the size"
    for other in (resident, first + again):
        for mine, theirs in zip(other, streamed, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))
    handle.remove()


def test_the_setting(network):
    settings = config.load("demo", ["--model.audio", "vggish"])
    small, large = (models.build(config.load("demo", ["--model.audio", kind]).model) for kind in ("small", "vggish"))
    assert sound_of(settings, small, torch.float32) is log_mel
    made = sound_of(settings, large, torch.float32)
    assert made == Embeddings(large.audio, torch.float32) != Embeddings(large.audio, torch.bfloat16)
    settings.data.embeddings = "off"
    assert sound_of(settings, large, torch.float32) is log_mel
    with pytest.raises(InputError, match="data.embeddings: on needs a frozen audio network"):
        models.check(config.load("demo", ["--data.embeddings", "on"]))
    assert bytes_per_pair(246, made) == 246 * 246 * 3 + 1536


@pytest.mark.slow
def test_a_run_computes_each_embedding_once_and_goes_on_from_a_checkpoint(tiny, one_thread, monkeypatch):
    """Training, then evaluations: the network's front sees each pair of each pool once. Resumed: the same bits."""
    _, prepared = tiny
    manifest = Manifest.load(prepared)
    options = "--data.batch_size 4 --data.threads 1 --data.last_batch drop --epochs 2"
    vggish = "--model.audio vggish --model.vggish_weights none"
    settings = config.load("demo", ["--data.root", str(prepared), *f"{options} {vggish}".split()])

    build = models.build

    def build_small(wanted):
        model = build(config.load("demo").model)
        model.audio = small_vggish(wanted.out_dim)
        return model

    monkeypatch.setattr(models, "build", build_small)

    with pytest.warns(UserWarning, match="keeps random weights"):
        whole = Trainer(settings, manifest, torch.device("cpu"))
    calls = []
    assert whole.loader.pool.sound.shape[1:] == (3, 128)
    whole.model.audio.features.register_forward_hook(lambda *_: calls.append(1))
    kept = []
    train_epoch(whole, lambda: kept.append(copy.deepcopy(last_state(whole))) if whole.steps == 2 else None)
    for _ in range(2):
        whole.evaluate("val")
    seen = whole.loader.pool.present.sum() + manifest.pairs("val")
    assert len(calls) == seen
    train_epoch(whole)
    assert len(calls) == whole.loader.pool.present.sum() + manifest.pairs("val")

    with pytest.warns(UserWarning, match="keeps random weights"):
        resumed = Trainer(settings, manifest, torch.device("cpu"))
    resume(resumed, kept[0])
    train_epoch(resumed)
    train_epoch(resumed)
    assert [entry["losses"] for entry in resumed.history] == [entry["losses"] for entry in whole.history]
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
