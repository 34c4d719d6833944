"""Places that are no folder of this machine: s3://bucket/folder, https://host/folder and their like.

A URL may hold a secret: user:password@, or a signed query (?X-Amz-Signature=...). Whoever opens it has it whole;
messages, logs and checkpoints get `redacted`.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from essl_fast.common.values import a_path, path

HIDDEN = "***"
_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://[^/].*|file:///.+", re.DOTALL)
_LOST_SLASH = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]+):/(?!/)(.+)", re.DOTALL)  # what Path makes of a URL
_QUERY = re.compile(r"(\w[\w+.-]*://[^\s?'\"<>]*)\?[^\s'\"<>)]*")
_USER = re.compile(r"(\w[\w+.-]*://)[^\s/@'\"<>]*:[^\s/@'\"<>]*@")


def is_url(given: str | Path) -> bool:
    """Whether a place is a URL. As a Path, s3://bucket has lost a slash; it counts where no such folder exists."""
    if isinstance(given, Path):
        return bool(_LOST_SLASH.fullmatch(str(given))) and not given.exists()
    return bool(_URL.fullmatch(given))


def as_url(given: str | Path) -> str:
    """The URL of a place that is one: its kind in small letters, without slashes at its end."""
    text = str(given)
    if isinstance(given, Path) and (found := _LOST_SLASH.fullmatch(text)):
        text = f"{found[1]}://{found[2]}"
    whole, mark, query = text.partition("?")
    kind, colon, rest = whole.partition("://")
    return (kind.lower() + colon + rest.rstrip("/") if colon else whole.rstrip("/")) + mark + query


def placed(given: str | Path) -> str | Path:
    """A prepared folder as it is opened: a URL as a text, everything else as a Path."""
    return as_url(given) if is_url(given) else Path(given)


def lacks(given: str | Path) -> bool:
    """Whether a place is a folder of this machine that does not exist. Of a URL that shows when it is read."""
    return not is_url(given) and not Path(given).is_dir()


def a_place(text: str) -> str | Path:
    """A type for an option: a folder or a URL."""
    if re.fullmatch(r"[a-zA-Z][a-zA-Z0-9+.-]+:/{2,}", text):
        raise argparse.ArgumentTypeError(f"{text} names no bucket, host or folder")
    try:
        return as_url(path(text)) if is_url(text) else a_path(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{error}, got {redacted(text)}") from None


def join(url: str, name: str) -> str:
    """The URL of a file in the folder `url`. A query stays at the end, since it may be what gives access."""
    whole, mark, query = url.partition("?")
    return f"{whole}/{name}{mark}{query}"


def _user(url: str) -> str:
    """The part of a URL that names a user and a password; "" without one. In abfs://container@account it is none."""
    user, mark, _ = urlsplit(url).netloc.rpartition("@")
    secret = mark and (":" in user or url.lower().startswith(("http:", "https:")))
    return user if secret else ""


def redacted(place: str | Path) -> str:
    """A place without what is secret in its URL."""
    if not is_url(place):
        return str(place)
    url = as_url(place)
    whole, mark, _ = url.partition("?")
    if user := _user(url):
        whole = whole.replace(f"{user}@", f"{HIDDEN}@", 1)
    return whole + (f"?{HIDDEN}" if mark else "")


def is_redacted(place: str | Path) -> bool:
    """Whether a URL is one that :func:`redacted` has left without its secret."""
    return is_url(place) and (f"://{HIDDEN}@" in str(place) or str(place).endswith(f"?{HIDDEN}"))


def hide(text: str, url: str) -> str:
    """A text, such as another library's error, without what is secret in `url`, or in any URL that it names."""
    user, query = _user(url), url.partition("?")[2]
    secrets = {query, user, user.partition(":")[2], *(part.partition("=")[2] for part in query.split("&"))}
    for secret in sorted({*secrets, *map(unquote, secrets)}, key=len, reverse=True):
        if len(secret) > 3:
            text = text.replace(secret, HIDDEN)
    return _USER.sub(rf"\1{HIDDEN}@", _QUERY.sub(rf"\1?{HIDDEN}", text))
