"""A report shows what is: no old result of a run that goes on; what others cut or edited is named by file and line."""

import json
import os
import shutil

import pytest

from essl_fast.common.errors import InputError
from essl_fast.report import __main__ as report_door
from essl_fast.report import gallery, paper, runs
from essl_fast.report.formatting import number
from essl_fast.report.results_section import comparison
from essl_fast.report.runs import found_in, read, read_all
from tests.report.test_report import make_run


def lines_of(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def write_lines(folder, lines):
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "run")


START, RESUME, END = ({"event": name, "time": 5.0, "config": {}} for name in ("start", "resume", "end"))


@pytest.mark.parametrize(
    ("more", "finished"),
    [
        ([END], True),
        ([END, RESUME], False),
        ([END, RESUME, END], True),
        ([END, START], False),
        ([RESUME], True),  # killed between summary and log: the summary is newer than the resume
        ([{**RESUME, "time": 1e12}], False),  # the summary is of before
        ([{**RESUME, "time": "x"}], False),
        ([END, RESUME, {"event": "stop"}], False),
        ([END, {"event": "warning"}], True),
        ([], True),
    ],
)
def test_a_summary_counts_if_the_run_has_not_gone_on(run, more, finished):
    config = lines_of(run)[0]["config"]
    write_lines(run, lines_of(run) + [{**line, "config": config} for line in more])
    found = read(run)
    assert found.finished == finished and bool(found.pairs) == finished and bool(found.pictures) == finished
    assert ("test" in found.results) == finished
    capped = report_door.main([str(run), "--out", str(run / "page.html")])
    assert capped == 0 and ("not finished" in (run / "page.html").read_text()) != finished


BAD_LINES = [
    ("{}}", "line 3 is no JSON"),
    ("nonsense", "line 3 is no JSON"),
    ("[1, 2]", "line 3 is no JSON object"),
    ("null", "line 3 is no JSON object"),
    ('"text"', "line 3 is no JSON object"),
    ('{"event": "epoch"}', "line 3: epoch"),
    ('{"event": "epoch", "epoch": 1}', "line 3: losses is missing"),
    ('{"event": "epoch", "epoch": "x"}', "line 3: epoch is 'x', which is of another kind"),
    ('{"event": "epoch", "epoch": 1, "losses": [1]}', "line 3: losses is no JSON object"),
    ('{"event": "epoch", "epoch": 1, "losses": {"loss": "low"}}', "line 3: losses.loss is 'low'"),
    ('{"event": "epoch", "epoch": 1, "losses": {}, "pairs": 1, "waiting": 0}', "line 3: pairs_per_second is missing"),
    ('{"event": "baseline"}', "line 3: "),
    ('{"event": "baseline", "name": "untrained", "result": {"auc": 1}}', "line 3: success_at_half is missing"),
    ('{"event": "start", "config": 3}', "line 3: config is no JSON object"),
    ('{"event": "start", "config": {"data": []}}', "line 3: config.data is '[]', which is of another kind"),
]


@pytest.mark.parametrize(("line", "said"), BAD_LINES, ids=[line for line, _ in BAD_LINES])
def test_a_log_that_others_edited_is_named_by_its_line(run, line, said):
    text = (run / "log.jsonl").read_text().splitlines()
    (run / "log.jsonl").write_text("\n".join([*text[:2], line, *text[2:], ""]))
    with pytest.raises(InputError) as error:
        read(run)
    assert str(error.value).startswith(f"{run / 'log.jsonl'} cannot be read: {said}") and "\n" not in str(error.value)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n", "\n \t\n"])
@pytest.mark.parametrize("begin", ["", "\ufeff", "\n\n"])
def test_a_log_that_an_editor_wrote_is_read(run, begin, end):
    before, text = read(run), (run / "log.jsonl").read_text()
    (run / "log.jsonl").write_bytes((begin + text.replace("\n", end)).encode())
    after = read(run)
    assert (after.epochs, after.config, after.finished) == (before.epochs, before.config, before.finished)
    assert before.epochs and report_door.main([str(run), "--out", str(run / "page.html")]) == 0


@pytest.mark.parametrize("kept", [0, 1, 2, 3])
def test_a_log_that_was_cut_is_read_as_far_as_it_goes(run, kept):
    text = (run / "log.jsonl").read_bytes().splitlines(keepends=True)
    (run / "log.jsonl").write_bytes(b"".join(text[:kept]) + text[kept][:20])
    assert len(read(run).epochs) == max(0, kept - 2)
    assert report_door.main([str(run), "--out", str(run / "page.html")]) == 0


def edited(summary, path, value):
    *parents, last = path.split(".")
    held = summary
    for name in parents:
        held = held[name]
    if value is None:
        del held[last]
    else:
        held[last] = value
    return summary


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("config", None, "config is missing"),
        ("config", 3, "config is no JSON object"),
        ("environment", None, "environment is missing"),
        ("seconds", None, "seconds is missing"),
        ("seconds", "long", "seconds is 'long', which is of another kind"),
        ("seconds", True, "seconds is 'True'"),
        ("test", None, "test is missing"),
        ("test", {}, "test.success_at_half is missing"),
        ("test.auc", "high", "test.auc is 'high'"),
        ("test.curve", [1, 2], "test.curve has not 21 numbers"),
        ("test.curve", ["x"] * 21, "test.curve has not 21 numbers"),
        ("test.per_class", [], "test.per_class is no JSON object"),
        ("test.per_class.siren", {}, "test.per_class.siren.success_at_half is missing"),
        ("selected", {"epoch": 1}, "selected.split is missing"),
        ("pairs_per_second", None, "pairs_per_second is missing"),
        ("stage_seconds", {"train": "x"}, "stage_seconds.train is 'x'"),
        ("untrained", {"auc": 1}, "untrained.success_at_half is missing"),
    ],
)
def test_a_summary_that_others_edited_is_a_note(run, path, value, said):
    summary = edited(json.loads((run / "summary.json").read_text()), path, value)
    (run / "summary.json").write_text(json.dumps(summary))
    found = read(run)
    assert not found.finished and found.notes[0].startswith(f"{run / 'summary.json'} is not what train wrote ({said}")
    assert report_door.main([str(run), "--out", str(run / "page.html")]) == 0


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"\xff\xfe", b"null", b"[" * 100_000])
@pytest.mark.parametrize("name", ["summary.json", "test_pairs.jsonl", "gallery.npz"])
def test_a_file_that_is_no_file_of_ours_is_a_note(run, name, content):
    (run / name).write_bytes(content + b"\n")
    notes = read(run).notes
    assert notes and all(str(run) in note for note in notes)


@pytest.mark.parametrize("name", ["summary.json", "test_pairs.jsonl", "gallery.npz"])
@pytest.mark.parametrize("kind", ["device", "fifo", "folder", "circle"])
def test_what_is_no_regular_file_is_not_read(run, name, kind):
    """A device gives bytes without end, a FIFO none for ever."""
    path = run / name
    path.unlink(missing_ok=True)
    if kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(name)
    assert report_door.main([str(run), "--out", str(run / "page.html")]) == 0
    assert (run / "page.html").stat().st_size > 1000


def test_a_score_that_is_no_number_is_a_note(run):
    lines = (run / "test_pairs.jsonl").read_text().splitlines()
    wrong = json.loads(lines[1]) | {"ciou": "high"}
    (run / "test_pairs.jsonl").write_text("\n".join([lines[0], json.dumps(wrong), *lines[2:]]))
    (note,) = [note for note in read(run).notes if "test_pairs.jsonl" in note]
    assert "line 2 has no ciou that is a number or null" in note


def test_what_the_disk_does_not_give_is_named(run, monkeypatch):
    def fails(path):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(runs.runlog, "read_log", fails)
    with pytest.raises(
        InputError, match=r"log.jsonl cannot be read \(Input/output error\); restore it, or leave this run"
    ):
        read(run)
    with pytest.raises(InputError, match="none.npz cannot be read .No such file or directory"):
        gallery.load(run / "none.npz")
    with pytest.raises(ValueError, match="a gallery needs a picture"):
        gallery.save(run / "none.npz", [])


def test_epochs_without_a_value_have_no_point_and_numbers_are_short(run):
    found = read(run)
    found.epochs = [{"epoch": 1, "a": {"b": 3}}, {"epoch": 2}, {"epoch": 3, "a": None}, {"epoch": 4, "a": {"b": 0.5}}]
    assert runs.points(found, "a", "b") == [(1.0, 3.0), (4.0, 0.5)]
    assert [number(value) for value in (0, 0.00123, 12345.6, 1.5e6, 0.00012)] == [
        "0",
        "0.00123",
        "1.235e+04",
        "1.5e+06",
        "0.00012",
    ]


def test_runs_are_found_below_a_folder(tmp_path, capsys):
    places = [tmp_path / "runs" / name for name in ("b", "a", "row/seed-0", "x/y/z")]
    for place in places:
        make_run(place)
    expected = [tmp_path / "runs" / name for name in ("a", "b", "row/seed-0", "x/y/z")]
    assert found_in([tmp_path / "runs"]) == expected
    assert found_in([places[0], tmp_path / "runs" / "x"]) == [places[0], places[3]]
    assert report_door.main([str(tmp_path / "runs"), "--out", str(tmp_path / "page.html")]) == 0
    assert "4 runs side by side" in (tmp_path / "page.html").read_text()
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="is not a run directory .* none below it"):
        found_in([tmp_path / "empty"])
    with pytest.raises(InputError, match="is not a run directory"):
        read_all(found_in([tmp_path / "nowhere"]))


@pytest.mark.parametrize(
    ("dataset", "root", "shown"),
    [
        ("chaotic", "/data/x", True),
        ("chaotic-h5", "/data/x", True),
        ("csv", "/data/x", False),
        ("my videos", "/data/x", False),
        ("flickr", "/data/x", False),
        ("vggss", "/data/x", False),
        ("demo", "demo", False),
        ("", "demo", False),
        ("Chaotic World", "/data/x", False),
    ],
)
def test_published_results_stand_beside_their_data_set_alone(tmp_path, dataset, root, shown):
    run = make_run(tmp_path / "run", root=root)
    lines = lines_of(run)
    lines[0]["dataset"] = dataset
    write_lines(run, lines)
    html = comparison([read(run)])
    assert ("Chaotic World: " in html) == shown and (paper.OPEN in html) == shown
    assert all((f"{100 * row.auc:.1f}" in html) for row in paper.ROWS) or not shown


def test_the_name_of_an_earlier_runs_data_set_is_in_its_folder(tmp_path):
    (tmp_path / "data").mkdir()
    run = make_run(tmp_path / "run", root=str(tmp_path / "data"))
    for dataset, shown in (("csv", False), ("chaotic", True)):
        (tmp_path / "data" / "manifest.json").write_text(json.dumps({"dataset": dataset}))
        assert ("Chaotic World: " in comparison([read(run)])) == shown
    os.remove(tmp_path / "data" / "manifest.json")
    shutil.rmtree(tmp_path / "data")
    assert "Chaotic World: " in comparison([read(run)])  # as that version showed it
