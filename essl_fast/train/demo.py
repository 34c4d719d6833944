"""The synthetic world that `data.root: demo` stands for: made and prepared once, then found again."""

import functools
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from essl_fast import config
from essl_fast.common.errors import InputError
from essl_fast.data.synthetic import make_world
from essl_fast.prepare import PreparedDifferently, prepare


def demo_folder(demo: config.DemoConfig) -> Path:
    """Where the world of these settings is kept."""
    home = Path(demo.cache or os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser().resolve()
    place = home if demo.cache else home / "essl_fast"
    return place / f"demo-{demo.codec}-{demo.train_videos}-{demo.test_videos}-{demo.seed}"


def demo_data(demo: config.DemoConfig, say: Callable[[str], None]) -> tuple[Path, dict]:
    """Make and prepare the synthetic world unless it is there.

    Args:
        demo: which world, and where it is kept.
        say: called with a line for the user that says where it is.

    Returns:
        The prepared folder, and every object of each pair's frame by the pair's key.
    """
    place = demo_folder(demo)
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"demo.cache: cannot write {place} ({error}); give a folder with --demo.cache DIR") from error
    size = {"train_videos": demo.train_videos, "test_videos": demo.test_videos}
    world = make_world(place / "world", **size, seed=demo.seed, codec=demo.codec, overwrite=True)
    # JPEG, so that the world is the same on every machine, whatever its GPU decodes.
    make = functools.partial(prepare, world.videos, world.annotations, place / "prepared", visual="jpeg")
    try:
        make()
    except (
        PreparedDifferently
    ):  # by an earlier version. The folder belongs to the demo, so the user should not have to delete it.
        say(f"{place / 'prepared'} is another version's: making it again")
        shutil.rmtree(place / "prepared")
        make()
    say(f"demo world: {place}")
    return place / "prepared", json.loads(world.objects.read_text())
