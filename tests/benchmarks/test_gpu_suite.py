"""The suite's scheduling, and what survives its end: with small real processes."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import gpu_suite
from benchmarks import rows as rows_module
from benchmarks.gpu_suite import FAILED, OK, SKIPPED, TASKS, TIMED_OUT, Task, missing, run_call, share_of
from benchmarks.rows import Rows, not_reached, read
from benchmarks.smoke import LOADED, SMOKE
from essl_fast.common import commands
from tests import ROOT
from tests.tools.watch import Watch

GOOD = (
    "import sys; from benchmarks.rows import Rows; Rows(sys.argv[1], sys.argv[2]).add('one', {'x': 1}); print('fine')"
)
BAD = "import sys; print('first'); print('the reason'); sys.exit(3)"
SLOW = "import subprocess, time; print(subprocess.Popen(['sleep', '600']).pid, flush=True); time.sleep(600)"
# Three rows, each with the time when it was made; what is there is not made again. It takes its time for the kill.
ROWS = """
import os, sys, time
from pathlib import Path
from benchmarks.rows import Rows
rows = Rows(Path(sys.argv[1]), sys.argv[2])
for key, _ in rows.planned(["a", "b", "c"]):
    time.sleep(0.15)
    rows.add(key, {"made": time.time_ns(), "by": os.getpid()})
time.sleep(0.15)
"""
FOUND = {"machine": {"cpu": "a processor"}, "source": {"sha256": "1234"}}


def python(name, code, call=1, wants=10.0, least=1.0, argument="{rows}", **more):
    return Task(name, call, ("-c", code, argument, name), wants, least, **more)


def run(tasks, tmp_path, budget=60.0, tiny=False):
    return {each.name: each for each in run_call(tasks, tmp_path, budget, tiny, commands.console())}


def gone(pid):
    """Whether a process has ended: there is none, or it only waits for its parent to notice."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.mark.slow
def test_one_that_fails_or_hangs_does_not_stop_the_others(tmp_path, capsys):
    begin = time.perf_counter()
    tasks = [
        python("bad", BAD, wants=1000.0),
        python("slow", SLOW, wants=1.0, least=0.1),
        python("lacking", GOOD, needs=("no_such_module.inner",)),
        python("silent", "pass", wants=1000.0),
        python("good", GOOD, wants=1000.0),
    ]
    found = run(tasks, tmp_path, budget=2300.0)
    assert time.perf_counter() - begin < 300
    assert [each.state for each in found.values()] == [FAILED, TIMED_OUT, SKIPPED, FAILED, OK]
    assert "exit code 3: the reason" in found["bad"].note and "limit of 1 s" in found["slow"].note
    assert found["lacking"].note == "this host has no no_such_module.inner" and found["silent"].note == "it left no row"
    assert found["good"].note.startswith("1 rows")
    assert (tmp_path / "bad.log").read_text() == "first\nthe reason\n"
    started = (tmp_path / "slow.log").read_text()  # "" where a second is not enough to start anything
    assert not started or gone(int(started))
    shown = capsys.readouterr().out
    assert "the reason" in shown and "fine" in shown
    again = run(tasks, tmp_path, budget=2300.0)  # only what did not end well is run again
    assert again["good"].note.startswith("done before: 1 rows") and again["bad"].state == FAILED


def test_time_that_is_not_used_goes_to_those_after(tmp_path):
    tasks = [python(name, GOOD, wants=5000.0, least=5.0) for name in ("first", "second")]
    found = run(tasks, tmp_path, budget=4000.0)
    assert found["first"].limit == pytest.approx(2000, abs=50) and found["second"].limit > 3500
    assert re.search("shortened: (20|19[5-9])[0-9]+ of the 5000 s", found["first"].note)
    assert share_of(90.0, tasks[0], tasks[1:]) == 45.0 and share_of(90.0, tasks[1], []) == 90.0


def test_what_the_budget_does_not_cover_is_skipped_and_said(tmp_path):
    found = run([python("late", GOOD, wants=10.0, least=10.0)], tmp_path, budget=5.0)
    assert found["late"].state == SKIPPED and found["late"].note.startswith("not reached") and "needs 10" in str(found)
    assert [row["row"] for row in read(tmp_path / "rows.jsonl")] == ["late"]  # said there, too
    assert run([python("late", GOOD, wants=10.0, least=10.0)], tmp_path, budget=600.0)["late"].state == OK


def test_limits_and_paths_reach_the_command(tmp_path):
    code = "import sys; from benchmarks.rows import Rows; Rows(sys.argv[1], 'told').add(' '.join(sys.argv[2:]), {})"
    task = Task("told", 1, ("-c", code, "{rows}", "{limit}", "{data}"), 3000.0, 1.0, tiny=("tiny",))
    assert run([task], tmp_path, budget=3000.0, tiny=True)["told"].state == OK
    limit, rest = read(tmp_path / "rows.jsonl")[0]["row"].split(" ", 1)
    assert 2900 < int(limit) <= 2995 and rest == f"{tmp_path}/cache/data tiny"


# ---------------------------------------------------------------- rows


def test_a_row_is_on_the_disk_and_a_cut_line_is_none(tmp_path, monkeypatch):
    synced, file = [], tmp_path / "rows.jsonl"
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(os.fstat(handle).st_size))
    rows = Rows(file, "mine")
    rows.add("ä", {"x": 1})
    rows.add("b", {"x": 2})
    assert len(synced) == 2 and synced[-1] == file.stat().st_size
    whole = file.read_bytes()
    for cut in range(len(whole)):
        file.write_bytes(whole[:cut])
        rows = Rows(file, "mine")
        rows.add("c", {"x": 3})
        complete = whole[:cut].count(b"\n") + (cut and whole[cut : cut + 1] == b"\n")  # a line may lack only its end
        assert [row["row"] for row in read(file)] == [*["ä", "b"][:complete], "c"], cut
    Rows(file, "other").add("c", {})
    assert "c" in rows and rows["c"] == {"x": 3} and len(read(file)) == 4
    rows.add("c", {"x": 4})
    assert Rows(file, "mine")["c"] == {"x": 4}


def test_rows_share_the_time_and_those_not_reached_are_named(tmp_path, monkeypatch):
    watch = Watch.of(monkeypatch, rows_module)
    rows = Rows(tmp_path / "rows", "mine", budget=0.4)
    rows.add("a", {})
    given = []
    for _, seconds in rows.planned(list("abcde")):
        given.append(seconds)
        watch.sleep(0.38)
    assert given == [pytest.approx(0.1)] and rows.missed == ["c", "d", "e"]
    assert not_reached(rows).startswith("not reached in 0 s: c, d, e;") and not not_reached(Rows(None, "mine"))


# ---------------------------------------------------------------- kills

DRIVER = """
import sys
from benchmarks import gpu_suite
from benchmarks.gpu_suite import Task
gpu_suite.environment = lambda: {found!r}
gpu_suite.TASKS = tuple(
    Task(name, call, ("-c", {code!r}, "{{rows}}", name), 10, 0.1) for name, call in (("p", 1), ("q", 1), ("r", 2))
)
sys.exit(gpu_suite.main(["--rehearse", "--out", sys.argv[1]]))
"""


def start(out):
    command = [sys.executable, "-c", DRIVER.format(found=FOUND, code=ROWS), str(out)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def lines_of(out):
    """Finished rows of tasks, without those of the suite itself: (task, key) -> value."""
    return {(row["task"], row["row"]): row["value"] for row in read(out / "rows.jsonl") if row["task"] != "run"}


@pytest.mark.parametrize(
    "by",
    [
        pytest.param(signal.SIGTERM, marks=pytest.mark.slow, id="SIGTERM"),
        pytest.param(signal.SIGKILL, marks=pytest.mark.nightly, id="SIGKILL"),
    ],
)
def test_killed_at_every_point_it_loses_no_finished_row(tmp_path, by):
    """After every row and every task in turn; each start goes on where the last one was killed."""
    had, last = {}, time.monotonic() + 1000
    while time.monotonic() < last:
        process = start(tmp_path)
        while process.poll() is None and len(lines_of(tmp_path)) <= len(had):
            time.sleep(0.005)
        process.send_signal(by)
        said, _ = process.communicate(timeout=300)
        now = lines_of(tmp_path)
        assert had.items() <= {**now, **{key: had[key] for key in had if key[0] == "suite"}}.items()
        soon = time.monotonic() + 120
        while not all(gone(value["by"]) for value in now.values() if "by" in value):
            assert time.monotonic() < soon, "a task's process outlives the suite"
            time.sleep(0.01)
        had = now
        if process.returncode == 0:
            break
        assert process.returncode in (-by, 128 + by), said
    assert process.returncode == 0
    assert {key for key in had if key[0] != "suite"} == {(task, row) for task in "pqr" for row in "abc"}
    assert [had["suite", task]["state"] for task in "pqr"] == [OK] * 3
    assert start(tmp_path).communicate()[0].count("done before") == 3 and lines_of(tmp_path) == had


def test_the_tasks_process_ends_with_a_suite_that_is_killed(tmp_path):
    code = SLOW.replace("print(", "print(__import__('os').getpid(), flush=True); print(")
    script = DRIVER.format(found=FOUND, code=code)
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, stdout=subprocess.DEVNULL)
    log, last = tmp_path / "p.log", time.monotonic() + 300
    while time.monotonic() < last and not (log.exists() and log.read_text().count("\n") == 2):
        time.sleep(0.01)
    process.kill()
    process.wait()
    task, last = int(log.read_text().split()[0]), time.monotonic() + 120
    while time.monotonic() < last and not gone(task):
        time.sleep(0.01)
    assert gone(task)
    os.kill(int(log.read_text().split()[1]), signal.SIGKILL)  # its own child, which knows nothing of this


# ---------------------------------------------------------------- the command


def test_rows_of_another_code_or_device_are_not_mixed_in(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_suite, "TASKS", (python("good", GOOD), python("later", GOOD, call=2)))
    monkeypatch.setattr(gpu_suite, "environment", lambda: FOUND)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        monkeypatch.setenv(name, "")
    command = ["--out", str(tmp_path), "--rehearse", "--call"]
    assert gpu_suite.main([*command, "1"]) == 0
    assert os.environ["TRITON_CACHE_DIR"] == str(tmp_path / "cache" / "triton")
    assert {row["row"] for row in read(tmp_path / "rows.jsonl") if row["task"] == "suite"} == {"good"}
    assert gpu_suite.main([*command, "2"]) == 0
    monkeypatch.setattr(gpu_suite, "environment", lambda: {**FOUND, "source": {"sha256": "5"}})
    with pytest.raises(SystemExit, match="rows are of another source; give another --out"):
        gpu_suite.main([*command, "1"])
    with pytest.raises(SystemExit, match="there is no GPU here; --rehearse"):
        gpu_suite.main(["--out", str(tmp_path)])
    with pytest.raises(SystemExit):
        gpu_suite.main(["--out", str(tmp_path), "--only", "other"])


def test_the_plan_fits_and_names_what_there_is():
    for call in (1, 2):
        assert sum(task.wants for task in TASKS if task.call == call) <= gpu_suite.BUDGET < 7 * 60
    assert all(task.least < task.wants for task in TASKS) and TASKS[0].name == "smoke"
    assert [task.name for task in TASKS if task.call == 2] == ["step", "end_to_end", "speed_of_light"]
    assert 35 <= len({*SMOKE, *LOADED}) == len(SMOKE) + len(LOADED) <= 45
    for test in (*SMOKE, *LOADED):
        file, name = test.split("[")[0].split("::")
        assert f"def {name}(" in (ROOT / file).read_text(), test
    assert not missing(Task("x", 1, (), 1, 1, needs=("json",)))


@pytest.mark.slow
def test_real_tests_under_the_plugin(tmp_path):
    """The session stops between two of them, each is a row, and the next run begins where it stopped."""
    slow = tmp_path / "test_slow.py"
    body = "import pytest\n" + "".join(f"def test_{n}(): pass\n" for n in range(6))
    slow.write_text(f"{body}def test_wrong(): assert 1 == 2\ndef test_away(): pytest.skip('not here')\n")
    words = [word for word in gpu_suite.TESTS.split() if word not in ("-m", "gpu")]
    arguments = ("-m", *words, str(slow), "--confcutdir", str(tmp_path))
    full = Task("smoke", 1, arguments, 300.0, 1.0)
    short = Task("smoke", 1, tuple(word.replace("{limit}", "0") for word in arguments), 300.0, 1.0)
    found = run([short], tmp_path, budget=600)["smoke"]
    first = {row["row"]: row["value"] for row in read(tmp_path / "rows.jsonl") if row["task"] == "smoke"}
    assert found.state == FAILED and "exit code 2" in found.note and len(first) == 1
    found = run([full], tmp_path, budget=600)["smoke"]
    rows = {row["row"].split("::")[1]: row["value"] for row in read(tmp_path / "rows.jsonl") if row["task"] == "smoke"}
    assert found.state == FAILED and f"{8 - len(first)} rows beside the {len(first)} that were there, 1 failed" in str(
        found
    )
    assert len(rows) == 8 and rows["test_wrong"] == {"outcome": "failed", "note": rows["test_wrong"]["note"]}
    assert rows["test_away"]["outcome"] == "skipped" and "not here" in rows["test_away"]["note"]


@pytest.mark.nightly  # three minutes on two cores; more on a busy machine
def test_both_calls_are_rehearsed_and_killed_after_every_task(tmp_path):
    """For real: every task of both calls at its tiny size. SIGTERM comes after each; the same command then goes on."""
    command = [sys.executable, "-m", "benchmarks.gpu_suite", "--rehearse", "--out", str(tmp_path)]
    had, starts = {}, 0
    while starts <= len(TASKS) + 1:
        starts += 1
        with (tmp_path / "said").open("w") as said:
            process = subprocess.Popen(command, cwd=ROOT, stdout=said, stderr=subprocess.STDOUT)
        ended = sum(key[0] == "suite" for key in had)
        while process.poll() is None and sum(key[0] == "suite" for key in lines_of(tmp_path)) == ended:
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        process.wait(600)
        now = lines_of(tmp_path)
        assert had.items() <= now.items(), f"start {starts} lost or changed a row"
        had = now
        if process.returncode == 0:
            break
        assert process.returncode in (-signal.SIGTERM, 128 + signal.SIGTERM), (tmp_path / "said").read_text()[-5000:]
    states = {key[1]: value["state"] for key, value in had.items() if key[0] == "suite"}
    assert states == {task.name: OK for task in TASKS}
    assert process.returncode == 0 and starts > len(TASKS) // 2, starts
