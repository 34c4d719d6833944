"""The benchmarks of the training step and of whole epochs, run for real at tiny sizes on the CPU."""

import json

import pytest
import torch

pytest.importorskip("h5py")

from benchmarks import end_to_end, speed_of_light, step, subjects  # noqa: E402
from benchmarks.end_to_end import Side  # noqa: E402
from benchmarks.processes import Ended  # noqa: E402
from benchmarks.rows import read  # noqa: E402
from benchmarks.speed_of_light import VECTOR, Found, Stage  # noqa: E402
from benchmarks.step import Row  # noqa: E402
from benchmarks.timing import Times  # noqa: E402
from essl_fast.data.shards import Manifest  # noqa: E402

CPU = torch.device("cpu")


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def tiny_world(tiny, monkeypatch):
    """The benchmarks take the tests' tiny world."""
    manifest = Manifest.load(tiny[1])
    monkeypatch.setattr(subjects, "prepared_world", lambda *_, **__: manifest)
    return manifest


@pytest.mark.slow
def test_methods_and_their_settings(tiny_world):
    assert subjects.methods_for("small") == ["sspl", "semipl", "supervised"]
    assert subjects.methods_for("full") == list(subjects.METHODS)
    full = subjects.settings_of("sspl_pcm", "full", tiny_world, 4)
    assert full.model.pcm and full.objective.method == "sspl" and full.data.batch_size == 4
    assert subjects.settings_of("supervised", "full", tiny_world, 4).objective.method == "supervised"
    small = subjects.settings_of("sspl", "small", tiny_world, tiny_world.pairs("train") - 1)
    assert small.model.trunk == "small" and (small.data.last_batch, full.data.last_batch) == ("drop", "keep")
    with pytest.raises(ValueError, match="without a PCM"):
        subjects.settings_of("sspl_pcm", "small", tiny_world, 4)
    with pytest.raises(ValueError, match="none of the methods"):
        subjects.settings_of("other", "full", tiny_world, 4)


@pytest.mark.slow
def test_pytorch_counts_about_what_the_design_counts(tiny_world):
    """The design leaves out VGGish (5 GFLOP a pair) and the head."""
    for method in ("sspl", "semipl"):
        design = subjects.METHODS[method][2]
        counted = subjects.counted_gflop(subjects.settings_of(method, "full", tiny_world, 4))
        assert design < counted < design + 7
        assert subjects.step_gflop(method, "full", None) == (design, "design")
    assert subjects.counted_gflop(subjects.settings_of("sspl", "small", tiny_world, 4)) == pytest.approx(0.84, abs=0.1)


def test_synthetic_batches_are_noise_with_real_boxes(tiny):
    manifest = Manifest.load(tiny[1])
    a, b = (subjects.synthetic_batch(manifest, 6, CPU, seed) for seed in (0, 1))
    assert a.frames.shape == (6, 246, 246, 3) and a.sound.shape == (6, 3, 96, 64)
    assert not torch.equal(a.frames, b.frames) and not torch.equal(a.sound, b.sound)
    assert set(a.index.tolist()) <= set(manifest.rows("train").tolist()) and a.frames.float().std() > 50


@pytest.mark.nightly  # the whole benchmark
def test_step_measures_ours_and_the_baseline(tiny_world, tmp_path, capsys):
    out = tmp_path / "step.json"
    arguments = ["--device", "cpu", "--methods", "semipl", "--batch", "4", "--repeats", "2", "--warmup", "1"]
    assert step.main([*arguments, "--baseline", "--json", str(out)]) == 0
    found = json.loads(out.read_text())
    ours, baseline = found["rows"]
    assert [ours["mode"], baseline["mode"]] == ["eager", "baseline"]
    for row in (ours, baseline):
        assert row["pairs_per_second"] == pytest.approx(4e3 / row["milliseconds"])
        assert row["tflop_per_second"] == pytest.approx(row["pairs_per_second"] * row["gflop_a_pair"] / 1e3)
        assert 0 < row["mfu"] < 1.2 and row["launches"]["operators"] > 100 and row["first_seconds"] > 0
        assert not row["prepared"] and not row["replayed"]  # nothing is compiled here
        assert row["gflop_by"] == "PyTorch" and row["precision"] == "float32" and len(row["each"]) == 2
    assert ours["saved_gib"] > 0
    # The baseline's weights are its own, but both begin with a whole SemiPL loss of untrained networks, lambda 10.
    assert 3 < ours["first_loss"] < 12 and 3 < baseline["first_loss"] < 12
    assert "the published style's step" in found["headline"]
    shown = capsys.readouterr().out
    assert "same as the published style" in shown and "pairs/s" in shown


def test_modes_and_their_settings(tiny_world):
    def chosen(mode, device):
        overrides = step.mode_settings(mode, torch.device(device))
        settings = subjects.settings_of("semipl", "full", tiny_world, 4, *overrides)
        return settings.compile, settings.cuda_graphs, settings.model.pcm_checkpoint

    assert [chosen(mode, "cuda") for mode in step.MODES[:4]] == [
        ("off", "off", False),
        ("on", "off", False),
        ("on", "on", False),
        ("on", "on", True),
    ]
    assert chosen("checkpointed", "cpu") == ("off", "off", True)
    assert subjects.has_pcm("semipl", "full") and not subjects.has_pcm("sspl", "full")
    with pytest.raises(SystemExit, match="captured needs a GPU"):
        step.main(["--device", "cpu", "--modes", "captured"])


def test_what_autograd_keeps_is_counted_once():
    x, weight = torch.ones(1000, requires_grad=True), torch.nn.Parameter(torch.ones(1000))
    # exp keeps its result, and the product keeps that and a parameter, which is there anyway.
    assert step.saved_bytes(lambda: (x.exp() * weight).sum().backward()) == 4000


def test_step_does_not_time_what_computes_something_else(tiny_world, tmp_path, monkeypatch):
    monkeypatch.setattr(step, "check", lambda *_: "NOT the same")
    out = tmp_path / "step.json"
    assert step.main(["--device", "cpu", "--methods", "sspl", "--batch", "4", "--json", str(out)]) == 1
    (row,) = json.loads(out.read_text())["rows"]
    assert row["milliseconds"] is None and "does not compute" in row["note"]


def test_step_says_what_its_budget_did_not_cover(tiny_world, tmp_path):
    out = tmp_path / "step.json"
    arguments = ["--device", "cpu", "--methods", "sspl", "--batch", "4", "--budget", "0", "--no-check"]
    assert step.main([*arguments, "--json", str(out)]) == 0
    found = json.loads(out.read_text())
    assert found["headline"] == "nothing was measured" and found["rows"][0]["note"].startswith("skipped")


def test_compiled_losses_are_held_to_the_eager_ones():
    rows = [Row("sspl", mode, 4, "float32", first_loss=loss) for mode, loss in (("eager", -0.5), ("compiled", -0.52))]
    step.compare_first_losses(rows)
    assert rows[1].note.startswith("WRONG") and not rows[0].note
    rows = [Row("sspl", mode, 4, "bfloat16", first_loss=loss) for mode, loss in (("eager", 7.0), ("compiled", 7.02))]
    step.compare_first_losses(rows)
    assert not rows[1].note
    rows[1].first_loss = float("nan")
    step.compare_first_losses(rows)
    assert rows[1].note.startswith("WRONG")


@pytest.mark.nightly  # the whole benchmark
def test_end_to_end_runs_all_sides(tiny_world, tmp_path, capsys, monkeypatch):
    """In this process, which spares the time of starting three; so without workers, too."""

    def in_process(arguments, limit, log):
        return Ended(end_to_end.main(arguments[2:]), 0.0, "")

    monkeypatch.setattr(end_to_end, "run_python", in_process)
    out = tmp_path / "e2e.json"
    arguments = ["--device", "cpu", "--methods", "sspl", "--batch", "6", "--epochs", "1", "--workers", "0"]
    assert end_to_end.main([*arguments, "--work", str(tmp_path), "--json", str(out)]) == 0, capsys.readouterr().out
    found = json.loads(out.read_text())
    sides = {side["side"]: side for side in found["sides"]}
    assert list(sides) == ["streaming", "resident", "baseline"]
    trained = tiny_world.pairs("train") - (tiny_world.pairs("train") % 6 == 1)
    for side in sides.values():
        assert side["pairs"] == trained and side["test_pairs"] == tiny_world.pairs("test")
        assert len(side["train_seconds"]) == len(side["evaluation_seconds"]) == 1 and side["cpu_seconds"][0] > 0
        assert {"forward", "backward", "optimizer", "evaluation", "data"} <= set(side["stages"])
        assert side["precision"] == "float32" and side["stages"]["backward"] > 0
    assert sides["resident"]["stages"]["views"] > 0 and "apart by" in sides["baseline"]["check"]
    assert {(r["method"], r["side"]) for r in found["ratios"]} == {("sspl", side) for side in sides}
    shown = capsys.readouterr().out
    assert "where one epoch and evaluation go" in shown and "sspl baseline: float32; same as ours in float32" in shown


def sides_of(*times, pairs=100):
    named = zip(("streaming", "baseline")[: len(times)], times, strict=True)
    same = {"pairs": pairs, "test_pairs": 10, "evaluation_seconds": [1.0], "cpu_seconds": [4.0]}
    return [Side("sspl_pcm", name, 8, train_seconds=train, **same) for name, train in named]


def test_ratios_rounds_and_extrapolation():
    ours, base = sides_of([2.0, 1.0, 3.0], [9.0])
    found = end_to_end.ratios([ours, base])
    assert found["sspl_pcm", "streaming"] == {"train": 4.5, "evaluation": 1.0, "cpu": 1.0, "both": 10 / 3}
    (longer,) = end_to_end.extrapolations([ours, base])  # one epoch is too few to go by
    assert longer == {"method": "sspl_pcm", "side": "streaming", "epochs": 350, "seconds": 350 * 1595 * 2.0 / 100}
    again = sides_of([5.0], [7.0])
    both = end_to_end.merged([ours, base, *again])
    assert [side.train_seconds for side in both] == [[2.0, 1.0, 3.0, 5.0], [9.0, 7.0]]
    assert end_to_end.headline(both) == "sspl_pcm streaming 2.6x"


def test_a_slower_side_is_called_slower():
    assert end_to_end.notes_on(sides_of([9.0], [2.0])) == [
        "sspl_pcm streaming: SLOWER than the baseline",
        "sspl_pcm baseline: ",
    ]
    assert "SLOWER" not in str(end_to_end.notes_on(sides_of([2.0], [9.0])))


@pytest.mark.slow
def test_a_side_that_fails_is_named(tiny_world, tmp_path, capsys):
    arguments = ["--device", "cpu", "--methods", "nothing", "--sides", "streaming", "--work", str(tmp_path)]
    assert end_to_end.main(arguments) == 1
    assert "failed" in capsys.readouterr().out


@pytest.mark.slow
def test_speed_of_light_covers_the_step(tiny_world, tmp_path, capsys):
    out = tmp_path / "sol.json"
    arguments = ["--device", "cpu", "--batch", "2", "--repeats", "2", "--seconds", "0.2"]
    assert speed_of_light.main([*arguments, "--json", str(out)]) == 0
    found = json.loads(out.read_text())
    names = [stage["name"] for stage in found["stages"]]
    parts = ("trunk", "audio network", "attention", "head")
    both = [f"{part} {way}" for part in parts for way in ("forward", "backward")]
    assert names == ["two_views", "log_mel", *both, "losses, both ways", "optimizer", "evaluation counts"]
    for stage in found["stages"]:
        assert stage["bytes"] > 0 and stage["flop"] > 0 and stage["floor_ms"] > 0 and stage["ms"] > 0
    by_name = {stage["name"]: stage for stage in found["stages"]}
    # 5/6 of the multiply-adds of the trunk are in layers that also give a gradient to their input.
    assert 1.5 < by_name["trunk backward"]["flop"] / by_name["trunk forward"]["flop"] <= 2
    assert capsys.readouterr().out.count("<-- largest gap") == 1 and "of its floor's speed" in found["headline"]


def test_speed_of_light_says_where_its_budget_ended(tiny_world, tmp_path, capsys):
    out = tmp_path / "sol.json"
    arguments = ["--device", "cpu", "--batch", "2", "--repeats", "2", "--seconds", "0.1", "--budget", "0"]
    assert speed_of_light.main([*arguments, "--json", str(out)]) == 1
    assert json.loads(out.read_text())["headline"].startswith("CUT SHORT after two_views")
    shown = capsys.readouterr().out
    assert "CUT SHORT" in shown and "not reached in 0 s: log_mel, trunk forward, " in shown
    assert shown.count("whole step") == 1 and "whole step; the same command goes on" in shown  # no row of the table


@pytest.mark.nightly  # the whole benchmark, twice
def test_rows_that_are_there_are_not_measured_again(tiny_world, tmp_path, monkeypatch, capsys):
    """Each benchmark of a step begins where a kill has stopped it."""
    rows, out = tmp_path / "rows.jsonl", tmp_path / "out.json"
    step_of = ["--device", "cpu", "--methods", "semipl", "--batch", "4", "--repeats", "2", "--no-check"]
    light = ["--device", "cpu", "--batch", "2", "--repeats", "2", "--seconds", "0.1"]
    assert step.main([*step_of, "--rows", str(rows)]) == 0
    assert speed_of_light.main([*light, "--rows", str(rows), "--budget", "0"]) == 1  # two_views alone
    whole = rows.read_bytes()
    assert {(row["task"], row["row"]) for row in read(rows)} == {
        ("step", "semipl eager B=4"),
        ("speed_of_light", "two_views"),
    }

    def refuse(*_, **__):
        raise AssertionError("measured again")

    with monkeypatch.context() as patch:
        patch.setattr(step, "ours", refuse)
        assert step.main([*step_of, "--rows", str(rows), "--json", str(out)]) == 0
    assert json.loads(out.read_text())["rows"][0]["milliseconds"] > 0 and rows.read_bytes() == whole
    before = read(rows)[1]
    assert speed_of_light.main([*light, "--rows", str(rows)]) == 0
    after = {row["row"]: row for row in read(rows) if row["task"] == "speed_of_light"}
    assert after["two_views"] == before and list(after)[-1] == "whole step" and len(after) == 14


def test_floors_are_the_larger_of_two_times():
    ceilings = {"copy": 1e9, "layers": 1e12, VECTOR: 1e10}
    for flop, expected, bound in ((1e6, 2.0, "bytes"), (1e9, 100.0, "FLOPs")):
        stage = Stage("x", lambda: None, bytes=2e6, unit=VECTOR)
        found = speed_of_light.beside_floor(stage, flop, Times.of([200.0, 300.0]), ceilings)
        assert found.floor_ms == pytest.approx(expected) and found.bound == bound
        assert found.share == pytest.approx(expected / 250) and found.gap == pytest.approx(250 - expected)
    slow = [
        Found(n, 1, 1, VECTOR, floor, "bytes", ms, ms, ms, inside)
        for n, floor, ms, inside in (("a", 9, 10, True), ("b", 1, 5, True), ("c", 1, 100, False))
    ]
    assert speed_of_light.widest(slow).name == "b"


def test_bytes_of_two_views():
    zero = torch.zeros(2, 1, dtype=torch.int32)
    assert speed_of_light.views_read(zero, zero) == 3 * 224 * 224
    apart = torch.tensor([[0], [22]], dtype=torch.int32)
    assert speed_of_light.views_read(apart, apart) == 3 * (2 * 224 * 224 - 202 * 202)
