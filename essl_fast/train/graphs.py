"""The training step over memory that stays where it is, so that a CUDA graph can replay it.

    batch ──copy──▶ static inputs ──▶ views, forward, losses, backward, update ──▶ static losses ──copy──▶ caller
    schedule ─────▶ learning rates        captured once, then replayed with one launch

A graph holds the addresses and the numbers that the step was captured with. So everything that changes from step to
step is the content of a tensor: the batch, the windows of its views (drawn outside, since seed and epoch are numbers of
the host), and the learning rates. What stays is held by reference: the pool of resident frames, weights, moments.

The first steps of a run are real ones that run uncaptured (they compile, load kernels, make the optimizer's moments and
cuBLAS's workspaces); then one is captured, which computes nothing, and every step of the full batch size from then on
is a replay. Batches of another size (the last one of an epoch, or one that lost pairs) run uncaptured at any time: they
work on the same weights and moments. Uncaptured and replayed steps launch the same kernels.

Several processes capture no collective. Their graph ends with the gradients; what they exchange, and the update, follow
it as in any step (`gradients.py`). So a rank that fails is noticed as without graphs, and one rank may replay while
another one, whose batch has another size, runs plainly.
"""

import contextlib
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from essl_fast import config
from essl_fast.common.errors import InputError
from essl_fast.train.events import Preparation

WARMUP = 3  # real steps before the capture, the one that compiles among them


class Inputs(NamedTuple):
    """What one step reads of its batch, on the device."""

    frames: Tensor  # (N, S, S, 3) uint8
    rows: Tensor  # (B,) int64: the pairs' frames
    sound: Tensor  # (B, ...) log-mel, or what the audio network takes instead
    # (B,) int64: the pairs' rows in the manifest
    index: Tensor  # type: ignore[assignment]  # hides tuple.index, which nobody calls
    top: Tensor  # (V, B) int32: the views' windows
    left: Tensor  # (V, B) int32
    flip: Tensor  # (V, B) bool


class Capture(Protocol):
    """Records what a function does with tensors, and repeats it. Tests put a recorder without CUDA in its place."""

    def run(self, work: Callable[[], Tensor]) -> Tensor:
        """Run ``work`` for real, on the stream on which it will be recorded."""

    def record(self, work: Callable[[], Tensor]) -> Tensor:
        """Record ``work`` without changing any tensor. :meth:`replay` writes into the tensor that is returned."""

    def replay(self) -> None:
        """Repeat on the device what was recorded, with the current contents of the tensors."""


class CudaCapture:
    """A ``torch.cuda.CUDAGraph`` in a memory pool of its own.

    The warm-up and the capture use one side stream: autograd accumulates gradients on the stream that it saw first, and
    a capture must not use another one. Other threads (the decoder's) go on meanwhile, hence the thread-local mode.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, torch.cuda.Stream(device)
        self._graph = torch.cuda.CUDAGraph()

    def run(self, work: Callable[[], Tensor]) -> Tensor:
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            result = work()
        current.wait_stream(self._stream)
        return result.clone()  # in the caller's stream, whose memory it is from now on

    def record(self, work: Callable[[], Tensor]) -> Tensor:
        before, pool = torch.cuda.current_stream(self._device), torch.cuda.graph_pool_handle()
        try:
            with torch.cuda.graph(self._graph, pool, self._stream, "thread_local"):
                return work()
        except BaseException:
            # Where the capture became invalid, PyTorch's context raises before it has put the stream back, and may
            # leave the allocator in the capture: then nothing that several streams use would ever be freed again.
            torch.cuda.set_stream(before)
            with contextlib.suppress(RuntimeError):  # it did end it
                torch._C._cuda_endAllocateToPool(before.device_index, pool)
            raise

    def replay(self) -> None:
        self._graph.replay()


def wants_capture(
    settings: config.Config, device: torch.device, dtype: torch.dtype, ranks: int = 1, meets: bool = False
) -> bool:
    """Whether the step is to be captured; InputError if ``cuda_graphs: on`` asks for it where it is not done.

    fp16 runs uncaptured since GradScaler keeps a part of its state on the host. Several processes capture only what
    holds no collective, and only if they are asked to: NCCL's watchdog does not see what a graph replays, so a rank
    whose neighbour died would wait for ever.

    Args:
        settings, device, dtype: of the step.
        ranks: processes that train together.
        meets: these exchange something within a batch (:func:`essl_fast.train.data.meets_within_a_batch`).
    """
    why, remedy = "", "use auto or off"
    if device.type != "cuda":
        why = "there is no GPU"
    elif dtype == torch.float16:
        why = "precision fp16 scales the loss from the host; use bf16"
    elif meets:
        why = "processes that exchange statistics within a batch would not notice in a graph that one has died"
        pairs = config.update_pairs(settings, ranks)
        if parts := config.fewest_parts(pairs, max(ranks, -(-pairs // settings.data.batch_size))):
            remedy += f"; a run that begins may give each process batches of its own: --data.global_batch {pairs}"
            remedy += f" --optim.accumulate {parts}" + " --data.last_batch drop" * (settings.data.last_batch != "drop")
    if settings.cuda_graphs == "on" and why:
        raise InputError(f"cuda_graphs: on, but {why}; {remedy}")
    return not why and (settings.cuda_graphs == "on" or (settings.cuda_graphs == "auto" and ranks == 1))


class Stepper:
    """Runs a step on batches: plainly, or over static memory and, once warm, by replaying its capture.

    Args:
        body: the step on Inputs -> scalars by name. Apart from tensors it reads nothing that changes.
        optimizer: the one that the step updates.
        batch: pairs of the batches that are captured.
        capture: where to record; None runs every step plainly.
        held: the frames of every batch are one and the same tensor (a pool), which need not be copied.
        compiled: whether, by now, the first step of a batch size compiles.
        must_capture: raise an error of the capture. Otherwise ``note`` says it, and steps run uncaptured from then on.
        mark: makes a context around each replay, to name it in a profile.
        device: if it is a GPU, the host waits for it before and after a step that compiles, warms up or is captured,
            to measure that step alone.
        end: what follows ``body`` in every step, and is never captured; from the scalars to those of the step.

    Attributes:
        prepared: the preparations so far, in order.
        counts: how many steps ran "plain" or were "replayed".
        note: why steps run uncaptured although a capture was tried; "" otherwise.
    """

    def __init__(
        self,
        body: Callable[[Inputs], dict[str, Tensor]],
        optimizer: torch.optim.Optimizer,
        batch: int,
        capture: Capture | None = None,
        *,
        held: bool = False,
        compiled: Callable[[], bool] = lambda: False,
        must_capture: bool = False,
        mark: Callable[[], AbstractContextManager] = nullcontext,
        device: torch.device | None = None,
        end: Callable[[dict[str, Tensor]], dict[str, Tensor]] = lambda losses: losses,
    ) -> None:
        self._body, self._optimizer, self._batch, self._capture = body, optimizer, batch, capture
        self._held, self._compiled, self._must_capture = held, compiled, must_capture
        self._mark, self._device, self._end = mark, device, end
        self._inputs: Inputs | None = None  # static, of the captured size
        self._losses: Tensor | None = None  # static, what a replay writes
        self._names: tuple[str, ...] = ()
        self._warm = 0  # steps on the static inputs so far
        self._sizes: set[int] = set()  # batch sizes that are compiled
        self.note = ""
        self.prepared: list[Preparation] = []
        self.counts = {"plain": 0, "replayed": 0}

    @property
    def captures(self) -> bool:
        """Whether full batches are, or will be, replayed."""
        return self._capture is not None

    @property
    def captured(self) -> bool:
        """Whether full batches are replayed by now."""
        return self._losses is not None

    def __call__(self, inputs: Inputs) -> dict[str, Tensor]:
        """Run one step; its scalars (0-d, on the device), which later steps do not overwrite."""
        phase = self._phase(inputs)
        if phase is None:
            return self._end(self._run(inputs))
        self._wait()
        begin = time.perf_counter()
        losses = self._end(self._run(inputs))
        self._wait()
        if phase == "compile" and not self._compiled():
            phase = "failed compile"
        self.prepared.append(Preparation(phase, len(inputs.index), time.perf_counter() - begin))
        return losses

    def _wait(self) -> None:
        if self._device is not None and self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def _phase(self, inputs: Inputs) -> str | None:
        """What this step does besides training; None if nothing."""
        size = len(inputs.index)
        if self._compiled() and size not in self._sizes:
            self._sizes.add(size)
            return "compile"
        if self.captured or not self._takes(inputs):
            return None
        return "warm-up" if self._warm < WARMUP else "capture"

    def _takes(self, inputs: Inputs) -> bool:
        """Whether a replay can take the batch: it has the sizes of the static inputs, and the frames that are held."""
        if self._capture is None or len(inputs.index) != self._batch:
            return False
        if self._inputs is None:
            return True
        same = all(a.shape == b.shape and a.dtype == b.dtype for a, b in zip(inputs, self._inputs, strict=True))
        return same and (not self._held or inputs.frames.data_ptr() == self._inputs.frames.data_ptr())

    def _run(self, inputs: Inputs) -> dict[str, Tensor]:
        """The body, plainly or as a replay."""
        if not self._takes(inputs):
            self.counts["plain"] += 1
            return self._body(inputs)
        assert self._capture is not None  # or it takes none
        self._fill(inputs)
        if self._warm < WARMUP:
            self._warm += 1
            self.counts["plain"] += 1
            return self._named(self._capture.run(self._work))
        if not self.captured and not self._record():
            self.counts["plain"] += 1
            return self._body(inputs)
        with self._mark():
            assert self._losses is not None  # of the capture
            self._capture.replay()
            losses = self._losses.clone()  # the next replay writes there
        self.counts["replayed"] += 1
        return self._named(losses)

    def _fill(self, inputs: Inputs) -> None:
        """Copy the batch into the static inputs, which the first batch creates."""
        if self._inputs is None:
            kept = {"frames": inputs.frames} if self._held else {}  # a copy of a pool would not fit beside it
            made = {
                name: torch.empty(each.shape, dtype=each.dtype, device=each.device)
                for name, each in inputs._asdict().items()
                if name not in kept
            }
            self._inputs = Inputs(**kept, **made)
        for mine, given in zip(self._inputs, inputs, strict=True):
            if mine.data_ptr() != given.data_ptr():
                mine.copy_(given, non_blocking=True)

    def _work(self) -> Tensor:
        """The step on the static inputs; its scalars in one tensor."""
        assert self._inputs is not None  # the first batch has made them
        losses = self._body(self._inputs)
        self._names = tuple(losses)
        return torch.stack([value.detach() for value in losses.values()])

    def _named(self, losses: Tensor) -> dict[str, Tensor]:
        return dict(zip(self._names, losses.unbind(), strict=True))

    def _record(self) -> bool:
        """Capture the step. If that fails and ``must_capture`` is off: False, and ``note`` says why."""
        groups, known = self._optimizer.param_groups, len(self._optimizer.state)
        self._optimizer.zero_grad(set_to_none=True)  # so that the capture's gradients are made in its own memory
        assert self._capture is not None
        try:
            for group in groups:
                group["capturable"] = (
                    True  # tells AdamW that its counters are on the device, as they are when it is fused
                )
            losses = self._capture.record(self._work)
        except RuntimeError as error:
            first: BaseException = error
            while first.__context__ is not None:  # the end of a capture that failed only says that it had
                first = first.__context__
            reason = (str(first).strip() or type(first).__name__).splitlines()[0]
            if self._must_capture:
                raise RuntimeError(f"cuda_graphs: on, but the step could not be captured: {reason}") from error
            self.note, self._capture, self._inputs = f"the step runs uncaptured, more slowly: {reason}", None, None
            return False
        finally:
            for group in groups:
                group["capturable"] = False
        if len(self._optimizer.state) != known:  # made in the capture, they would be zeroed by every replay
            raise RuntimeError(f"{len(self._optimizer.state) - known} parameters had their first gradient in a capture")
        self._losses = losses
        return True
