"""What all benchmarks time with."""

import contextlib
import threading
import time
import types

import pytest
import torch

from benchmarks.processes import Neighbours, run_python
from benchmarks.stages import StageClock
from benchmarks.timing import Times, copy_rate, digits, matmul_rate, time_each

CPU = torch.device("cpu")


def test_time_each_times_run_alone():
    calls = {"prepare": 0, "run": 0}

    def prepare():
        calls["prepare"] += 1
        time.sleep(0.1)
        return calls["prepare"]

    def run(given):
        assert given == calls["prepare"]
        calls["run"] += 1
        time.sleep(0.005)

    times = time_each(run, CPU, repeats=5, warmup=2, prepare=prepare)
    assert calls == {"prepare": 7, "run": 7} and len(times.all) == 5
    assert 5 <= times.low <= times.median <= times.high and times.median < 100


def test_time_each_keeps_to_its_seconds():
    times = time_each(lambda: time.sleep(0.02), CPU, repeats=100, warmup=1, seconds=0.2)
    assert 2 <= len(times.all) <= 10


def test_times_are_percentiles_of_all():
    times = Times.of([float(n) for n in reversed(range(1, 22))])
    assert (times.low, times.median, times.high) == (3, 11, 19) and times.all[0] == 21
    assert Times.of([7.0]).low == 7.0
    assert times.text() == "11.0 (3.00-19.0)"


def test_digits():
    values = {0: "0", 0.01234: "0.0123", 1.236: "1.24", 99.96: "100.0", 123.4: "123", 12345.6: "12,346"}
    assert {value: digits(value) for value in values} == values


def test_ceilings_are_plausible():
    assert 1e8 < copy_rate(CPU) < 1e13
    assert 1e8 < matmul_rate(CPU, torch.float32) < 1e13


def test_inner_stages_are_not_in_the_outer_ones():
    clock = StageClock()
    with clock.stage("outer"):
        time.sleep(0.01)
        with clock.stage("inner"):
            time.sleep(0.3)
    assert 0.3 <= clock.seconds["inner"] and 0.01 <= clock.seconds["outer"] < 0.3


def test_listening_to_marked_stages():
    owner, clock = types.SimpleNamespace(stage=contextlib.nullcontext), StageClock()

    def work(seconds=0.01):
        with owner.stage("work"):
            time.sleep(seconds)

    with clock.listen(owner, "stage"):
        work()
        thread = threading.Thread(target=work, args=(0.3,))  # what another thread does is not in this one's time
        thread.start()
        thread.join()
    work()
    assert owner.stage is contextlib.nullcontext and set(clock.seconds) == {"work"}
    assert 0.01 <= clock.seconds["work"] < 0.3
    with pytest.raises(AttributeError), clock.listen(owner, "nothing"):
        pass


def test_run_python_reports_how_it_ended(tmp_path):
    log = tmp_path / "log"
    fine = run_python(["-c", "print('one'); print('two')"], 20, log)
    assert fine.code == 0 and fine.last_line == "two" and log.read_text() == "one\ntwo\n"
    assert run_python(["-c", "raise SystemExit(4)"], 20, log).code == 4
    begin = time.perf_counter()
    assert run_python(["-c", "import time; time.sleep(60)"], 0.5, log).code is None
    assert time.perf_counter() - begin < 15


@pytest.mark.slow
def test_cpu_seconds_are_of_work_not_of_waiting(tmp_path):
    """In a process group of its own, of two that work."""
    code = """
import subprocess, sys, time
from benchmarks.processes import group_cpu_seconds
busy = "import time\\nwhile time.process_time() < 0.5: pass"
before = group_cpu_seconds()
time.sleep(0.3)
waited = group_cpu_seconds() - before
subprocess.run([sys.executable, "-c", busy])
exec(busy)
print(waited, group_cpu_seconds() - before)
"""
    ended = run_python(["-c", code], 60, tmp_path / "log")
    waited, worked = map(float, ended.last_line.split())
    assert ended.code == 0 and waited < 0.1 and 0.9 < worked < 1.5


@pytest.mark.slow
def test_neighbours_are_noticed(tmp_path):
    """One other process that works all the time takes a core; what this group does is not a neighbour's."""
    code = """
import os, subprocess, sys, time
from benchmarks.processes import Neighbours
busy = [sys.executable, "-c", "while True: pass"]
other = subprocess.Popen(busy, start_new_session=True)
seen = Neighbours()
time.sleep(1)
with_other = seen.share()
other.kill(); other.wait()
own, seen = subprocess.Popen(busy), Neighbours()
time.sleep(1)
with_own = seen.share()
own.kill()
print((with_other - with_own) * os.cpu_count())
"""
    ended = run_python(["-c", code], 60, tmp_path / "log")
    assert ended.code == 0, ended
    if float(ended.last_line) < 0.2:  # others came or went meanwhile: once more
        ended = run_python(["-c", code], 60, tmp_path / "log")
    assert float(ended.last_line) > 0.2
    assert "took 30%" in Neighbours.warning(0.3) and Neighbours.warning(0.01) == ""
