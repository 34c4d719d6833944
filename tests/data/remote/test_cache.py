"""The cache of shards and the store behind it, where the disk, the locks or the other side do not do as they should."""

import contextlib
import errno
import hashlib
import json
import os
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("fsspec")  # of the extra `remote`

from essl_fast.common.errors import InputError, Notice
from essl_fast.data.remote import Cache, Store, cache, store
from essl_fast.data.remote.store import Stopped
from essl_fast.data.shards import SAMPLES, Manifest, Shards
from tests.data.shards.test_shards import write_folder

DATA = bytes(range(256)) * 40
SHA = hashlib.sha256(DATA).hexdigest()
ENTRY = {"file": "train-00000.tar", "bytes": len(DATA), "sha256": SHA}


@pytest.fixture
def there(tmp_path):
    """A store with one shard, and its URL."""
    place = tmp_path / "store"
    place.mkdir()
    (place / ENTRY["file"]).write_bytes(DATA)
    return Store(f"file://{place}")


@pytest.fixture
def mine(tmp_path):
    return Cache(tmp_path / "cache")


@pytest.fixture(autouse=True)
def no_waits(monkeypatch):
    monkeypatch.setattr(store, "FIRST_WAIT", 0.001)


def content(held: int) -> bytes:
    try:
        return os.pread(held, 1 << 20, 0)
    finally:
        os.close(held)


def test_a_folder_that_cannot_be_a_cache_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"the cache .*file/x cannot be made \(Not a directory\): name another folder"):
        _ = Cache(tmp_path / "file" / "x").path
    monkeypatch.setattr(cache.os, "access", lambda *_: False)
    with pytest.raises(InputError, match="the cache .*/y cannot be written: name another folder with --data.cache"):
        _ = Cache(tmp_path / "y").path


def test_a_shard_of_another_size_is_fetched_again(mine, there):
    assert content(mine.fetch(there, ENTRY)) == DATA
    (kept,) = mine.path.glob("*.tar")
    kept.write_bytes(DATA[:-1])
    assert mine.held(SHA, len(DATA)) is None and not kept.exists()
    assert content(mine.fetch(there, ENTRY)) == DATA


def test_a_shard_that_is_removed_while_it_is_opened_is_not_there(mine, there, monkeypatch):
    os.close(mine.fetch(there, ENTRY))
    real, removed = cache._lock, []

    def late(file, how, without=True):
        if not removed:
            removed.append(file)
            mine.drop(SHA)
        return real(file, how, without)

    monkeypatch.setattr(cache, "_lock", late)
    assert mine.held(SHA, len(DATA)) is None and removed


def test_another_process_that_was_faster(mine, there, monkeypatch):
    """It has put the shard there when this one has got the lock: the one that is there is taken."""
    real, once = cache.is_at, []

    def moved(file, path):
        if path.suffix == ".partial" and not once:
            once.append(path)
            (mine.path / f"{SHA}.tar").write_bytes(DATA)
            path.unlink()
        return real(file, path)

    monkeypatch.setattr(cache, "is_at", moved)
    assert content(mine.fetch(SimpleNamespace(name_of=str), ENTRY)) == DATA and once  # nothing is asked of the store
    assert not list(mine.path.glob(".*.partial"))


def test_another_process_that_finished_between_two_looks(mine, there, monkeypatch):
    """The shard is not there at the first look, and is before this one begins to fetch it."""
    real, looks = Cache.held, []

    def late(self, sha, size):
        looks.append(sha)
        if len(looks) == 1:
            (mine.path / f"{SHA}.tar").write_bytes(DATA)
            return None
        return real(self, sha, size)

    monkeypatch.setattr(Cache, "held", late)
    assert content(mine.fetch(SimpleNamespace(name_of=str), ENTRY)) == DATA and len(looks) == 2


def test_what_a_killed_process_left_of_a_shard_is_room_for_it(there, tmp_path):
    """The file is not removed, since this process has it open, nor does it count as another one's."""
    full = Cache(tmp_path / "cache", limit=3 * len(DATA) // 2)
    (full.path / f".{SHA}.tar.partial").write_bytes(bytes(len(DATA)))
    assert content(full.fetch(there, ENTRY)) == DATA


def test_who_waits_for_another_process_can_be_stopped(mine, there):
    partial = mine.path / f".{SHA}.tar.partial"
    held = os.open(partial, os.O_RDWR | os.O_CREAT)
    cache._lock(held, cache.fcntl.LOCK_EX)
    try:
        assert mine.fetch(there, ENTRY, waits=False) is None
        stop = threading.Event()
        stop.set()
        with pytest.raises(Stopped):
            mine.fetch(there, ENTRY, stop)
    finally:
        os.close(held)


def test_a_disk_without_locks_caches_and_removes_nothing(there, tmp_path, monkeypatch):
    """Whoever uses a shard could not say so."""
    unlocked = Cache(tmp_path / "cache", limit=3 * len(DATA) // 2)

    def none(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(cache.fcntl, "flock", none)
    assert content(unlocked.fetch(there, ENTRY)) == DATA
    with pytest.raises(InputError, match="other has no room: the cache .* may hold .*nothing more can be removed"):
        unlocked.fetch(SimpleNamespace(name_of=lambda _: "other"), ENTRY | {"sha256": "0" * 64})


def test_a_disk_whose_locks_fail_is_the_caches_fault(mine, there, monkeypatch):
    def fails(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(cache.fcntl, "flock", fails)
    with pytest.raises(InputError, match=r"the cache .*/cache cannot be used \(Input/output error\)"):
        mine.fetch(there, ENTRY)


def test_a_disk_that_refuses_room_is_the_caches_fault(mine, there, monkeypatch):
    def fails(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(cache.os, "posix_fallocate", fails)
    with pytest.raises(InputError, match="cannot be used .Input/output error"):
        mine.fetch(there, ENTRY)
    assert not list(mine.path.glob(".*.partial"))


def test_a_folder_is_kept_while_it_is_held_and_goes_when_room_is_needed(mine):
    folder, held = mine.folder_of("a")
    (folder / "pairs").mkdir()
    assert not cache._remove_oldest(mine.path)
    os.close(held)
    assert cache._remove_oldest(mine.path) and not folder.exists()
    assert not cache._remove(folder, folder / ".lock")  # gone by now


def test_a_folder_that_is_removed_while_it_is_opened_is_made_again(mine, monkeypatch):
    real, removed = cache._lock, []

    def late(file, how, without=True):
        if not removed:
            removed.append(file)
            (mine.path / "folders" / "a" / ".lock").unlink()
        return real(file, how, without)

    monkeypatch.setattr(cache, "_lock", late)
    folder, held = mine.folder_of("a")
    assert removed and os.path.samestat(os.fstat(held), os.stat(folder / ".lock"))
    os.close(held)


def test_what_a_store_has(there):
    assert there.size(ENTRY["file"]) == len(DATA) and there.size("none") is None
    assert there.sizes() == {ENTRY["file"]: len(DATA)} and there.names() == [ENTRY["file"]]
    assert there.names("none") == [] and Store(f"{there.url}/none").sizes() == {}
    there.write("small.json", b"{}")
    assert there.read("small.json") == b"{}" and there.read(ENTRY["file"], 3, 9) == DATA[3:9]
    there.remove("small.json")
    there.remove("small.json")  # it is not there
    assert there.names() == [ENTRY["file"]]


def test_a_part_that_came_short_is_asked_for_again(there, monkeypatch):
    real, asked = there._system.cat_file, []

    def short(path, start=None, end=None):
        asked.append(start)
        return real(path, start=start, end=end)[: None if len(asked) > 1 else -1]

    monkeypatch.setattr(there._system, "cat_file", short, raising=False)
    with pytest.warns(Notice, match="9 bytes came of 10: attempt 1 of "):
        assert there.read(ENTRY["file"], 0, 10) == DATA[:10]
    assert len(asked) == 2


def test_the_waits_between_attempts_grow_and_end(there, monkeypatch):
    waits = []

    def fails(*_, **__):
        raise ConnectionError("cut")

    def wait(self, pause):
        waits.append(pause)

    monkeypatch.setattr(store, "FIRST_WAIT", 1.0)
    monkeypatch.setattr(store.random, "uniform", lambda low, high: (low + high) / 2)
    monkeypatch.setattr(store.threading.Event, "wait", wait)
    monkeypatch.setattr(there._system, "cat_file", fails, raising=False)
    with pytest.warns(Notice), pytest.raises(InputError, match="cannot be reached, after 6 attempts .*cut"):
        there.read(ENTRY["file"])
    assert waits == [1, 2, 4, 8, 16]


def test_a_wait_between_attempts_can_be_stopped(there, monkeypatch):
    stop = threading.Event()

    def fails(*_, **__):
        stop.set()
        raise ConnectionError("cut")

    monkeypatch.setattr(there._system, "cat_file", fails, raising=False)
    with pytest.warns(Notice, match="cut: attempt 1"), pytest.raises(Stopped):
        there.read(ENTRY["file"], stop=stop)
    with pytest.raises(Stopped):  # it is not even asked
        there.read(ENTRY["file"], stop=stop)


@pytest.mark.parametrize(
    ("facts", "code", "final"),
    [
        ({"status": 403}, 403, True),
        ({"response": SimpleNamespace(status_code=503)}, 503, False),
        ({"response": {"ResponseMetadata": {"HTTPStatusCode": 401}}}, 401, True),
        ({"response": {}}, 0, False),
        ({"response": {"ResponseMetadata": {"HTTPStatusCode": 429}}}, 429, False),  # too many requests: later
    ],
)
def test_the_code_of_each_librarys_errors(facts, code, final):
    error = RuntimeError("refused")
    vars(error).update(facts)
    assert store._status(error) == code and store._is_final(error) == final


def raised(*, cause=None, **facts):
    """An error with such attributes, made of another one."""
    error = RuntimeError("refused")
    vars(error).update(facts)
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "seconds"),
    [
        (raised(headers={"Retry-After": "7"}), 7),  # aiohttp
        (raised(response=SimpleNamespace(headers={"Retry-After": " 8 "})), 8),  # requests, httpx
        (raised(response={"ResponseMetadata": {"HTTPHeaders": {"retry-after": "9"}}}), 9),  # botocore
        (raised(cause=raised(headers={"Retry-After": "7"})), 7),  # s3fs makes errors of its own of botocore's
        (raised(headers={"Retry-After": "Wed, 21 Oct 2099 07:28:00 GMT"}), 0),
        (raised(headers={}), 0),
        (raised(headers=None), 0),
        (raised(response={}), 0),
    ],
)
def test_how_long_a_store_asks_to_wait(error, seconds):
    assert store._asks_for(error) == seconds


def test_a_store_that_asks_for_time_gets_it(there, monkeypatch):
    asked, waits = [], []

    class Stop(threading.Event):
        def wait(self, timeout=None):
            waits.append(timeout)
            return False

    def busy(*_, **__):
        asked.append(1)
        if len(asked) <= 2:
            raise raised(status=429, headers={"Retry-After": "0.2" if len(asked) > 1 else "1"})
        return DATA

    monkeypatch.setattr(there._system, "cat_file", busy, raising=False)
    monkeypatch.setattr(store, "FIRST_WAIT", 0.001)
    monkeypatch.setattr(store, "LONGEST_WAIT", 0.3)  # and no more
    with (
        pytest.warns(Notice, match="attempt 1 of 6, the next in 0[.][34] s"),
        pytest.warns(Notice, match="attempt 2 of 6, the next in 0[.]0 s"),
    ):
        assert there.read(ENTRY["file"], stop=Stop()) == DATA
    assert 0.3 <= waits[0] <= 0.3 * 1.25 and waits[1] < 0.01 and len(waits) == 2 and len(asked) == 3


def test_a_code_is_found_in_what_an_error_was_made_of():
    error = raised(cause=raised(response={"ResponseMetadata": {"HTTPStatusCode": 401}}))
    assert store._status(error) == 401 and store._is_final(error)


@pytest.mark.parametrize("error", [TypeError("unexpected keyword"), ValueError("Invalid endpoint: 127")])
def test_what_a_library_does_not_understand_is_asked_for_once(error, there, monkeypatch):
    asked = []

    def fails(*_, **__):
        asked.append(1)
        raise error

    monkeypatch.setattr(there._system, "cat_file", fails, raising=False)
    with pytest.raises(InputError, match=f"{ENTRY['file']} cannot be asked for .*{error}.: check the URL, and the"):
        there.read(ENTRY["file"])
    assert len(asked) == 1


def test_a_long_wait_is_told_while_it_lasts(there, monkeypatch):
    real, warn, told = there._system.cat_file, store.warnings.warn, threading.Event()

    def slow(*args, **named):
        assert told.wait(120)
        return real(*args, **named)

    def heard(*given, **named):
        warn(*given, **named)
        told.set()

    monkeypatch.setattr(there._system, "cat_file", slow, raising=False)
    monkeypatch.setattr(store, "TOLD_EVERY", 0.05)
    monkeypatch.setattr(store, "warnings", SimpleNamespace(warn=heard))
    with pytest.warns(Notice, match=f"{ENTRY['file']}: waiting for it since [0-9]+ s"):
        assert there.read(ENTRY["file"]) == DATA


def test_a_server_that_drips_counts_as_stuck(monkeypatch):
    """It is never silent for a minute, and 8 MB would take it three months."""
    pytest.importorskip("aiohttp")
    over = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            with contextlib.suppress(OSError):
                while not over.wait(0.02):
                    self.wfile.write(b"x")

        def log_message(self, *_):
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setattr(store, "FIRST_WAIT", 0.001)
    monkeypatch.setattr(Store, "_ends", lambda self, size: {"timeout": 0.05})
    dripping = Store(f"http://127.0.0.1:{server.server_port}/a")
    try:
        with (
            pytest.warns(Notice, match="Timeout"),
            pytest.raises(InputError, match="cannot be reached, after 6 attempts"),
        ):
            dripping.read("train-00000.tar", 0, 1000)
    finally:
        over.set()
        server.shutdown()
        server.server_close()


def test_an_attempt_has_an_end_where_it_can_be_stopped(there):
    assert there._ends(1 << 23) == {}  # of a folder of this machine
    pytest.importorskip("aiohttp")
    ends = Store("http://127.0.0.1:1/a")._ends
    assert ends(1 << 23)["timeout"] == 60 + (1 << 23) / store.SLOWEST > ends(0)["timeout"] > 300


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("prepared"))


def test_a_column_that_is_gone_is_named_by_its_url(folder, tmp_path):
    url = copied(folder, tmp_path / "copy")
    (tmp_path / "copy" / "pairs" / "time.npy").unlink()
    with pytest.raises(
        InputError, match=f"{re.escape(url)}/pairs/time.npy is missing, though the manifest names it: prepare"
    ):
        Manifest.load(url, (str(tmp_path / "cache"), 0.0))


def test_columns_that_do_not_fit_are_fetched_once_more_and_named_by_their_url(folder, tmp_path):
    """An older manifest has no SHA-256 of them, so a file that came damaged shows only where it does not fit."""
    url = copied(folder, tmp_path / "copy", lambda header: header.pop("files", None))
    np.save(tmp_path / "copy" / "pairs" / "time.npy", np.zeros(3, np.uint8))
    place = str(tmp_path / "cache"), 0.0
    with pytest.raises(InputError, match=f"^{re.escape(url)}/pairs/time.npy has uint8"):
        Manifest.load(url, place)
    np.save(tmp_path / "copy" / "pairs" / "time.npy", np.load(folder / "pairs" / "time.npy"))
    assert len(Manifest.load(url, place)) == 50  # the copies are not kept


def test_a_pair_whose_bytes_were_changed_before_they_came(folder, tmp_path):
    """The manifest has the SHA-256 of the changed shard: it is not the cache's fault, and is not fetched again."""
    place = tmp_path / "copy"

    def spoiled(header):
        entry = header["splits"]["train"]["shards"][0]
        data = bytearray((place / entry["file"]).read_bytes())
        at = data.index(b"\xff\xd8") + 200
        data[at : at + 8] = bytes(8)
        (place / entry["file"]).write_bytes(data)
        entry["sha256"] = hashlib.sha256(data).hexdigest()

    url = copied(folder, place, spoiled)
    shards = Shards(Manifest.load(url, (str(tmp_path / "cache"), 0.0)), ["train"])
    with ThreadPoolExecutor(2) as pool:
        pictures = shards.read(np.arange(len(shards)), np.empty((len(shards), SAMPLES), "<i2"), pool, 2)
    assert [place for place, picture in enumerate(pictures) if picture.altered] == [0]
    again = shards.read(np.arange(2), np.empty((2, SAMPLES), "<i2"), ThreadPoolExecutor(1), 1)
    assert again[0].altered and not again[1].altered
    with pytest.raises(InputError, match="cannot be used .*prepare"):
        shards.read_sound(np.array([0]))
    assert np.array_equal(*shards.read_sound(np.array([0, 1]), skip=True))  # the next pair's instead


def copied(folder: Path, to: Path, change=lambda header: None) -> str:
    """A copy of a prepared folder with another header, as a URL."""
    to.mkdir()
    for path in folder.rglob("*"):
        if path.is_file():
            (to / path.relative_to(folder)).parent.mkdir(parents=True, exist_ok=True)
            (to / path.relative_to(folder)).write_bytes(path.read_bytes())
    header = json.loads((to / "manifest.json").read_text())
    change(header)
    (to / "manifest.json").write_text(json.dumps(header))
    return f"file://{to}"
