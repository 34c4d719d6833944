"""python -m benchmarks.remote: a data set that is elsewhere, read in whole shards or pair by pair.

A web server of this machine gives each answer after a wait (`--delay`, seconds), as a store that is far away does. The
pairs of one epoch are read in random order, in batches of 128, in two ways: whole shards come into the cache, eight at
a time, and pairs are read from there (what `data.root URL` does); or each pair is asked for by its place in the shard,
32 at a time. Printed: seconds until the first batch, and until the last; and the seconds of a second epoch.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from benchmarks.processes import ROOT
from essl_fast.common.files import write_json
from essl_fast.data.remote import Store
from essl_fast.data.shards import SAMPLES, SPLITS, Manifest, Shards, ShardWriter, pair_crc, read_index, write_manifest
from essl_fast.runtime import provenance

BATCH, THREADS, AT_ONCE = 128, 4, 32
FRAME = 34_000  # bytes; with its sound a pair has 130 kB, as prepared pairs of 320 x 180 pixels have


def make(out: Path, pairs: int, per_shard: int) -> None:
    """A prepared folder of training pairs with noise in them."""
    rng, keys, crc = np.random.default_rng(0), [f"v_{row:06d}" for row in range(pairs)], []
    entries = {split: {"pairs": 0, "videos": 0, "shards": []} for split in SPLITS}
    with ShardWriter(out, "train", per_shard) as writer:
        for row, key in enumerate(keys):
            frame, sound = b"\xff\xd8" + rng.bytes(FRAME), rng.bytes(2 * SAMPLES)
            crc.append(pair_crc(frame, sound))
            writer.add(key, frame, sound, {}, row)
        entries["train"] = {"pairs": pairs, "videos": 1, "shards": writer.close()}
    zeros = np.zeros(pairs, np.int64)
    write_manifest(
        out,
        keys=keys,
        split=zeros,
        class_id=zeros,
        labelled=zeros,
        boxes=np.zeros((pairs, 1, 4)),
        time=zeros,
        visual=zeros,
        target=zeros,
        quarters=zeros,
        crc=crc,
        classes=["noise"],
        splits=entries,
        left_out=[],
        settings={},
    )


def whole(url: str, cache: Path) -> Callable[[np.ndarray], None]:
    """Reads a batch as training does."""
    shards, pool = Shards(Manifest.load(url, (str(cache), 0.0)), ["train"]), ThreadPoolExecutor(THREADS)

    def read(batch: np.ndarray) -> None:
        pictures = shards.read(batch, np.empty((len(batch), SAMPLES), "<i2"), pool, THREADS)
        assert not any(picture.altered for picture in pictures)

    return read


def ranges(url: str, cache: Path) -> Callable[[np.ndarray], None]:
    """Reads each pair of a batch by a request of its own, and compares its CRC-32, as the other way does."""
    manifest, store, pool = Manifest.load(url, (str(cache), 0.0)), Store(url), ThreadPoolExecutor(AT_ONCE)
    entries = manifest.entries("train")
    indexes = [read_index(manifest.root / entry["index"]) for entry in entries]
    first = np.cumsum([0, *(entry["pairs"] for entry in entries)])

    def one(row: int) -> None:
        shard = int(np.searchsorted(first, row, "right")) - 1
        index, at = indexes[shard], row - first[shard]
        begin, sound = int(index.visual_offset[at]), int(index.s16_offset[at])
        data = store.read(entries[shard]["file"], begin, sound + int(index.s16_size[at]))
        frame = data[: index.visual_size[at]]
        assert pair_crc(frame, data[sound - begin :]) == manifest.crc[row]

    def read(batch: np.ndarray) -> None:
        list(pool.map(one, batch.tolist()))

    return read


def epoch(read: Callable[[np.ndarray], None], pairs: int, seed: int) -> Iterator[float]:
    """Seconds since the epoch's begin, after each batch."""
    order, begin = np.random.default_rng(seed).permutation(pairs), time.perf_counter()
    for at in range(0, pairs, BATCH):
        read(order[at : at + BATCH])
        yield time.perf_counter() - begin


def main(argv: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.remote", description=__doc__)
    parser.add_argument("--pairs", type=int, default=1024)
    parser.add_argument("--per-shard", type=int, default=128)
    parser.add_argument("--delay", type=float, nargs="+", default=[0.0, 0.02, 0.1], help="seconds before each answer")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(argv)
    found = []
    with tempfile.TemporaryDirectory() as place:
        make(Path(place) / "data", options.pairs, options.per_shard)
        for delay in options.delay:
            server = [sys.executable, "-m", "tests.tools.web", str(Path(place) / "data"), str(delay)]
            with subprocess.Popen(
                server, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, text=True
            ) as serving:
                assert serving.stdout is not None and serving.stdin is not None
                url = serving.stdout.readline().strip()
                for way in (whole, ranges):
                    read = way(url, Path(place) / f"cache-{way.__name__}-{delay}")
                    times = list(epoch(read, options.pairs, 1))
                    again = list(epoch(read, options.pairs, 2))[-1]
                    found.append(
                        {"way": way.__name__, "delay": delay, "first": times[0], "epoch": times[-1], "again": again}
                    )
                    name = f"{way.__name__:6} {delay * 1e3:4.0f} ms"
                    print(f"{name}: first batch {times[0]:.2f} s, epoch {times[-1]:.2f} s, second {again:.2f} s")
                serving.stdin.close()
    if options.json:
        write_json(
            options.json,
            {"pairs": options.pairs, "found": found, "environment": provenance.environment(torch.device("cpu"))},
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
