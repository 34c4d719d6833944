"""What all benchmarks time with."""

import contextlib
import threading
import time
import types
from collections import deque

import pytest
import torch

from benchmarks import stages, timing
from benchmarks.processes import Neighbours, _machine_cpu_seconds, run_python
from benchmarks.stages import StageClock
from benchmarks.timing import Times, copy_rate, digits, matmul_rate, time_each
from tests.tools.watch import Watch

CPU = torch.device("cpu")


def test_time_each_times_run_alone(monkeypatch):
    clock = Watch.of(monkeypatch, timing)
    calls = {"prepare": 0, "run": 0}

    def prepare():
        calls["prepare"] += 1
        clock.sleep(0.125)
        return calls["prepare"]

    def run(given):
        assert given == calls["prepare"]
        calls["run"] += 1
        clock.sleep(calls["run"] / 1024)

    times = time_each(run, CPU, repeats=5, warmup=2, prepare=prepare)
    assert calls == {"prepare": 7, "run": 7} and times.all == [1000 * n / 1024 for n in range(3, 8)]
    assert (times.low, times.median, times.high) == tuple(1000 * n / 1024 for n in (3, 5, 7))


def test_time_each_keeps_to_its_seconds(monkeypatch):
    clock = Watch.of(monkeypatch, timing)
    lasts = deque([0.5, 0.25])  # what the last warm-up run takes counts

    def run():
        clock.sleep(lasts.popleft() if lasts else 0.125)

    assert len(time_each(run, CPU, repeats=100, warmup=2, seconds=4.0).all) == 14
    assert len(time_each(lambda: clock.sleep(3.0), CPU, repeats=100, warmup=1, seconds=4.0).all) == 2
    assert len(time_each(lambda: clock.sleep(0.25), CPU, repeats=5, warmup=1, seconds=4.0).all) == 5


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


def test_inner_stages_are_not_in_the_outer_ones(monkeypatch):
    now, clock = Watch.of(monkeypatch, stages), StageClock()
    with clock.stage("outer"):
        now.sleep(1)
        with clock.stage("inner"):
            now.sleep(4)
        now.sleep(2)
    now.sleep(8)
    assert clock.seconds == {"outer": 3, "inner": 4}


def test_listening_to_marked_stages(monkeypatch):
    now = Watch.of(monkeypatch, stages)
    owner, clock = types.SimpleNamespace(stage=contextlib.nullcontext), StageClock()

    def work(seconds=1):
        with owner.stage("work"):
            now.sleep(seconds)

    with clock.listen(owner, "stage"):
        work()
        thread = threading.Thread(target=work, args=(4,))  # what another thread does is not in this one's time
        thread.start()
        thread.join()
    work(2)
    assert owner.stage is contextlib.nullcontext and clock.seconds == {"work": 1}
    with pytest.raises(AttributeError), clock.listen(owner, "nothing"):
        pass


def test_run_python_reports_how_it_ended(tmp_path):
    log = tmp_path / "log"
    fine = run_python(["-c", "print('one'); print('two')"], 200, log)
    assert fine.code == 0 and fine.last_line == "two" and log.read_text() == "one\ntwo\n"
    assert run_python(["-c", "raise SystemExit(4)"], 200, log).code == 4
    begin = time.perf_counter()
    assert run_python(["-c", "import time; time.sleep(600)"], 0.5, log).code is None
    assert time.perf_counter() - begin < 300


@pytest.mark.slow
def test_cpu_seconds_are_of_work_not_of_waiting(tmp_path):
    """In a process group of its own, of two that work."""
    code = """
import resource, subprocess, sys, time
from benchmarks.processes import group_cpu_seconds
busy = "import time\\nwhile time.process_time() < 0.5: pass"
def kernel():
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)
time.sleep(0.5)
waited = kernel(), group_cpu_seconds(), kernel()
subprocess.run([sys.executable, "-c", busy])
exec(busy)
worked = kernel(), group_cpu_seconds(), kernel()
print(*waited, *worked)
"""
    ended = run_python(["-c", code], 600, tmp_path / "log")
    first, waited, then, before, worked, after = map(float, ended.last_line.split())
    ticks = 0.04 + 1e-6  # user and system time, its own and its children's, are each cut to a hundredth
    assert ended.code == 0 and first - ticks <= waited <= then + 1e-6
    assert 0.99 < before and before - ticks <= worked <= after + 1e-6


@pytest.mark.slow
def test_neighbours_are_noticed(tmp_path):
    """What another process works is a neighbour's, and what this group works is not, whatever else the machine does."""
    code = """
import os, signal, subprocess, sys, time
from benchmarks import processes
machine = []
processes._machine_cpu_seconds = lambda: sum(taken(pid) for pid in (os.getpid(), *machine))
def taken(pid):
    fields = open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
def share_of_one_that_stands():
    os.kill(other.pid, signal.SIGSTOP)  # else it works on between two looks at it
    while open(f"/proc/{other.pid}/stat").read().rsplit(")", 1)[1].split()[0] != "T":
        time.sleep(0.001)
    found = seen.share() if seen else processes.Neighbours()
    os.kill(other.pid, signal.SIGCONT)
    return found
for others in (True, False):  # no process of this machine but these two is seen
    other, seen = subprocess.Popen([sys.executable, "-c", "while True: pass"], start_new_session=others), None
    machine[:] = [other.pid]
    seen, begin, before = share_of_one_that_stands(), time.perf_counter(), taken(other.pid)
    while taken(other.pid) - before < 0.5:
        time.sleep(0.01)
    print(share_of_one_that_stands() * os.cpu_count() * (time.perf_counter() - begin), end=" ")
    other.kill(); other.wait()
"""
    ended = run_python(["-c", code], 600, tmp_path / "log")
    others, own = map(float, ended.last_line.split())
    assert ended.code == 0 and others > 0.25 > own
    assert "took 30%" in Neighbours.warning(0.3) and Neighbours.warning(0.01) == ""
    before, begin = _machine_cpu_seconds(), time.process_time()
    while time.process_time() - begin < 0.5:
        pass
    assert _machine_cpu_seconds() - before > 0.25
