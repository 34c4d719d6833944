"""`prepare --out URL`: the bytes of a folder, a manifest that comes last, and runs that go on."""

import errno
import hashlib
import os
import re
from dataclasses import replace

import pytest

from essl_fast.common.errors import InputError, Notice
from essl_fast.data.remote import Cache, Store, store
from essl_fast.data.shards import CLIP_CHECKS, QUARANTINE, Manifest
from essl_fast.prepare import PreparedDifferently, assembly, print_summary, reporter, reporting
from essl_fast.prepare import __main__ as door
from essl_fast.prepare.folder import own_folder
from essl_fast.prepare.sending import Destination
from tests.tools.buckets import bucket  # noqa: F401  # a fixture
from tests.tools.prepare import arguments, hashes, run

pytest.importorskip("s3fs")  # of the extra `remote`
pytest.importorskip("moto.server")


@pytest.fixture
def out(bucket, request, tmp_path, monkeypatch):  # noqa: F811
    """A URL of its own, and a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(store, "FIRST_WAIT", 0.001)
    return f"{bucket}/{request.node.name.replace('[', '-').strip(']')}"


def sent_to(url: str) -> dict[str, str]:
    """Name → SHA-256 of every object below a URL."""
    system, root = Store(url)._system, url.removeprefix("s3://")
    system.invalidate_cache()
    return {
        path.removeprefix(f"{root}/"): hashlib.sha256(system.cat_file(path)).hexdigest() for path in system.find(root)
    }


def uploads(monkeypatch, at: int = 0, error: BaseException | None = None) -> list[str]:
    """The files that are sent from now on; the upload number `at` fails with `error`."""
    said, real = [], Store.upload

    def upload(self, file, path):
        said.append(file)
        if len(said) == at and error is not None:
            raise error
        real(self, file, path)

    monkeypatch.setattr(Store, "upload", upload)
    return said


@pytest.mark.slow
def test_the_bytes_are_those_of_a_folder(out, world, reference, capsys, tmp_path):
    assert door.main(arguments(world, out, "--workers", "1")) == 0
    told = capsys.readouterr()
    assert out in told.out
    assert sent_to(out) == hashes(reference)
    assert not list((tmp_path / "cache").rglob("made/*"))
    assert door.main(arguments(world, out, "--workers", "1")) == 0
    assert f"{out} is complete: nothing to do" in capsys.readouterr().err
    with pytest.raises(
        PreparedDifferently, match=f"^{re.escape(out)} was prepared differently .pairs_per_shard was 5, is 6.: choose"
    ):
        run(world, out, pairs_per_shard=6)


@pytest.mark.slow
@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_run_that_ended_goes_on(elsewhere, out, world, reference, monkeypatch, tmp_path):
    """It ends while the third shard is sent. Until the end there is no manifest."""
    with monkeypatch.context() as patch:
        said = uploads(patch, 8, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            run(world, out)
    assert said[-1].endswith(".tar") and "manifest.json" not in sent_to(out)
    with pytest.raises(InputError, match="manifest.json is not there"):
        Manifest.load(out)
    Store(out).write("train-00007.tar", b"of a run before, which had more shards")
    if elsewhere:  # as if another machine went on
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    with monkeypatch.context() as patch:
        again = uploads(patch)
        run(world, out)
    assert not {name for name in said[:-1] if name.endswith(".tar")} & set(again)
    assert again[-2:] == ["manifest.json", "preview.png"]
    assert sent_to(out) == hashes(reference)


def test_this_machine_holds_one_shard_at_a_time(out, world, monkeypatch):
    held, real = [], Destination.send

    def send(self, shard):
        held.append(len(list(self.folder.glob("*.tar"))))
        real(self, shard)

    monkeypatch.setattr(Destination, "send", send)
    manifest = run(world, out)
    assert held == [1] * len(manifest.entries(["train", "val", "test"]))


@pytest.mark.slow
def test_a_shard_that_is_gone_is_made_again(out, world, reference, monkeypatch):
    """Meanwhile there is no manifest, which would be of other bytes."""
    run(world, out)
    Store(out).remove("val-00000.tar")
    real = Destination.send

    def send(self, shard):
        assert self.manifest() is None
        real(self, shard)

    monkeypatch.setattr(Destination, "send", send)
    run(world, out)
    assert sent_to(out) == hashes(reference)


def test_a_store_that_fails_for_a_moment_is_told(out, world, reference, monkeypatch):
    system = Store(out)._system  # which every Store of this kind shares
    real, count = system.put_file, iter(range(1000))

    def put(*given, **named):
        if next(count) in (2, 5):
            raise ConnectionError("the store is busy")
        return real(*given, **named)

    monkeypatch.setattr(system, "put_file", put)
    with pytest.warns(Notice, match=f"^{re.escape(out)}/.* the store is busy: attempt 1 of 6"):
        run(world, out)
    assert sent_to(out) == hashes(reference)


def test_a_store_that_stays_away_ends_with_the_url(out, world, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError("denied")

    monkeypatch.setattr(Store(out)._system, "pipe_file", refuse)
    with pytest.raises(
        InputError, match=f"^{re.escape(out)}/.parts/begun: no access .PermissionError: denied.; check the name"
    ):
        run(world, out)


def test_a_bucket_that_does_not_exist_is_named(out, world):  # `out` opens the store
    url = "s3://no-such-bucket/a"
    with pytest.raises(InputError, match=f"^{url}/.parts/begun cannot be written: its bucket or folder does not exist"):
        run(world, url)


def test_a_url_of_a_folder_of_this_machine(world, reference, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    run(world, f"file://{tmp_path}/new/a folder")
    assert hashes(tmp_path / "new" / "a folder") == hashes(reference)


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_run_to_a_folder_by_its_url_goes_on(elsewhere, world, reference, tmp_path, monkeypatch):
    """It ends while the third shard is sent; a shard that was sent is lost, and a note of one is cut short."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    place = tmp_path / "out"
    with monkeypatch.context() as patch:
        said = uploads(patch, 8, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            run(world, f"file://{place}")
    first, second = (name for name in said[:-1] if name.endswith(".tar"))
    assert (place / first).is_file() and not (place / "manifest.json").exists()
    (place / second).unlink()
    (place / "train-00007.tar").write_bytes(b"of another data set, whose manifest is gone")
    if elsewhere:  # as if another machine went on
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    else:
        notes = sorted((tmp_path / "cache").rglob("made/**/*.json"))
        notes[-1].write_bytes(notes[-1].read_bytes()[:-9])
    with monkeypatch.context() as patch:
        again = uploads(patch)
        run(world, f"file://{place}")
    assert first not in again and second in again and again[-2:] == ["manifest.json", "preview.png"]
    assert hashes(place) == hashes(reference)


def test_a_cache_that_cannot_be_written_has_a_remedy_that_prepare_knows(world, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(InputError, match="^the cache .* cannot be made .* or the variable XDG_CACHE_HOME"):
        run(world, "s3://bucket/a")


@pytest.mark.slow
def test_what_verify_found_in_other_pairs_does_not_stay(out, world):
    run(world, out)
    store_of = Store(out)
    for name in (QUARANTINE, CLIP_CHECKS):
        store_of.write(name, b"of the videos as they were")
    store_of.remove("manifest.json")  # as who prepares mended videos again
    run(world, out)
    assert not {QUARANTINE, CLIP_CHECKS} & sent_to(out).keys() and "manifest.json" in sent_to(out)


@pytest.mark.slow
def test_what_the_end_lacked_comes_with_the_next_run(out, world, monkeypatch):
    """A preview that was not sent; and a cache that fails when the summary is read is not the URL's fault."""
    run(world, out)
    for ended in (True, False):
        Store(out).remove("preview.png")
        if not ended:
            (Destination(out).folder / ".parts").mkdir(parents=True)  # as a run leaves it that ended in between
        manifest = run(world, out)
        assert "preview.png" in sent_to(out)
    listing, real = manifest.bring("left_out.jsonl"), open

    def failing(path, *more, **named):
        if path == listing:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return real(path, *more, **named)

    monkeypatch.setattr(reporting, "open", failing, raising=False)
    with pytest.raises(InputError, match="^the cache .* cannot be used .*left_out.jsonl: Input/output error"):
        print_summary(manifest)
    with pytest.raises(InputError, match=f"^{re.escape(str(listing))} cannot be read .Input/output error.: mend that"):
        print_summary(replace(manifest, source=None))


def test_shards_of_something_else_are_not_replaced(out, world):
    """Others name their shards as we do, and who ends removes shards that are not in its manifest."""
    theirs = Store(out)
    for name in ("train-00000.tar", "train-00000.idx", "train-00099.tar", "README.md"):
        theirs.write(name, b"theirs")
    with pytest.raises(InputError, match=f"^{re.escape(out)} holds files that prepare did not make, such as tr"):
        run(world, out)
    assert sorted(theirs.names()) == ["README.md", "train-00000.idx", "train-00000.tar", "train-00099.tar"]
    assert theirs.read("train-00000.tar") == b"theirs"
    for name in ("train-00000.tar", "train-00000.idx", "train-00099.tar"):
        theirs.remove(name)
    run(world, out)  # a file of another name is in nobody's way
    assert theirs.read("README.md") == b"theirs" and "manifest.json" in sent_to(out)


def test_what_fails_on_this_machine_is_told_with_the_url(out, world, monkeypatch):
    place = Destination(out).folder
    with (
        own_folder(place, reporter(False)),
        pytest.raises(InputError, match=f"^another prepare is at work on {re.escape(out)}:"),
    ):
        run(world, out)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(assembly.ShardWriter, "add", full)
    with pytest.raises(
        InputError,
        match=f"^cannot write {re.escape(str(place))}, where {re.escape(out)} is made: .* XDG_CACHE_HOME, then go on$",
    ):
        run(world, out)


def test_what_arrives_short_is_not_noted(out, world, monkeypatch):
    monkeypatch.setattr(Store, "size", lambda self, file: 7)
    with pytest.raises(
        InputError, match=f"^{re.escape(out)}/train-00000.tar has 7 bytes, not the .* that were sent: run the same"
    ):
        run(world, out)
    assert not [name for name in sent_to(out) if name.endswith(".json")] or "manifest.json" not in sent_to(out)


@pytest.fixture
def machines(tmp_path, monkeypatch):
    """Two machines that have each made one shard of a data set, to send it to the same URL."""
    made = []
    for name in ("first", "second"):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name))
        here = Destination(f"memory://sending{tmp_path}")
        here.folder.mkdir(parents=True)
        for file in ("train-00000.tar", "train-00000.idx", "manifest.json", "left_out.jsonl"):
            (here.folder / file).write_text(f"{file} of the {name}")
        made.append(here)
    return made


ONE = {"file": "train-00000.tar", "index": "train-00000.idx", "bytes": 28}


def test_what_lies_at_the_url_and_is_not_what_was_sent(machines):
    """Another size or a lost index makes a finished folder anew, and another size a shard of a run that goes on."""
    here, _ = machines
    here.begin()
    here.send(ONE)
    assert here.holds(ONE) and not here.lacks([ONE])
    here.store.remove(ONE["index"])
    assert here.lacks([ONE])
    here.send(ONE)
    here.store.write(ONE["file"], b"cut short")
    assert not here.holds(ONE) and here.lacks([ONE])
    here.store.remove(ONE["file"])
    assert not here.holds(ONE) and here.lacks([ONE])


OTHER = "another prepare began there after this one, so this one stops: let that one finish"


def test_of_two_at_one_url_the_second_goes_on(machines):
    first, second = machines
    first.begin()
    first.send(ONE)
    second.begin()
    for step in (lambda: first.send(ONE), first.finish, lambda: first.clean([ONE])):
        with pytest.raises(InputError, match=f"^{re.escape(first.name)}: {OTHER}"):
            step()
    second.send(ONE)
    second.finish()
    second.clean([ONE])
    assert second.manifest() == b"manifest.json of the second"
    assert second.store.read("train-00000.tar") == b"train-00000.tar of the second"
    with pytest.raises(InputError, match=OTHER):  # also once the other one has finished
        first.send(ONE)
    assert first.store.names(".parts") == []


@pytest.mark.parametrize("when", ["before", "after"])
def test_the_manifest_of_a_run_that_another_one_followed_does_not_stay(when, machines, monkeypatch):
    """The other one begins at the worst moment: while the first sends its manifest, before or after it is there."""
    first, second = machines
    first.begin()
    first.send(ONE)
    real = Store.upload

    def upload(self, file, path):
        if file == "manifest.json" and when == "before":
            second.begin()
        real(self, file, path)
        if file == "manifest.json" and when == "after":
            second.begin()

    with monkeypatch.context() as patch:
        patch.setattr(Store, "upload", upload)
        with pytest.raises(InputError, match=OTHER):
            first.finish()
    assert second.manifest() is None
    second.send(ONE)
    second.finish()
    assert second.manifest() == b"manifest.json of the second"


@pytest.mark.parametrize("option", [["--check"], ["--part", "1/2"], ["--join"]])
def test_what_needs_a_folder_says_so(option, world, capsys):
    with pytest.raises(SystemExit):
        door.main(arguments(world, "s3://anna:open@bucket/a", *option))
    told = capsys.readouterr().err
    assert f"{option[0]} needs a folder of this machine, and --out is s3://***@bucket/a" in told


def test_a_web_server_takes_no_files(world):
    with pytest.raises(InputError, match="^--out: https://host/a is on a web server, which takes no files: make"):
        run(world, "https://host/a")
    assert not list(Cache().path.glob("made/*"))
