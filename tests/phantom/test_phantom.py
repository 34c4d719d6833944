"""The pretended GPU finds what it is there for, in processes of its own; and its budgets."""

import os
import subprocess
import sys

import pytest
import torch

from essl_fast.kernels import native
from tests import ROOT
from tests.phantom import budgets
from tests.phantom.launches import moved_bytes


@pytest.mark.slow  # half a minute: PyTorch is imported in a process of its own, and five steps are traced
def test_every_fault_is_found():
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.phantom.faulty"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0 and done.stdout.count(": found: ") == 5, done.stdout + done.stderr


@pytest.mark.parametrize("stored", [16, 128, 100_000])
def test_of_a_pool_a_step_reads_its_batchs_rows(stored):
    frames = torch.empty(stored, 246, 246, 3, dtype=torch.uint8, device="meta")
    rows = torch.empty(128, dtype=torch.int64, device="meta")
    out = torch.empty(2, 128, 3, 224, 224, dtype=torch.bfloat16, device="meta")
    read = min(stored, 128) * 246 * 246 * 3
    assert moved_bytes(native._two_views._opoverload, (frames, rows), {}, out) == read + rows.nbytes + out.nbytes


def test_budgets(tmp_path):
    version = torch.__version__.partition("+")[0]
    one = {"graphs": 1, "kernels": 10, "launches": 20, "calls": 5, "gigabytes": 2.0, "atomics": 0, "relayouts": 0}
    assert budgets.faults("a", one, {"a": one}, version) == []
    assert budgets.faults("a", {**one, "gigabytes": 2.003}, {"a": one}, version) == []
    (line,) = budgets.faults("a", {**one, "launches": 19, "gigabytes": 2.1}, {"a": one}, version)
    assert line.startswith("a: launches 20 -> 19, gigabytes 2.0 -> 2.1: if that is meant, run `python -m tests.phantom")
    assert "has no budget" in budgets.faults("b", one, {"a": one}, version)[0]
    assert budgets.faults("a", {**one, "launches": 19}, {"a": one}, "1.0") == []  # another compiler, other code
    file = tmp_path / "budgets.json"
    budgets.save({"a": one, "b": one}, file)
    budgets.save({"b": {**one, "calls": 6}}, file)
    assert budgets.load(file) == {"a": one, "b": {**one, "calls": 6}} and budgets.made_with(file) == version


def test_the_shipped_budgets_are_whole():
    table = budgets.load()
    assert table and all(list(each) == list(budgets.COLUMNS) for each in table.values())
    single = {name: each["graphs"] for name, each in table.items() if "ranks" not in name}
    assert all(graphs == ("evaluation" not in name) for name, graphs in single.items())
