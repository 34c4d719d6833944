"""The training step: two views of each pair, forward, backward, update.

    RawBatch ──▶ windows of the views ──▶ Inputs ──▶ Stepper ──▶ losses
                 (seed, epoch, pair)                   │ runs the body plainly, or replays it as one CUDA graph
                                                       ▼
                      views, boxes ▶ network ▶ objective ▶ backward ▶ AdamW, unless a value is not finite

From step to step only the contents of tensors change, and no value is read back to the host. So one CUDA graph can hold
the whole body. Of several processes it holds everything up to the gradients; their exchange and the update follow it.
"""

import contextlib
import functools
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from essl_fast import config, kernels, models
from essl_fast.common.errors import InputError
from essl_fast.data.loading import RawBatch
from essl_fast.models import objectives
from essl_fast.runtime import distributed, stages
from essl_fast.runtime.compiling import compile_graph, compile_training, uncompile, wants_compile
from essl_fast.runtime.devices import timed_engines
from essl_fast.runtime.distributed import ALONE, World
from essl_fast.train.accumulation import Group, losses_of, parts_of, sizes_of
from essl_fast.train.averaging import AveragedWeights
from essl_fast.train.collapse import projection_spread
from essl_fast.train.compilation import Compilation
from essl_fast.train.data import Labels, meets_within_a_batch
from essl_fast.train.gradients import SharedGradients
from essl_fast.train.graphs import CudaCapture, Inputs, Stepper, wants_capture
from essl_fast.train.guard import LEAST_SCALE, Guard, gradient_norm
from essl_fast.train.optimizer import Rates, build_optimizer, learning_rate_factor
from essl_fast.train.running import RunningStatistics

Losses = dict[str, Tensor]  # scalars by name, on the device: "loss", its parts, "non_finite"


class TrainStep:
    """One training step of a model on a batch, on this rank.

    One class, since everything between a batch and its update works on one state, which a CUDA graph holds by address.

    Args:
        settings: of the run.
        model: on the device. Its weights are updated in place.
        labels: boxes and labels of every pair.
        consensus: annotators that must agree for a pixel to count fully.
        steps_per_epoch: updates of an epoch, for the learning-rate schedule.
        held: the frames of every batch are one and the same tensor, a pool.
        device: of the model.
        dtype: in which autocast computes; float32 runs without autocast.
        world: the processes that train together.

    Attributes:
        average: the moving average of the weights, where the settings ask for one.
    """

    def __init__(
        self,
        settings: config.Config,
        model: models.Localizer,
        labels: Labels,
        *,
        consensus: int,
        steps_per_epoch: int,
        held: bool,
        device: torch.device,
        dtype: torch.dtype,
        world: World = ALONE,
    ) -> None:
        self.settings, self.labels, self.model = settings, labels, model
        self.device, self.dtype, self.world = device, dtype, world
        self.steps_per_epoch = steps_per_epoch
        self._facts = objectives.facts(settings.objective.method)
        if not self._facts.trains_head:
            model.head.requires_grad_(False)
        self.objective = objectives.build(replace(settings.objective, consensus=consensus))
        self.optimizer = build_optimizer(model, settings.optim)
        self.rates = Rates(self.optimizer, device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
        self.guard = Guard(model, device, latch=settings.on_nonfinite == "stop")
        self.average = AveragedWeights(model, settings.optim.ema) if settings.optim.ema else None
        self._sizes: tuple[int, ...] = ()  # pairs of each batch of the update
        self._full = config.own_batch(settings, world.size)  # pairs of a whole batch on this rank
        self._running = RunningStatistics(model, world, config.turns(settings, world.size))
        self._kind = torch.float64 if next(model.parameters()).dtype == torch.float64 else torch.float32  # of shares
        compiled = wants_compile(settings.compile, device)
        self.compilation = Compilation(
            compiled, settings.compile == "on", self._uncompiled, model=model, device=device, world=world
        )
        if compiled and settings.data.on_error == "skip":  # a batch that lost pairs is a graph of its own
            torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
        meets = meets_within_a_batch(settings, model, world)
        captured = wants_capture(settings, device, dtype, world.size, meets)
        self._share_work(compiled, captured)
        self.stepper = Stepper(
            self._body,
            self.optimizer,
            self._full * config.own_batches(settings, world.size, world.rank),
            CudaCapture(device) if captured else None,
            held=held,
            compiled=lambda: self.compiled,
            must_capture=settings.cuda_graphs == "on",
            mark=lambda: stages.stage("step"),
            device=device,
            end=self._end,
        )

    def _share_work(self, compiled: bool, captured: bool) -> None:
        """Decide who averages the gradients of several processes, and what is compiled."""
        self._network: torch.nn.Module = self.model
        self._forward = self._losses
        self._shared: SharedGradients | None = None  # of several processes whose step is captured
        self._totals: Tensor | None = None  # of these, pairs and labelled pairs of an update: (2,)
        if self.world.size > 1 and captured:
            rounded = self.settings.optim.exchange == "bf16"
            self._shared = SharedGradients(self.model.parameters(), self.world, rounded)
            self._totals = torch.zeros(2, dtype=self._kind, device=self.device)
        elif self.world.size > 1:
            self._network = data_parallel(self.model, self.settings, compiled, not self._running.share)
        if compiled and self._network is self.model:
            self._forward = compile_graph(self._losses)

    @property
    def compiled(self) -> bool:
        """Whether forward and backward pass run compiled."""
        return self.compilation.on

    @property
    def notes(self) -> list[str]:
        """Why the step runs more slowly than it was to; a line each."""
        return [note for note in (self.compilation.note, self.stepper.note) if note]

    def __call__(self, raw: RawBatch | Group, epoch: int, step: int) -> Losses:
        """Train on a batch, or on a group of batches whose gradients are added up.

        Args:
            raw: this rank's pairs.
            epoch: from 0; with the pair and the seed it decides the views.
            step: of the run, from 0; it decides the learning rates.

        Returns:
            The losses (0-d, on the device), and "non_finite": 1 if the step changed nothing for that reason.
        """
        optim, per_epoch = self.settings.optim, self.steps_per_epoch
        steps, warmup = self.settings.epochs * per_epoch, round(optim.warmup * per_epoch)
        self.rates.scale(learning_rate_factor(optim.schedule, step, steps, warmup))
        with stages.stage("views"):
            margin = config.STORED_SIDE - config.SIZE
            windows = kernels.view_params(self.settings.seed, epoch, raw.index, margin)
        self._sizes = sizes_of(raw)  # the same in every step that is captured
        if self._totals is not None:
            labelled = self.labels.labelled[raw.index]
            self._totals.copy_(distributed.total(counted(labelled, self._kind), self.world))
        with timed_engines(set(self._sizes) == {self._full}):
            losses = self.stepper(Inputs(raw.frames, raw.rows, raw.sound, raw.index, *windows))
        if self.average is not None:
            self.average.update(step, self.guard.gate)
        return losses

    def check_scale(self, epoch: int) -> None:
        """FloatingPointError if fp16's gradients overflow at every sensible loss scale. In fp16 it waits."""
        if self.scaler.is_enabled() and self.scaler.get_scale() < LEAST_SCALE:
            raise FloatingPointError(
                f"fp16: the gradients overflow at every loss scale, down to {self.scaler.get_scale():g}, in epoch "
                f"{epoch + 1}; use --precision bf16 or fp32, or lower the learning rates"
            )

    def _body(self, batch: Inputs) -> Losses:
        """The part of the step that a CUDA graph can hold: with one process, all of it."""
        self.guard.begin()
        self._running.begin()
        parts, found = parts_of(batch, self._sizes), []
        labelled = self.labels.labelled[batch.index].split(self._sizes)
        shares = shares_of(labelled, self.world, self._kind, self._totals)
        for number, (part, share) in enumerate(zip(parts, shares, strict=True)):
            last = number == len(parts) - 1
            with self._parallel.no_sync() if self._parallel and not last else contextlib.nullcontext():
                found.append(self._part(part, labelled[number], share, first=number == 0))
            self._running.keep()
        losses = losses_of(found, self._running.share or len(found))
        losses = {name: value.detach() for name, value in losses.items()}
        if self._shared is None:
            return self._updated(losses)
        self._shared.pack()
        return losses

    def _end(self, losses: Losses) -> Losses:
        """What follows the body, in no CUDA graph: if several processes capture, their exchange and the update."""
        if self._shared is None:
            return losses
        with stages.stage("exchange"):
            self._shared.exchange()
        return self._updated(losses)

    def _updated(self, losses: Losses) -> Losses:
        """Update the running statistics and the weights, by gradients that all ranks have; the losses of the step."""
        self._running.settle()
        with stages.stage("optimizer"):
            self._update(losses["loss"])
        return losses | {"non_finite": self.guard.flag.clone()}

    def _part(self, batch: Inputs, labelled: Tensor, share: objectives.Shares, first: bool) -> Losses:
        """The losses of one batch, whose gradients are added to those of the update's batches before it."""
        windows = batch.top, batch.left, batch.flip
        with stages.stage("views"):
            views = kernels.two_views(batch.frames, batch.rows, *windows, config.SIZE, self.dtype)
            boxes = kernels.view_boxes(self.labels.boxes[batch.index], *windows, config.STORED_SIDE, config.SIZE)
        work = functools.partial(self._gradients, first)
        return self.compilation.run(len(labelled), work, views, batch.sound, boxes, labelled, share)

    def _gradients(self, first: bool, *batch) -> Losses:
        """The losses of a batch (as :meth:`_losses` takes it). The gradients are then in the parameters.

        first: of the update's batches; the others' gradients are added to those that are there.
        """
        with stages.stage("forward"):
            losses = self._forward(*batch)
        with stages.stage("backward"):
            if first:
                self.optimizer.zero_grad(set_to_none=True)
            self.scaler.scale(losses["loss"]).backward()
        return losses

    @property
    def _parallel(self) -> DistributedDataParallel | None:
        """The network of several processes whose step is not captured."""
        return self._network if isinstance(self._network, DistributedDataParallel) else None

    def _uncompiled(self) -> None:
        """From now on nothing of the step runs compiled."""
        self._forward = self._losses
        if self._parallel:
            # Its hooks may wait for gradients of the backward pass that failed, so it is replaced.
            self._parallel._remove_autograd_hooks()
            for part in self.model.children():
                uncompile(part)
            self._network = data_parallel(self.model, self.settings, False, not self._running.share)

    def _losses(self, views: Tensor, sound: Tensor, boxes: Tensor, labelled: Tensor, shares=objectives.WHOLE) -> Losses:
        """views (V, B, 3, 224, 224), sound (B, ...), boxes (V, B, K, 4), labelled (B,) -> the losses."""
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            forward = self._network(views, sound)
            losses = self.objective(forward, boxes, labelled, shares)
            if self._facts.compares_views:
                losses |= projection_spread(*self._projections(forward.z))
            return losses

    def _projections(self, z: Tensor) -> tuple[Tensor, Tensor | None]:
        """The projections (V, B, D) whose spread is measured, and which of them count (B,): of a shared batch, all."""
        if self.world.size == 1 or not self.settings.data.global_batch or self._running.share:
            return z, None
        return distributed.stacked(z, self._full, self.world)

    def _update(self, loss: Tensor) -> None:
        """Clip the gradients if asked, then update the weights, unless the loss or a gradient is not finite."""
        norm = None
        if self.settings.optim.clip_norm:
            self.scaler.unscale_(self.optimizer)
            norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.optim.clip_norm)
        # Ranks share the gradients but not the loss, and must decide alike.
        if self.scaler.is_enabled():  # gradient scaling meets overflows all the time and looks for them itself
            self.guard.judge(distributed.total(loss, self.world), None)
        else:
            norm = gradient_norm(self.model.parameters()) if norm is None else norm
            found = self.guard.judge(loss if self.world.size == 1 else norm, norm)
            self.optimizer.found_inf = found  # type: ignore[attr-defined]  # fused optimizers read it
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.guard.settle()


def counted(labelled: Tensor, dtype: torch.dtype) -> Tensor:
    """How many pairs, and how many labelled ones, a batch has (2,), of its (B,) bool."""
    return torch.stack([torch.ones_like(labelled, dtype=dtype).sum(), labelled.sum()])


def shares_of(
    labelled: Sequence[Tensor], world: World, dtype: torch.dtype, totals: Tensor | None = None
) -> list[objectives.Shares]:
    """The weights of this rank's batches among the update's batches on all ranks.

    Args:
        labelled: (B,) bool of each batch.
        world: the ranks.
        dtype: of the weights.
        totals: (2,), what all ranks have :func:`counted` together; None: they are asked.
    """
    if world.size == 1 and len(labelled) == 1:
        return [objectives.WHOLE]
    counts = [counted(each, dtype) for each in labelled]
    if totals is None:
        mine = counts[0] if len(counts) == 1 else torch.stack(counts).sum(0)
        totals = distributed.total(mine, world)
    return [objectives.Shares.of(each, totals, world.size) for each in counts]


def data_parallel(
    model: models.Localizer, settings: config.Config, compiled: bool, synced: bool = True
) -> DistributedDataParallel:
    """The model with gradients averaged, and batch statistics taken if they are ``synced``, over all ranks.

    DDP itself cannot be part of a graph, and gradients of a compiled part are there only when its whole graph has run
    backward. So each part is compiled as a graph of its own: the head's gradients, the largest, are then summed over
    the ranks while the PCM's are still computed.
    """
    if synced:
        models.synchronize(model)
    for part in model.children() if compiled else ():
        compile_training(part)
    network = DistributedDataParallel(
        model,
        broadcast_buffers=False,
        gradient_as_bucket_view=True,
        find_unused_parameters=settings.model.pcm and not settings.model.pcm_cycles,  # then its blend has no gradient
    )
    if settings.optim.exchange == "bf16":
        from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook

        try:
            network.register_comm_hook(None, bf16_compress_hook)
        except TypeError as error:
            raise InputError(f"optim.exchange: bf16, but this PyTorch has none ({error}); use own") from error
    return network
