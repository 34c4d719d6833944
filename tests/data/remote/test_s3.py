"""Training from an object store, as a user does: the run from s3:// is the run from the folder, to the bit."""

import json
import os

import pytest
import torch

from essl_fast import checkpoints
from essl_fast.common.errors import InputError
from essl_fast.data.remote import Store
from essl_fast.data.shards import QUARANTINE, Manifest
from essl_fast.doctor import __main__ as doctor_door
from essl_fast.evaluate import __main__ as evaluate_door
from essl_fast.prepare import __main__ as prepare_door
from essl_fast.report import __main__ as report_door
from essl_fast.runtime import runlog
from essl_fast.train import fit
from tests.tools.buckets import bucket  # noqa: F401  # a fixture

pytest.importorskip("s3fs")  # of the extra `remote`
pytest.importorskip("moto.server")
SMALL = "--data.batch_size 4 --data.threads 1 --data.last_batch keep --overlays 0 --eval_every 0 --device cpu"


@pytest.fixture(scope="module")
def copied(bucket, tiny):  # noqa: F811
    """The tiny world, copied into the bucket file by file."""
    store = Store(f"{bucket}/tiny")
    for path in tiny[1].rglob("*"):
        if path.is_file():
            store.upload(str(path.relative_to(tiny[1])), str(path))
    return store.url


@pytest.fixture(scope="module")
def runs(copied, tiny, tmp_path_factory):
    """(run directory from the folder, run directory from the bucket)."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    place = tmp_path_factory.mktemp("runs")
    for name, root in (("near", str(tiny[1])), ("far", copied)):
        fit("demo", [*SMALL.split(), "--epochs", "1", "--data.root", root, "--out", str(place / name)], quiet=True)
    yield place / "near", place / "far"
    torch.set_num_threads(threads)


@pytest.mark.slow
def test_the_run_is_that_of_the_folder(runs, copied, tiny):
    near, far = (checkpoints.load(run / "last.pt") for run in runs)
    assert near["model"].keys() == far["model"].keys()
    assert all(torch.equal(near["model"][name], far["model"][name]) for name in near["model"])
    assert far["data_root"] == far["config"]["data"]["root"] == copied and far["data"] == near["data"]
    losses = [[e["losses"] for e in runlog.read_log(run / "log.jsonl") if e["event"] == "epoch"] for run in runs]
    assert losses[0] == losses[1] and losses[0]
    (begun,) = [event for event in runlog.read_log(runs[1] / "log.jsonl") if event["event"] == "start"]
    assert begun["data"] == copied
    written = b"".join(path.read_bytes() for path in runs[1].iterdir())
    assert b"opensesame" not in written and copied.encode() in written


@pytest.mark.slow
def test_the_commands_take_the_url(runs, copied, tiny, tmp_path, capsys):
    near, far = runs
    for run, data, file in ((near, str(tiny[1]), "near.json"), (far, None, "far.json"), (near, copied, "other.json")):
        given = [] if data is None else ["--data", data]
        assert evaluate_door.main([str(run), *given, "--device", "cpu", "--json", str(tmp_path / file)]) == 0
    results = [json.loads((tmp_path / f"{name}.json").read_text()) for name in ("near", "far", "other")]
    assert results[0]["each"] == results[1]["each"] == results[2]["each"]
    assert report_door.main([str(far), "--out", str(tmp_path / "report.html")]) == 0
    assert "opensesame" not in (tmp_path / "report.html").read_text()
    capsys.readouterr()
    doctor_door.main(["--data", copied, "--data.batch_size", "2", "--json"])
    (data,) = [each for each in json.loads(capsys.readouterr().out)["findings"] if each["topic"] == "data"]
    assert data["status"] == "ok" and data["what"].startswith(
        f"{copied}: {Manifest.load(tiny[1]).pairs('train')} train"
    )


def test_verify_leaves_its_list_in_the_bucket(copied, capsys):
    assert prepare_door.main(["--verify", "--out", copied, "--workers", "1"]) == 0
    assert f"{len(Manifest.load(copied))} pairs were decoded" in capsys.readouterr().out
    assert Store(copied).read(QUARANTINE) == Manifest.load(copied).bring(QUARANTINE).read_bytes()


def test_a_resumed_run_asks_for_what_was_not_written_down(copied, tmp_path):
    """A run of a URL with a secret keeps the URL without it, and says so when it goes on."""
    with pytest.raises(
        InputError, match="s3://bucket/tiny[?][*]{3} was written down without its user, password or query"
    ):
        fit("demo", [*SMALL.split(), "--data.root", f"{copied}?***", "--out", str(tmp_path / "run")], quiet=True)
    assert os.listdir(tmp_path) == []
