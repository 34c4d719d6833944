"""Fixtures that several test files share."""

import pytest


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A small demo world, made and prepared: (world, prepared folder)."""
    from essl_fast.data.synthetic import make_world
    from essl_fast.prepare import prepare

    place = tmp_path_factory.mktemp("tiny")
    world = make_world(place / "world", train_videos=14, test_videos=5, seed=3, progress=False)
    prepare(world.videos, world.annotations, place / "prepared", validation=0.15, progress=False)
    return world, place / "prepared"
