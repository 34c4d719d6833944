"""Prepared data on a web server that has faults: what arrives, what is told, and what the cache keeps."""

import errno
import gc
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("aiohttp")  # of the extra `remote`

from essl_fast.common.errors import InputError, Notice
from essl_fast.data.remote import Cache, Store, ahead, cache, store
from essl_fast.data.shards import QUARANTINE, SAMPLES, Manifest, Shards
from essl_fast.prepare import verify
from tests import ROOT
from tests.data.shards.test_shards import write_folder
from tests.tools.processes import open_files
from tests.tools.web import BUSY, CUT, DENIED, GONE, SLOW, STUCK, WRONG, Web

SHARDS = ["train-00000.tar", "train-00001.tar", "train-00002.tar"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("prepared"))


@pytest.fixture(scope="module")
def served(folder):
    web = Web(folder)
    yield web
    web.close()


@pytest.fixture
def web(served, monkeypatch):
    """The server without faults; whoever waits to try again waits for a moment only."""
    served.reset()
    monkeypatch.setattr(store, "FIRST_WAIT", 0.001)
    monkeypatch.setattr(cache, "PART", 1 << 20)  # so that a shard of 2 MB has parts
    return served


def read(manifest: Manifest, splits=("train",)) -> tuple[list[bytes], bytes]:
    """(frames, sounds) of all pairs."""
    shards = Shards(manifest, splits)
    pcm = np.empty((len(shards), SAMPLES), "<i2")
    with ThreadPoolExecutor(2) as pool:
        pictures = shards.read(np.arange(len(shards)), pcm, pool, 2)
    assert not any(picture.altered for picture in pictures)
    return [picture.file.tobytes() for picture in pictures], pcm.tobytes()


def told(url: str, place: Path, gigabytes: float = 0.0) -> tuple[list[str], object]:
    """(what was told, the pairs or the InputError's text) of reading a folder."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            found: object = read(Manifest.load(url, (str(place), gigabytes)))
        except InputError as error:
            found = str(error)
    return [str(each.message) for each in said if issubclass(each.category, Notice)], found


def test_the_same_pairs_come_and_each_shard_once(web, folder, tmp_path):
    place = (str(tmp_path), 0.0)
    assert read(Manifest.load(web.url, place)) == read(Manifest.load(folder))
    asked = dict(web.asked)
    manifest = Manifest.load(f"{web.url}/", place)
    assert read(manifest) == read(Manifest.load(folder)) and manifest.place == web.url
    new = {name for name in web.asked if web.asked[name] != asked.get(name)}
    assert new == {"manifest.json", QUARANTINE, "clip_checks.npy"}
    assert [asked[name] for name in SHARDS] == [2, 2, 1]  # parts
    assert not list(tmp_path.glob(".*.partial"))


def test_a_server_without_ranges_serves(web, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "PART", 1 << 16)
    web.ranges = False
    assert told(web.url, tmp_path) == ([], read(Manifest.load(folder)))
    assert (folder / SHARDS[0]).stat().st_size > 4 * cache.PART and web.asked[SHARDS[0]] <= 2  # each brings all of it


@pytest.mark.parametrize("fault", [SLOW, BUSY, CUT, WRONG])
def test_a_fault_that_passes_is_told_and_the_pairs_are_right(fault, web, folder, tmp_path):
    web.fault = lambda name, count: fault if count == 1 and name == SHARDS[1] else None
    said, found = told(web.url, tmp_path)
    assert found == read(Manifest.load(folder))
    if fault == SLOW:
        assert not said
    else:
        (line,) = said
        assert f"{web.url}/{SHARDS[1]}" in line
        assert ("(SHA-256): fetched again, 2 of 3" if fault == WRONG else "attempt 1 of 6, the next in 0.0 s") in line


@pytest.mark.parametrize("fault", [BUSY, CUT])
@pytest.mark.parametrize("name", ["manifest.json", "pairs/crc.npy", "train-00001.idx"])
def test_a_fault_of_what_describes_the_folder_passes_too(fault, name, web, folder, tmp_path):
    web.fault = lambda asked, count: fault if count <= 2 and asked == name else None
    said, found = told(web.url, tmp_path)
    assert (
        found == read(Manifest.load(folder)) and len(said) == 2 and all(f"{web.url}/{name}: " in line for line in said)
    )


@pytest.mark.parametrize("name", ["pairs/class_id.npy", "val-00000.idx"])
def test_a_damaged_description_is_fetched_again(name, web, folder, tmp_path):
    web.fault = lambda asked, count: WRONG if count == 1 and asked == name else None
    with pytest.warns(
        Notice, match=f"{web.url}/{name} came with other bytes than its manifest says .SHA-256.: fetched"
    ):
        found = Manifest.load(web.url, (str(tmp_path), 0.0))
    assert found.class_id.tolist() == Manifest.load(folder).class_id.tolist()
    assert read(found, ["val"]) == read(Manifest.load(folder), ["val"])


@pytest.mark.parametrize(
    "fault, says",
    [
        (BUSY, "cannot be reached, after 6 attempts ("),
        (CUT, "cannot be reached, after 6 attempts ("),
        (WRONG, "is not what the manifest of {url} says: its SHA-256 differs, 3 times. Upload it again"),
        (GONE, "is gone, though the manifest of {url} lists it: put it back, or prepare again"),
        (DENIED, ": no access ("),
    ],
)
def test_a_fault_that_stays_ends_with_the_url(fault, says, web, tmp_path):
    web.fault = lambda name, count: fault if name == SHARDS[2] else None
    said, found = told(web.url, tmp_path)
    assert str(found).startswith(f"{web.url}/{SHARDS[2]}") and says.format(url=web.url) in str(found)
    assert len(said) == {BUSY: 5, CUT: 5, WRONG: 2, GONE: 0, DENIED: 0}[fault]
    until = time.monotonic() + 120
    while list(tmp_path.glob(".*.partial")):  # the threads that fetched others end, too
        assert time.monotonic() < until
        time.sleep(0.01)
    web.fault = lambda name, count: None
    assert isinstance(told(web.url, tmp_path)[1], tuple)


def test_a_folder_without_a_manifest_is_named(web, tmp_path):
    assert told(f"{web.url}/nowhere", tmp_path)[1] == (
        f"{web.url}/nowhere/manifest.json is not there, so {web.url}/nowhere is not a complete prepared folder: check "
        "the name, or prepare it with `python -m essl_fast.prepare ... --out URL`"
    )


def test_a_cache_that_is_too_small_says_so_before_anything_comes(web, tmp_path):
    said, found = told(web.url, tmp_path, 0.004)
    size = sum(entry["bytes"] for entry in Manifest.load(web.url, (str(tmp_path), 0.0)).entries("train"))
    assert found == (
        f"the shards of {web.url} that are read together take {size / 1e6:.2f} MB, and the cache {tmp_path} may "
        "hold 4.00 MB: give more with --data.cache_gb, or a folder on a larger disk with --data.cache"
    )
    assert not said and SHARDS[0] not in web.asked


def test_a_full_disk_is_named(web, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    _, found = told(web.url, tmp_path)
    assert f"has no room: the disk of the cache {tmp_path} is full" in str(found) and "--data.cache" in str(found)
    assert not list(tmp_path.glob("*.tar"))


def failing(function, at, error=errno.EIO):
    """`function`, which fails for paths that `at` says."""

    def wrapped(path, *more, **named):
        if at(str(path)):
            raise OSError(error, os.strerror(error))
        return function(path, *more, **named)

    return wrapped


def test_a_disk_that_fails_is_the_caches_fault_and_not_the_urls(web, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "open", failing(os.open, lambda path: path.endswith(".tar.partial")))
    _, found = told(web.url, tmp_path)
    assert str(found).startswith(f"the cache {tmp_path} cannot be used (Input/output error)")
    assert "--data.cache" in str(found) and web.url not in str(found)


def test_a_disk_that_fails_under_the_copies_is_the_caches_fault_too(web, tmp_path, monkeypatch):
    monkeypatch.setattr(np, "memmap", failing(np.memmap, lambda path: path.endswith(".npy")))
    _, found = told(web.url, tmp_path)
    assert str(found).startswith(f"the cache {tmp_path} cannot be used (Input/output error)"), found
    assert "--data.cache" in str(found) and web.url not in str(found)


def test_a_lock_ends_also_where_what_is_half_there_cannot_be_removed(web, tmp_path, monkeypatch):
    store_, entry = Store(web.url), Manifest.load(web.url, (str(tmp_path), 0.0)).entries("train")[0]
    own = Cache(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", failing(os.replace, lambda path: path.endswith(".partial")))
        patch.setattr(Path, "unlink", failing(Path.unlink, lambda path: path.endswith(".partial")))
        with pytest.raises(InputError, match="cannot be used"):
            own.fetch(store_, entry)
    held = own.fetch(store_, entry, waits=False)  # None if the failed attempt still held its lock
    assert held is not None
    os.close(held)


def test_an_error_lets_the_cache_go_with_the_reader(web, tmp_path):
    """The error goes to whoever waits. It must not keep the reader, whose files stay locked in the cache."""
    web.fault = lambda name, count: GONE if name == SHARDS[2] else None
    assert "is gone" in str(told(web.url, tmp_path)[1])
    deadline = time.monotonic() + 120
    while mine := open_files(tmp_path):
        assert time.monotonic() < deadline, mine
        time.sleep(0.01)  # threads that fetched others end
        gc.collect()


def test_an_error_between_lock_and_use_leaves_no_lock(web, tmp_path, monkeypatch):
    """Of a shard that is there and of one that comes; another process waits for both."""
    first, second = Manifest.load(web.url, (str(tmp_path), 0.0)).entries("train")[:2]
    own, source = Cache(tmp_path), Store(web.url)
    os.close(own.fetch(source, first))
    for entry in (first, second):
        with monkeypatch.context() as patch:
            patch.setattr(os.path, "samestat", failing(lambda *_: True, lambda path: True))
            with pytest.raises(InputError, match="cannot be used"):
                own.fetch(source, entry)
    assert not [path for path in open_files(tmp_path) if "/folders/" not in path]
    for entry in (first, second):
        os.close(own.fetch(source, entry, waits=False))


def test_what_was_half_removed_goes_first(web, tmp_path):
    """A folder is renamed before its files go, so nobody finds half of one."""
    entry = Manifest.load(web.url, (str(tmp_path), 0.0)).entries("val")[0]
    Cache(tmp_path).fetch(Store(web.url), Manifest.load(web.url, (str(tmp_path), 0.0)).entries("train")[0])
    rest, whole = tmp_path / "folders" / ".gone-a", tmp_path / "folders" / "b"
    for folder in (rest, whole):
        folder.mkdir()
        (folder / "columns").write_bytes(bytes(1 << 20))
    (whole / ".lock").touch()
    used = sum(path.stat().st_blocks * 512 for path in tmp_path.rglob("*"))
    os.close(Cache(tmp_path, used + entry["bytes"] - (1 << 19)).fetch(Store(web.url), entry))
    assert not rest.exists() and whole.exists()


def test_memory_that_is_short_is_not_the_stores_fault(web, tmp_path, monkeypatch):
    source = Store(web.url)

    def short(*_, **__):
        raise MemoryError

    monkeypatch.setattr(source._system, "cat_file", short)
    with pytest.raises(MemoryError):
        source.read(SHARDS[0])


def test_room_is_made_of_what_nobody_uses_the_oldest_first(web, tmp_path):
    entries = Manifest.load(web.url, (str(tmp_path), 0.0)).entries(["train", "val", "test"])
    first, second, third, val, test = entries
    kept = Cache(tmp_path, sum(entry["bytes"] for entry in entries[:3]) + (1 << 18))
    source = Store(web.url)
    held = kept.fetch(source, first)
    os.close(kept.fetch(source, second))
    os.close(kept.fetch(source, third))
    (tmp_path / ".left.tar.partial").write_bytes(b"of a process that was killed")
    os.utime(tmp_path / f"{second['sha256']}.tar", (1, 1))
    os.utime(tmp_path / f"{first['sha256']}.tar", (0, 0))  # the oldest, but it is in use
    os.close(kept.fetch(source, val))
    assert not (tmp_path / ".left.tar.partial").exists()
    left = {path.stem for path in tmp_path.glob("*.tar")}
    assert left == {first["sha256"], third["sha256"], val["sha256"]}
    assert len(os.pread(held, 1 << 24, 0)) == first["bytes"]
    small = Cache(tmp_path, first["bytes"] + test["bytes"] + (1 << 18))
    also = small.fetch(source, test)
    with pytest.raises(
        InputError,
        match=f"{SHARDS[1]} has no room: the cache .* may hold .*, since it is in use or its disk fails; give more",
    ):
        small.fetch(source, second)
    os.close(held)
    os.close(also)
    os.close(small.fetch(source, second))


def test_a_killed_process_leaves_nothing_locked(web, folder, tmp_path):
    """It is killed while it fetches; the lock goes with it, and the next one makes the shard whole."""
    entry = Manifest.load(web.url, (str(tmp_path), 0.0)).entries("train")[0]
    code = (
        "import sys, time; from pathlib import Path; from essl_fast.data.remote.cache import Cache\n"
        "class Slow:\n"
        "    name = name_of = lambda *_: 'slow'\n    gives_parts = True\n"
        "    def read(self, *_): print('reads', flush=True); time.sleep(600)\n"
        f"Cache(Path({str(tmp_path)!r})).fetch(Slow(), {entry!r})"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=ROOT, text=True)
    assert child.stdout is not None and child.stdout.readline() == "reads\n"
    assert Cache(tmp_path).fetch(Store(web.url), entry, waits=False) is None  # the other one is at it
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert (tmp_path / f".{entry['sha256']}.tar.partial").exists()
    assert told(web.url, tmp_path) == ([], read(Manifest.load(folder)))


def test_processes_share_the_work(web, folder, tmp_path):
    """Two readers with caches of their own objects, as two processes have; each part is asked for once."""
    web.delay = 0.02
    place = (str(tmp_path), 0.0)
    Manifest.load(web.url, place)
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda _: read(Manifest.load(web.url, place)), range(2)))
    assert found[0] == found[1] == read(Manifest.load(folder))
    assert [web.asked[name] for name in SHARDS] == [2, 2, 1]


def test_a_file_that_is_damaged_in_the_cache_is_fetched_again(web, folder, tmp_path):
    assert not told(web.url, tmp_path)[0]
    (damaged,) = [path for path in tmp_path.glob("*.tar") if path.name.startswith(_sha(folder, 1))]
    with open(damaged, "r+b") as file:
        file.seek(1 << 20)
        file.write(bytes(1 << 18))
    said, found = told(web.url, tmp_path)
    assert found == read(Manifest.load(folder))
    assert said == [f"{SHARDS[1]} in the cache was damaged: it is fetched again"]


def _sha(folder: Path, number: int) -> str:
    return Manifest.load(folder).entries("train")[number]["sha256"]


def test_a_file_that_is_damaged_between_two_epochs_is_fetched_again(web, folder, tmp_path):
    """A picture with some other bytes often decodes: it would be trained on."""
    shards = Shards(Manifest.load(web.url, (str(tmp_path), 0.0)), ["train"])
    pcm = np.empty((len(shards), SAMPLES), "<i2")
    with ThreadPoolExecutor(2) as pool:
        first = shards.read(np.arange(len(shards)), pcm, pool, 2)
        sounds = pcm.copy()
        for path in tmp_path.glob("*.tar"):
            with open(path, "r+b") as file:  # in its place: whoever has it open reads the damage
                file.write(bytes(byte ^ 1 for byte in path.read_bytes()))
        with pytest.warns(Notice, match="in the cache was damaged: it is fetched again"):
            again = shards.read(np.arange(len(shards)), pcm, pool, 2)
    assert not any(picture.altered for picture in again) and (pcm == sounds).all()
    assert all(np.array_equal(one.file, two.file) for one, two in zip(first, again, strict=True))


def test_a_loader_that_is_closed_does_not_wait(web, folder, tmp_path):
    from essl_fast.data.loading import Loader

    web.fault, web.stuck = (lambda name, count: STUCK if name == SHARDS[1] else None), 600.0
    same = {"batch_size": 8, "side": 32, "shuffle": False, "threads": 1}
    loader = Loader(Manifest.load(web.url, (str(tmp_path), 0.0)), "train", **same)
    ended: list[BaseException] = []

    def wait_for_a_batch() -> None:
        try:
            next(iter(loader))
        except RuntimeError as error:  # the loader was closed meanwhile
            ended.append(error)

    waiting = threading.Thread(target=wait_for_a_batch)
    waiting.start()
    while SHARDS[1] not in web.asked:
        time.sleep(0.01)
    begin = time.perf_counter()
    loader.close()
    waiting.join()
    assert time.perf_counter() - begin < web.stuck / 2 and len(ended) == 1
    web.freed.set()
    web.reset()
    loader.seek(0)
    with loader, Loader(folder, "train", **same) as near:
        for ours, other in zip(loader, near, strict=True):
            assert (ours.frames == other.frames).all()


def test_batches_are_those_of_the_folder(web, folder, tmp_path):
    from essl_fast.data.loading import Loader

    for splits in ("train", ["val", "test"]):
        same = {"batch_size": 4, "side": 32, "shuffle": True, "threads": 2, "seed": 3}
        with (
            Loader(folder, splits, **same) as near,
            Loader(Manifest.load(web.url, (str(tmp_path), 0.0)), splits, **same) as far,
        ):
            for ours, other in zip(far, near, strict=True):
                assert all(bool((a == b).all()) for a, b in zip(ours, other, strict=True))
            assert far.state_dict() == near.state_dict()


def test_secrets_stay_with_who_gave_them(web, tmp_path):
    url = web.url.replace("http://", "http://anna:op%20en@") + "?X-Amz-Signature=abcdef0123&sig=s%2Bx9y8"
    manifest = Manifest.load(url, (str(tmp_path), 0.0))
    assert manifest.place == web.url.replace("http://", "http://***@") + "?***"
    web.fault = lambda name, count: BUSY if name == SHARDS[0] else None
    said, found = told(url, tmp_path)
    for text in [*said, str(found), *(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*"))]:
        for secret in ("anna", "op%20en", "op en", "abcdef0123", "s%2Bx9y8", "s+x9y8"):
            assert secret not in text
    assert manifest.named(SHARDS[0]) in str(found) and len(said) == 5
    with pytest.raises(InputError, match="was written down without its user, password or query; give it whole, with"):
        Manifest.load(manifest.place, (str(tmp_path), 0.0))


def test_a_run_keeps_the_url_without_its_secrets(web, tmp_path, monkeypatch):
    """What checkpoints, config.yaml and the log get, is what the settings and the manifest say after it was opened."""
    from essl_fast import config
    from essl_fast.runtime.distributed import ALONE
    from essl_fast.train import run

    url, said = web.url.replace("http://", "http://anna:opensesame@") + "?sig=abcdef0123", []
    monkeypatch.chdir(tmp_path.parent)
    settings = config.load("demo", ["--data.root", url, "--data.cache", tmp_path.name, "--data.cache_gb", "1"])
    data = run.open_data(settings, ALONE, said.append)
    kept = web.url.replace("http://", "http://***@") + "?***"
    assert settings.data.root == data.manifest.place == kept
    assert settings.data.cache == str(tmp_path)  # a checkpoint may be used from any folder
    text = f"{config.to_dict(settings)} {data.manifest!r} {said}"
    assert kept in text and "opensesame" not in text and "abcdef" not in text
    with pytest.raises(InputError, match="was written down without its user, password or query"):
        run.open_data(settings, ALONE, said.append)  # as --resume does


def test_verify_keeps_its_list_beside_the_cache_of_a_server_that_takes_none(web, tmp_path):
    place = (str(tmp_path), 0.0)
    manifest = Manifest.load(web.url, place)
    with pytest.warns(Notice, match=f"{QUARANTINE} stays in .* and counts on this machine alone: .* takes no files"):
        assert verify(manifest, workers=1) == {}
    assert manifest.named(QUARANTINE) == str(manifest.root / QUARANTINE)
    (manifest.root / QUARANTINE).write_text(
        '{"row": 2, "key": "vid\\u00e9o.2 a_000002", "reason": "black", "detail": ""}\n'
    )
    assert Manifest.load(web.url, place).quarantine() == {2: "black"}


@pytest.mark.parametrize(
    "url, package",
    [("s3://a/b", "s3fs"), ("gs://a/b", "gcsfs"), ("hf://datasets/a/b", "huggingface_hub"), ("s3://a/b", "fsspec")],
)
def test_a_missing_package_is_one_line(url, package, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, package, None)
    if package != "fsspec":
        import fsspec

        assert fsspec
        monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, url.partition(":")[0], raising=False)
    with pytest.raises(InputError, match=f"^{url}: the package {package} is missing: pip install {package}( .or|$)"):
        Manifest.load(url, (str(tmp_path), 0.0))


def test_an_unknown_kind_of_url_is_one_line(tmp_path):
    with pytest.raises(InputError, match="^nope://a/b: fsspec cannot open such a place"):
        Manifest.load("nope://a/b", (str(tmp_path), 0.0))


def test_a_folder_of_this_machine_needs_nothing_of_this(folder):
    """Neither fsspec nor the code for what is elsewhere is imported."""
    code = (
        "import sys; from essl_fast.data.shards import Manifest, Shards\n"
        f"Shards(Manifest.load({str(folder)!r}), ['train'])\n"
        "assert not [n for n in sys.modules if n.split('.')[0] in ('fsspec', 'aiohttp') or 'data.remote' in n]"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_as_many_files_may_be_open_as_there_are_shards():
    import resource

    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (400, before[1]))
        ahead._allow_open_files(300)
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 812
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
