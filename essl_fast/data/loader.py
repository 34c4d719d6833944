"""The one iterator that train and evaluate see: batches of frames and sound, decoded ahead of need.

```
epoch_batches ──▶ Shards.read ──▶ FrameDecoder ──▶ queue ──▶ RawBatch
(seed, epoch)     one scattered   DALI decodes,    `prefetch`
 → rows           read a pair     resize           batches
```

The order of an epoch is a pure function, `epoch_order(n, seed, epoch, rank, world_size)`: a permutation of *all* pairs,
of which each rank takes every `world_size`-th. So a resident pool can follow the same order, a checkpoint is (epoch,
step) and nothing else, and the pairs of a full step over all ranks do not depend on how many ranks share them.

DALI's own WebDataset reader gives each pair once and resumes exactly, too, but shuffles only inside its buffer, in an
order that nobody else can compute. So the shards' index files are read here, and DALI gets the JPEG bytes. The price:
reads are not sequential, but of about 130 KB each. SSDs and the page cache do that at full speed, a spinning disk not.

Sound needs no decoding: it is read straight into the batch's memory, which is pinned where the batch goes to a GPU.
"""

from __future__ import annotations

import atexit
import errno
import hashlib
import json
import os
import queue
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from essl_fast.config import InputError
from essl_fast.data.pipeline import DecodeError, FrameDecoder
from essl_fast.data.shards import PCM_BYTES, SAMPLES, Manifest, encode_key, read_index

LastBatch = Literal["keep", "drop"]
STATE_VERSION = 1


class RawBatch(NamedTuple):
    """frames (B, S, S, 3) uint8 RGB; pcm (B, 48000) int16, 16 kHz; index (B,) int64, the pairs' rows in the manifest.
    All on the loader's device, in memory that is the caller's to keep."""

    frames: torch.Tensor
    pcm: torch.Tensor
    index: torch.Tensor


def epoch_order(
    n: int, *, seed: int, epoch: int, rank: int = 0, world_size: int = 1, shuffle: bool = True
) -> np.ndarray:
    """Positions in 0..n-1 that `rank` visits in `epoch`, in order: int64, n // world_size of them or one more.

    The ranks' orders are disjoint and make up all n. The permutation sorts raw generator output, which NumPy promises
    to keep the same over its versions (not so that of `permutation`).
    """
    if not shuffle:
        return np.arange(rank, n, world_size, dtype=np.int64)
    raw = np.random.PCG64(np.random.SeedSequence([seed, epoch])).random_raw(n)
    return np.argsort(raw, kind="stable")[rank::world_size].astype(np.int64, copy=False)


def steps_per_epoch(n: int, *, batch_size: int, world_size: int = 1, last_batch: LastBatch = "keep") -> int:
    """Steps of an epoch, the same on every rank. InputError if some rank would have a step without a pair."""
    if last_batch == "drop":
        steps = n // (batch_size * world_size)
        if steps == 0:
            raise InputError(
                f"{n} pairs do not fill one batch of {batch_size} on each of {world_size} ranks: "
                "make the batch smaller or keep the last batch"
            )
        return steps
    most, least = -(-n // world_size), n // world_size
    steps = -(-most // batch_size)
    if least < max(steps, 1):
        raise InputError(
            f"{n} pairs cannot be shared out over {world_size} ranks in batches of up to {batch_size} "
            "without an empty batch: use fewer ranks" + (" or a larger batch" if least else "")
        )
    return steps


def epoch_batches(
    n: int,
    *,
    batch_size: int,
    seed: int,
    epoch: int,
    rank: int = 0,
    world_size: int = 1,
    shuffle: bool = True,
    last_batch: LastBatch = "keep",
) -> list[np.ndarray]:
    """`epoch_order` cut into `steps_per_epoch` batches of at most `batch_size`, none empty.

    "drop": full batches only. "keep": every pair; a rank that has one pair less than the others and would run out one
    step before them leaves a pair for that step.
    """
    steps = steps_per_epoch(n, batch_size=batch_size, world_size=world_size, last_batch=last_batch)
    order = epoch_order(n, seed=seed, epoch=epoch, rank=rank, world_size=world_size, shuffle=shuffle)
    if last_batch == "drop":
        order = order[: steps * batch_size]
    ends = [min((step + 1) * batch_size, len(order) - (steps - 1 - step)) for step in range(steps)]
    return np.split(order, ends[:-1])


class Shards:
    """Random access to the pairs of some splits, in the order of `rows` (n,) int64, their rows in the manifest."""

    def __init__(self, manifest: Manifest, splits: Sequence[str]):
        self.manifest = manifest
        self.rows = np.concatenate([manifest.rows(split) for split in splits])
        self.paths = [tar for tar, _ in manifest.shards(splits)]
        indexes = [read_index(idx) for _, idx in manifest.shards(splits)]
        self._shard = np.repeat(np.arange(len(indexes)), [len(index.stems) for index in indexes])
        stems = [stem for index in indexes for stem in index.stems]
        if stems != [encode_key(manifest.key(row)) for row in self.rows]:
            raise InputError(
                f"the index files in {manifest.root} do not list the pairs of its manifest: run prepare again"
            )
        self._jpg, self._jpg_size, self._s16, s16_size = (
            np.concatenate([getattr(index, name) for index in indexes])
            for name in ("jpg_offset", "jpg_size", "s16_offset", "s16_size")
        )
        wrong = np.flatnonzero((s16_size != PCM_BYTES) | (self._s16 < self._jpg + self._jpg_size))
        if len(wrong):
            raise InputError(
                f"{self.name(wrong[0])}: its sound is not {PCM_BYTES} bytes after its frame: run prepare again"
            )

    def name(self, position: int) -> str:
        return f"pair {self.manifest.key(self.rows[position])!r} in shard {self.paths[self._shard[position]]}"

    def read(self, positions: np.ndarray, pcm: np.ndarray, pool: ThreadPoolExecutor, parts: int) -> list[np.ndarray]:
        """Read the pairs at `positions` (b,): their JPEG files, uint8 each; their sound into `pcm` (b, 48000) int16.

        A pair is one system call that scatters frame and sound. InputError if a shard is missing or too short by now.
        """
        ends = np.cumsum(self._jpg_size[positions])
        jpegs = np.split(np.empty(ends[-1], np.uint8), ends[:-1])
        by_shard = np.argsort(self._shard[positions], kind="stable")  # so that a part opens few files
        tasks = [pool.submit(self._read_part, part, positions, jpegs, pcm) for part in np.array_split(by_shard, parts)]
        for task in tasks:
            task.result()
        return jpegs

    def _read_part(self, part: np.ndarray, positions: np.ndarray, jpegs: list[np.ndarray], pcm: np.ndarray) -> None:
        opened, file = -1, -1
        try:
            for i in part:
                position = positions[i]
                shard, offset, size = self._shard[position], self._jpg[position], self._jpg_size[position]
                if shard != opened:
                    if file >= 0:
                        os.close(file)
                    opened, file = shard, -1
                    file = os.open(self.paths[shard], os.O_RDONLY)
                between = bytearray(int(self._s16[position] - offset - size))
                if missing := _read_fully(file, [jpegs[i], between, pcm[i]], int(offset)):
                    raise InputError(f"{self.name(position)}: the shard ends {missing} bytes early: run prepare again")
        except OSError as error:
            # Only a shard that is gone has to be made again; a disk or a network that fails comes back as it was.
            then = "run prepare again" if error.errno == errno.ENOENT else "mend that, then go on with --resume"
            raise InputError(f"{self.name(position)} cannot be read ({error.strerror}): {then}") from error
        finally:
            if file >= 0:
                os.close(file)


def _read_fully(file: int, buffers: list, offset: int) -> int:
    """Fill the buffers, one after another, from `offset` on. Returns the bytes by which the file ends too early.

    One system call, as a rule; network file systems and signals may cut it short."""
    left = [memoryview(buffer).cast("B") for buffer in buffers if len(buffer)]
    while left:
        got = os.preadv(file, left, offset)
        if not got:
            break
        offset += got
        while left and got >= len(left[0]):
            got -= len(left.pop(0))
        if got:
            left[0] = left[0][got:]
    return sum(map(len, left))


_running: weakref.WeakSet[_Producer] = weakref.WeakSet()


@atexit.register  # after DALI was imported, so before DALI's own: no thread may use a pipeline that was shut down
def _stop_running() -> None:
    for producer in list(_running):
        producer.stop()


class _Producer:
    """A thread that reads and decodes the batches of `plan`, an endless iterator of positions, into a short queue."""

    def __init__(
        self,
        shards: Shards,
        plan: Iterator[np.ndarray],
        device: torch.device,
        threads: int,
        prefetch: int,
        batch_size: int,
        side: int,
    ):
        self.shards, self.plan, self.device, self.threads = shards, plan, device, threads
        self.decoding: deque[tuple[np.ndarray, torch.Tensor]] = deque()  # positions, sound
        self.pool = ThreadPoolExecutor(threads, thread_name_prefix="essl_fast-read")
        self.decoder = FrameDecoder(self._read, batch_size, side, device, threads, prefetch, self.pool)
        self.queue: queue.Queue = queue.Queue(prefetch)
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self._run, name="essl_fast-loader", daemon=True)
        self.thread.start()

    def stop(self) -> None:
        """End the thread and free the pipeline."""
        self.stopped.set()
        self.thread.join()
        self.pool.shutdown()
        self.decoder.close()

    def _read(self) -> list[np.ndarray]:
        positions = next(self.plan)
        pcm = torch.empty(len(positions), SAMPLES, dtype=torch.int16, pin_memory=self.device.type == "cuda")
        jpegs = self.shards.read(positions, pcm.numpy(), self.pool, self.threads)
        self.decoding.append((positions, pcm))
        return jpegs

    def _run(self) -> None:
        stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        try:
            with torch.cuda.stream(stream):  # of None: nothing
                while not self.stopped.is_set():
                    frames = next(self.decoder)
                    positions, pcm = self.decoding.popleft()
                    index = torch.from_numpy(self.shards.rows[positions])
                    if stream is not None:
                        pcm, index = (x.to(self.device, non_blocking=True) for x in (pcm, index.pin_memory()))
                    self._put((RawBatch(frames, pcm, index), stream and stream.record_event()))
        except DecodeError as error:
            batch = self.decoding[0][0]
            names = [self.shards.name(batch[i]) for i in error.positions] or [f"one of {len(batch)} pairs"]
            more = f" and {len(names) - 1} more of its batch" if len(names) > 1 else ""
            wrong = InputError(f"the frame of {names[0]}{more} cannot be decoded: run prepare again")
            wrong.__cause__ = error
            self._put(wrong)
        except BaseException as error:  # raised again where the batch is asked for
            self._put(error)

    def _put(self, item: Any) -> None:
        while not self.stopped.is_set():
            try:
                return self.queue.put(item, timeout=0.1)
            except queue.Full:
                continue


class Loader:
    """Iterates over the pairs of `splits` in epochs; one `for` loop is one epoch, or what is left of it.

    batch_size: pairs a step on this rank; side: S, frames become (S, S, 3); shuffle: a new permutation every epoch,
    from `seed`; rank, world_size: this process among those that share the pairs; last_batch: "keep" gives each pair
    exactly once an epoch over all ranks, "drop" full batches only; threads: of reading and decoding, by default one for
    each CPU this process may use; prefetch: batches ready ahead, as many again are being decoded. InputError for
    impossible values.

    epoch, step: the next batch is batch `step` of `epoch`, both from 0. waited: seconds the caller has waited for data.
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
        prefetch: int = 2,
    ):
        splits = (splits,) if isinstance(splits, str) else tuple(splits)
        threads = len(os.sched_getaffinity(0)) if threads is None else threads
        for name, value, least in [
            ("batch_size", batch_size, 1), ("side", side, 1), ("threads", threads, 1), ("prefetch", prefetch, 1),
            ("seed", seed, 0), ("rank", rank, 0), ("world_size", world_size, rank + 1),
        ]:  # fmt: skip
            if value < least:
                raise InputError(f"{name} is at least {least} here, not {value}")
        if last_batch not in ("keep", "drop"):
            raise InputError(f"last_batch is keep or drop, not {last_batch!r}")
        if not splits or len(set(splits)) != len(splits):
            raise InputError(f"splits are one or more different names, not {splits}")
        if not sum(manifest.pairs(split) for split in splits):
            raise InputError(f"{manifest.root} has no pair in {' and '.join(splits)}: see its left_out.jsonl")
        device = torch.device(device)
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", torch.cuda.current_device())
        self.device, self.rank, self.prefetch = device, rank, prefetch
        self._shards = Shards(manifest, splits)
        self._settings = {
            "data": _fingerprint(manifest, splits), "splits": list(splits), "pairs": len(self._shards.rows),
            "side": side, "batch_size": batch_size, "world_size": world_size, "seed": seed, "shuffle": bool(shuffle),
            "last_batch": last_batch,
        }  # fmt: skip
        self._steps = steps_per_epoch(
            len(self._shards.rows), batch_size=batch_size, world_size=world_size, last_batch=last_batch
        )
        self._threads = threads
        self._epoch = self._step = 0
        self.waited = 0.0
        self._producer: _Producer | None = None
        self._release: weakref.finalize | None = None

    @property
    def epoch(self) -> int:
        return self._epoch

    @property
    def step(self) -> int:
        return self._step

    def __len__(self) -> int:
        """Steps per epoch, equal on all ranks."""
        return self._steps

    def __iter__(self) -> Iterator[RawBatch]:
        while self._step < self._steps:
            batch = self._next()
            self._step += 1  # before the yield: a checkpoint taken in the loop's body counts this batch as seen
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
        given = {name: self._settings[name] for name in ("batch_size", "seed", "world_size", "shuffle", "last_batch")}
        plan = _plan(self._epoch, self._step, n=len(self._shards.rows), rank=self.rank, **given)
        self._producer = _Producer(
            self._shards, plan, self.device, self._threads, self.prefetch, given["batch_size"], self._settings["side"]
        )
        self._release = weakref.finalize(self, self._producer.stop)
        self._release.atexit = False
        _running.add(self._producer)

    def _next(self) -> RawBatch:
        begin = time.perf_counter()
        if self._producer is None:
            self._start()
        item = self._producer.queue.get()
        if isinstance(item, BaseException):
            self.close()
            raise item
        batch, ready = item
        if ready is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_event(ready)
            for tensor in batch:
                tensor.record_stream(current)
        self.waited += time.perf_counter() - begin
        return batch


def _plan(epoch: int, step: int, **settings: Any) -> Iterator[np.ndarray]:
    """The batches from `step` of `epoch` on, over all later epochs: decoding does not pause where an epoch ends."""
    while True:
        yield from epoch_batches(epoch=epoch, **settings)[step:]
        epoch, step = epoch + 1, 0


def _fingerprint(manifest: Manifest, splits: Sequence[str]) -> str:
    """What the splits' shards are, by the SHA-256 that the manifest has of each."""
    shards = [manifest.header["splits"][split]["shards"] for split in splits]
    return hashlib.sha256(json.dumps(shards, sort_keys=True).encode()).hexdigest()
