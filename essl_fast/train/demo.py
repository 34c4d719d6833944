"""The synthetic world that `data.root: demo` stands for: made and prepared once, then found again."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from essl_fast import config
from essl_fast.common import places
from essl_fast.common.errors import InputError
from essl_fast.data.synthetic import OtherWorld, make_world, world_lock
from essl_fast.prepare import PreparedDifferently, prepare


def demo_folder(demo: config.DemoConfig) -> Path:
    """Where the world of these settings is kept.

    Raises:
        InputError: the settings name no place, and the user has no home folder.
    """
    place = Path(demo.cache).expanduser().resolve() if demo.cache else places.cache_folder()
    if place is None:
        raise InputError("demo.cache: this user has no home folder to keep the demo world in; give --demo.cache DIR")
    name = f"demo-{demo.codec}-{demo.train_videos}-{demo.test_videos}-{demo.seed}"
    return place.absolute() / (name if demo.objects == "several" else f"{name}-{demo.objects}")


def demo_data(demo: config.DemoConfig, say: Callable[[str], None], progress: bool = True) -> tuple[Path, dict]:
    """Make and prepare the synthetic world unless it is there.

    Several processes may call it at once: one makes the world, the others wait for it. A world of another version stays
    as it is, since runs may be reading it, and another folder is taken.

    Args:
        demo: which world, and where it is kept.
        say: called with lines for the user, one of which says where it is.
        progress: show progress.

    Returns:
        The prepared folder, and every object of each pair's frame by the pair's key.
    """
    first = demo_folder(demo)
    for number in itertools.count(1):
        place = first if number == 1 else first.with_name(f"{first.name}-{number}")
        try:
            return _made(place, demo, say, progress)
        except (OtherWorld, PreparedDifferently):
            say(f"{place} is of another version, and stays as it is")
        except OSError as error:
            why = error.strerror or error
            raise InputError(
                f"demo.cache: cannot write {place} ({why}); give another folder with --demo.cache DIR"
            ) from error
    raise AssertionError("unreachable")


def _made(place: Path, demo: config.DemoConfig, say: Callable[[str], None], progress: bool) -> tuple[Path, dict]:
    """The world in a folder, made there unless it is finished. OtherWorld or PreparedDifferently: it is another one."""
    size: dict[str, Any] = {"train_videos": demo.train_videos, "test_videos": demo.test_videos}
    place.mkdir(parents=True, exist_ok=True)
    prepared = place / "prepared"
    with world_lock(place, say):
        world = make_world(
            place / "world", **size, seed=demo.seed, codec=demo.codec, objects=demo.objects, say=say, progress=progress
        )
        done = (prepared / "manifest.json").exists()  # prepare then says that there is nothing to do
        # JPEG, so that the world is the same on every machine, whatever its GPU decodes.
        manifest = prepare(world.videos, world.annotations, prepared, visual="jpeg", progress=progress and not done)
    say(f"demo world: {manifest.place}")
    return prepared, json.loads(world.objects.read_text(encoding="utf-8"))
