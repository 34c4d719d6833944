"""One folder of an object store or a web server, through fsspec: files are read and written whole or in parts.

What fails for a moment (a connection that is cut, 503, a timeout) is tried again, a few times, and a line says so. What
will not change by itself (no such file, no right to it, a package that is missing) is an InputError at once.
"""

from __future__ import annotations

import _thread
import contextlib
import errno
import os
import random
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from essl_fast.common.errors import InputError, Notice, memory_is_short, reason
from essl_fast.common.urls import as_url, fault_of, hide, is_redacted, join, redacted

ATTEMPTS = 6  # the waits between them make 15.5 s
FIRST_WAIT = 0.5  # seconds; each further wait is twice as long
LONGEST_WAIT = 60.0  # seconds, if the store asks for more time (Retry-After)
TOLD_EVERY = 60.0  # seconds of one attempt, after which a line says what is waited for
SLOWEST = 16_000  # bytes a second; what comes more slowly than that, and a minute, counts as stuck
_PACKAGES = {
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "hf": "huggingface_hub",
    "http": "aiohttp",
    "https": "aiohttp",
    "az": "adlfs",
    "abfs": "adlfs",
    "abfss": "adlfs",
    "oci": "ocifs",
    "oss": "ossfs",
    "sftp": "paramiko",
    "ssh": "paramiko",
}  # of each kind of URL, besides fsspec
_OF_EXTRA = ("fsspec", "s3fs", "aiohttp")  # what the extra `remote` brings
_PAST_THE_END = 416  # HTTP code: the file ends before the part that was asked for begins
_FOR_A_MOMENT = (408, _PAST_THE_END, 425, 429)  # HTTP codes below 500 that may change by themselves
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
_WRONG = ("ParamValidationError", "ProfileNotFound", "ConfigParseError", "NoRegionError", "InvalidRegionError")

T = TypeVar("T")


class Stopped(Exception):
    """Nobody waits for the file any more."""


class NoAccess(InputError):
    """The store refuses a file. One that may not be listed also answers so for files that do not exist."""


class CutShort(ConnectionError):
    """Less came than the file has."""


class Store:
    """A folder by its URL.

    Attributes:
        url: of the folder, with its secrets.
        name: the same without them, for messages.
        gives_parts: whether a part of a file can be had; it shows when one is read.
    """

    def __init__(self, url: str):
        """InputError if the URL is none, or has lost its secrets, or a package for its kind is missing."""
        self.url, self.name, self.gives_parts = as_url(url), redacted(url), True
        if fault := fault_of(self.url):
            raise InputError(fault)
        if is_redacted(url):
            raise InputError(
                f"{self.name} was written down without its user, password or query; give it whole, with --data.root "
                "(train) or --data (other commands)"
            )
        self._system = _file_system(self.url, self.name)

    @property
    def takes_files(self) -> bool:
        """Whether files can be written there at all: a web server only gives them."""
        return not self.url.lower().startswith(("http:", "https:"))

    def name_of(self, file: str) -> str:
        """The URL of a file of the folder, without secrets."""
        return join(self.name, file)

    def read(self, file: str, begin: int = 0, end: int | None = None, stop: threading.Event | None = None) -> bytes:
        """The bytes of a file, or those from `begin` to before `end`.

        A server that sends the whole file where a part was asked for is put up with.

        Raises:
            FileNotFoundError: there is no such file.
            InputError: it cannot be read.
            Stopped: `stop` was set.
        """

        def once() -> bytes:
            if end is None:
                return self._system.cat_file(self._path(file), **self._ends(0))
            data = self._system.cat_file(self._path(file), start=begin, end=end, **self._ends(end))
            if len(data) > end - begin:
                self.gives_parts, data = False, data[begin:end]
            if len(data) != end - begin:
                page = ", a web page (HTML)" if is_page(data) else ""
                raise CutShort(f"{len(data):,} bytes came of {end - begin:,}{page}")
            return data

        return self._patiently(file, once, stop)

    def write(self, file: str, data: bytes) -> None:
        """Write a small file; what was there is replaced. InputError if that fails."""
        self._send(file, lambda: self._system.pipe_file(self._path(file), data, **self._ends(len(data))))

    def upload(self, file: str, path: str) -> None:
        """Write a local file; what was there is replaced. InputError if that fails; OSError if it cannot be read."""
        with open(path, "rb") as local:  # what is missing later is missing there
            ends = self._ends(local.seek(0, 2))
        self._send(file, lambda: self._system.put_file(path, self._path(file), **ends))

    def size(self, file: str) -> int | None:
        """The bytes of a file; None if there is no such file."""

        def once() -> int:
            self._system.invalidate_cache()
            return int(self._system.info(self._path(file), **self._ends(0))["size"])

        try:
            return self._patiently(file, once)
        except FileNotFoundError:
            return None

    def sizes(self) -> dict[str, int]:
        """Name → bytes of what lies in the folder; {} if it does not exist."""

        def once() -> dict[str, int]:
            self._system.invalidate_cache()
            found = self._system.ls(self._path(""), detail=True, **self._ends(0))
            return {each["name"].rstrip("/").rpartition("/")[2]: int(each.get("size") or 0) for each in found}

        try:
            return self._patiently("", once)
        except FileNotFoundError:
            return {}

    def names(self, folder: str = "") -> list[str]:
        """The names of what lies in the folder, or in one of its folders; [] if that does not exist."""

        def once() -> list[str]:
            self._system.invalidate_cache()
            found = self._system.ls(self._path(folder), detail=False, **self._ends(0))
            return [entry.rstrip("/").rpartition("/")[2] for entry in found]

        try:
            return self._patiently(folder, once)
        except FileNotFoundError:
            return []

    def remove(self, file: str) -> None:
        """Remove a file, if it is there."""
        try:
            self._patiently(file, lambda: self._system.rm_file(self._path(file)))
        except FileNotFoundError:
            return

    def _send(self, file: str, once: Callable[[], object]) -> None:
        try:
            self._patiently(file, once)
        except FileNotFoundError:
            raise InputError(
                f"{self.name_of(file)} cannot be written: its bucket or folder does not exist; make it first, or check "
                "the name"
            ) from None

    def _ends(self, size: int) -> dict[str, float]:
        """When an attempt ends that moves so many bytes: a server that sends a byte a second is never silent.

        Only asynchronous file systems can stop one; the others have ends of their own.
        """
        return {"timeout": 60 + max(size, 1 << 22) / SLOWEST} if getattr(self._system, "async_impl", False) else {}

    def _path(self, file: str) -> str:
        return self._system._strip_protocol(join(self.url, file) if file else self.url)

    def _patiently(self, file: str, once: Callable[[], T], stop: threading.Event | None = None) -> T:
        name, wait = self.name_of(file), FIRST_WAIT
        for attempt in range(1, ATTEMPTS + 1):
            if stop is not None and stop.is_set():
                raise Stopped
            try:
                with _told_while_it_lasts(name):
                    return once()
            except Exception as error:  # each library has its own types, for the same things
                if memory_is_short(error):  # of this machine: the store has no part in it
                    raise
                why = hide(reason(error), self.url)
                if isinstance(error, (FileNotFoundError, NotADirectoryError)) or _status(error) == 404:
                    raise FileNotFoundError(2, "there is no such file", name) from None
                if (hopeless := _hopeless(error, name, why)) is not None:
                    raise hopeless from None
                if attempt == ATTEMPTS:
                    raise _given_up(name, error, why) from None
                asked = min(_asks_for(error), LONGEST_WAIT)
                pause = max(wait, asked) * random.uniform(1.0 if asked > wait else 0.75, 1.25)  # not all at once again
                told = f"{name}: {why}: attempt {attempt} of {ATTEMPTS}, the next in {pause:.1f} s"
                warnings.warn(told, Notice, stacklevel=3)
                if (stop or threading.Event()).wait(pause):
                    raise Stopped from None
                wait *= 2
        raise AssertionError  # the last attempt returns or raises


@contextlib.contextmanager
def _told_while_it_lasts(name: str) -> Iterator[None]:
    """Say every minute what is waited for."""
    began, lasts = time.monotonic(), threading.Lock()
    lasts.acquire()

    def tell() -> None:
        while not lasts.acquire(timeout=TOLD_EVERY):
            warnings.warn(f"{name}: waiting for it since {time.monotonic() - began:.0f} s", Notice, stacklevel=2)

    with contextlib.suppress(RuntimeError):  # no more threads: then nothing is told
        _thread.start_new_thread(tell, ())  # a Thread would be waited for until it runs, at each of many requests
    try:
        yield
    finally:
        lasts.release()


def _hopeless(error: BaseException, name: str, why: str) -> InputError | None:
    """What an error is for people that stays, however often one tries; None if it may pass."""
    if isinstance(error, OSError) and error.errno in _FULL:  # of a folder of this machine, by its URL
        return InputError(
            f"{name} cannot be written ({os.strerror(error.errno)}): free some space there, or choose another place, "
            "then run the same command again"
        )
    if _is_wrong(error):
        return InputError(
            f"{name} cannot be asked for ({why}): check the URL, and the settings of this machine for such places"
        )
    if "CERTIFICATE_VERIFY_FAILED" in why:
        return InputError(
            f"{name}: its certificate is not trusted ({why}); if it is the right one, name the file of its authority "
            "with the variable SSL_CERT_FILE (for s3 AWS_CA_BUNDLE)"
        )
    if _is_final(error):
        return NoAccess(
            f"{name}: no access ({why}); check the name, and the credentials of this machine (for s3 those of AWS, for "
            "gs `gcloud auth application-default login`, for hf `hf auth login`)"
        )
    return None


def is_page(data: bytes) -> bool:
    """Whether what came is a web page, as a server sends for a sign-in or an error; no file of ours begins so."""
    return data[:64].lstrip()[:1] == b"<"


def _given_up(name: str, error: BaseException, why: str) -> InputError:
    """What the last attempt's error is for people."""
    if isinstance(error, CutShort) or _status(error) == _PAST_THE_END:
        what = reason(error).partition(": ")[2] if isinstance(error, CutShort) else why
        return InputError(
            f"{name} is not whole, after {ATTEMPTS} attempts ({what}): upload it again, or check what answers there"
        )
    return InputError(
        f"{name} cannot be reached, after {ATTEMPTS} attempts ({why}): check the URL and the network, then run it again"
    )


def _asks_for(error: BaseException) -> float:
    """The seconds after which the store asks to be asked again (Retry-After); 0 if it says nothing, or a date."""
    for each in _causes(error):
        response = getattr(each, "response", None)
        headers = getattr(each, "headers", None) or getattr(response, "headers", None)
        if isinstance(response, dict):  # botocore
            headers = response.get("ResponseMetadata", {}).get("HTTPHeaders")
        found = next((value for name, value in dict(headers or {}).items() if name.lower() == "retry-after"), "")
        if (text := str(found).strip()).isdecimal():
            return float(text)
    return 0.0


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and those that it was made of."""
    while error is not None:
        yield error
        error = error.__cause__


def _status(error: BaseException) -> int:
    """The HTTP code of an error, or of one that it was made of; 0 if they have none, or if no HTTP came.

    aiohttp gives an answer that it cannot read a code of its own, 400.
    """
    if any(type(each).__module__ == "aiohttp.http_exceptions" for each in _causes(error)):
        return 0
    for each in _causes(error):
        response = getattr(each, "response", None)
        found = getattr(each, "status", None) or getattr(response, "status_code", None)
        if found is None and isinstance(response, dict):  # botocore
            found = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        if isinstance(found, int):
            return found
    return 0


def _is_wrong(error: BaseException) -> bool:
    """Whether what was asked for makes no sense, or a library does not understand it: nothing came from the store."""
    if isinstance(error, (TypeError, NotImplementedError)) or type(error).__name__ in _WRONG:
        return True
    # What a proxy sends instead of JSON or text may be another thing the next time.
    return type(error) is ValueError or type(error).__name__ == "InvalidURL"


def _is_final(error: BaseException) -> bool:
    """Whether an error stays, however often one tries."""
    if isinstance(error, PermissionError) or "Credentials" in type(error).__name__:
        return True
    return 400 <= _status(error) < 500 and _status(error) not in _FOR_A_MOMENT


def _file_system(url: str, name: str) -> Any:
    """fsspec's view of the store. InputError if it knows no such kind of URL, or a package is missing."""
    kind = url.partition("://")[0].lower()
    package = _PACKAGES.get(kind, "")
    try:
        import fsspec

        if kind == "hf":
            import huggingface_hub  # noqa: F401  # fsspec learns of it when it is there
    except ImportError as error:
        raise _missing(name, "fsspec" if error.name == "fsspec" else "huggingface_hub") from error
    try:
        made = fsspec.get_filesystem_class(kind)  # not url_to_fs, which takes a :: in a name or host for a chain
        system = made(**{**made._get_kwargs_from_urls(url), **_options(kind)})
    except ImportError as error:
        raise _missing(name, package, hide(reason(error), url)) from error
    except ValueError as error:
        raise InputError(f"{name}: fsspec cannot open such a place ({hide(reason(error), url)})") from error
    except Exception as error:  # of a library that connects at once, or wants settings that a URL cannot give
        why = hide(reason(error), url)
        raise InputError(
            f"{name} cannot be opened ({why}): check the URL, and that the place can be reached"
        ) from error
    if hasattr(system, "retries"):
        system.retries = 1  # attempts are ours to count, and to tell
    return system


def _missing(name: str, package: str, why: str = "") -> InputError:
    if not package:
        return InputError(f"{name}: a package is missing that opens such places ({why}): install it with pip")
    extra = " (or pip install '.[remote]' in the source folder)" if package in _OF_EXTRA else ""
    return InputError(f"{name}: the package {package} is missing: pip install {package}{extra}")


def _options(kind: str) -> dict[str, Any]:
    """How a store of this kind is opened: a connection that is silent for a minute ends, and nothing is tried twice."""
    if kind in ("http", "https"):
        import aiohttp

        ends = aiohttp.ClientTimeout(total=None, sock_connect=15, sock_read=60)
        return {"client_kwargs": {"timeout": ends, "trust_env": True}}  # the machine's proxy, and its ~/.netrc
    if kind in ("s3", "s3a"):
        return {"config_kwargs": {"retries": {"max_attempts": 1}, "connect_timeout": 15, "read_timeout": 60}}
    if kind in ("file", "local"):
        return {"auto_mkdir": True}
    return {}
