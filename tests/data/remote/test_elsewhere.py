"""Places that are none, servers that send something else, and copies that say nothing of what lies there now."""

import base64
import errno
import os
import shutil
import socketserver
import ssl
import threading
import warnings
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest

pytest.importorskip("aiohttp")  # of the extra `remote`

from essl_fast.common.errors import InputError
from essl_fast.data.remote import Cache, Store, store
from essl_fast.data.shards import CLIP_CHECKS, QUARANTINE, Manifest
from essl_fast.prepare import verify
from tests.data.remote.test_remote import SHARDS, folder, read, served, told, web  # noqa: F401  # fixtures among them
from tests.tools.web import DENIED, Web


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("webdav://host/a", "a package is missing that opens such places"),
        ("dbfs://host/a", "^dbfs://host/a cannot be opened [(]TypeError: .* check the URL, and that the place can be"),
        ("ftp://anna:opensesame@127.0.0.1:1/a", "^ftp://[*]{3}@127.0.0.1:1/a cannot be opened [(].*refused"),
        ("https://host/a#b", "^https://host/a#[*]{3} has a # in it"),
        ("http://127.0.0.1:1/a#b", "has a # in it"),
    ],
)
def test_a_place_that_cannot_be_opened_is_one_line(url, says, tmp_path):
    with pytest.raises(InputError, match=says):
        Manifest.load(url, (str(tmp_path), 0.0))


def test_an_address_of_ipv6_is_no_chain():
    assert Store("http://[::1]:8443/a")._path("b") == "http://[::1]:8443/a/b"


@pytest.mark.parametrize("name", ["manifest.json", SHARDS[0]])
def test_a_web_page_in_place_of_a_file_is_named(name, folder, tmp_path, monkeypatch):  # noqa: F811
    """As of a server that wants one to sign in, and says 200."""
    monkeypatch.setattr(store, "FIRST_WAIT", 0.001)
    shutil.copytree(folder, tmp_path / "site")
    (tmp_path / "site" / name).write_text("<!DOCTYPE html><html>Please sign in</html>")
    site = Web(tmp_path / "site")
    try:
        said, found = told(site.url, tmp_path / "cache")
    finally:
        site.close()
    says = "is a web page (HTML) and no manifest: check the URL" if name == "manifest.json" else "is not whole, after 6"
    assert f"{site.url}/{name} {says}" in str(found) and "web page (HTML)" in str(found)
    assert len(said) == (0 if name == "manifest.json" else 5)


def test_a_manifest_that_came_short_is_fetched_again(web, tmp_path, monkeypatch):  # noqa: F811
    """As of a server that does not say how long a file is, and whose connection is cut."""
    real, asked = Store.read, []

    def cut(self, file, *more):
        asked.append(file)
        return real(self, file, *more)[: -9 if asked.count("manifest.json") == 1 else None]

    monkeypatch.setattr(Store, "read", cut)
    assert len(Manifest.load(web.url, (str(tmp_path), 0.0))) == 50 and asked.count("manifest.json") == 2


def test_verify_reads_what_lies_there_and_not_only_the_copies(folder, tmp_path):  # noqa: F811
    shutil.copytree(folder, tmp_path / "site")
    site, place = Web(tmp_path / "site"), (str(tmp_path / "cache"), 0.0)
    try:
        with warnings.catch_warnings(record=True):
            assert verify(Manifest.load(site.url, place), workers=1) == {}  # all of it is in the cache now
            for name in (SHARDS[1], "train-00001.idx", "pairs/time.npy"):
                path, whole = tmp_path / "site" / name, (tmp_path / "site" / name).read_bytes()
                path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
                with pytest.raises(InputError, match=f"^{site.url}/{name} is not what the manifest of .* says"):
                    verify(Manifest.load(site.url, place), workers=1)
                path.unlink()
                with pytest.raises(InputError, match=f"^{site.url}/{name} is (gone|missing), though the manifest"):
                    verify(Manifest.load(site.url, place), workers=1)
                path.write_bytes(whole)
            assert verify(Manifest.load(site.url, place), workers=1) == {}
    finally:
        site.close()


@pytest.mark.parametrize("name", ["manifest.json", "pairs/boxes.npy", "pairs/key.npy", "train-00000.idx"])
@pytest.mark.parametrize("spoil", [lambda data: data[:-1] + bytes([data[-1] ^ 1]), lambda data: b""])
def test_a_copy_that_was_changed_is_brought_again(name, spoil, web, tmp_path):  # noqa: F811
    """A wrong box of the cache would train a wrong model, and nobody would see it."""
    place = str(tmp_path), 0.0
    first = Manifest.load(web.url, place)
    assert first.source is not None
    path = first.source.local / name
    whole = path.read_bytes()
    path.unlink()
    path.write_bytes(spoil(whole))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        again = Manifest.load(web.url, place)
    assert path.read_bytes() == whole and again.boxes.tolist() == first.boxes.tolist()
    told = [str(each.message) for each in said]
    assert told == ([] if name == "manifest.json" else [f"{name} in the cache was damaged: it is fetched again"])


def test_a_pipe_or_folder_in_the_place_of_a_shard_keeps_nobody(folder, tmp_path):  # noqa: F811
    cached, there = Cache(tmp_path), Store(f"file://{folder}")
    entry = Manifest.load(folder).entries("train")[0]
    path = cached.path / f"{entry['sha256']}.tar"
    os.mkfifo(path)
    assert cached.held(entry["sha256"], entry["bytes"]) is None and not path.exists()
    path.mkdir()
    with pytest.raises(InputError, match=f"^the cache {tmp_path} cannot be used [(]{path}: .*irectory"):
        cached.fetch(there, entry)


def test_a_full_disk_on_the_other_side_is_told_once(tmp_path, monkeypatch):
    there, asked = Store(f"file://{tmp_path}/there"), []

    def full(*_, **__):
        asked.append(1)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "mine.tar")

    monkeypatch.setattr(there._system, "put_file", full, raising=False)
    (tmp_path / "mine.tar").write_bytes(b"1")
    with pytest.raises(
        InputError, match=f"^{there.url}/a.tar cannot be written [(]No space left on device[)]: free some"
    ):
        there.upload("a.tar", str(tmp_path / "mine.tar"))
    assert len(asked) == 1


def test_a_bound_that_the_disk_does_not_have_is_no_room(web, tmp_path, monkeypatch):  # noqa: F811
    """It would show at the test split, after all epochs."""
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1 << 20))
    _, found = told(web.url, tmp_path, 1.0)
    assert "that are read together take" in str(found) and ": free some of its disk, or a folder on a larger" in str(
        found
    )
    assert SHARDS[0] not in web.asked


def test_a_cache_that_is_emptied_while_a_run_reads_is_filled_again(web, folder, tmp_path):  # noqa: F811
    manifest = Manifest.load(web.url, (str(tmp_path / "cache"), 0.0))
    first = read(manifest, ["train"])
    shutil.rmtree(tmp_path / "cache")
    assert read(manifest, ["val"]) == read(Manifest.load(folder), ["val"])  # as the next loader of the run
    assert read(manifest, ["train"]) == first
    assert manifest.bring("quarantine.jsonl").parent == manifest.root and (manifest.root / ".lock").is_file()


def test_the_proxy_and_the_netrc_of_the_machine_are_used(tmp_path, monkeypatch):
    """As on a cluster whose nodes reach the world through a proxy alone."""
    asked = []

    class Proxy(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append((self.path, self.headers.get("Authorization")))
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_):
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    (tmp_path / "netrc").write_text("machine data.invalid login anna password open\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    try:
        assert Store("http://data.invalid/a").read("manifest.json") == b"{}"
    finally:
        server.shutdown()
        server.server_close()
    assert asked == [("http://data.invalid/a/manifest.json", "Basic " + base64.b64encode(b"anna:open").decode())]


def test_verify_does_not_blame_the_folder_for_the_cache(web, tmp_path):  # noqa: F811
    """Its list goes to the place that all use: a pair that is whole there would be left out everywhere."""
    place = str(tmp_path), 0.0
    manifest = Manifest.load(web.url, place)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert verify(manifest, workers=1) == {}
        shard = Cache(tmp_path)._shard(manifest.entries("train")[1]["sha256"])
        whole = shard.read_bytes()
        shard.write_bytes(whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:])
        assert verify(manifest, workers=1) == {}
    assert shard.read_bytes() == whole
    assert f"{SHARDS[1]} in the cache was damaged: it is fetched again" in [str(each.message) for each in said]


def test_what_a_store_that_may_not_be_listed_refuses_is_not_there(web, folder, tmp_path):  # noqa: F811
    """As S3 does over HTTP: 403 for a file that does not exist."""
    optional = (QUARANTINE, CLIP_CHECKS)
    web.fault = lambda name, count: DENIED if name in optional else None
    said, found = told(web.url, tmp_path / "cache")
    assert found == read(Manifest.load(folder)) and web.asked[QUARANTINE] == 1
    assert len(said) == 2 and all(line.startswith("taken as not there, as where a store may not be ") for line in said)
    assert [name for name in optional if any(f"{web.url}/{name}: no access" in line for line in said)] == [*optional]


class Answers:
    """A server that gives each request the same bytes."""

    def __init__(self, answer):
        class Handler(socketserver.StreamRequestHandler):
            def handle(self):
                while self.rfile.readline().strip():
                    pass
                self.wfile.write(answer)

        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self):
        self._server.shutdown()
        self._server.server_close()


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (b"SSH-2.0-OpenSSH_9\r\n", "/a cannot be reached, after 6 attempts .*Bad status line"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"a" * 20_000 + b"\r\n\r\n", "/a cannot be reached, after 6 attempts "),
        (b"HTTP/1.1 416 No\r\nContent-Length: 0\r\n\r\n", "/a is not whole, after 6 attempts .*416.*: upload it again"),
    ],
)
def test_what_is_no_refusal_says_nothing_of_credentials(answer, says, monkeypatch):
    monkeypatch.setattr(store, "FIRST_WAIT", 0.001)
    server = Answers(answer)
    try:
        with warnings.catch_warnings(record=True), pytest.raises(InputError, match=says) as told:
            Store(server.url).read("a", 0, 10)
    finally:
        server.close()
    assert "credentials" not in str(told.value)


def test_a_certificate_that_is_not_trusted_is_told_at_once(monkeypatch):
    place, asked = Store("https://127.0.0.1:1/a"), []

    def fails(*_, **__):
        asked.append(1)
        raise ssl.SSLCertVerificationError(1, "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed")

    monkeypatch.setattr(place._system, "cat_file", fails)
    with pytest.raises(InputError, match="^https://127.0.0.1:1/a/b: its certificate is not trusted .*SSL_CERT_FILE"):
        place.read("b")
    assert len(asked) == 1


@pytest.mark.parametrize("text", [b"", b"[1, 2]"])
def test_a_folder_on_a_web_server_has_a_remedy_that_works(text, folder, tmp_path):  # noqa: F811
    """prepare cannot write there."""
    shutil.copytree(folder, tmp_path / "site")
    (tmp_path / "site" / "manifest.json").write_bytes(text)
    site = Web(tmp_path / "site")
    try:
        with pytest.raises(InputError, match=f"^{site.url}/manifest.json .*: copy the prepared folder there again$"):
            Manifest.load(site.url, (str(tmp_path / "cache"), 0.0))
    finally:
        site.close()
