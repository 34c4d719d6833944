"""What is tried on a disk that fails: each stage runs a part of a command in this process, as the command ends it.

A stage has a start (a folder, copied for every failure), a work (which prints and returns an exit code), a way to tell
whether the result is as it should be, and one to tell whether the last good state is there.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import hashlib
import io
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from fsspec.implementations.memory import MemoryFileSystem
from rich.console import Console

from essl_fast import checkpoints, config
from essl_fast.common.commands import command
from essl_fast.common.files import write_json
from essl_fast.common.outputs import output_folder
from essl_fast.data.remote import ahead, folder, store
from essl_fast.data.shards import SPLITS, Manifest, Picture, Shards
from essl_fast.prepare import __main__ as prepare_door
from essl_fast.prepare import workers
from essl_fast.report import __main__ as report_door
from essl_fast.runtime.distributed import ALONE
from essl_fast.runtime.runlog import read_log
from essl_fast.train.logfile import LogFile
from essl_fast.train.run import ended_well, made_for_a_run
from essl_fast.train.rundir import RunDirectory, owned
from tests.data.shards.test_shards import write_folder
from tests.faults.worlds import same
from tests.report.test_report import make_run
from tests.tools.media import clicks, make_video, row, write_annotations
from tests.tools.prepare import hashes


class Stage:
    """One thing that is tried. `place` is where it keeps what it needs."""

    name = ""

    def __init__(self, place: Path) -> None:
        self.place = place
        place.mkdir(parents=True)

    def start(self, out: Path) -> None:
        """Make the state that the work begins with."""

    def work(self, out: Path) -> int:
        """Do it; errors as the command raises them."""
        raise NotImplementedError

    def differs(self, out: Path) -> str | None:
        """What of the result is not as it should be; None if nothing."""
        raise NotImplementedError

    def good(self, out: Path) -> str | None:
        """After an error: what of the state before is lost; None if nothing."""
        return None

    def run(self, out: Path) -> tuple[int, str]:
        """The work as a command: (exit code, all that it said)."""
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            code = command(lambda: self.work(out), self.name)
        return code, said.getvalue()


class Now(Executor):
    """Runs what it is given at once, so that operations come in one order."""

    def __init__(self, *_: object) -> None:
        pass

    def submit(self, function: Callable, /, *given: object, **more: object) -> Future:
        future: Future = Future()
        try:
            future.set_result(function(*given, **more))
        except BaseException as error:
            future.set_exception(error)
        return future


class Prepare(Stage):
    """Two videos of three pairs become three shards; the worker's program runs in this process."""

    name = "prepare"

    def __init__(self, place: Path) -> None:
        super().__init__(place)
        for name in ("a", "t"):
            make_video(place / "videos" / f"{name}.mp4", sound=clicks(4, 16_000, at=(2.0,)))
        rows = [row(16, 1.5), row(18, 1.7, "[]"), row(21, 2.0, label="crash"), row(40, 3.9)]
        write_annotations(place / "notes", {"a": rows}, {"t": rows})
        self.start(place / "out")
        code, said = self.run(place / "out")
        assert code == 0, said
        self._whole = self._made(place / "out")

    def work(self, out: Path) -> int:
        return self._prepare(out)

    def _made(self, out: Path) -> dict[str, str]:
        """Name → hash of all files of the result."""
        return hashes(out)

    def _prepare(self, out: Path | str, *more: str) -> int:
        def ask(worker: workers.Worker, task: workers.Task) -> tuple[bool, dict, int]:
            return True, workers._answer(task, worker.folder), 0

        places = ["--videos", self.place / "videos", "--annotations", self.place / "notes", "--out", out]
        options = "--validation 0 --pairs-per-shard 2 --visual jpeg --workers 1".split()
        with mock.patch.object(workers.Worker, "_ask", ask), mock.patch.object(workers, "ThreadPoolExecutor", Now):
            return prepare_door.main([*map(str, places), *options, *more])

    def differs(self, out: Path) -> str | None:
        # What is left of the parts goes with the next call, which finds the folder complete.
        mine = {name: value for name, value in self._made(out).items() if not name.startswith(".parts/")}
        names = sorted(name for name in mine.keys() | self._whole.keys() if mine.get(name) != self._whole.get(name))
        return ", ".join(names) or None


class Parts(Prepare):
    """The same by two machines, of which each makes a part; then they are joined."""

    name = "parts, joined"

    def work(self, out: Path) -> int:
        return (
            self._prepare(out, "--part", "1/2") or self._prepare(out, "--part", "2/2") or self._prepare(out, "--join")
        )


class Sending(Prepare):
    """The same to a URL, where the disk that fails is that of this machine's cache."""

    name = "prepare to a URL"
    _URL = "memory://nth/sent"

    def start(self, out: Path) -> None:
        out.mkdir(parents=True)
        if MemoryFileSystem().exists(self._URL):
            MemoryFileSystem().rm(self._URL, recursive=True)

    def work(self, out: Path) -> int:
        here = {"XDG_CACHE_HOME": str(out)}
        with contextlib.ExitStack() as patches:
            patches.enter_context(mock.patch.dict(os.environ, here))
            patches.enter_context(mock.patch.object(folder, "ThreadPoolExecutor", Now))
            patches.enter_context(mock.patch.object(store, "FIRST_WAIT", 0.001))  # before it tries again
            return self._prepare(self._URL)

    def _made(self, out: Path) -> dict[str, str]:
        root, system = self._URL.removeprefix("memory:/"), MemoryFileSystem()
        return {
            path.removeprefix(f"{root}/"): hashlib.sha256(system.cat_file(path)).hexdigest()
            for path in system.find(self._URL)
        }

    def good(self, out: Path) -> str | None:
        """Whoever reads meanwhile finds the whole data set, or none; the preview comes after it."""
        wrong = self.differs(out) if "manifest.json" in self._made(out) else None
        return f"a manifest is there, and not {wrong}" if wrong not in (None, "preview.png") else None


class Run(Stage):
    """What a resumed epoch of a run reads and writes: the newest checkpoint, config, log, last.pt, best.pt, summary."""

    name = "a run's files"

    def __init__(self, place: Path) -> None:
        super().__init__(place)
        self._settings = config.load("demo", [])
        self._epoch(place / "start", 1)
        with (place / "start" / "log.jsonl").open("ab") as log:
            log.write(b'{"event": "epo')  # a crash has cut the last line short
        self.start(place / "whole")
        assert self.run(place / "whole")[0] == 0

    def start(self, out: Path) -> None:
        shutil.copytree(self.place / "start", out)

    def work(self, out: Path) -> int:
        with ended_well(out, Console(), torch.device("cpu"), ALONE), made_for_a_run(out, ALONE):
            output_folder(out, "out")
            self._epoch(out, 2)
        return 0

    def _epoch(self, out: Path, epoch: int) -> None:
        """What `essl_fast.train` does with files in an epoch, and at the end, in its order."""
        directory = RunDirectory(out, keep=2, leads=True)
        out.mkdir(exist_ok=True)
        with owned(out):
            if epoch > 1:
                _, state, passed = checkpoints.newest(directory.last)
                print(*(f"passed over: {line}" for line in passed), sep="\n")
                assert state["epoch"] in (epoch - 1, epoch)
            directory.save_config(self._settings)
            directory.set_aside()
            log = LogFile(directory.log)
            try:
                for number in range(4):
                    state = {"epoch": epoch, "weights": torch.full((3000,), float(10 * epoch + number))}
                    directory.save_last(state)
                directory.save_best(state)
                log.on_epoch({"epoch": epoch, "loss": 1.0})
                directory.save_last(state)
                summary = {"test": {}, "selected": {}, "seconds": 1.0, "pairs_per_second": 1.0, "epoch": epoch}
                write_json(directory.summary, summary)
                log.on_end(summary)
            finally:
                log.close()

    def differs(self, out: Path) -> str | None:
        whole = self.place / "whole"
        for name in ("last.pt", "best.pt"):
            if found := same(checkpoints.load(out / name), checkpoints.load(whole / name), name):
                return found
        for name in ("summary.json", "config.yaml"):
            if (out / name).read_bytes() != (whole / name).read_bytes():
                return name
        if self._logged(out) != {1, 2}:
            return "log.jsonl"
        return self._odd(out, whole)

    def good(self, out: Path) -> str | None:
        try:
            _, state, _ = checkpoints.newest(out / "last.pt")
        except Exception as error:
            return f"no checkpoint opens: {error}"
        if not torch.equal(state["weights"], state["weights"][:1].expand(3000)) or state["epoch"] not in (1, 2):
            return "the newest checkpoint is none that was written"
        if checkpoints.damage(out / "best.pt"):
            return "best.pt is damaged"
        return None if 1 in self._logged(out) else "an epoch is gone from the log"

    def _logged(self, out: Path) -> set[int]:
        return {entry["epoch"] for entry in read_log(out / "log.jsonl") if entry["event"] == "epoch"}

    def _odd(self, out: Path, whole: Path) -> str | None:
        """A file that was left behind."""
        known = {path.name for path in whole.iterdir()} | {"summary-1.json", "summary-2.json"}
        known.add(".lock")  # it holds nobody off: a lock ends with its process
        return next((path.name for path in out.iterdir() if path.name not in known), None)


class Report(Stage):
    """The page of a run."""

    name = "report"

    def __init__(self, place: Path) -> None:
        super().__init__(place)
        make_run(place / "run")
        whole = place / "the-whole-run"
        self.start(whole)
        assert self.run(whole)[0] == 0
        self._whole = self._files(whole)

    def start(self, out: Path) -> None:
        shutil.copytree(self.place / "run", out)
        (out / "report.html").write_text("the page of before")

    def work(self, out: Path) -> int:
        return report_door.main([str(out)])

    def differs(self, out: Path) -> str | None:
        mine = self._files(out)
        names = sorted(name for name in mine.keys() | self._whole.keys() if mine.get(name) != self._whole.get(name))
        return ", ".join(names) or None

    def _files(self, out: Path) -> dict[str, str]:
        """The hash of each file; the page as if the folder had another name."""
        text = (out / "report.html").read_text().replace(str(out), "RUN").replace(out.name, "RUN")
        return hashes(out) | {"report.html": hashlib.sha256(text.encode()).hexdigest()}

    def good(self, out: Path) -> str | None:
        text = (out / "report.html").read_text()
        return None if text == "the page of before" or text.endswith("</html>\n") else "the page is cut short"


class Shard(Stage):
    """A prepared folder is opened, and its pairs are read, as the loader does."""

    name = "reading shards"

    def __init__(self, place: Path) -> None:
        super().__init__(place)
        self._from = Prepare(place / "made").place / "out"
        self._read: dict[str, str] = {}
        self.start(place / "whole")
        code, said = self.run(place / "whole")
        assert code == 0, said
        self._bytes = self._read["whole"]

    def start(self, out: Path) -> None:
        shutil.copytree(self._from, out)

    def opened(self, out: Path) -> Manifest:
        return Manifest.load(out)

    def work(self, out: Path) -> int:
        self._read[out.name] = ""
        shards = Shards(self.opened(out), ["train", "test"])
        positions = np.arange(len(shards))
        with ThreadPoolExecutor(1) as executor:
            sound = np.zeros((len(shards), 48_000), np.int16)
            pictures = shards.read(positions, sound, executor, 1)
        assert not any(picture.altered for picture in pictures)
        assert np.array_equal(shards.read_sound(positions), sound)
        self._read[out.name] = digest(pictures, sound)
        return 0

    def differs(self, out: Path) -> str | None:
        return None if self._read[out.name] == self._bytes else "other bytes were read"


class RemoteCache(Stage):
    """A data set elsewhere is opened, and read through a cache that holds some of it and has to make room for the rest.

    The store is fsspec's in memory, so that all operations on a disk are the cache's.
    """

    name = "remote cache"
    _OTHER = 1 << 20  # bytes of each thing that nobody uses any more: all must go for the shards that come

    def __init__(self, place: Path) -> None:
        super().__init__(place)
        self._folder, self._reader = write_folder(place / "folder", 4, 2, 2, 2), -1
        self.url = f"memory://nth{place}"
        system = MemoryFileSystem()
        for path in sorted(self._folder.rglob("*")):
            if path.is_file():
                system.pipe_file(f"/nth{place}/{path.relative_to(self._folder)}", path.read_bytes())
        self._entries = Manifest.load(self._folder).entries(SPLITS)
        self._limit, self._read = 0, ""
        self._fill(place / "start")
        self.start(place / "whole")
        code, said = self.run(place / "whole")
        assert code == 0, said
        self._bytes = self._read
        assert not self._others(place / "whole")

    def _fill(self, start: Path) -> None:
        """The cache in which the work begins: two shards of the data set, and what is older than they are."""
        manifest = Manifest.load(self.url, (str(start), 0.0))
        assert manifest.source is not None
        for entry in self._entries[:2]:
            os.close(manifest.source.cache.fetch(manifest.source.store, entry))
        old = start / "folders" / "another"
        old.mkdir()
        (old / ".lock").touch()
        for path in (start / f"{'0' * 64}.tar", start / f".{'1' * 64}.tar.partial", old / "columns"):
            path.write_bytes(bytes(self._OTHER))
        for path in (start / f"{'0' * 64}.tar", old / ".lock"):
            os.utime(path, (1, 1))
        held = sum(path.stat().st_blocks * 512 for path in start.rglob("*"))
        self._limit = held + sum(entry["bytes"] for entry in self._entries[2:]) - int(2.5 * self._OTHER)

    def start(self, out: Path) -> None:
        if self._reader >= 0:
            os.close(self._reader)
        shutil.copytree(self.place / "start", out)
        # Another process reads a shard that the work does not have to fetch.
        self._reader = os.open(self._shard(out, 0), os.O_RDONLY)
        fcntl.flock(self._reader, fcntl.LOCK_SH)

    def work(self, out: Path) -> int:
        self._read = ""
        manifest = Manifest.load(self.url, (str(out), self._limit / 1e9))
        shards = Shards(manifest, SPLITS)
        assert shards._ahead is not None
        try:
            with mock.patch.object(ahead, "THREADS", 1):
                # Before any is read, so that operations come in one order.
                held = [shards._ahead.descriptor(number) for number in range(len(self._entries))]
            assert len(set(held)) == len(held)
            positions, sound = np.arange(len(shards)), np.zeros((len(shards), 48_000), np.int16)
            pictures = shards.read(positions, sound, Now(), 1)
            assert not any(picture.altered for picture in pictures)
            self._read = digest(pictures, sound)
            manifest.verify()
        finally:
            shards._ahead.close()
            for thread in shards._ahead._threads:
                thread.join()
        return 0

    def differs(self, out: Path) -> str | None:
        if self._read != self._bytes:
            return "other bytes were read"
        if not all(self._shard(out, number).exists() for number in range(len(self._entries))):
            return "a shard that was fetched is gone"
        used = sum(path.stat().st_blocks * 512 for path in out.rglob("*") if path.is_file())
        return self.good(out) or ("the cache is larger than it may be" if used > self._limit else None)

    def good(self, out: Path) -> str | None:
        if not self._shard(out, 0).exists():
            return "a shard that is read is gone"
        for number, entry in enumerate(self._entries):
            path = self._shard(out, number)
            if path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() != entry["sha256"]:
                return f"{path.name} is not what its name says"
        if self._open(out):
            gc.collect()  # an error of a thread holds itself
        still = self._open(out)
        return f"{still[0]} is open, and locked, for ever" if still else None

    def _open(self, out: Path) -> list[str]:
        """The files of the cache that this process has open, without the reader's."""
        found = [os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
        found.remove(str(self._shard(out, 0).resolve()))
        return [path for path in found if path.startswith(f"{out.resolve()}/")]

    def _shard(self, out: Path, number: int) -> Path:
        return out / f"{self._entries[number]['sha256']}.tar"

    def _others(self, out: Path) -> list[Path]:
        """What nobody uses."""
        return [*out.glob("0*0.tar"), *out.glob("*.partial"), *(out / "folders").glob("another")]


def digest(pictures: list[Picture], sound: np.ndarray) -> str:
    """SHA-256 of what was read."""
    state = hashlib.sha256(sound.tobytes())
    for picture in pictures:
        state.update(picture.file.tobytes())
    return state.hexdigest()


STAGES: tuple[type[Stage], ...] = (Prepare, Parts, Sending, Run, Report, Shard, RemoteCache)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """One thread, and no line of progress."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
