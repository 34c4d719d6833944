"""A sample of what `python -m tests.nth` tries: of each kind of operation the first, the middle and the last one."""

import errno
import fcntl
import os
import signal

import numpy as np
import pytest

from tests.nth import __main__ as door
from tests.nth import trials
from tests.nth.disk import KINDS, VARIANTS, Disk, Failure
from tests.nth.stages import STAGES, quiet


def lost_in(made, place, pick) -> list[str]:
    """What is lost of a stage when the operations fail that `pick` chooses from (kind, how many there are)."""
    with quiet():
        stage, out = made(place / "stage"), place / "out-of-trials"
        counts, lost = trials.count(stage, out), []
        for kind, nth in pick([(kind, counts[kind]) for kind in KINDS if counts[kind]]):
            error, stays = VARIANTS[kind][nth % len(VARIANTS[kind])]
            found = trials.attempt(stage, out, Failure(kind, nth, error, stays))
            assert found.fired
            if found.what == trials.LOST:
                lost.append(found.why)
    return lost


@pytest.mark.parametrize("made", STAGES, ids=lambda made: made.name)
def test_nothing_is_lost_when_a_disk_fails(made, tmp_path):
    """The first, the middle and the last operation, of a kind each."""

    def pick(kinds):
        (first, _), (middle, count), (last, most) = kinds[0], kinds[len(kinds) // 2], kinds[-1]
        return [(first, 1), (middle, (count + 1) // 2), (last, most)]

    assert not lost_in(made, tmp_path, pick)


@pytest.mark.slow
@pytest.mark.parametrize("made", STAGES, ids=lambda made: made.name)
def test_nothing_is_lost_whatever_fails(made, tmp_path):
    """The first, the middle and the last operation of each kind."""

    def pick(kinds):
        return [(kind, nth) for kind, count in kinds for nth in sorted({1, (count + 1) // 2, count})]

    assert not lost_in(made, tmp_path, pick)


def test_every_kind_of_operation_is_counted_and_fails(tmp_path):
    """Through files, the os module and NumPy; and nothing beside the folder counts."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def work():
        with open(folder / "a", "wb") as file:  # open
            file.write(b"1")
            file.flush()  # write
            os.fsync(file.fileno())  # sync
            file.write(b"2")  # write, when the file is closed
        os.replace(folder / "a", folder / "b")  # name
        np.save(folder / "c.npy", np.arange(3))  # open, write
        assert (folder / "b").read_bytes() == b"12"  # open, read
        assert np.load(folder / "c.npy").tolist() == [0, 1, 2]  # open, a read
        (tmp_path / "beside").write_text("x")

    with Disk(folder).mounted() as disk:
        work()
    assert disk.counts == {"open": 4, "read": disk.counts["read"], "write": disk.counts["write"], "sync": 1} | {
        "name": 1,
        "memory": 1,  # a file is read whole
    }
    assert disk.counts["read"] >= 2 and disk.counts["write"] >= 3
    for kind in ("open", "read", "write", "sync", "name"):
        for nth in range(1, disk.counts[kind] + 1):
            with Disk(folder, Failure(kind, nth)).mounted() as failing:
                with pytest.raises(OSError) as raised:
                    work()
            assert raised.value.errno == errno.EIO and failing.failed, (kind, nth)
    with Disk(folder, Failure("memory", 1)).mounted(), pytest.raises(MemoryError):
        work()
    with Disk(folder, Failure("write", 99)).mounted() as failing:
        work()
    assert not failing.failed


def test_a_full_disk_stays_full(tmp_path):
    with Disk(tmp_path, Failure("write", 2, errno.ENOSPC, stays=True)).mounted():
        (tmp_path / "a").write_text("1")
        for _ in range(2):
            with pytest.raises(OSError, match="No space left"):
                (tmp_path / "a").write_text("2")


class Careless(STAGES[3]):
    """A stage that writes in place."""

    def work(self, out):
        (out / "summary.json").write_text("x" * 99)
        return super().work(out)


def test_what_is_lost_is_seen(tmp_path):
    with quiet():
        stage = Careless(tmp_path / "stage")
        found = trials.attempt(stage, tmp_path / "out-of-trials", Failure("write", 1))
    assert found.what == trials.LOST and "names no file" in found.why


class Waiting(STAGES[4]):
    """A stage that waits for ever once a file cannot be opened, as for a lock of its own."""

    def work(self, out):
        try:
            return super().work(out)
        except Exception:
            with open(out / ".lock", "w") as held, open(out / ".lock") as wanted:
                fcntl.flock(held, fcntl.LOCK_EX)
                fcntl.flock(wanted, fcntl.LOCK_SH)
            return 2


def test_work_that_does_not_end_is_lost(tmp_path, monkeypatch):
    monkeypatch.setattr(trials, "PATIENCE", 0.3)
    with quiet():
        stage = Waiting(tmp_path / "stage")
        before = signal.getsignal(signal.SIGALRM)
        found = [trials.attempt(stage, tmp_path / "out-of-trials", Failure("open", nth)) for nth in (1, 2, 3)]
    assert [each.what for each in found].count(trials.LOST) >= 1
    assert any("Hung" in each.why for each in found)
    assert signal.getsignal(signal.SIGALRM) is before and signal.getitimer(signal.ITIMER_REAL)[0] == 0


def test_the_page_has_the_table():
    page = door.PAGE.read_text(encoding="utf-8")
    table = page.partition(door.BEGIN)[2].partition(door.END)[0].strip()
    assert door.page_with_table(page, table) == page
    *rows, total = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]
    assert {row[0] for row in rows} == {made.name for made in STAGES}
    assert all(row[-1] == "0" for row in (*rows, total)), "something was lost"
