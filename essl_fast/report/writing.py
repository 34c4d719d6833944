"""Writing the page of runs to a file."""

import warnings
from collections.abc import Sequence
from pathlib import Path

from essl_fast.common.errors import InputError, Notice
from essl_fast.common.files import atomic_file
from essl_fast.common.outputs import output_file
from essl_fast.report.alike import groups
from essl_fast.report.page import UNLIKE, page
from essl_fast.report.runs import found_in, read_all


def write_report(folders: Sequence[str | Path], out: str | Path | None = None) -> tuple[Path, int]:
    """Write the page of some run directories.

    What of them cannot be read is a warning, and a note on the page; so is that they were not trained and tested alike.

    Args:
        folders: run directories; of a folder that is none, all runs below it are shown.
        out: the page; None for report.html in the folder that was given, or in the current one if there are several.

    Returns:
        The page's path, and its size in bytes.

    Raises:
        InputError: a folder is no run directory, or the page cannot be written.
    """
    places = [Path(folder) for folder in folders]
    out = Path(out) if out else (places[0] if len(places) == 1 else Path()) / "report.html"
    out = output_file(out, "--out")
    runs = read_all(found_in(folders))
    lines = groups(runs)[1]
    for note in [*(note for run in runs for note in run.notes), *([UNLIKE] if lines else []), *lines]:
        warnings.warn(note, Notice, stacklevel=2)
    data = page(runs).encode(errors="backslashreplace")
    try:
        with atomic_file(out) as file:
            file.write(data)
    except OSError as error:
        raise InputError(f"--out: {out} cannot be written ({error.strerror or error}); give another place") from error
    return out, len(data)
