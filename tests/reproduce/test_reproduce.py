"""The tables and figures of the paper: which runs they need, what they say of them."""

import json
import os
import re
import signal
import subprocess
import threading
import time

import numpy as np
import pytest
import yaml

from essl_fast import checkpoints, config, models
from essl_fast.common import commands, files
from essl_fast.common.errors import InputError, in_shell
from essl_fast.data.shards import Manifest
from essl_fast.report import paper
from essl_fast.reproduce import __main__ as reproduce_door
from essl_fast.reproduce import command as reproduce_command
from essl_fast.reproduce import pictures, reproduce, runs
from essl_fast.reproduce.command import run_plan
from essl_fast.reproduce.plan import Plan
from essl_fast.reproduce.published import read_published
from essl_fast.reproduce.results import Results, finding, mean_and_spread
from essl_fast.reproduce.rows import TABLES, fraction_of, fraction_rows, rows_of
from essl_fast.reproduce.writing import console_table, markdown
from essl_fast.runtime.stopping import Stopped
from essl_fast.train import __main__ as train_door

SMALL = ["--epochs", "1", "--data.batch_size", "5", "--optim.warmup", "0", "--demo.train_videos", "10"]


def plan_for(out, **options) -> Plan:
    return Plan("demo", out, [0, 1], reduced=True, **options)


def summary(success: float, auc: float) -> dict:
    test = {"pairs": 4, "success_at_half": success, "auc": auc, "curve": [0.0] * 21}
    return {"test": test, "selected": {"epoch": 1}, "seconds": 1.0}


def test_every_row_is_a_shipped_config_of_its_method_and_rates():
    rows = rows_of(["table1", "table2"])
    found = {name: config.load(row.config) for name, row in rows.items()}
    grid = [(found[name].data.batch_size, found[name].optim.lr_head) for name in list(found)[:3]]
    assert grid == [(128, 3e-5), (64, 5e-5), (128, 5e-5)]
    methods = {row.name: config.load(row.config) for row in TABLES["table2"][1]}
    assert {name: (own.objective.method, own.model.pcm) for name, own in methods.items()} == {
        "lss": ("lss", False),
        "lss_semi": ("lss_semi", False),
        "sspl_wo_pcm": ("sspl", False),
        "sspl_w_pcm": ("sspl", True),
        "semipl_wo_pcm": ("semipl", False),
        "semipl_w_pcm": ("semipl", True),
    }
    names = {f"paper/{path.stem}" for path in (config.configs_folder() / "paper").glob("*.yaml")}
    assert names == {row.config for _, rows in TABLES.values() for row in rows}


def test_a_row_that_shares_the_runs_of_another_has_its_settings(tmp_path):
    every = [row for _, rows in TABLES.values() for row in rows] + list(fraction_rows())
    named = {row.name: row for row in every}
    plan = plan_for(tmp_path)
    for row in every:
        if row.same_as:
            settings = [
                config.to_dict(config.parse(plan.arguments(named[name], 0), "test")[0])
                for name in (row.name, row.same_as)
            ]
            assert all(line.startswith("name: ") for line in config.difference(*settings)), row
    assert len(rows_of(["table1", "table2", "figures", "fractions"])) == 3 + 5 + 3


def test_reduced_rows_are_pretrained_on_the_demo_and_start_from_nothing_on_other_data(tmp_path):
    for data, trunk, objects, rates in (
        ("demo", "small_frozen", "one", (2e-3, 2e-3, 1e-3)),
        ("elsewhere", "small", "several", (1e-3, 1e-3, 1e-3)),
    ):
        plan, rows = Plan(data, tmp_path, [0], reduced=True), {row.name: row for row in TABLES["table2"][1]}
        found = [config.parse(plan.arguments(rows[n], 0), "test")[0] for n in ("sspl_wo_pcm", "lss", "sspl_w_pcm")]
        assert {(own.model.trunk, own.model.audio, own.demo.objects) for own in found} == {(trunk, trunk, objects)}
        assert tuple(own.optim.lr_head for own in found) == pytest.approx(rates)
        for own in found:
            models.check(own)


def test_label_fractions_reach_the_settings(tmp_path):
    plan = plan_for(tmp_path)
    found = [config.parse(plan.arguments(row, 1), "test")[0] for row in fraction_rows()]
    assert [own.data.labelled_fraction for own in found] == [0.0, 0.1, 0.5, 1.0]
    assert {(own.objective.method, own.seed, own.model.trunk) for own in found} == {("semipl", 1, "small_frozen")}


def test_mean_and_spread_over_seeds():
    assert mean_and_spread([]) == "not run"
    assert mean_and_spread([0.5]) == "50.0"
    assert mean_and_spread([0.4, 0.6]) == f"50.0 ± {100 * np.std([0.4, 0.6], ddof=1):.1f}"


def test_a_table_says_what_was_not_run_and_what_failed(tmp_path):
    results = Results(plan_for(tmp_path))
    first, second, third, fourth, *_ = TABLES["table2"][1]
    results.add(first, 0, summary(0.25, 0.3))
    results.failed[second.run] = "exit code 2: no"
    results.add(fourth, 0, summary(0.5, 0.4))
    results.add(fourth, 1, summary(0.5, 0.4))
    assert results.line(first) == ["LSS", "23.85", "36.56", "25.0", "30.0", f"{paper.TABLE2}; 1 of 2 seeds"]
    assert results.line(second)[1:] == ["–", "–", "not run", "not run", "failed: exit code 2: no"]  # not in the paper
    expected = ["SSPL without PCM", "41.12", "42.60", "not run", "not run", f"{paper.CODE}; not run"]
    assert results.line(third) == expected
    assert results.line(fourth)[3:] == ["50.0 ± 0.0", "40.0 ± 0.0", paper.CODE]
    results.failed[first.run] = "[/x] a|b"
    assert results.line(first)[3:] == ["25.0", "30.0", f"{paper.TABLE2}; failed: [/x] a|b; 1 of 2 seeds"]
    assert "[/x] a\\|b" in markdown("", [results.line(first)])
    commands.console().print(console_table("", [results.line(first)]))  # what looks like markup is text


def test_every_row_of_the_paper_stands_beside_ours(tmp_path):
    results = Results(plan_for(tmp_path))
    found = {row.name: results.line(row)[1:3] for _, rows in TABLES.values() for row in rows}
    assert found == {
        "batch128_lr3e-5": ["41.02", "42.23"],
        "batch64_lr5e-5": ["42.03", "43.38"],
        "batch128_lr5e-5": ["47.70", "44.14"],
        "lss": ["23.85", "36.56"],
        "lss_semi": ["–", "–"],
        "sspl_wo_pcm": ["41.12", "42.60"],
        "sspl_w_pcm": ["47.70", "44.14"],
        "semipl_wo_pcm": ["36.84", "41.86"],
        "semipl_w_pcm": ["36.84", "41.86"],
    }
    open_rows = {row.name for _, rows in TABLES.values() for row in rows if paper.NOT_SAID in results.line(row)[5]}
    assert open_rows == {"batch128_lr3e-5", "batch64_lr5e-5", "semipl_wo_pcm", "semipl_w_pcm"}


def test_figures_that_a_user_has_stand_beside_ours(tmp_path):
    file = tmp_path / "paper.yaml"
    file.write_text("source: table 2\nrows:\n  lss: {success: 12.5, auc: 34}\n  sspl_wo_pcm: {success: 1}\n")
    results = Results(plan_for(tmp_path, published=read_published(file)))
    lss, semi, plain, pcm, *_ = TABLES["table2"][1]
    assert results.line(lss) == ["LSS", "12.50", "34.00", "not run", "not run", "table 2; not run"]
    assert results.line(plain)[1:3] == ["1.00", "–"] and results.line(semi)[1:3] == ["–", "–"]
    assert results.line(pcm)[1:3] == ["47.70", "44.14"]  # what is known without the file
    file.write_text("rows: {batch128_lr3e-5: {auc: 100}}")
    expected = paper.Row("batch 128, head 3e-5", "Chaotic World", None, 1.0, "paper.yaml")
    assert read_published(file) == {"batch128_lr3e-5": expected}


@pytest.mark.parametrize(
    "text, message",
    [
        (None, "cannot be read"),
        ("rows: [", "cannot be read"),
        ("rows: {lss: &a {success: *a}}", "cannot be read"),
        ("", "needs rows:"),
        ("lss: {success: 3}", "needs rows:"),
        ("rows: 3", "needs rows:"),
        ("rows: {ssl: {success: 3}}", "ssl is no row; rows are batch128_lr3e-5, "),
        ("rows: {lss: 0.3}", "lss needs success and auc in per cent, got 0.3"),
        ("rows: {lss: {}}", "lss needs success"),
        ("rows: {lss: {ciou: 3}}", "lss needs success"),
        ("rows: {lss: {success: 130}}", "success of lss must be from 0 to 100 per cent, got 130"),
        ("rows: {lss: {auc: .nan}}", "must be from 0 to 100"),
        ("rows: {lss: {auc: high}}", "must be from 0 to 100"),
        ("rows: {lss: {auc: true}}", "must be from 0 to 100"),
    ],
)
def test_a_file_of_figures_that_is_wrong_is_named(tmp_path, text, message):
    file = tmp_path / "paper.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(InputError) as error:
        reproduce_door.main(["table2", "--published", str(file), "--out", str(tmp_path / "out")])
    assert str(error.value).startswith(f"--published: {file}") and message in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({0.0: [0.1, 0.12], 1.0: [0.9, 0.8]}, "changes by +74.0 points, more than twice the largest spread"),
        ({0.0: [0.5, 0.1], 1.0: [0.4, 0.4]}, "changes by +10.0 points, within twice the largest spread"),
        ({0.0: [0.5], 1.0: [0.4]}, "-10.0 points (one seed: no spread to compare with); the best is 0% of the labels"),
        ({0.5: [0.5]}, "nothing to compare"),
    ],
)
def test_the_finding_follows_the_numbers(tmp_path, values, expected):
    results = Results(plan_for(tmp_path))
    for row in fraction_rows():
        for seed, value in enumerate(values.get(fraction_of(row), [])):
            results.add(row, seed, summary(value, 0.3))
    assert expected in finding(results)


@pytest.mark.slow
def test_table_and_figures_from_runs(tmp_path, monkeypatch, capsys):
    """In one process, for speed: two rows and their figures; then everything is there, and nothing is trained again."""
    started = []

    def here(folder, arguments):
        started.append(folder)
        if folder.parent.name == "sspl_wo_pcm":
            raise RuntimeError("exit code 2: <b>no</b>")
        assert train_door.main([*arguments, "--out", str(folder)]) == 0

    monkeypatch.setattr(runs, "train", here)
    rows = {name: row for name, row in rows_of(["table2"]).items() if name in ("lss", "sspl_wo_pcm")}
    monkeypatch.setattr(reproduce_command, "rows_of", lambda parts: rows)
    more = [*SMALL, "--demo.test_videos", "3", "--demo.cache", str(tmp_path / "cache"), "--compile", "off"]
    more += ["--model.small_weights", "none"]
    command = ["figures", "--reduced", "--out", str(tmp_path / "out"), "--device", "cpu", *more]
    assert reproduce_door.main(command) == 1  # one row failed
    assert len(started) == 2
    held = json.loads((tmp_path / "out" / "results.json").read_text())
    assert set(held["rows"]) == {"lss"} and set(held["failed"]) == {"sspl_wo_pcm"}
    for name in ("figure3.png", "figure4.png", "report.md"):
        assert (tmp_path / "out" / name).stat().st_size > 1000 or name == "report.md"
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 2 and "://" not in page.replace("data:image", "")
    assert "exit code 2" in capsys.readouterr().out
    results = run_plan(plan_for(tmp_path / "out", overrides=[*more, "--device", "cpu"]), ["table2"], commands.console())
    assert {folder.name for folder in started[2:]} == {"seed-1", "seed-0"}  # seed 0 only where it failed
    assert [folder.parent.name for folder in started[2:] if folder.name == "seed-0"] == ["sspl_wo_pcm"]
    assert "<b>" not in (tmp_path / "out" / "report.html").read_text()
    assert len(results.values(rows["lss"], "auc")) == 2
    other = ["--optim.lr_head", "0.5"]
    with pytest.raises(InputError, match="lss/seed-0 is of other settings .optim.lr_head: 0.002 -> 0.5.*another --out"):
        reproduce_door.main([*command, *other])


def test_a_run_of_its_own_process_that_fails_is_told_with_its_last_line(tmp_path):
    with pytest.raises(RuntimeError, match="exit code 2: .*there is no folder|exit code 2: .*nowhere"):
        runs.train(tmp_path / "row" / "seed-0", ["--data.root", str(tmp_path / "nowhere"), "--device", "cpu"])
    assert (tmp_path / "row" / "seed-0.log").exists()


@pytest.fixture
def row(tiny, tmp_path):
    """A row on the tiny world: (manifest, its arguments, its folder)."""
    manifest, plan = Manifest.load(tiny[1]), Plan(str(tiny[1]), tmp_path, [0], reduced=True)
    folder = plan.folder(TABLES["table2"][1][0], 0)
    folder.mkdir(parents=True)
    return manifest, plan.arguments(TABLES["table2"][1][0], 0), folder


def test_a_run_that_has_ended_counts_only_for_its_own_data(row):
    manifest, arguments, folder = row
    found = {"pairs": 4, "success_at_half": 0.5, "auc": 0.4, "curve": [0.5] * 21}
    settings = config.to_dict(config.parse(arguments, "test")[0])
    held = {"config": settings, "seconds": 1.0, "test": found, "selected": {"epoch": 1}}
    held["config"]["data"].pop("labelled_fraction")  # of a version that had no such setting
    held["config"]["data"]["root"] = "/where/it/was/then"
    files.write_json(folder / "summary.json", held)
    checkpoints.save(folder / "best.pt", {"data": manifest.header})
    assert runs.finished(folder, arguments) == held
    checkpoints.save(folder / "best.pt", {"data": manifest.header | {"pairs": 1}})
    with pytest.raises(
        InputError, match=f"seed-0 was trained on other data than {re.escape(str(manifest.root))}: give another --out"
    ):
        runs.finished(folder, arguments)


def test_a_run_that_was_stopped_goes_on_only_with_its_own_settings(row, monkeypatch):
    _, arguments, folder = row
    settings = config.to_dict(config.parse(arguments, "test")[0])
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    checkpoints.save(folder / "last-1.pt", {})  # last.pt itself is gone
    assert runs.finished(folder, arguments) is None
    for name, value in (("--epochs", "3"), ("--optim.lr_trunk", "1")):
        with pytest.raises(InputError, match=f"of other settings .{name[2:]}"):
            runs.finished(folder, [*arguments, name, value])
    started = []

    class Child:
        def __init__(self, command, **_):
            started.append(command)

        def wait(self):
            return 0

    monkeypatch.setattr(runs.subprocess, "Popen", Child)
    runs.train(folder, arguments)  # with the row's arguments: the data may have moved
    assert started[0][3:] == [*arguments, "--resume", str(folder)]
    runs.train(folder.with_name("seed-1"), arguments)
    assert started[1][3:] == [*arguments, "--out", str(folder.with_name("seed-1"))]


@pytest.mark.parametrize("when", ["it runs", "it is started"])
def test_sigterm_ends_the_training_that_was_started(tmp_path, monkeypatch, when):
    child, popen = tmp_path / "python", subprocess.Popen
    lines = (
        "#!/bin/sh",
        "trap 'echo saved; exit 143' TERM",
        f"touch {in_shell(tmp_path / 'ready')}",
        "while :; do sleep 0.05; done",
    )
    child.write_text("\n".join(lines))
    child.chmod(0o755)
    monkeypatch.setattr(runs.sys, "executable", str(child))

    def kill():
        while not (tmp_path / "ready").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    def started(*words, **given):
        """The signal comes before anybody knows of the process: left alone it would train on."""
        begun = popen(*words, **given)
        kill()
        return begun

    if when == "it is started":
        monkeypatch.setattr(runs.subprocess, "Popen", started)
    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=kill if when == "it runs" else str)
    try:
        with runs.stopped_by_sigterm():
            thread.start()
            with pytest.raises(Stopped):
                runs.train(tmp_path / "seed-0", [])
    finally:
        thread.join()
    assert signal.getsignal(signal.SIGTERM) == before and not runs._RUNNING
    assert "saved" in (tmp_path / "seed-0.log").read_text()


def test_figures_that_fail_do_not_take_the_tables_along(tmp_path, monkeypatch, capsys):
    def no(*_):
        raise InputError("best.pt is damaged")

    monkeypatch.setattr(runs, "finished", lambda folder, arguments: summary(0.5, 0.4))
    monkeypatch.setattr(pictures, "draw", no)
    plan = plan_for(tmp_path, overrides=["--epochs", "1"])
    results = run_plan(plan, ["table1", "figures"], commands.console())
    assert results.failed == {"figures": "best.pt is damaged"} and "best.pt is damaged" in capsys.readouterr().out
    text = (tmp_path / "report.md").read_text()
    assert text.count("50.0 ± 0.0") == 3 and "Overrides: --epochs 1." in text


def test_the_function_checks_what_the_command_checks(tmp_path):
    for options, message in (
        ({"seeds": (1, 1)}, "--seeds: each once"),
        ({"data": tmp_path}, "is not a prepared folder"),
        ({"overrides": ["--seed", "3"]}, "^seed: 0 -> 3: a row's own"),
    ):
        with pytest.raises(InputError, match=message):
            reproduce("table1", out=tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_data_without_the_split_that_chooses_the_epoch(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(Manifest, "pairs", lambda self, split: 0 if split == "val" else 3)
    with pytest.raises(InputError, match="has no val split; .* --protocol published"):
        reproduce_door.main(["table1", "--data", str(tiny[1]), "--out", str(tmp_path)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["table1", "--seed", "3"], "^seed: 0 -> 3: a row's own, or set by"),
        (["table1", "--select_on", "test"], "^select_on: val -> test: a row's own"),
        (["fractions", "--data.labelled_fraction", "0.3"], "^data.labelled_fraction: .* a row's own"),
        (["table1", "--config", "demo"], "a row's own"),
        (["table1", "--seeds", "1", "1"], "--seeds: each once"),
        (["table1", "--data", "nowhere"], "--data: .*nowhere is not a prepared folder"),
    ],
)
def test_wrong_arguments(arguments, message, tmp_path):
    with pytest.raises(InputError, match=message):
        reproduce_door.main([*arguments, "--out", str(tmp_path)])


def test_an_option_that_nobody_knows(tmp_path, capsys):
    with pytest.raises(SystemExit):
        reproduce_door.main(["table1", "--optim.lr_heed", "1", "--out", str(tmp_path)])
    assert "there is no option --optim.lr_heed; did you mean --optim.lr_head?" in capsys.readouterr().err
