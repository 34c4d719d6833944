"""Makes the videos of a demo world in several processes; this file is also the program that each of them runs.

Each process is a new interpreter: forking a process in which torch's threads run is not safe, and multiprocessing's
"spawn" would import the caller's main module, torch included, again in each process.
"""

if __name__ == "__main__":
    from essl_fast.common.commands import begin

    begin()

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from essl_fast.common.subprocesses import with_package
from essl_fast.data.synthetic.settings import WorldSettings


def make_in_parallel(settings: WorldSettings, folder: Path, workers: int) -> Iterator[str]:
    """Write the videos of a world into a folder, in `workers` processes, and yield the name of each.

    Raises:
        RuntimeError: a process failed; it has printed its message.
    """
    command = [sys.executable, "-m", "essl_fast.data.synthetic.workers", str(folder)]
    done, to_done = os.pipe()  # one pipe for all: a name and its newline are one write, which the kernel does not split
    started: list[subprocess.Popen] = []
    try:
        for first in range(workers):
            share = json.dumps({"settings": asdict(settings), "first": first, "step": workers})
            started.append(subprocess.Popen([*command, share], stdout=to_done, env=with_package()))
        os.close(to_done)
        with os.fdopen(done, encoding="ascii") as names:
            for line in names:
                yield line.strip()
        for process in started:
            if process.wait():
                raise RuntimeError(f"demo world: a worker ended with status {process.returncode}; its message is above")
    finally:
        for process in started:
            if process.poll() is None:
                process.kill()
                process.wait()


def _work(folder: str, share: str) -> None:
    """Write one process's share of the videos, and print the name of each."""
    from essl_fast.data.synthetic.plan import plan_world
    from essl_fast.data.synthetic.videos import make_videos

    part = json.loads(share)
    plans = plan_world(WorldSettings(**part["settings"]))
    for name in make_videos(plans[part["first"] :: part["step"]], Path(folder)):
        os.write(1, f"{name}\n".encode())


if __name__ == "__main__":
    _work(*sys.argv[1:])
