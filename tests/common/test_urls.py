"""URLs: which places are some, how their files are named, and what of them is written down."""

import argparse
from pathlib import Path

import pytest

from essl_fast.common import urls, values
from essl_fast.common.errors import InputError


@pytest.mark.parametrize(
    "given, url",
    [
        ("s3://bucket/a/", "s3://bucket/a"),
        (Path("s3://bucket/a"), "s3://bucket/a"),
        ("hf://datasets/org/name@main/a", "hf://datasets/org/name@main/a"),
        ("https://host/a/?sig=x/y", "https://host/a?sig=x/y"),
        ("file:///tmp/a", "file:///tmp/a"),
        ("FILE:///tmp/a", "file:///tmp/a"),
        ("file://localhost/tmp/a", "file:///tmp/a"),
        (Path("file:///tmp/a"), "file:///tmp/a"),
        ("S3://Bucket/A", "s3://Bucket/A"),
        ("prepared", None),
        ("/data/s3:/x", None),
        (Path("/data/s3:/x"), None),
        ("demo", None),
        ("", None),
        ("s3:/bucket", None),
    ],
)
def test_what_is_a_url(given, url):
    assert urls.is_url(given) == (url is not None)
    assert urls.placed(given) == (Path(given) if url is None else url)
    assert urls.redacted(given) == (str(given) if url is None else url if "?" not in url else "https://host/a?***")


@pytest.mark.parametrize("given", ["s3://", "https:///"])
def test_a_url_without_a_place_is_refused(given):
    with pytest.raises(argparse.ArgumentTypeError, match=f"names no bucket, host or folder, got .{given}"):
        values.a_place(given)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("http:///a", "http:///a names no bucket, host or folder"),
        ("s3:///a", "s3:///a names no bucket, host or folder"),
        ("http://:80/a", "http://:80/a names no host"),
        ("http://a b/c", "http://a b/c names no host"),
        ("http://[::1/a", "has no valid host and port"),
        ("http://host:abc/a", "has no valid host and port"),
        ("http://host:99999/a", "has no valid host and port"),
        ("https://host/a#token=opensesame", "https://host/a#*** has a # in it: what follows names no folder"),
        ("https://host/a?sig=opensesame#top", "https://host/a?*** has a # in it"),
        ("https://anna:open/sesame@host/a", "https://***@host/a has a /, ? or # in its user or password"),
        ("https://anna:open?sesame@host/a", "https://***@host/a has a /, ? or # in its user or password"),
        ("https://anna:open#sesame@host/a", "https://***@host/a has a /, ? or # in its user or password"),
        ("simplecache::https://host/a", "is a chain of places (::)"),
        ("zip://a::https://host/b.zip", "is a chain of places (::)"),
    ],
)
def test_a_url_that_cannot_be_one_is_one_line(given, says):
    assert urls.is_url(given) and says in urls.fault_of(given)
    with pytest.raises(argparse.ArgumentTypeError) as told:
        values.a_place(given)
    assert says in str(told.value) and "sesame" not in str(told.value)


@pytest.mark.parametrize(
    "given",
    ["http://[::1]:8443/a", "s3://bucket/a::b#c", "file:///a#b", "https://anna:open@host:80/a@b/c", "github://a:b@/c"],
)
def test_a_url_that_may_be_one(given):
    assert urls.fault_of(given) == ""


def test_a_relative_url_of_this_machine_becomes_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert urls.as_url("file://a/b/") == values.a_place("FILE://a/b") == f"file://{tmp_path}/a/b"


def test_a_folder_with_such_a_name_is_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("s3:/here").mkdir(parents=True)
    assert not urls.is_url(Path("s3:/here")) and urls.is_url(Path("s3:/there"))


@pytest.mark.parametrize(
    "url, kept",
    [
        ("https://anna:open@host/a", "https://***@host/a"),
        ("https://token@host/a", "https://***@host/a"),
        ("abfs://container@account.host/a", "abfs://container@account.host/a"),
        ("sftp://anna:open@host/a", "sftp://***@host/a"),
        ("https://host/a?sig=secret", "https://host/a?***"),
        ("s3://bucket/a", "s3://bucket/a"),
    ],
)
def test_redacted(url, kept):
    assert urls.redacted(url) == kept and urls.is_redacted(kept) == (url != kept) and not urls.is_redacted(url)


def test_a_query_stays_at_the_end():
    assert urls.join("https://host/a?sig=1", "pairs/key.npy") == "https://host/a/pairs/key.npy?sig=1"
    assert urls.join("s3://bucket/a", "b") == "s3://bucket/a/b"


def test_other_libraries_texts_lose_secrets_too():
    text = "403, url='https://cdn.host/x?Signature=abc', for https://anna:open@host/a?sig=se%2Fcret: open se/cret"
    hidden = urls.hide(text, "https://anna:open@host/a?sig=se%2Fcret")
    assert hidden == "403, url='https://cdn.host/x?***', for https://***@host/a?*** *** ***"


def test_an_option_that_is_no_place_is_one_line():
    assert values.a_place("s3://bucket/a/") == "s3://bucket/a" and values.a_place("prepared") == Path("prepared")
    with pytest.raises(argparse.ArgumentTypeError, match="got 'https://.*'|got https://"):
        values.a_place("https://host/a\n?sig=secret")


@pytest.mark.parametrize("text", ["https://anna:opensesame@host/a", "s3://bucket/a?sig=opensesame", "hf://org/name"])
def test_a_url_where_a_path_is_needed_is_refused(text, tmp_path, monkeypatch):
    """It would be a folder `https:` here, and nobody would find what is written into it."""
    from essl_fast import config

    monkeypatch.chdir(tmp_path)
    with pytest.raises(argparse.ArgumentTypeError, match="must be a path of this machine, not a URL, got ") as told:
        values.a_path(text)
    assert "opensesame" not in str(told.value)
    for name in ("out", "data.cache", "demo.cache", "compile_cache"):
        with pytest.raises(InputError, match=f"--{name}: must be a path of this machine, not a URL") as said:
            config.parse([f"--{name}", text], "train")
        assert "opensesame" not in str(said.value)
    assert not list(tmp_path.iterdir())


def test_a_model_may_be_one_of_the_hub(tmp_path, monkeypatch):
    assert values.a_model("hf://org/name") == Path("hf:/org/name") and values.a_model("runs/a") == Path("runs/a")
    with pytest.raises(argparse.ArgumentTypeError, match="must be a path of this machine, not a URL"):
        values.a_model("s3://org/name")
    monkeypatch.chdir(tmp_path)
    Path("s3:/here").mkdir(parents=True)  # as who has such a folder
    assert values.a_path("s3://here") == Path("s3:/here")


def test_a_long_url_is_no_path():
    url = "https://host/" + "a" * 300
    assert values.a_place(url) == url and not urls.is_url(Path("a" * 300))
    with pytest.raises(argparse.ArgumentTypeError, match="must be a path of this machine, not a URL"):
        values.a_path(url)


@pytest.mark.parametrize(
    ("url", "says"),
    [("https://anna:opensesame@host/a\n", "without control characters"), ("s3://", "names no bucket, host or folder")],
)
def test_a_setting_keeps_its_secret(url, says):
    from essl_fast import config

    with pytest.raises(InputError, match=f"--data.root: .*{says}") as told:
        config.parse(["--data.root", url], "train")
    assert "opensesame" not in str(told.value)
