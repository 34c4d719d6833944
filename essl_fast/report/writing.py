"""python -m essl_fast.report RUN [RUN ...]: one HTML page of a run, or of several side by side.

The page holds everything it shows: no script, no font, no file from elsewhere. Training writes one at its end; this
command makes it again from the run directory, also of a run that is still going on, or of several.
"""

from pathlib import Path

from essl_fast.common.errors import InputError
from essl_fast.common.files import atomic_file
from essl_fast.report.page import page
from essl_fast.report.runs import read_all


def write_report(folders: list[Path], out: Path) -> int:
    """Write the page of the runs in ``folders``; its size in bytes. InputError if one of them is none, or if the page
    cannot be written."""
    data = page(read_all(folders)).encode()
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(out) as file:
            file.write(data)
    except OSError as error:
        raise InputError(f"--out: {out} cannot be written ({error}); give another place") from error
    return len(data)
