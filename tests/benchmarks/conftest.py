"""No test process forks: by then it has threads of many libraries, and a fork copies their locks as they are."""

import pytest


@pytest.fixture(autouse=True)
def baseline_without_workers(monkeypatch):
    """The baseline's DataLoader does its work in this process. What needs workers runs in a process of its own."""
    try:
        from benchmarks.baselines import published_data as data
    except ModuleNotFoundError:  # no h5py: the tests that need it skip themselves
        return
    loader = data.DataLoader

    def here(*arguments, num_workers=0, persistent_workers=False, **more):
        return loader(*arguments, **more)

    monkeypatch.setattr(data, "DataLoader", here)
