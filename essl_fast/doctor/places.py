"""Checks of what the machine gives a program: the user's folders, and files of each kind that training meets."""

from __future__ import annotations

import concurrent.futures
import importlib
import importlib.util
import io
import os
import tempfile
import wave
from collections.abc import Callable, Iterator
from pathlib import Path

from essl_fast.doctor.findings import INSTALL, NOTE, OK, STOPS, Case, Finding


def check_user(case: Case) -> Iterator[Finding]:
    """The user's name and folders: where the demo world and compiled code are kept."""
    from essl_fast.common import places

    kept = places.cache_folder()
    usable = kept is not None and _writable(kept)
    compiled = kept / "compile" if usable and kept else Path(tempfile.gettempdir())
    values = {"cache": kept and str(kept), "compiled": os.environ.get(places.INDUCTOR) or str(compiled)}
    name = "" if places.has_a_name() else f"user {os.getuid()} has no name; "
    where = f"compiled code is kept in {values['compiled']}"
    if not usable:
        what = "there is no home folder" if kept is None else f"{kept} cannot be written"
        if case.settings.data.root == "demo" and not case.settings.demo.cache:
            yield Finding("user", STOPS, f"{name}{what}, where the demo world is kept", "give --demo.cache DIR", values)
        else:
            yield Finding("user", NOTE, f"{name}{what}: {where}", "", values)
    else:
        yield Finding("user", OK, f"{name}the demo world and what was measured are kept in {kept}, {where}", "", values)


def _writable(folder: Path) -> bool:
    """Whether a folder is there and can be written, or could be made. Nothing is made."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)


def check_files(case: Case) -> Iterator[Finding]:
    """Opens a file of each kind that training and preparing meet; each is made first, in a temporary folder."""
    kinds: dict[str, Callable[[Path], None]] = {
        "sound": _open_sound,
        "JPEG": _open_jpeg,
        "checkpoint": _open_checkpoint,
    }
    if importlib.util.find_spec("h5py"):
        kinds["HDF5"] = _open_hdf5
    with tempfile.TemporaryDirectory(prefix="essl_fast-doctor-") as folder:
        wrong = {}
        for kind, opens in kinds.items():
            try:
                opens(Path(folder))
            except Exception as error:  # a broken installation may raise anything
                wrong[kind] = " ".join(f"{type(error).__name__}: {error}".split())
    if not wrong:
        yield Finding("files", OK, f"opened one of each kind: {', '.join(kinds)}", "", {"kinds": list(kinds)})
    for kind, what in wrong.items():
        status = NOTE if kind == "HDF5" else STOPS
        yield Finding("files", status, f"a {kind} cannot be made and opened: {what}", INSTALL, {"error": what})


def _open_sound(folder: Path) -> None:
    from essl_fast.data.media import stills

    stills.middle_sound(_tone(folder))  # also resamples


def _tone(folder: Path) -> Path:
    """A WAV file of 4 s."""
    path = folder / "tone.wav"
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 44100, 0, "NONE", ""))
        file.writeframes(bytes([0, 8, 0, 248]) * (2 * 44100))
    return path


def _open_jpeg(folder: Path) -> None:
    numpy, torch = importlib.import_module("numpy"), importlib.import_module("torch")
    from PIL import Image

    from essl_fast.data.loading import FrameDecoder
    from essl_fast.data.shards import Picture

    data = io.BytesIO()
    Image.new("RGB", (320, 180), (200, 30, 60)).save(data, "JPEG")
    pictures = iter([[Picture(numpy.frombuffer(data.getvalue(), numpy.uint8))]])
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        decoder = FrameDecoder(lambda: next(pictures), 1, 64, torch.device("cpu"), 1, 1, pool)
        try:
            red = next(decoder)[0, 32, 32].tolist()
        finally:
            decoder.close()
    if abs(red[0] - 200) > 8:
        raise ValueError(f"a red picture came out as {red}")


def _open_checkpoint(folder: Path) -> None:
    torch = importlib.import_module("torch")
    from essl_fast import checkpoints

    checkpoints.save(folder / "last.pt", {"kind": "doctor", "model": {"w": torch.ones(3)}})
    checkpoints.load(folder / "last.pt")


def _open_hdf5(folder: Path) -> None:
    h5py = importlib.import_module("h5py")
    with h5py.File(folder / "x.h5", "w") as file:
        file["x"] = [1, 2]
    with h5py.File(folder / "x.h5") as file:
        file["x"][:].tolist()
