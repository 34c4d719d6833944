"""log_mel against the published features, the float64 reference, and a model of a float32 transform's noise."""

import numpy as np
import pytest
import torch
from torch import Tensor

from essl_fast.kernels import native, reference
from tests.golden.store import golden

needs_native = pytest.mark.skipif(not native.available(), reason=str(native.why_unavailable()))
needs_gpu = pytest.mark.skipif(
    not (native.has_cuda() and torch.cuda.is_available()), reason="needs an NVIDIA GPU and the CUDA kernels"
)
KINDS = ("sine_mix", "white_noise", "chirp", "silence", "impulse", "speech_clipped")
GOLDEN = 2e-3  # what the golden index allows a float32 transform


def bound(pcm: Tensor, normalize: bool) -> Tensor:
    """How far float32 may be off, (B, E, 96, 64).

    Every bin has a few roundings of its frame's energy as noise, and a bin that shares the last additions with the
    loudest one has a rounding of that. A band adds up its bins' noise; the logarithm's slope is 1 / (band + 0.01).
    """
    wave = pcm.float() / 32768 if pcm.dtype == torch.int16 else pcm
    wave = reference.normalize_pcm(wave) if normalize else wave
    frames = wave.double().unfold(1, 400, 160) * torch.hann_window(400, dtype=torch.float64)
    loudest = torch.fft.rfft(frames, n=512).abs().amax(dim=2, keepdim=True)
    weights = torch.from_numpy(reference.mel_matrix()).sum(dim=0)
    noise = 2.0**-24 * (6 * frames.norm(dim=2, keepdim=True) * weights + loudest)
    want = reference.log_mel(pcm, normalize).double()
    return noise[:, : want.shape[1] * 96].view(want.shape) / want.exp() + 2e-6


def check(pcm: Tensor, normalize: bool) -> Tensor:
    """native.log_mel(pcm), after a comparison with the reference."""
    have, want = native.log_mel(pcm, normalize), reference.log_mel(pcm, normalize)
    assert have.shape == want.shape and have.dtype == torch.float32 and have.is_contiguous()
    excess = ((have - want).abs() / bound(pcm, normalize)).max().item()
    assert excess <= 1, f"{excess:.2f} times the bound"
    return have


def chirp(samples: int) -> Tensor:
    """(samples,) float32: a loud tone that rises through all bands, so that most of them are silent beside it."""
    time = torch.arange(samples, dtype=torch.float64) / 16000
    return (0.9 * torch.sin(2 * torch.pi * (100 + 1250 * time) * time)).float()


def to_int16(wave: Tensor) -> Tensor:
    return (wave * 32767).round().short()


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fresh outputs hold NaN, so that an element that is not written shows."""
    make = native._check_log_mel
    monkeypatch.setattr(native, "_check_log_mel", lambda pcm: make(pcm).fill_(float("nan")))


@pytest.fixture
def threads():
    """Leaves torch's number of threads as it was."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@needs_native
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_published_features(kind: str, normalize: bool) -> None:
    data = golden("logmel")
    at = list(data["names"]).index(kind)
    wave = torch.from_numpy(data["wave"][at : at + 1])
    have = check(wave, normalize).numpy()
    want = data["logmel_of_normalized" if normalize else "logmel"][at : at + 1]
    np.testing.assert_allclose(have, want, rtol=0, atol=GOLDEN)
    if kind in ("white_noise", "speech_clipped"):  # no band is silent
        np.testing.assert_allclose(have, want, rtol=0, atol=2e-5)


@needs_native
def test_published_features_of_other_lengths_and_int16() -> None:
    data = golden("logmel")
    short = native.log_mel(torch.from_numpy(data["len16000_wave"])[None], normalize=False)
    np.testing.assert_allclose(short[0].numpy(), data["len16000_logmel"], rtol=0, atol=GOLDEN)
    data = golden("audio_load")
    pcm = torch.from_numpy(data["exact_16k_pcm16"][:, 0].copy())[None]
    assert pcm.dtype == torch.int16
    np.testing.assert_allclose(native.log_mel(pcm)[0].numpy(), data["exact_16k_logmel"], rtol=0, atol=GOLDEN)


@needs_native
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("samples", [15600, 15601, 30959, 30960, 48000, 50003])
def test_equals_the_reference_at_any_length(samples: int, normalize: bool) -> None:
    torch.manual_seed(samples)
    noise = torch.randint(-32768, 32768, (2, samples), dtype=torch.int16)
    pcm = torch.cat([noise, to_int16(chirp(samples))[None], noise[:1] // 1000])
    have = check(pcm, normalize)
    assert have.shape == (4, 1 if samples < 30960 else samples // 15360, 96, 64)
    assert torch.equal(native.log_mel(pcm.float() / 32768, normalize), have)
    check(torch.randn(1, samples) * 0.3, normalize)


@needs_native
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("normalize", [False, True])
def test_one_sample_impulses(normalize: bool) -> None:
    """At the ends, around hops and frames, past the last frame that counts, and at random."""
    places = [0, 1, 159, 160, 161, 399, 400, 15359, 15360, 15599, 46319, 46320, 47999]
    places += np.random.default_rng(0).integers(0, 48000, 11).tolist()
    pcm = torch.zeros((len(places), 48000), dtype=torch.int16)
    pcm[range(len(places)), places] = torch.tensor([32767, -32768, 1000] * 8, dtype=torch.int16)
    have = check(pcm, normalize)
    if not normalize:
        silent = torch.full((), 0.01).log()
        assert torch.equal(have[11:13], silent.expand(2, 3, 96, 64))


@needs_native
@pytest.mark.parametrize("dtype", [torch.int16, torch.float32], ids=str)
@pytest.mark.parametrize("place", [0, 47999])
def test_the_first_and_the_last_sample_count_in_the_normalization(place: int, dtype: torch.dtype) -> None:
    pcm = to_int16(chirp(48000) / 8).repeat(2, 1)
    pcm[0, place], pcm[1, place] = 32767, -32768
    check(pcm if dtype == torch.int16 else pcm / 32768, True)


@needs_native
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("dtype", [torch.int16, torch.float32], ids=str)
def test_clipping_constants_and_silence(dtype: torch.dtype, normalize: bool) -> None:
    square = torch.where(torch.arange(48000) // 37 % 2 == 0, 32767, -32768)
    clipped = (torch.sin(torch.arange(48000) * 0.07) * 90000).round().clamp(-32768, 32767)
    levels = [torch.full((48000,), level) for level in (0, 1, -1, 16384, 32767, -32768)]
    pcm = torch.stack([square, clipped, *levels]).to(dtype)
    check(pcm if dtype == torch.int16 else pcm / 32768, normalize)


@needs_native
def test_a_nan_spoils_what_it_spoils_in_the_reference() -> None:
    for sign in (1.0, -1.0):
        wave = chirp(48000).repeat(3, 1)
        wave[1, 20000] = sign * float("nan")
        for normalize in (False, True):
            have, want = native.log_mel(wave, normalize), reference.log_mel(wave, normalize)
            assert torch.equal(have.isnan(), want.isnan()) and 0 < want[1].isnan().sum()
            assert not have[0].isnan().any() and torch.equal(have[0], have[2])


@needs_native
@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("dtype", [torch.int16, torch.float32], ids=str)
def test_threads_and_batch_do_not_matter(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    wave = chirp(48000) * torch.rand(37, 1)
    pcm = to_int16(wave) if dtype == torch.int16 else wave
    outs = []
    for count in (1, 2, 5, 32):
        torch.set_num_threads(count)
        outs.append(native.log_mel(pcm))
    assert all(torch.equal(out, outs[0]) for out in outs[1:])
    assert torch.equal(native.log_mel(pcm[5:6]), outs[0][5:6])


@needs_native
def test_strided_input_and_an_empty_batch() -> None:
    torch.manual_seed(0)
    wide = torch.randint(-9000, 9000, (4, 50000), dtype=torch.int16)
    want = native.log_mel(wide[::2, 7:48007].clone())
    assert torch.equal(native.log_mel(wide[::2, 7:48007]), want)
    assert torch.equal(native.log_mel(wide[::2, 7:48007].t().contiguous().t()), want)
    assert native.log_mel(wide[:0]).shape == (0, 3, 96, 64)


BAD = [  # the input, words of the error
    (torch.zeros(48000), r"pcm must be int16 or float32 \(B, T\), not float32 \(48000,\)"),
    (torch.zeros(2, 1, 48000), r"pcm must be int16 or float32 \(B, T\), not float32 \(2, 1, 48000\)"),
    (torch.zeros(2, 48000, dtype=torch.float64), r"not float64 \(2, 48000\)"),
    (torch.zeros(2, 48000, dtype=torch.int32), r"not int32 \(2, 48000\)"),
    (torch.zeros(2, 15599), r"pcm must be \(B, T\) with T >= 15600, got \(2, 15599\)"),
    (torch.zeros(0, 10), r"with T >= 15600, got \(0, 10\)"),
    (torch.zeros(2, 48000, device="meta"), "one CPU or CUDA device, not meta"),
]


@needs_native
@pytest.mark.parametrize(("pcm", "message"), BAD, ids=[b[1][-24:] for b in BAD])
def test_bad_input_is_named(pcm: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match="log_mel: .*" + message):
        native._log_mel._init_fn(pcm, True)


@needs_native
@pytest.mark.parametrize("dtype", [torch.int16, torch.float32], ids=str)
def test_opcheck(dtype: torch.dtype) -> None:
    pcm = to_int16(chirp(15600))[None].to(dtype)
    torch.library.opcheck(torch.ops.essl_fast.log_mel.default, (pcm, True))


@needs_native
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_as_one_graph(dynamic: bool) -> None:
    def mean_example(pcm: Tensor) -> Tensor:
        return native.log_mel(pcm).mean(dim=1) * 2

    compiled = torch.compile(mean_example, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for batch, samples in ((2, 15600), (3, 31000)):
        pcm = to_int16(chirp(samples)).repeat(batch, 1)
        assert torch.equal(compiled(pcm), mean_example(pcm))


def test_without_the_module_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_module", None)
    monkeypatch.setattr(native, "_why_unavailable", "it was not built: build it")
    with pytest.raises(RuntimeError, match="log_mel: it was not built: build it"):
        native.log_mel(torch.zeros(1, 48000))


@needs_native
def test_the_module_itself_refuses_impossible_arguments() -> None:
    host = native._module.log_mel_host
    shapes = r"log_mel: pcm int16 \(1, 15599\) -> \(1, 0, 96, 64\) float32"
    with pytest.raises(ValueError, match=shapes + ": impossible sizes"):
        host(64, 64, 0, 1, 15599, True, 1)
    with pytest.raises(ValueError, match="impossible sizes"):
        host(64, 64, 0, -1, 48000, True, 1)
    with pytest.raises(ValueError, match="a buffer has no address"):
        host(64, 0, 0, 1, 48000, True, 1)
    with pytest.raises(ValueError, match="unknown sample type 2"):
        host(64, 64, 2, 1, 48000, True, 1)
    if native.has_cuda() and not torch.cuda.is_available():
        shapes = r"log_mel: pcm float32 \(2, 48000\) -> \(2, 3, 96, 64\) float32"
        with pytest.raises(RuntimeError, match=shapes + ": CUDA error"):
            native._module.log_mel_cuda(64, 64, 1, 2, 48000, True, 0, 0)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize(("batch", "samples"), [(128, 48000), (1, 48000), (3, 15601), (2, 50003)])
def test_cuda_equals_host_and_reference(batch: int, samples: int, normalize: bool) -> None:
    torch.manual_seed(batch)
    loud = torch.rand(batch, 1)
    loud[-1] = 0  # silence
    for pcm in (to_int16(chirp(samples) * loud), torch.randn(batch, samples) * loud, chirp(samples) * loud):
        have = native.log_mel(pcm.cuda(), normalize)
        assert torch.equal(native.log_mel(pcm.cuda(), normalize), have)  # the same every time
        assert (have.cpu() - native.log_mel(pcm, normalize)).abs().max() < GOLDEN
        some = pcm[:4]
        assert ((have[:4].cpu() - reference.log_mel(some, normalize)).abs() <= bound(some, normalize)).all()


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("kind", KINDS)
def test_cuda_published_features(kind: str) -> None:
    data = golden("logmel")
    at = list(data["names"]).index(kind)
    wave = torch.from_numpy(data["wave"][at : at + 1]).cuda()
    for normalize, name in ((False, "logmel"), (True, "logmel_of_normalized")):
        have = native.log_mel(wave, normalize).cpu().numpy()
        np.testing.assert_allclose(have, data[name][at : at + 1], rtol=0, atol=GOLDEN)


@pytest.mark.gpu
@needs_gpu
def test_cuda_nan_offset_side_stream_and_graph() -> None:
    wave = chirp(48000).repeat(3, 1)
    wave[1, 20000] = -float("nan")
    assert torch.equal(native.log_mel(wave.cuda()).isnan().cpu(), native.log_mel(wave).isnan())
    flat = to_int16(chirp(3 * 48000 + 1)).cuda()
    pcm = flat[1:].view(3, 48000)  # off every alignment
    want = native.log_mel(pcm.clone())
    assert torch.equal(native.log_mel(pcm), want)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        out = native.log_mel(pcm)
    stream.synchronize()
    assert torch.equal(out, want)
    graph = torch.cuda.CUDAGraph()
    static = torch.zeros_like(pcm)
    with torch.cuda.graph(graph):
        out = native.log_mel(static)
    static.copy_(pcm)
    graph.replay()
    assert torch.equal(out, want)
