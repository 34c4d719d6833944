"""A signal ends training after a step, with a checkpoint; a second one at once."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from essl_fast import checkpoints
from essl_fast.runtime import distributed, runlog
from essl_fast.runtime.stopping import SIGNALS, Stopped, Stopping
from essl_fast.train import __main__ as train_door
from tests.tools.ranks import run_ranks


@pytest.mark.parametrize("signum", SIGNALS)
def test_the_first_signal_is_noted_and_the_second_stops_at_once(signum, capfd):
    shells = signal.signal(signum, signal.default_int_handler)  # nohup, and a shell's background, ignore some
    before = [signal.getsignal(each) for each in SIGNALS]
    with Stopping() as stopping:
        assert stopping.agreed() == 0
        os.kill(os.getpid(), signum)
        assert stopping.agreed() == signum and "after this step" in capfd.readouterr().err
        with pytest.raises(Stopped) as raised:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)  # the handler runs before this
        assert raised.value.code == 130 and stopping.agreed() == signum
    assert [signal.getsignal(each) for each in SIGNALS] == before
    signal.signal(signum, shells)


def test_a_limit_of_cpu_time_leaves_time_for_the_checkpoint():
    """The kernel repeats SIGXCPU every second; another signal still stops at once."""
    with Stopping() as stopping:
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGXCPU)
        assert stopping.agreed() == signal.SIGXCPU
        with pytest.raises(Stopped):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)


def test_signals_that_are_ignored_stay_so_and_other_threads_change_nothing():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Stopping():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    finally:
        signal.signal(signal.SIGINT, before)

    def elsewhere():
        with Stopping() as stopping:
            found.append((signal.getsignal(signal.SIGTERM), stopping.agreed()))

    found = []
    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert found == [(signal.SIG_DFL, 0)]


def one_rank_is_told(world):
    with Stopping() as stopping:
        heard = [stopping.agreed(world)]
        if world.rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return [*heard, stopping.agreed(world), stopping.signum]


@pytest.mark.slow
def test_all_ranks_agree_on_what_one_was_told():
    assert run_ranks(2, one_rank_is_told) == [[0, signal.SIGTERM, 0], [0, signal.SIGTERM, signal.SIGTERM]]
    assert distributed.ALONE.size == 1 and Stopping().agreed() == 0


@pytest.mark.slow
def test_sigterm_saves_the_step_it_came_in(tiny, tmp_path):
    """No checkpoint is due within the epoch: what last.pt holds is from the signal. The run then goes on to its end."""
    out = tmp_path / "run"
    arguments = (
        f"--config demo --data.root {tiny[1]} --out {out} --data.batch_size 5 --device cpu --epochs 1000".split()
    )
    arguments += "--checkpoint_epochs 1000 --eval_every 0 --baselines false --overlays 0".split()
    process = subprocess.Popen(
        [sys.executable, "-m", "essl_fast.train", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        for line in process.stdout:  # the first epoch is over
            if "epoch   1" in line:
                break
        process.send_signal(signal.SIGTERM)
        said, error = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 143, error
    assert f"continue with: python -m essl_fast.train --resume {out}" in said
    assert "Traceback" not in error and "after this step" in error
    state = checkpoints.load(out / "last.pt")
    stop = runlog.read_log(out / "log.jsonl")[-1]
    assert (stop["event"], stop["signal"], stop["step"]) == ("stop", "SIGTERM", state["step"])
    assert state["epoch"] >= 1 and state["step"] > 0
    assert train_door.main(["--resume", str(out), "--epochs", str(state["epoch"] + 1)]) == 0
    assert checkpoints.load(out / "last.pt")["epoch"] == state["epoch"] + 1
