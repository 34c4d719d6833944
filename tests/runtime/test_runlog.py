"""The log survives crashes, and JSON files are whole or not there."""

import json
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from essl_fast.common import files
from essl_fast.runtime import provenance, runlog


def test_a_line_cut_short_is_removed_before_the_next(tmp_path):
    path = tmp_path / "log.jsonl"
    log = runlog.RunLog(path)
    log.write("start", step=0)
    log.close()
    with path.open("a") as file:
        file.write('{"event": "epo')  # killed while writing
    assert [entry["event"] for entry in runlog.read_log(path)] == ["start"]
    log = runlog.RunLog(path)
    log.write("resume", step=3)
    log.close()
    entries = runlog.read_log(path)
    assert [(entry["event"], entry["step"]) for entry in entries] == [("start", 0), ("resume", 3)]
    assert all(entry["time"] > 1e9 for entry in entries)


def test_json_is_whole_or_not_there(tmp_path):
    path = tmp_path / "summary.json"
    files.write_json(path, {"auc": 0.5})
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(path, {"auc": float("nan")})
    assert json.loads(path.read_text()) == {"auc": 0.5}
    assert [file.name for file in tmp_path.iterdir()] == ["summary.json"]


def test_environment_names_versions_and_source():
    found = provenance.environment(torch.device("cpu"))
    assert found["packages"]["torch"] == version("torch") and found["machine"]["cores"] >= 1
    assert len(found["source"]["sha256"]) == 64
    json.dumps(found, allow_nan=False)


def test_what_a_machine_does_not_tell_is_left_open(monkeypatch):
    """No git, no /proc/cpuinfo, a package without its metadata: the run goes on, and the log says what is known."""
    about = SimpleNamespace(name="H200", total_memory=141 * 2**30)
    monkeypatch.setattr(provenance.torch.cuda, "get_device_properties", lambda device: about)
    monkeypatch.setattr(provenance, "PACKAGES", ("torch", "no-such-package"))
    monkeypatch.setattr(provenance.platform, "processor", lambda: "a processor")

    def gone(*_, **__):
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(provenance.subprocess, "run", gone)
    read = Path.read_text
    monkeypatch.setattr(Path, "read_text", lambda p, **more: gone() if str(p) == "/proc/cpuinfo" else read(p, **more))
    found = provenance.environment(torch.device("cuda"))
    assert found["packages"]["no-such-package"] is None and found["packages"]["torch"]
    assert found["machine"]["cpu"] == "a processor"
    assert found["machine"]["gpu"] == "H200" and found["machine"]["gpu_memory_gib"] == 141
    assert found["source"]["commit"] is None and len(found["source"]["sha256"]) == 64


def test_a_cpu_that_has_no_name(monkeypatch):
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: "processor: 0\n")
    monkeypatch.setattr(provenance.platform, "processor", lambda: "a processor")
    assert provenance._cpu_name() == "a processor"
