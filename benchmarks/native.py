"""python -m benchmarks.native: the compiled ops against the usual ways to do their work, on a CPU or a GPU.

two_views against Pillow and torchvision-style transforms (crop, mirror, to tensor, normalise; one view of one pair at a
time, shared out over as many processes as there are threads) and against batched PyTorch; log_mel against torchaudio's
spectrogram; localization_counts against a NumPy/OpenCV loop over images; the small ops against PyTorch.

All have their inputs in the device's memory already. Pillow and the NumPy/OpenCV loop do not run on a GPU: where the
others do, the time of these two includes the copies to it and back.
"""

import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager

import numpy as np
import torch
import torch.multiprocessing as multiprocessing
from PIL import Image
from torch import Tensor

from benchmarks.common import Comparison, close, equal, measure_all, parser, report
from benchmarks.rows import Rows, not_reached
from essl_fast.kernels import native, reference
from essl_fast.runtime.devices import pick_device

try:
    import cv2
except ModuleNotFoundError:
    cv2 = None
try:
    import torchaudio
except ImportError:  # missing, or not made for this torch: it ends at 2.11
    torchaudio = None

STORED, SIZE = 246, 224
EVALUATED = 304  # pairs of the test split that the published figures are of
SAMPLES = 48_000
SPECTRUM_TOLERANCE = 2e-3  # of a float32 spectrum, in quiet bands
PILLOW, BATCHED, LOOP = "Pillow + transforms", "batched PyTorch", "NumPy/OpenCV loop"
if cv2 is None:
    LOOP = "NumPy loop (no OpenCV here)"


def pillow_view(frame: np.ndarray, top: int, left: int, flip: bool, size: int) -> Tensor:
    """(3, size, size) float32: crop, mirror, to tensor, normalise, as torchvision's transforms do them one by one."""
    image = Image.fromarray(frame).crop((left, top, left + size, top + size))
    if flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    scaled = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div(255)
    mean, std = (torch.tensor(c)[:, None, None] for c in (reference.IMAGENET_MEAN, reference.IMAGENET_STD))
    return scaled.sub_(mean).div_(std)


class PillowViews:
    """Views by ``pillow_view``, from processes that each stack a share of the pairs and hand it over in shared memory.

    So do DataLoader's workers. The calling process gets the shares.
    """

    def __init__(self, frames: Tensor, top: Tensor, left: Tensor, flip: Tensor, size: int, processes: int) -> None:
        self.frames, self.params, self.size, self.processes = frames.numpy(), (top, left, flip), size, processes

    def share(self, part: int) -> list[Tensor]:
        """V of (b, 3, size, size) float32, of pairs part, part + processes, ..."""
        torch.set_num_threads(1)
        views = []
        for top, left, flip in zip(*(t[:, part :: self.processes].tolist() for t in self.params), strict=True):
            params = zip(self.frames[part :: self.processes], top, left, flip, strict=True)
            views.append(torch.stack([pillow_view(*each, self.size) for each in params]))
        return views

    @contextmanager
    def running(self) -> Iterator[Callable[[], list[list[Tensor]]]]:
        """What makes all shares, until the block ends. The processes are forked: they find frames where they are."""
        context = multiprocessing.get_context("fork")
        with ProcessPoolExecutor(self.processes, context, initializer=_adopt, initargs=(self,)) as pool:
            yield lambda: list(pool.map(_share, range(self.processes)))


_adopted: list[PillowViews] = []  # in a process of PillowViews: what it works for


def _adopt(views: PillowViews) -> None:
    _adopted.append(views)


def _share(part: int) -> list[Tensor]:
    return _adopted[0].share(part)


def torchaudio_log_mel(device: torch.device) -> Callable[[Tensor], Tensor]:
    """log_mel from torchaudio's magnitude spectrogram. The mel filters are VGGish's: torchaudio has none like them."""
    spectrogram = torchaudio.transforms.Spectrogram(n_fft=512, win_length=400, hop_length=160, power=1, center=False)
    # Its window of 400 sits in the middle of the transform's 512: hence 56 samples more at both ends.
    spectrogram, mel = spectrogram.to(device), torch.from_numpy(reference.mel_matrix()).float().to(device)

    def log_mel(pcm: Tensor) -> Tensor:
        wave = torch.nn.functional.pad(reference.normalize_pcm(pcm.float() / 32768), (56, 56))
        bands = spectrogram(wave).transpose(1, 2) @ mel
        return (bands[:, :288] + 0.01).log().view(len(pcm), 3, 96, 64)

    return log_mel


def numpy_resize(similarity: np.ndarray) -> np.ndarray:
    """(h, w) to (SIZE, SIZE), bilinear with half-pixel centres, in float32."""

    def weights(length: int) -> np.ndarray:
        position = np.maximum((np.arange(SIZE) + 0.5) * length / SIZE - 0.5, 0)
        low = position.astype(int)
        out = np.zeros((SIZE, length), np.float32)
        out[np.arange(SIZE), low] = 1 - (position - low)
        out[np.arange(SIZE), np.minimum(low + 1, length - 1)] += position - low
        return out

    rows, columns = (weights(length) for length in similarity.shape)
    return rows @ similarity @ columns.T


def loop_counts(similarity: np.ndarray, boxes: np.ndarray, consensus: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Intersections and unions, image by image as in the published evaluation; the boxes are drawn here, too."""
    intersections, unions = [], []
    for heat, drawn in zip(similarity, boxes, strict=True):
        truth = np.zeros((SIZE, SIZE))
        for x1, y1, x2, y2 in drawn:
            truth[y1:y2, x1:x2] += 1
        truth = np.minimum(truth / consensus, 1)
        heat = numpy_resize(heat) if cv2 is None else cv2.resize(heat, (SIZE, SIZE), interpolation=cv2.INTER_LINEAR)
        heat = (heat - heat.min()) / (heat.max() - heat.min())
        infer = np.zeros((SIZE, SIZE))
        infer[heat >= 0.5] = 1
        intersections.append(np.sum(infer * truth))
        unions.append(np.sum(truth) + np.sum(infer * (truth == 0)))
    return np.array(intersections), np.array(unions)


def views_comparisons(batch: int, device: torch.device, threads: int) -> Iterator[Comparison]:
    """two_views and random_views, in the type that training gets on this device."""
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (batch, STORED, STORED, 3), dtype=torch.uint8, generator=generator)
    rows, index = torch.arange(batch), torch.randint(0, 1 << 20, (batch,), generator=generator)
    top, left, flip = reference.view_params(0, 0, index, STORED - SIZE)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    given = [t.to(device) for t in (frames, rows, top, left, flip)]
    want = reference.two_views(*given, SIZE, dtype)
    # Pixels that some view shows are read once, and every view is written.
    shared = (SIZE - (top[0] - top[1]).abs()) * (SIZE - (left[0] - left[1]).abs())
    moved = 3 * int((2 * SIZE**2 - shared).sum()) + want.numel() * want.element_size()
    with PillowViews(frames, top, left, flip, SIZE, threads).running() as pillow:

        def by_pillow() -> list[Tensor]:
            return [view.to(device, dtype) for share in pillow() for view in share]

        def check() -> str:
            equal("two_views", native.two_views(*given, SIZE, dtype), want)
            on_cpu = reference.two_views(frames, rows, top, left, flip, SIZE, torch.float32)
            for part, share in enumerate(pillow()):
                equal("two_views by Pillow", torch.stack(share), on_cpu[:, part::threads])
            return "bit-equal"

        rivals = {PILLOW: by_pillow, BATCHED: lambda: reference.two_views(*given, SIZE, dtype)}
        yield Comparison(
            "two_views", lambda: native.two_views(*given, SIZE, dtype), rivals, check, batch, moved, {PILLOW: 5}
        )
    on_device = index.to(device)

    def random_views() -> tuple[Tensor, ...]:
        return native.random_views(*given[:2], on_device, 0, 0, SIZE, dtype)

    def apart() -> Tensor:
        drawn = reference.view_params(0, 0, on_device, STORED - SIZE)
        return reference.two_views(*given[:2], *drawn, SIZE, dtype)

    def check_random() -> str:
        for have, expected in zip(random_views(), (want, *given[2:]), strict=True):
            equal("random_views", have, expected)
        return "bit-equal"

    yield Comparison("random_views", random_views, {BATCHED: apart}, check_random, batch, moved)


def small_comparison(batch: int, device: torch.device) -> Comparison:
    """The integers of a step: view_params and view_boxes."""
    generator = torch.Generator().manual_seed(1)
    index = torch.randint(0, 1 << 20, (batch,), generator=generator).to(device)
    boxes = make_boxes(batch, 4, generator).to(device)

    def integers(of) -> tuple[Tensor, ...]:
        drawn = of.view_params(0, 0, index, STORED - SIZE)
        return (*drawn, of.view_boxes(boxes, *drawn, STORED, SIZE))

    def check() -> str:
        for have, want in zip(integers(native), integers(reference), strict=True):
            equal("view_params and view_boxes", have, want)
        return "bit-equal"

    rivals = {BATCHED: lambda: integers(reference)}
    return Comparison("view_params + view_boxes", lambda: integers(native), rivals, check, batch)


def log_mel_comparison(batch: int, device: torch.device) -> Comparison:
    """Clips of noise under envelopes, loud and quiet."""
    generator = torch.Generator().manual_seed(2)
    envelope = torch.rand((batch, 48, 1), generator=generator).pow(3)
    wave = torch.randn((batch, 48, SAMPLES // 48), generator=generator) * envelope * 6000
    pcm = wave.flatten(1).clamp(-32768, 32767).short().to(device)
    by_torchaudio = torchaudio_log_mel(device) if torchaudio else None

    def check() -> str:
        want = reference.log_mel(pcm)
        apart = close("log_mel", native.log_mel(pcm), want, SPECTRUM_TOLERANCE)
        if by_torchaudio is None:
            return f"within {apart:.0e} of float64"
        theirs = close("log_mel by torchaudio", by_torchaudio(pcm), want, SPECTRUM_TOLERANCE)
        return f"within {apart:.0e} of float64, torchaudio {theirs:.0e}"

    rivals, goals = {"reference, float64": lambda: reference.log_mel(pcm)}, {}
    if by_torchaudio is not None:
        rivals = {"torchaudio": lambda: by_torchaudio(pcm), **rivals}
        goals = {"torchaudio": 5.0 if device.type == "cuda" else 2.0}
    return Comparison("log_mel", lambda: native.log_mel(pcm), rivals, check, batch, goals=goals)


def make_boxes(batch: int, each: int, generator: torch.Generator) -> Tensor:
    """(batch, each, 4) int32 on the grid."""
    corners = torch.randint(0, SIZE + 1, (batch, each, 2, 2), generator=generator).sort(dim=2).values
    return corners.flatten(2).int()


def counts_comparison(batch: int, device: torch.device, boxes_each: int, smooth: bool) -> Comparison:
    """Maps with one hill each, or of noise."""
    generator = torch.Generator().manual_seed(3)
    maps = torch.rand((batch, 14, 14), generator=generator)
    if smooth:
        at, centre = torch.arange(14.0), 14 * torch.rand((2, batch, 1), generator=generator)
        y, x = (torch.exp(-((at - c) ** 2) / 20) for c in centre)  # (batch, 14)
        maps = y[:, :, None] * x[:, None, :] + 0.05 * maps
    boxes = make_boxes(batch, boxes_each, generator)
    given = (maps.to(device), boxes.to(device))

    def by_loop() -> tuple[Tensor, ...]:
        counts = loop_counts(given[0].cpu().numpy(), given[1].cpu().numpy())
        return tuple(torch.from_numpy(c).to(device) for c in counts)

    def check() -> str:
        names = ("intersection", "union")
        for name, have, want, looped in zip(
            names, native.localization_counts(*given), reference.localization_counts(*given), by_loop(), strict=True
        ):
            equal(f"localization_counts: {name}", have, want)
            close(f"{name} by the loop", looped, want, 20)  # pixels: its resize is in float32
        return "equal"

    rivals = {LOOP: by_loop, BATCHED: lambda: reference.localization_counts(*given)}
    name = f"localization_counts, {'hills' if smooth else 'noise'}, {boxes_each} box{'es' * (boxes_each > 1)}"
    goals = {LOOP: 100.0 if device.type == "cuda" else 10.0}
    return Comparison(name, lambda: native.localization_counts(*given), rivals, check, batch, goals=goals)


def comparisons(batch: int, evaluated: int, device: torch.device, threads: int) -> Iterator[Comparison]:
    """All of them, made when their turn comes, so that inputs do not pile up."""
    yield from views_comparisons(batch, device, threads)
    yield small_comparison(batch, device)
    yield log_mel_comparison(batch, device)
    yield counts_comparison(evaluated, device, 1, smooth=True)
    yield counts_comparison(evaluated, device, 4, smooth=False)


def main(argv: list[str] | None = None) -> int:
    options = parser("benchmarks.native", __doc__.split(": ", 1)[1])
    options.add_argument("--batch", type=int, default=0, help="pairs (default: 64 on a CPU, 512 on a GPU)")
    options.add_argument("--evaluated", type=int, default=EVALUATED, help=f"maps to score (default: {EVALUATED})")
    options = options.parse_args(argv)
    if not native.available():
        raise SystemExit(f"benchmarks.native: {native.why_unavailable()}")
    device = pick_device(options.device)
    if device.type == "cuda" and not native.has_cuda():
        raise SystemExit("benchmarks.native: the compiled module has no CUDA part: rebuild it with ESSL_CUDA=1")
    options.device, options.batch = str(device), options.batch or (512 if device.type == "cuda" else 64)
    options.threads = options.threads or len(os.sched_getaffinity(0))
    if cv2 is None:
        print("OpenCV is missing (pip install opencv-python-headless): the loop resizes with NumPy instead")
    else:
        cv2.setNumThreads(options.threads)
    if torchaudio is None:
        print("torchaudio is missing (pip install '.[bench]'): log_mel is compared with PyTorch in float64 alone")
    before = torch.get_num_threads()
    torch.set_num_threads(options.threads)
    try:
        each = comparisons(options.batch, options.evaluated, device, options.threads)
        kept = Rows(options.rows, "native", options.budget)
        report("native", measure_all(each, device, options.repeats, options.seconds, kept), options, device)
        if line := not_reached(kept):
            print(line)
    finally:
        torch.set_num_threads(before)
    return 0


if __name__ == "__main__":
    sys.exit(main())
