"""The one iterator that training and evaluation see: batches of frames and sound, streamed or from a pool.

How a batch comes to be:

    Order ──────────────▶ Source ◀───────────── DecodeQueue ◀──── Producer (a thread)
    seed, epoch, rank     Stream, Pool or       what is missing     Shards.read    one scattered read a pair
    ─▶ positions of       SharedPool            comes, in the       FrameDecoder   DALI decodes, one resize
       every batch           │                  source's order      queue          `prefetch` batches
                             ▼
                          RawBatch: frames, rows, sound, index

1. `Order` says which pairs the step's batch holds: a function of (seed, epoch) that nothing else changes.
2. The source gives their frames and sound. A stream takes the next decoded batch. A pool has most pairs in memory.
3. What the source lacks, it takes from the decode queue. A thread decodes ahead, along the plan that the source made:
   every batch for a stream; for a pool only what is not there yet, and the thread ends when all of it is.
4. Pairs that do not decode are left out (`on_error`), and the loader adds the manifest's rows as `index`.

So all sources give the same batches, and a pool decodes no pair twice, with whatever epoch and step a run begins.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from essl_fast.common.errors import InputError
from essl_fast.data.loading.clip_memory import clip_memory
from essl_fast.data.loading.decode_queue import DecodeQueue
from essl_fast.data.loading.pools import Pools
from essl_fast.data.loading.resident import Resident
from essl_fast.data.loading.rows import index_tensor
from essl_fast.data.loading.settings import LoaderSettings
from essl_fast.data.loading.skipped import SkippedPairs
from essl_fast.data.loading.sounds import SoundTransform, float_samples, raw_samples, transformed
from essl_fast.data.loading.source import Source, StepPlan, Stream
from essl_fast.data.loading.state import identity, make_state, position_in
from essl_fast.data.shards import Manifest, Shards


class RawBatch(NamedTuple):
    """A batch of B pairs, on the loader's device.

    Attributes:
        frames: (N, S, S, 3) uint8 RGB.
        rows: (B,) int64, which of `frames` are the batch's.
        sound: (B, ...), what the loader's `sound` made of the samples; by default these, (B, 48000) int16 at 16 kHz.
        index: (B,) int64, the pairs' rows in the manifest.

    Where the loader's `held` is true, `frames` is the whole pool: only read it, and only at `rows`, since other rows
    may not be filled yet. Otherwise N is B, in any order. All other tensors, and `frames` then, are the caller's.
    """

    frames: torch.Tensor
    rows: torch.Tensor
    sound: torch.Tensor
    index: torch.Tensor  # type: ignore[assignment]  # hides tuple.index, which nobody calls


class Loader:
    """Iterates over the pairs of some splits in epochs: one `for` loop is one epoch, or what is left of it.

    Attributes:
        settings: the given settings, with defaults filled in.
        pairs: all ranks' pairs of an epoch, without the excluded ones.
        excluded: number of pairs that `settings.exclude` leaves out.
        pool: the pool that batches come from; None: they are streamed.
    """

    def __init__(
        self,
        manifest: Manifest | str | Path,
        splits: Sequence[str] | str = "train",
        *,
        pools: Pools | None = None,
        sound: SoundTransform = raw_samples,
        on_fault: Callable[[int, str], None] | None = None,
        **settings: Any,
    ):
        """
        Args:
            manifest: of a prepared folder, or the folder, or its URL.
            splits: names of one or more splits, or one name.
            pools: may keep what was decoded; then each pair is decoded once.
            sound: what batches carry of the sound, called on the device; with a pool, once for each pair.
            on_fault: called with (row in the manifest, reason) for each pair that is skipped.
            settings: the fields of `LoaderSettings`: batch_size, side, shuffle, device, seed, ...; by default those of
                training on a CPU.

        Raises:
            InputError: settings are impossible, the folder is damaged, or there is no pair.
        """
        self.settings = given = LoaderSettings(splits=splits, **settings)
        manifest = manifest if isinstance(manifest, Manifest) else Manifest.load(manifest)
        if not sum(manifest.pairs(split) for split in given.splits):
            raise InputError(f"{manifest.place} has no pair in {' and '.join(given.splits)}: see its left_out.jsonl")
        self._shards = shards = Shards(manifest, given.splits, given.exclude, given.rank / given.world_size)
        self.pairs, self.excluded = len(shards), shards.excluded
        if not self.pairs:
            raise InputError(f"{manifest.place}: every pair in {' and '.join(given.splits)} is quarantined")
        self._sound = float_samples if sound is raw_samples and shards.sound.kind == "f" else sound
        self._order = given.order(self.pairs)
        self._steps = self._order.steps
        self.pool = None if pools is None else self._take(pools)
        self._source: Source = Stream() if self.pool is None else self.pool
        self._skipped = SkippedPairs(shards, given.max_errors, on_fault)
        plan = functools.partial(self._source.to_decode, self._order, given.epochs)  # no reference to this loader
        self._decoded = DecodeQueue(shards, given, plan, self._sound, self._skipped)
        self._epoch = self._step = 0
        self._planned: list[StepPlan] = []  # the steps of one epoch

    def _take(self, pools: Pools) -> Resident | None:
        splits, side, device = self.settings.splits, self.settings.side, self.settings.device
        if pools.device.type != device.type:
            raise ValueError(f"the pools are on {pools.device}, the loader on {device}")
        pairs = self._shards.fingerprint, splits
        if device.type == "cuda":
            pools.reserve(pairs, functools.partial(clip_memory, self._shards, device))
        return pools.take(f"{' and '.join(splits)} at side {side}", pairs, self._order, side, self._sound)

    @property
    def epoch(self) -> int:
        """The epoch of the next batch, from 0."""
        return self._epoch

    @property
    def step(self) -> int:
        """The number of the next batch in its epoch, from 0."""
        return self._step

    @property
    def waited(self) -> float:
        """Seconds that the caller has waited for data."""
        return self._decoded.waited

    @property
    def lost(self) -> int:
        """Number of pairs that were skipped, since they do not decode."""
        return len(self._skipped)

    @property
    def threads(self) -> int:
        """CPU threads that read and decode."""
        return self.settings.threads

    @property
    def held(self) -> bool:
        """Whether `frames` of every batch are one and the same tensor."""
        return self._source.held

    @property
    def streams(self) -> bool:
        """Whether every epoch decodes its pairs again."""
        return self._source.streams

    @property
    def rows(self) -> np.ndarray:
        """(pairs,) int64: the pairs' rows in the manifest, ascending."""
        return self._shards.rows

    def __len__(self) -> int:
        """Steps of an epoch, the same on all ranks."""
        return self._steps

    def __iter__(self) -> Iterator[RawBatch]:
        """The batches that are left of the epoch, without those that have no pairs: see :meth:`each_step`."""
        return (batch for batch in self.each_step() if batch is not None)

    def each_step(self) -> Iterator[RawBatch | None]:
        """The batch of each step that is left of the epoch; None where it lost all its pairs, or is another rank's.

        Raises:
            InputError: a pair does not decode or cannot be read, see `LoaderSettings.on_error`.
            RuntimeError: `settings.epochs` are over.
        """
        if (epochs := self.settings.epochs) is not None and self._epoch >= epochs:
            raise RuntimeError(f"the loader was made for {epochs} epochs, and these are over")
        while self._step < self._steps:
            batch = self._next()
            self._step += 1  # before the yield: a checkpoint taken in the loop's body counts this batch as seen
            yield batch
        self._epoch, self._step = self._epoch + 1, 0

    def _next(self) -> RawBatch | None:
        """The batch of the current step; None if no pair is left of it, or it is another rank's."""
        step, following = self._plan()
        contents = self._source.contents(step, following, self._decoded)
        positions = self._skipped.left_of(step.batch)
        if len(positions) < min(self.settings.least, len(step.batch)):
            raise InputError(
                f"batch {self._step + 1} of epoch {self._epoch + 1} lost {len(step.batch) - len(positions)} of its "
                f"{len(step.batch)} pairs, and training needs {self.settings.least}: "
                f"{self.settings.larger_batches}, or {self._shards.remedy()}"
            )
        if contents is None or not len(positions):
            return None
        return RawBatch(*contents, index_tensor(self.settings.device, self._shards.rows[positions]))

    def _plan(self) -> tuple[StepPlan, StepPlan | None]:
        """The current step, and the next one of the epoch if there is one."""
        if not self._planned or self._planned[0].epoch != self._epoch:
            self._planned = list(self._source.steps(self._order, self._epoch))
        return self._planned[self._step], next(iter(self._planned[self._step + 1 : self._step + 2]), None)

    def seek(self, epoch: int, step: int = 0) -> None:
        """Go to batch `step` of `epoch`; `step` may be `len(self)`, the end of the epoch.

        Raises:
            InputError: there is no such step.
        """
        if epoch < 0 or not 0 <= step <= self._steps:
            raise InputError(f"there is no step {step} of epoch {epoch}: an epoch has {self._steps} steps")
        self.close()
        self._epoch, self._step = int(epoch), int(step)

    def state_dict(self) -> dict[str, Any]:
        """Where the loader is, as plain values. The same on every rank."""
        return make_state(identity(self.settings, self._shards), self._epoch, self._step)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue with exactly the batches that the loader of `state` would have given next.

        Raises:
            InputError: the data, the batch size, the number of ranks or another setting is not the same.
        """
        self.seek(*position_in(state, identity(self.settings, self._shards)))

    def sound_of(self, rows: np.ndarray) -> torch.Tensor:
        """The sound, as batches carry it, of some pairs: it is read anew, and no frame is decoded.

        Args:
            rows: (b,) rows in the manifest, of pairs of this loader.

        Returns:
            (b, ...). With `on_error="skip"`, a pair whose bytes are not as `prepare` wrote them gets the sound of the
            next pair.

        Raises:
            InputError: a pair cannot be read; or, with `on_error="stop"`, its bytes are not as `prepare` wrote them.
        """
        positions = np.searchsorted(self._shards.rows, rows)
        pcm = self._shards.read_sound(positions, skip=self.settings.on_error == "skip")
        return transformed(self._sound, torch.from_numpy(pcm).to(self.settings.device))

    def sound_from(self, samples: np.ndarray) -> torch.Tensor:
        """The sound, as batches carry it, of one pair with these samples (48000,) in -1..1: (1, ...)."""
        kind = self._shards.sound
        pcm = torch.from_numpy((samples * (32767 if kind.kind == "i" else 1))[None].astype(kind))
        return transformed(self._sound, pcm.to(self.settings.device))

    def close(self) -> None:
        """Stop decoding and free the pipeline. Iterating again starts it anew, from the current position."""
        self._decoded.close()

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
