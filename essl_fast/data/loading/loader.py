"""The one iterator that train and evaluate see: batches of frames and sound, streamed or out of a resident pool.

```
epoch_batches ──▶ Shards.read ──▶ FrameDecoder ──▶ queue ──▶ RawBatch          streaming
(seed, epoch)     one scattered   DALI decodes,    `prefetch`    ▲
 → positions      read a pair     resize           batches       │
                                                     └──▶ Pool ──┘             resident
```

Both ways give the same batches, since the order is a function of (seed, epoch) alone. With a pool the thread that
decodes is given only what is not in the pool yet, and ends when all is: a batch is put into the pool when its turn
comes, and served from there. So decoded pairs are never decoded again, whatever mix of epochs a resume begins with.

Sound needs no decoding: it is read straight into the batch's memory, which is pinned where the batch goes to a GPU.
"""

from __future__ import annotations

import functools
import os
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from essl_fast.common.errors import InputError
from essl_fast.data.loading.exchange import on_device
from essl_fast.data.loading.order import (
    LastBatch,
    Step,
    batches_from,
    epoch_batches,
    needs_from,
    not_yet,
    steps_per_epoch,
)
from essl_fast.data.loading.pool import Lost, Pool, Pools, Sound, float_samples, samples
from essl_fast.data.loading.producer import Decoded, Producer
from essl_fast.data.shards import SAMPLES, Manifest
from essl_fast.data.shards.reading import Quarantined, Shards

OnError = Literal["stop", "skip"]
STATE_VERSION = 1


class RawBatch(NamedTuple):
    """B pairs on the loader's device: frames (N, S, S, 3) uint8 RGB, of which rows (B,) int64 are theirs; sound, what
    the loader's `sound` made of their samples, by default these, (B, 48000) int16 at 16 kHz; index (B,) int64, their
    rows in the manifest.

    Streamed, N is B and rows 0..B-1. Resident, frames is the whole pool: to be read, and at `rows` alone, since others
    may not be there yet; out of a pool that ranks share (`pool.held` is False), N is B and rows are in any order.
    Everything else is the caller's to keep.
    """

    frames: torch.Tensor
    rows: torch.Tensor
    sound: torch.Tensor
    index: torch.Tensor


def pick_threads() -> int:
    """Decoding threads where nobody says: this process's CPUs, shared with the others that torchrun started on this
    host, 8 at most. By estimate, 0.5 ms a small JPEG, that is over 10,000 a second, more than any GPU trains on."""
    cores = len(os.sched_getaffinity(0))
    return min(8, max(1, cores // max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))))


def pick_prefetch(batch_size: int) -> int:
    """Batches decoded ahead where nobody says: 256 pairs' worth, 2 to 4 batches. That bridges a slow read or a long
    clip; more only takes memory."""
    return min(4, max(2, 256 // batch_size))


class Loader:
    """Iterates over the pairs of `splits` in epochs; one `for` loop is one epoch, or what is left of it.

    batch_size: pairs a step on this rank; side: S, frames become (S, S, 3); shuffle: a new permutation every epoch,
    from `seed`; rank, world_size: this process among those that share the pairs; last_batch: "keep" gives each pair
    exactly once an epoch over all ranks, "drop" full batches only; threads: of reading and decoding, by default
    `pick_threads`; prefetch: batches ready ahead, as many again are being decoded, by default `pick_prefetch`; epochs:
    how many there are, None if nobody knows: decoding ahead ends there. InputError for impossible values.

    pools: may keep what was decoded, then each pair is decoded once; sound: what batches carry of the sound, a function
    of (B, 48000) int16 that treats each row by itself, called on the device, and once a pair where there is a pool.

    exclude: leave out pairs that `prepare --verify` listed: none, bad (corrupt, truncated, missing audio) or all.
    on_error: "stop" at a frame that does not decode, or "skip" the pair from then on: its batch is smaller by it, and
    `on_fault` is called with its row in the manifest and the reason. Where more than `max_errors` of the pairs are lost
    that way, or a batch that loses a pair has less than `least` left, it stops all the same. Files that cannot be read
    always stop it: that is no fault of a pair.

    epoch, step: the next batch is batch `step` of `epoch`, both from 0. waited: seconds the caller has waited for data.
    pairs: all ranks' pairs of an epoch, without those excluded. lost: how many of them were skipped.
    """

    def __init__(
        self,
        manifest: Manifest,
        splits: Sequence[str],
        *,
        batch_size: int,
        side: int,
        device: torch.device | str = "cpu",
        seed: int = 0,
        shuffle: bool,
        rank: int = 0,
        world_size: int = 1,
        last_batch: LastBatch = "keep",
        threads: int | None = None,
        prefetch: int | None = None,
        epochs: int | None = None,
        pools: Pools | None = None,
        sound: Sound = samples,
        exclude: Quarantined = "none",
        on_error: OnError = "stop",
        max_errors: float = 0.01,
        least: int = 1,
        on_fault: Callable[[int, str], None] | None = None,
    ):
        splits = (splits,) if isinstance(splits, str) else tuple(splits)
        threads = pick_threads() if threads is None else threads
        prefetch = pick_prefetch(max(1, batch_size)) if prefetch is None else prefetch
        for name, value, at_least in [
            ("batch_size", batch_size, 1),
            ("side", side, 1),
            ("threads", threads, 1),
            ("prefetch", prefetch, 1),
            ("seed", seed, 0),
            ("rank", rank, 0),
            ("world_size", world_size, rank + 1),
            ("max_errors", max_errors, 0),
        ]:
            if value < at_least:
                raise InputError(f"{name} is at least {at_least} here, not {value}")
        for name, value, choices in [
            ("last_batch", last_batch, ("keep", "drop")),
            ("exclude", exclude, ("none", "bad", "all")),
            ("on_error", on_error, ("stop", "skip")),
        ]:
            if value not in choices:
                raise InputError(f"{name} is {' or '.join(choices)}, not {value!r}")
        if not splits or len(set(splits)) != len(splits):
            raise InputError(f"splits are one or more different names, not {splits}")
        if not sum(manifest.pairs(split) for split in splits):
            raise InputError(f"{manifest.root} has no pair in {' and '.join(splits)}: see its left_out.jsonl")
        device = torch.device(device)
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", torch.cuda.current_device())
        self.device, self.rank, self.prefetch, self.epochs = device, rank, prefetch, epochs
        self._sound, self.threads = sound, threads
        self._skip, self._max_errors, self._least, self._on_fault = on_error == "skip", max_errors, least, on_fault
        self._shards = Shards(manifest, splits, exclude)
        if sound is samples and self._shards.sound.kind == "f":
            sound = self._sound = float_samples
        self.pairs, self.excluded = len(self._shards), self._shards.excluded
        if not self.pairs:
            raise InputError(f"{manifest.root}: every pair in {' and '.join(splits)} is quarantined")
        self._settings = {
            "data": self._shards.fingerprint,
            "splits": list(splits),
            "pairs": self.pairs,
            "side": side,
            "batch_size": batch_size,
            "world_size": world_size,
            "seed": seed,
            "shuffle": bool(shuffle),
            "last_batch": last_batch,
        }
        names = ("batch_size", "seed", "world_size", "shuffle", "last_batch")
        self._order = {name: self._settings[name] for name in names} | {"n": self.pairs, "rank": rank}
        self._steps = steps_per_epoch(self.pairs, batch_size=batch_size, world_size=world_size, last_batch=last_batch)
        self.pool: Pool | None = None
        if pools is not None:
            if pools.device.type != device.type:
                raise ValueError(f"the pools are on {pools.device}, the loader on {device}")
            what = f"{' and '.join(splits)} at side {side}"
            self.pool = pools.take(
                what,
                (self._shards.fingerprint, splits),
                self.pairs,
                side,
                sound,
                rank=rank,
                world_size=world_size,
                shuffle=bool(shuffle),
            )
        self._lost = np.zeros(self.pairs, bool)
        self._news: Lost = []  # what was lost here since the ranks last told each other
        self._epoch = self._step = 0
        self._plan: tuple[int, list[Step]] = (-1, [])  # of an epoch
        self.waited = 0.0
        self._producer: Producer | None = None
        self._release: weakref.finalize | None = None

    @property
    def epoch(self) -> int:
        return self._epoch

    @property
    def step(self) -> int:
        return self._step

    @property
    def lost(self) -> int:
        return int(self._lost.sum())

    def __len__(self) -> int:
        """Steps per epoch, equal on all ranks."""
        return self._steps

    def __iter__(self) -> Iterator[RawBatch]:
        if self.epochs is not None and self._epoch >= self.epochs:
            raise RuntimeError(f"the loader was made for {self.epochs} epochs, and these are over")
        while self._step < self._steps:
            batch = self._next()
            self._step += 1  # before the yield: a checkpoint taken in the loop's body counts this batch as seen
            if batch is not None:
                yield batch
        self._epoch, self._step = self._epoch + 1, 0

    def seek(self, epoch: int, step: int = 0) -> None:
        """Go to batch `step` of `epoch`; `step` may be `len(self)`, the end of the epoch."""
        if epoch < 0 or not 0 <= step <= self._steps:
            raise InputError(f"there is no step {step} of epoch {epoch}: an epoch has {self._steps} steps")
        self.close()
        self._epoch, self._step = int(epoch), int(step)

    def state_dict(self) -> dict[str, Any]:
        """Where the loader is, as plain values. The same on every rank."""
        return {"version": STATE_VERSION, "epoch": self._epoch, "step": self._step, "settings": dict(self._settings)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue with exactly the batches that the loader of `state` would have given next.

        InputError if the data, the batch size, the number of ranks or another setting differs.
        """
        if state.get("version") != STATE_VERSION:
            raise InputError(f"the loader's state has version {state.get('version')}, this code reads {STATE_VERSION}")
        for name, ours in self._settings.items():
            theirs = state["settings"].get(name)
            if theirs != ours:
                what = "the prepared data" if name == "data" else f"{name} (was {theirs!r}, is {ours!r})"
                raise InputError(f"cannot continue exactly, since this changed: {what}. Use what it was, or start anew")
        self.seek(state["epoch"], state["step"])

    def close(self) -> None:
        """Stop decoding and free the pipeline. Iterating again starts it anew, from the current position."""
        if self._release is not None:
            self._release()
        self._producer = self._release = None

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self) -> None:
        if self.pool is None:
            plan = batches_from(self._epoch, self._step, epochs=self.epochs, **self._order)
        else:  # no reference to the loader: the thread would keep it alive
            steps = functools.partial(self.pool.steps, order=self._order)
            plan = not_yet(
                needs_from(self._epoch, self._step, steps, self.epochs),
                self.pool.there | self._lost | self.pool.elsewhere(),
                self._settings["shuffle"],
                self._settings["batch_size"],
            )
        self._producer = Producer(
            self._shards,
            plan,
            self._lost,
            self._skip,
            self.device,
            self.threads,
            self.prefetch,
            self._settings["batch_size"],
            self._settings["side"],
        )
        self._release = weakref.finalize(self, self._producer.stop)
        self._release.atexit = False

    def _next(self) -> RawBatch | None:
        """The next batch; None if all its pairs were lost."""
        if self.pool is None:
            if self._plan[0] != self._epoch:
                batches = epoch_batches(epoch=self._epoch, **self._order)
                self._plan = self._epoch, [Step(batch, batch, [batch], False) for batch in batches]
            step = self._plan[1][self._step]
            decoded = self._decoded()
        else:
            step = self._fill()
        positions = step.asked[~self._lost[step.asked]]
        kept = None if self.pool is None else self.pool.batch(step, self._lost, self._following())
        if len(positions) < min(self._least, len(step.asked)):
            raise InputError(
                f"batch {self._step + 1} of epoch {self._epoch + 1} lost {len(step.asked) - len(positions)} of its "
                f"{len(step.asked)} pairs, and training needs {self._least}: choose a larger data.batch_size, or "
                + self._shards.remedy()
            )
        if not len(positions):
            return None
        index = self._shards.rows[positions]
        if kept is None:
            rows, index = on_device(self.device, np.arange(len(positions)), index)
            return RawBatch(decoded.frames, rows, self._hear(decoded.pcm), index)
        frames, rows, sound = kept
        return RawBatch(frames, rows, sound, on_device(self.device, index)[0])

    def _fill(self) -> Step:
        """Decode into the pool what the next step still needs of this rank; the step."""
        if self._plan[0] != self._epoch:
            self.pool.begin(self._epoch, self._order)
            self._plan = self._epoch, list(self.pool.steps(self._epoch, self._order))
        step = self._plan[1][self._step]
        while not (self.pool.there | self._lost)[step.needs].all():
            decoded = self._decoded()
            if len(decoded.positions):
                self.pool.put(decoded.positions, decoded.frames, self._hear(decoded.pcm))
        if told := self.pool.settle(step, self._news):
            self._news = []
            self._count(told)
        return step

    def _following(self) -> Step | None:
        steps = self._plan[1]
        return steps[self._step + 1] if self._step + 1 < len(steps) else None

    @property
    def rows(self) -> np.ndarray:
        """(pairs,) int64: the pairs' rows in the manifest, ascending."""
        return self._shards.rows

    def sound_of(self, rows: np.ndarray) -> torch.Tensor:
        """The sound, as batches carry it, of the pairs in rows (b,) of this loader: read anew; no frame is decoded.

        A pair that is not as it was written is an InputError or, where such pairs are skipped, the next one's sound."""
        pcm = self._shards.read_sound(np.searchsorted(self._shards.rows, rows), self._skip)
        return self._hear(torch.from_numpy(pcm).to(self.device))

    def silence(self) -> torch.Tensor:
        """What a clip of nothing but zeros is as the sound of one pair, (1, ...)."""
        return self._hear(torch.from_numpy(np.zeros((1, SAMPLES), self._shards.sound)).to(self.device))

    def _hear(self, pcm: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return self._sound(pcm)

    def _decoded(self) -> Decoded:
        """What the producer has next; its losses are counted here."""
        begin = time.perf_counter()
        if self._producer is None:
            self._start()
        item = self._producer.get()
        if isinstance(item, BaseException):
            self.close()
            raise item
        if item.ready is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_event(item.ready)
            for tensor in (item.frames, item.pcm):
                tensor.record_stream(current)
        self.waited += time.perf_counter() - begin
        if item.lost:
            self._news += item.lost
            self._count(item.lost)
        return item

    def _count(self, lost: Lost) -> None:
        for position, reason in lost:
            if not self._lost[position]:
                self._lost[position] = True
                if self._on_fault is not None:
                    self._on_fault(int(self._shards.rows[position]), reason)
        worst = f"the last is {self._shards.name(lost[-1][0])} ({lost[-1][1]})"
        if self.lost > self._max_errors * self.pairs:
            self.close()
            raise InputError(
                f"{self.lost} of {self.pairs} pairs do not decode, more than data.max_errors = {self._max_errors:g} "
                f"allows; {worst}: {self._shards.remedy()}"
            )
