"""The suite's scheduling, with small real processes."""

import json
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks import gpu_suite
from benchmarks.gpu_suite import FAILED, MISSING, OK, SKIPPED, TASKS, TIMED_OUT, Task, run_suite, share_of
from essl_fast.common import commands

GOOD = "import json, sys; json.dump({'headline': 'quick'}, open(sys.argv[1], 'w')); print('fine')"
BAD = "import sys; print('first'); print('the reason'); sys.exit(3)"
SLOW = "import subprocess, time; print(subprocess.Popen(['sleep', '60']).pid, flush=True); time.sleep(60)"
JUNIT = (  # of pytest: 5 tests
    "import sys; open(sys.argv[1] + '/tests.xml', 'w').write("
    '\'<testsuites><testsuite tests="5" failures="0" errors="0" skipped="{0}"/></testsuites>\')'
)


def python(name, code, wants=10.0, least=1.0, argument="{json}", **more):
    return Task(name, ("-c", code, argument), wants, least, **more)


def run(tasks, tmp_path, budget=60.0, quick=False):
    return {each.name: each for each in run_suite(tasks, tmp_path, budget, quick, commands.console())}


def gone(pid):
    """Whether a process has ended: there is none, or it only waits for its parent to notice."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_one_that_fails_or_hangs_does_not_stop_the_others(tmp_path, capsys):
    begin = time.perf_counter()
    tasks = [
        python("bad", BAD),
        python("slow", SLOW, wants=1.0, least=0.1),
        python("gone", GOOD, needs="benchmarks/no.py"),
        python("silent", "pass"),
        python("good", GOOD),
    ]
    found = run(tasks, tmp_path, budget=33.0)
    assert time.perf_counter() - begin < 20
    assert [each.state for each in found.values()] == [FAILED, TIMED_OUT, MISSING, FAILED, OK]
    assert "exit code 3: the reason" in found["bad"].note and "limit of 1 s" in found["slow"].note
    assert "no benchmarks/no.py" in found["gone"].note and "left no silent.json" in found["silent"].note
    assert found["good"].note == "quick"
    assert (tmp_path / "bad.log").read_text() == "first\nthe reason\n"
    assert gone(int((tmp_path / "slow.log").read_text()))  # what it had started, too
    shown = capsys.readouterr().out
    assert "the reason" in shown and "fine" in shown
    assert json.loads((tmp_path / "good.json").read_text()) == {"headline": "quick"}


def test_time_that_is_not_used_goes_to_those_after(tmp_path):
    tasks = [python(name, GOOD, wants=50.0, least=5.0) for name in ("first", "second")]
    found = run(tasks, tmp_path, budget=40.0)
    assert found["first"].limit == pytest.approx(20, abs=0.5) and found["second"].limit > 35
    assert "shortened: 20 of the 50 s" in found["first"].note
    assert share_of(90.0, tasks[0], tasks[1:]) == 45.0 and share_of(90.0, tasks[1], []) == 90.0


def test_what_the_budget_does_not_cover_is_skipped_and_said(tmp_path):
    found = run([python("late", GOOD, wants=10.0, least=10.0)], tmp_path, budget=5.0)
    assert found["late"].state == SKIPPED and "it needs 10" in found["late"].note
    assert not (tmp_path / "late.json").exists()


def test_old_results_do_not_pass_for_new_ones(tmp_path):
    (tmp_path / "silent.json").write_text('{"headline": "old"}')
    assert run([python("silent", "pass")], tmp_path)["silent"].state == FAILED


def test_gpu_tests_must_have_run(tmp_path):
    """All skipped is what a machine without a GPU gives; on one with a GPU it is a failure."""
    whole = python("tests", JUNIT.format(1), argument="{out}")
    none = python("tests", JUNIT.format(5), argument="{out}")
    assert run([whole], tmp_path)["tests"].note.startswith("4 passed, 0 failed, 1 skipped")
    assert run([none], tmp_path)["tests"].state == FAILED
    assert run([none], tmp_path, quick=True)["tests"].state == OK


def test_what_was_run_by_the_deadline_is_reported(tmp_path):
    """Real tests under the plugin: the session stops between two of them, and the suite tells how far it came."""
    slow = tmp_path / "test_slow.py"
    slow.write_text("import time\n" + "".join(f"def test_{n}(): time.sleep(0.6)\n" for n in range(30)))
    arguments = tuple(str(slow) if part == "tests" else part for part in gpu_suite.TESTS if part not in ("-m", "gpu"))
    task = Task("tests", ("-m", *arguments, "--confcutdir", str(tmp_path)), 30.0, 1.0)
    found = run([task], tmp_path, budget=gpu_suite.GRACE + 3)["tests"]
    assert found.state == FAILED and "exit code 2" in found.note and "what there was by then" in found.note
    assert 0 < int(found.note.split("by then: ")[1].split(" passed")[0]) < 30


def test_limits_and_paths_reach_the_command(tmp_path):
    code = "import json, sys; json.dump({'headline': sys.argv[2] + sys.argv[3]}, open(sys.argv[1], 'w'))"
    task = Task("told", ("-c", code, "{json}", "{limit}"), 30.0, 1.0, quick=("tiny",))
    assert run([task], tmp_path, budget=30.0, quick=True)["told"].note == "25tiny"


def test_main_writes_everything_and_ends_with_the_table(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(gpu_suite, "TASKS", (python("good", GOOD), python("bad", BAD)))
    assert gpu_suite.main(["--out", str(tmp_path), "--only", "good", "--quick", "--budget", "30"]) == 0
    assert gpu_suite.main(["--out", str(tmp_path), "--quick", "--budget", "30"]) == 1
    environment = json.loads((tmp_path / "environment.json").read_text())
    assert environment["packages"]["torch"].startswith(torch.__version__[:4])
    suite = json.loads((tmp_path / "suite.json").read_text())
    assert [task["state"] for task in suite["tasks"]] == ["ok", "failed"]
    assert "exit code 3" in capsys.readouterr().out.splitlines()[-2]
    with pytest.raises(SystemExit):
        gpu_suite.main(["--out", str(tmp_path), "--only", "other"])


def test_the_plan_fits_nine_minutes_and_names_real_files():
    assert sum(task.wants for task in TASKS) <= gpu_suite.BUDGET <= 530
    assert all(task.least < task.wants for task in TASKS)
    assert sys.executable and [task.name for task in TASKS][0] == "tests"
