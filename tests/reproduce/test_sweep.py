"""A sweep over settings: its grid, its plan, its report; interrupted, it goes on."""

import json

import pytest

from essl_fast import config
from essl_fast.common.errors import InputError
from essl_fast.models import heads
from essl_fast.reproduce import __main__ as reproduce_door
from essl_fast.reproduce import reproduce, runs
from essl_fast.reproduce.plan import Plan
from essl_fast.reproduce.results import Results
from essl_fast.reproduce.sweep import best_of, finding_of, read_sweep, rows_of_sweep
from essl_fast.train import __main__ as train_door

SWEEP = ["optim.lr_head=3e-5,5e-5", "data.batch_size=4,8"]


def test_a_grid_has_a_row_for_each_point(tmp_path):
    rows = rows_of_sweep(read_sweep(SWEEP), "semipl")
    assert [row.label for row in rows] == [
        "optim.lr_head 3e-5, data.batch_size 4",
        "optim.lr_head 3e-5, data.batch_size 8",
        "optim.lr_head 5e-5, data.batch_size 4",
        "optim.lr_head 5e-5, data.batch_size 8",
    ]
    plan = Plan("demo", tmp_path, [0, 1], swept=rows, overrides=["--epochs", "3"])
    found = [config.parse(plan.arguments(row, 1), "test")[0] for row in rows]
    assert [(own.optim.lr_head, own.data.batch_size) for own in found] == [(3e-5, 4), (3e-5, 8), (5e-5, 4), (5e-5, 8)]
    assert {(own.epochs, own.seed, own.model.pcm) for own in found} == {(3, 1, True)}
    assert len({plan.folder(row, 0) for row in rows}) == 4
    plan.check(rows)


@pytest.mark.parametrize(
    "value", ["/weights/vgg 16.pth", "~/x", "ü", "a=b", "x" * 300], ids=["path", "home", "umlaut", "equals", "long"]
)
def test_every_value_gives_a_folder_of_one_name(tmp_path, value):
    rows = rows_of_sweep(read_sweep([f"model.vgg16_weights={value},none"]), "demo")
    folder = Plan("demo", tmp_path, [0], swept=rows).folder(rows[0], 0)
    assert folder.parent.parent == tmp_path / "runs"
    assert config.load("demo", [f"--name={rows[0].name}"]).name == rows[0].name
    folder.mkdir(parents=True)


WRONG = [
    (["optim.lr_head"], "write SETTING=VALUE,VALUE"),
    (["optim.lr_head="], "write SETTING=VALUE,VALUE"),
    (["optim.lr_head=1e-3,"], "write SETTING=VALUE,VALUE"),
    (["=3"], "there is no setting ''"),
    (["optim.lr_haed=1e-3"], "there is no setting 'optim.lr_haed'; did you mean optim.lr_head"),
    (["lr_head=1e-3"], "there is no setting"),
    (["optim=1e-3"], "there is no setting"),
    (["optim.lr_head=1e-3,abc"], "optim.lr_head: must be a number"),
    (["epochs=3,0"], "epochs: must be at least 1"),
    (["compile=on,Off"], "compile: must be auto, on or off"),
    (["optim.lr_head=1e-3,0.001"], "optim.lr_head has 1e-3 and 0.001, which are the same"),
    (["epochs=3", "epochs=4"], "epochs is there twice"),
    (["seed=0,1"], "seed cannot be swept; use --seeds"),
    (["data.root=a,b"], "data.root cannot be swept; use --data"),
    (["device=cpu,cuda"], "device cannot be swept; use --device"),
    (["name=a,b"], "name cannot be swept"),
    ([f"epochs={','.join(map(str, range(1, 1002)))}"], "the grid has 1,001 points"),
    (["objective.method=sspl,nonsense"], "nonsense"),
]


@pytest.mark.parametrize(("sweep", "said"), WRONG, ids=lambda value: str(value)[:30])
def test_a_sweep_that_is_wrong_is_told_before_anything_is_trained(tmp_path, sweep, said):
    words = [word for text in sweep for word in ("--sweep", text)]
    with pytest.raises(InputError) as refused:
        reproduce_door.main([*words, "--out", str(tmp_path / "out")])
    assert said in str(refused.value) and "\n" not in str(refused.value) and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--sweep", "epochs=1,2", "--epochs", "3"], "^epochs: .* a row's own, or set by .*--sweep"),
        (["--sweep", "epochs=1,2", "--seed", "3"], "^seed: "),
        (["--sweep", "epochs=1,2", "table1"], "table1"),
        (["table1", "--config", "demo"], "a row's own|goes with --sweep"),
        (["--sweep", "epochs=1,2", "--data", "DATA"], "name the recipe with --config"),
        (["--sweep", "epochs=1,2", "--config", "semipi"], "did you mean semipl"),
    ],
)
def test_options_that_do_not_go_with_a_sweep(tiny, tmp_path, words, said):
    words = [str(tiny[1]) if word == "DATA" else word for word in words]
    with pytest.raises(InputError, match=said):
        reproduce_door.main([*words, "--out", str(tmp_path / "out")])


def summary(success, auc, tested):
    test = {"pairs": 4, "success_at_half": tested, "auc": 0.5, "curve": [0.0] * 21}
    return {"test": test, "selected": {"epoch": 2, "score": [success, auc]}, "seconds": 1.0}


def test_the_best_is_that_of_the_selection_split(tmp_path):
    rows = rows_of_sweep(read_sweep(["epochs=1,2,3,4"]), "demo")
    results = Results(Plan("demo", tmp_path, [0, 1], swept=rows))
    assert finding_of(results) == "No run of the sweep has ended." and best_of(results) is None
    for row, scores in zip(
        rows, ([(0.4, 0.9), (0.4, 0.9)], [(0.5, 0.3), (0.5, 0.4)], [(0.5, 0.4)] * 2, []), strict=True
    ):
        for seed, (success, auc) in enumerate(scores):
            results.add(row, seed, summary(success, auc, 1 - success))
    results.failed[rows[3].run] = "exit code 2: no"
    assert best_of(results) == rows[2]
    assert "Best on val: epochs 3 (success 50.0%, AUC 40.0%, mean over the seeds). Choose by val" in finding_of(results)
    lines = [results.line_of_sweep(row) for row in rows]
    assert lines[0] == ["epochs 1", "40.0 ± 0.0", "90.0 ± 0.0", "60.0 ± 0.0", "50.0 ± 0.0", "2, 2", ""]
    assert lines[2][-1] == "best" and lines[3] == ["epochs 4", *["not run"] * 4, "", "failed: exit code 2: no"]


@pytest.mark.slow
def test_a_sweep_is_trained_goes_on_and_is_one_report(tiny, tmp_path, monkeypatch, capsys):
    """In one process, for speed. The first run ends, the second one fails; the same command trains that one alone."""
    started, fails = [], True

    def here(folder, arguments):
        started.append(folder.parent.name)
        if fails and "=2" in folder.parent.name:
            raise RuntimeError("exit code 143: stopped")
        assert train_door.main([*arguments, "--out", str(folder)]) == 0

    monkeypatch.setattr(runs, "train", here)
    out = tmp_path / "out"
    head = heads.SimSiamHead
    monkeypatch.setattr(heads, "SimSiamHead", lambda channels: head(channels, 64, 16))
    own = ["--config", "demo", "--data", str(tiny[1]), "--out", str(out), "--device", "cpu"]
    more = "--data.batch_size 10 --optim.warmup 0 --overlays 0 --compile off".split()
    words = ["--sweep", "epochs=1,2", *own, *more]
    assert reproduce_door.main(words) == 1
    fails = False
    assert reproduce_door.main(words) == 0
    assert started == ["epochs=1", "epochs=2", "epochs=2"]
    said = capsys.readouterr().out
    assert "Sweep of epochs" in said and "Best on val: epochs" in said and "paper" not in said
    held = json.loads((out / "results.json").read_text())
    assert held["rows"].keys() == {"epochs=1", "epochs=2"} and "Best on val" in held["finding"]
    page = (out / "report.html").read_text()
    assert "epochs 1" in page and page.count("data:image/png;base64,") == 1 and "published" not in page
    again = reproduce(sweep=["epochs=1,2"], configs=["demo"], data=tiny[1], out=out, device="cpu", overrides=more)
    assert again.failed == {} and best_of(again) is not None
    assert len(started) == 3
