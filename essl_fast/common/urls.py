"""Places that are no folder of this machine: s3://bucket/folder, https://host/folder and their like.

A URL may hold a secret: user:password@, or a signed query (?X-Amz-Signature=...). Whoever opens it has it whole;
messages, logs and checkpoints get `redacted`.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

HIDDEN = "***"
_HERE = ("file", "local")  # kinds whose place is a path of this machine
_WEB = ("http", "https")
_KIND = r"[a-zA-Z][a-zA-Z0-9+.-]+"
_URL = re.compile(rf"(?:{_KIND}::)*{_KIND}://.*[^/].*", re.DOTALL)
_LOST_SLASH = re.compile(rf"((?:{_KIND}::)*{_KIND}):/(?!/)(.+)", re.DOTALL)  # what Path makes of a URL
_QUERY = re.compile(r"(\w[\w+.-]*://[^\s?'\"<>]*)\?[^\s'\"<>)]*")
_USER = re.compile(r"(\w[\w+.-]*://)[^\s/@'\"<>]*:[^\s/@'\"<>]*@")


def is_url(given: str | Path) -> bool:
    """Whether a place is a URL. As a Path, s3://bucket has lost a slash; it counts where no such folder exists."""
    if isinstance(given, Path):
        return bool(_LOST_SLASH.fullmatch(str(given))) and not os.path.exists(given)
    return bool(_URL.fullmatch(given))


def lacks_place(text: str) -> bool:
    """Whether a text is the beginning of a URL alone, such as s3://."""
    return bool(re.fullmatch(rf"{_KIND}:/{{2,}}", text))


def as_url(given: str | Path) -> str:
    """The URL of a place that is one: its kind in small letters, without slashes at its end.

    A folder of this machine is named from the root on, since a checkpoint may be used from any folder.
    """
    text = str(given)
    if isinstance(given, Path) and (found := _LOST_SLASH.fullmatch(text)):
        text = f"{found[1]}://{'/' * (found[1].lower() in _HERE)}{found[2]}"
    whole, mark, query = text.partition("?")
    kind, colon, rest = whole.partition("://")
    if kind.lower() in _HERE and rest.lower().startswith("localhost/"):
        rest = rest[len("localhost") :]
    if kind.lower() in _HERE and rest:
        rest = os.path.abspath(rest)
    return (kind.lower() + colon + rest.rstrip("/") if colon else whole.rstrip("/")) + mark + query


def fault_of(url: str) -> str:
    """What makes a URL unusable, whatever is there, in words without its secrets; "" if nothing does."""
    kind, _, rest = as_url(url).partition("://")
    shown, host = redacted(url), re.split(r"[/?#]", rest)[0].rpartition("@")[2]
    if "::" in kind or re.search(rf"::{_KIND}://", rest):
        return f"{shown} is a chain of places (::), which no prepared folder can be: unpack it, and name that folder"
    if kind in _HERE:
        return ""
    if not host and not _user(url):
        return f"{shown} names no bucket, host or folder"
    if _has_open_password(url):
        return f"{shown} has a /, ? or # in its user or password: write it as %2F, %3F or %23"
    if kind not in _WEB:
        return ""
    if "#" in rest:
        return f"{shown} has a # in it: what follows names no folder, so leave it out (in a name, # is %23)"
    try:
        found = urlsplit(url)
        if not found.hostname or re.search(r"\s", found.hostname):
            return f"{shown} names no host"
        wrong = found.port == 0
    except ValueError:
        wrong = True
    if wrong:
        return f"{shown} has no valid host and port: write https://host/folder, or https://host:8443/folder"
    return ""


def placed(given: str | Path) -> str | Path:
    """A prepared folder as it is opened: a URL as a text, everything else as a Path."""
    return as_url(given) if is_url(given) else Path(given)


def lacks(given: str | Path) -> bool:
    """Whether a place is a folder of this machine that does not exist. Of a URL that shows when it is read."""
    return not is_url(given) and not Path(given).is_dir()


def join(url: str, name: str) -> str:
    """The URL of a file in the folder `url`. A query stays at the end, since it may be what gives access."""
    whole, mark, query = url.partition("?")
    return f"{whole}/{name}{mark}{query}"


def _has_open_password(url: str) -> bool:
    """Whether the user or password of a URL holds a /, ? or #, so that it seems to end there."""
    before, mark, _ = url.partition("://")[2].rpartition("@")
    host = re.split(r"[/?#]", before)[0]
    return bool(mark) and host != before and bool(re.fullmatch(r"[^:@\[\]]+:(?!\d+$)[^@]*", host))


def _user(url: str) -> str:
    """The part of a URL that names a user and a password; "" without one. In abfs://container@account it is none."""
    kind, _, rest = url.partition("://")
    if _has_open_password(url):
        return rest.rpartition("@")[0]
    user, mark, _ = re.split(r"[/?#]", rest)[0].rpartition("@")
    return user if mark and (":" in user or kind.lower() in _WEB) else ""


def redacted(place: str | Path) -> str:
    """A place without what is secret in its URL."""
    if not is_url(place):
        return str(place)
    url = as_url(place)
    if user := _user(url):
        url = url.replace(f"{user}@", f"{HIDDEN}@", 1)
    whole, mark, _ = url.partition("?")
    if whole.startswith(tuple(f"{kind}:" for kind in _WEB)) and "#" in whole:
        whole, mark = whole.partition("#")[0], "#"
    return whole + (f"{mark}{HIDDEN}" if mark else "")


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
