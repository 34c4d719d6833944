"""Videos and annotations → shards that training reads. Every video is read once.

    python -m essl_fast.prepare --videos DIR --annotations DIR --out DIR
    python -m essl_fast.prepare --dataset flickr|vggss --data DIR --train-list FILE --test-list FILE --out DIR
    python -m essl_fast.prepare --dataset chaotic|flickr|vggss --from-h5 DIR --out DIR
    python -m essl_fast.prepare --dataset NAME --import MODULE … --out DIR
    python -m essl_fast.prepare --part 2/8 …, then --join …
    python -m essl_fast.prepare --engine ray …
    python -m essl_fast.prepare --check …
    python -m essl_fast.prepare --verify [--against VIDEOS] --out DIR|URL

A pair is one frame and the 3 s of sound around it, 16 kHz PCM16. Its frame is a JPEG picture, decoded with PyAV on the
CPU (or on NVDEC, `--decoder`), or a clip: the packets from the key frame before it on, copied and not decoded, which
training decodes on the GPU. `--visual auto` makes clips of the videos that this machine's GPU decodes and whose sides
are multiples of 16 (DALI uses no decoder again for others), and pictures of all others.

Videos are read in the order in which their pairs are in the shards (split, video, frame), so a shard is written as soon
as it is full, and the disk holds everything once. The command may be killed at any time: run again, it continues, and
ends with the same bytes as if it had never stopped.

A pair whose 3 s leave the sound track is left out, as in the published code. So are, each with its own reason, the
pairs that a missing, broken or silent file cannot give. `OUT/left_out.jsonl` lists all of them. Clips are copied
without decoding, so damage inside of them is not noticed: `--verify` decodes everything once and lists what is wrong in
`OUT/quarantine.jsonl`.
"""

from __future__ import annotations

if __name__ == "__main__":
    from essl_fast.common.commands import begin

    begin()

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from essl_fast.common import streams
from essl_fast.common.commands import Options, command, slow_imports
from essl_fast.common.outputs import output_folder
from essl_fast.common.registry import import_modules
from essl_fast.common.urls import is_url
from essl_fast.data.datasets import SOURCES
from essl_fast.prepare import options as options_of
from essl_fast.prepare.options import RUN

if TYPE_CHECKING:
    from essl_fast.data.shards import Manifest

PROG = "python -m essl_fast.prepare"


@streams.kept()  # hours of work do not end because a terminal is closed
def main(arguments: list[str] | None = None) -> int:
    """The command. Returns 0; 1 if --check finds a fault, --verify a broken pair or --strict something left out.

    Raises:
        InputError: an option, the annotations or the folder cannot be used.
    """
    data = options_of.parse(arguments, PROG)
    imports, strict, verifies = data.pop("imports", ()), data.pop("strict", False), data.pop("verify", False)
    checks, part = data.pop("check", False), data.pop("part", None)
    engine, parts = data.pop("engine"), data.pop("parts", None)
    videos = data.pop("against", None)
    run = {name: data.pop(name) for name in RUN if name in data}
    with slow_imports():
        import essl_fast.data.datasets  # noqa: F401
        from essl_fast import prepare as room
        from essl_fast.data.shards import BAD, Manifest
    import_modules(imports)
    say = room.reporter(True)
    if checks:
        seen = room.check(_read(data, run["out"]), run["out"], say)
        room.print_checked(seen, run["out"])
        return int(bool(seen.wrong))
    try:
        if part is not None:
            return _make_part(_read(data, run["out"]), part, run)
        if SOURCES & data.keys() or not verifies:
            dataset = _read(data, run["out"])
            if engine == "ray":
                room.parts_on_ray(data, run, count=parts, imports=imports, say=say)
                run["join"] = True
            manifest = room.prepare_dataset(dataset, **run)
            room.print_summary(manifest)
        else:
            manifest = Manifest.load(run["out"])
        found = room.verify(manifest, run.get("workers"), say) if verifies else {}
        compared, differences = room.compare(manifest, videos, say) if videos else (0, 0)
    except KeyboardInterrupt:
        print(f"{PROG}: stopped; the same command goes on", file=sys.stderr)
        return 130
    if verifies:
        room.print_verified(manifest, found)
    if videos:
        listed = f", listed in {manifest.named('against.jsonl')}" if differences else ""
        print(f"{compared} pairs were compared with {videos}: {differences} differences{listed}")
    lost = lost_entries(manifest) if strict else 0
    apart = len(manifest.header.get("contradictions", {})) if strict else 0
    if lost:
        print(f"{PROG}: strict: {lost} entries were left out", file=sys.stderr)
    if apart:
        print(f"{PROG}: strict: numbers and times of frames contradict each other in {apart} videos", file=sys.stderr)
    return int(bool(lost or apart or differences or BAD & found.keys()))


def _read(data: dict[str, Any], out: str | Path) -> Any:
    """The data set, once the output folder was seen to take files. A folder made for that goes where reading fails."""
    from essl_fast.common.pulse import Heartbeat
    from essl_fast.data.datasets import read_dataset
    from essl_fast.prepare import reporter

    new = not is_url(out) and not Path(out).exists()
    if not is_url(out):
        output_folder(out, "--out")
    try:
        with Heartbeat(reporter(True).line, lambda: "reading the annotations"):
            return read_dataset(data)
    except BaseException:
        if new:
            with contextlib.suppress(OSError):
                Path(out).rmdir()
        raise


def parser() -> Options:
    """The options."""
    return options_of.parser(PROG)


def _make_part(dataset: Any, part: tuple[int, int], run: dict[str, Any]) -> int:
    """Make one part of several machines' and say what it holds."""
    from essl_fast import prepare as room

    if (made := room.prepare_part(dataset, run.pop("out"), *part, **run)) is not None:
        room.print_part(str(made.part), made.videos, made.lost)
    return 0


def lost_entries(manifest: Manifest) -> int:
    """How many entries were left out, except pairs whose sound leaves the track."""
    from essl_fast.data import media

    return sum(count for reason, count in manifest.header["left_out"].items() if reason != media.WINDOW)


if __name__ == "__main__":
    sys.exit(command(main, PROG))
