"""Where files are kept that a user did not name: in the user's cache folder, where there is one."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

INDUCTOR, TRITON = "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"
_NAMES = ("LOGNAME", "USER", "LNAME", "USERNAME")  # variables where getpass.getuser looks for the user's name
_OURS = "LNAME"  # of these the one that hardly any other program reads
_named: dict[str, str] = {}  # variables that name_user has set → to what


def cache_folder() -> Path | None:
    """The folder essl_fast/ in the user's cache; None if the user has no home folder. It may not exist yet.

    A relative XDG_CACHE_HOME is passed over, as its specification says.
    """
    given = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(given):
        return Path(given) / "essl_fast"
    try:
        home = Path.home()
    except RuntimeError:  # no HOME, and a user id that is not in /etc/passwd, as in many containers
        return None
    return home / ".cache" / "essl_fast" if home.is_absolute() else None


def writable(folder: Path) -> bool:
    """Make a folder; whether that worked and files can be made in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return os.access(folder, os.W_OK | os.X_OK)
    except OSError:
        return False


def any_folder() -> Path:
    """:func:`cache_folder`, or a folder in the temporary folder if the user has no home."""
    import tempfile

    return cache_folder() or Path(tempfile.gettempdir()) / f"essl_fast-{os.getuid()}"


def compile_folder() -> Path:
    """A folder for compiled code that can be written: in the user's cache, else in the temporary folder."""
    import tempfile

    kept = any_folder() / "compile"
    return kept if writable(kept) else Path(tempfile.gettempdir()) / f"essl_fast-{os.getuid()}" / "compile"


def has_a_name() -> bool:
    """Whether the user has a name, other than that of :func:`name_user`: in a variable, or in /etc/passwd."""
    if any(os.environ.get(name) and set_by_user(name) for name in _NAMES):
        return True
    try:
        pwd.getpwuid(os.getuid())
    except KeyError:
        return False
    return True


def set_by_user(name: str) -> bool:
    """Whether an environment variable is set, and not by :func:`name_user`."""
    return name in os.environ and os.environ[name] != _named.get(name)


def name_user() -> None:
    """Give a user without a name one, in a variable, and name the folders of PyTorch's and Triton's caches.

    PyTorch makes folders of the name as soon as an optimizer is made (pytorch/pytorch#140765), and of the name alone,
    whatever the folders' variables say, when it compiles. Without a name it raises KeyError.
    """
    if has_a_name():
        return
    folder = compile_folder()
    given = {_OURS: f"uid-{os.getuid()}", INDUCTOR: str(folder / "inductor"), TRITON: str(folder / "triton")}
    for name, value in given.items():
        if not os.environ.get(name):
            os.environ[name] = _named[name] = value
