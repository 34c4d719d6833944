"""Checkpoints: atomic, refused when damaged or foreign; the published code's state dicts."""

import errno
import os
import re
import sys
from types import SimpleNamespace

import pytest
import torch

from essl_fast import checkpoints, config, models
from essl_fast.checkpoints import files, hub, sspl, tensors
from essl_fast.common.commands import command
from essl_fast.common.errors import InputError
from tests.golden.store import golden
from tests.nth.disk import Disk, Failure


def small_model(seed=0, **overrides):
    torch.manual_seed(seed)
    settings = config.load("demo", [f"{k}={v}" for k, v in overrides.items()])
    return models.build(settings.model)


def test_round_trip(tmp_path):
    model = small_model()
    checkpoints.save(tmp_path / "a.pt", {"model": checkpoints.trained_state(model), "epoch": 3})
    state = checkpoints.load(tmp_path / "a.pt")
    other = small_model(seed=1)
    checkpoints.load_trained(other, state["model"])
    assert state["epoch"] == 3
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))
    assert [file.name for file in tmp_path.iterdir()] == ["a.pt"]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.pt"
    checkpoints.save(path, {"epoch": 1})
    with pytest.raises(Exception, match="<lambda>"):
        checkpoints.save(path, {"epoch": 2, "bad": lambda: None})
    assert checkpoints.load(path)["epoch"] == 1
    assert [file.name for file in tmp_path.iterdir()] == ["a.pt"]


def test_a_disk_that_is_full_in_the_middle_of_a_file_is_told_as_such(tmp_path):
    """PyTorch's own error of a write that fails says nothing of the disk."""
    path = tmp_path / "a.pt"
    checkpoints.save(path, {"epoch": 1})
    for nth in range(1, 4):
        with Disk(tmp_path, Failure("write", nth, errno.ENOSPC, stays=True)).mounted() as disk:
            with pytest.raises(OSError, match="No space left") as raised:
                checkpoints.save(path, {"epoch": 2, "weights": torch.zeros(5000)})
        assert disk.failed and raised.value.filename == str(path)
        assert checkpoints.load(path)["epoch"] == 1
    with Disk(tmp_path, Failure("write", 2)).mounted():
        with pytest.raises(InputError, match="published cannot be written .Input/output error"):
            sspl.write_files(tmp_path / "published", {"frame": {"weights": torch.zeros(5000)}})


def test_wrong_files_are_refused(tmp_path):
    with pytest.raises(InputError, match="there is no checkpoint"):
        checkpoints.load(tmp_path / "none.pt")
    whole = tmp_path / "a.pt"
    checkpoints.save(whole, {"x": torch.arange(10000)})
    cut = tmp_path / "cut.pt"
    cut.write_bytes(whole.read_bytes()[:2000])
    with pytest.raises(InputError, match="cut.pt is not a readable checkpoint"):
        checkpoints.load(cut)
    torch.save({"x": 1}, tmp_path / "foreign.pt")
    with pytest.raises(InputError, match="not an essl_fast checkpoint"):
        checkpoints.load(tmp_path / "foreign.pt")

    class Evil:
        def __reduce__(self):
            return (print, ("ran",))

    torch.save(Evil(), tmp_path / "evil.pt")
    (tmp_path / "text.pt").write_text("epochs: 3")
    (tmp_path / "empty.pt").touch()
    for name, why in {"evil": "never run", "text": "it is no file of PyTorch's", "empty": "cut short"}.items():
        with pytest.raises(InputError, match=rf"{name}.pt is not a readable checkpoint \(.*{why}\)") as caught:
            checkpoints.load(tmp_path / f"{name}.pt")
        assert "weights_only" not in str(caught.value)  # PyTorch's advice to run it


def test_another_architecture_is_refused():
    state = checkpoints.trained_state(small_model())
    with pytest.raises(InputError, match="another architecture"):
        checkpoints.load_trained(small_model(**{"model.out_dim": 64}), state)


PARTS = {"frame": models.VGG16Trunk, "pcm": models.PCM, "ssl_head": models.SimSiamHead}


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("part", PARTS)
def test_published_state_dicts_load_with_and_without_the_ddp_prefix(part, prefix):
    names = golden("e2e_w_pcm")[f"{'head' if part == 'ssl_head' else part}_recipe_param_names"]
    source, target = PARTS[part](), PARTS[part]()
    for buffer in source.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(1, 2)
    own = source.state_dict()
    checkpoints.load_sspl_part(target, part, {prefix + n: own[checkpoints.from_sspl_name(part, n)] for n in names})
    assert all(torch.equal(value, target.state_dict()[name]) for name, value in own.items())


def test_published_state_dicts_that_do_not_fit_are_refused():
    trunk = models.VGG16Trunk()
    sd = {f"feat_extractor.{k.removeprefix('features.')}": v for k, v in trunk.state_dict().items()}
    checkpoints.load_sspl_part(models.VGG16Trunk(), "frame", sd)
    with pytest.raises(InputError, match="lacks 1 entries"):
        checkpoints.load_sspl_part(trunk, "frame", {k: v for k, v in sd.items() if k != "feat_extractor.0.bias"})
    with pytest.raises(InputError, match="has no place"):
        checkpoints.load_sspl_part(trunk, "frame", {**sd, "fc.weight": torch.zeros(1)})
    with pytest.raises(InputError, match="has shape"):
        checkpoints.load_sspl_part(trunk, "frame", {**sd, "feat_extractor.0.bias": torch.zeros(3)})
    with pytest.raises(InputError, match="not 'video'"):
        checkpoints.load_sspl_part(trunk, "video", sd)
    with pytest.raises(InputError, match="needs the SSPL parts"):
        checkpoints.load_sspl(small_model(), {"frame": sd})


def test_the_last_few_are_kept(tmp_path):
    path = tmp_path / "last.pt"
    for epoch in range(5):
        checkpoints.save(path, {"epoch": epoch}, keep=3)
    assert [file.name for file in checkpoints.existing(path)] == ["last.pt", "last-1.pt", "last-2.pt"]
    assert [checkpoints.load(file)["epoch"] for file in checkpoints.existing(path)] == [4, 3, 2]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["last-1.pt", "last-2.pt", "last.pt"]
    (tmp_path / "last-x.pt").touch()
    assert len(files.older(path)) == 2


def test_a_file_system_without_links(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    for epoch in range(3):
        checkpoints.save(tmp_path / "last.pt", {"epoch": epoch}, keep=2)
    assert [checkpoints.load(file)["epoch"] for file in checkpoints.existing(tmp_path / "last.pt")] == [2, 1]


def test_every_flipped_bit_is_noticed(tmp_path):
    path = tmp_path / "a.pt"
    checkpoints.save(path, {"x": torch.arange(1000.0)})
    whole = path.read_bytes()
    for at in range(0, len(whole), len(whole) // 40):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(InputError, match="not a readable checkpoint"):
            checkpoints.load(path)
    for size in (0, 10, len(whole) // 2, len(whole) - 20, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(InputError, match="not a readable checkpoint"):
            checkpoints.load(path)
    path.write_bytes(whole)
    assert checkpoints.damage(path) is None and torch.equal(checkpoints.load(path)["x"], torch.arange(1000.0))


def test_bytes_before_the_seal_are_noticed(tmp_path):
    path = tmp_path / "a.pt"
    checkpoints.save(path, {"epoch": 1})
    data = path.read_bytes()
    for more in (b"\0" * 7, b""):
        path.write_bytes(data[:-20] + more + data[-20:])
        said = f"it has {len(data) - 13} bytes where {len(data) - 20} were written" if more else None
        assert checkpoints.damage(path) == said


def test_the_newest_that_is_whole(tmp_path):
    path = tmp_path / "last.pt"
    for epoch in range(3):
        checkpoints.save(path, {"epoch": epoch}, keep=3)
    assert checkpoints.newest(path)[1:] == ({"format": checkpoints.FORMAT, "version": 2, "epoch": 2}, [])
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match=rf"{re.escape(str(tmp_path / 'last-1.pt'))} is whole: train --resume"):
        checkpoints.load(path)
    found, state, passed = checkpoints.newest(path)
    assert found == tmp_path / "last-1.pt" and state["epoch"] == 1 and "last.pt is not a readable" in passed[0]
    path.unlink()
    assert checkpoints.newest(path)[0] == tmp_path / "last-1.pt"
    for file in checkpoints.existing(path):
        file.write_bytes(b"nothing")
    with pytest.raises(InputError, match="no checkpoint of .* is whole"):
        checkpoints.newest(path)


@pytest.mark.parametrize("whose", ["PyTorch", "Python"])
def test_memory_that_is_short_is_no_fault_of_a_checkpoint(whose, tmp_path, monkeypatch, capsys):
    """No older one takes the place of the newest, which is whole: training would go back by an epoch."""
    for epoch in (1, 2):
        files.save(tmp_path / "last.pt", {"epoch": epoch}, keep=2)
    error = RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: x")
    error = MemoryError() if whose == "Python" else error

    def short(*_, **__):
        raise error

    monkeypatch.setattr(torch, "load", short)
    assert command(lambda: bool(files.newest(tmp_path / "last.pt")), "train") == 2
    says = f"train: error: the memory of this machine is not enough (to read {tmp_path / 'last.pt'})\n"
    assert capsys.readouterr().err == says


def test_a_damaged_best_names_what_is_left(tmp_path):
    for name in ("best.pt", "last.pt"):
        checkpoints.save(tmp_path / name, {"epoch": 1})
    (tmp_path / "best.pt").write_bytes((tmp_path / "best.pt").read_bytes()[:-3])
    with pytest.raises(InputError, match=rf"{re.escape(str(tmp_path / 'last.pt'))} is whole: evaluate that"):
        checkpoints.load(tmp_path / "best.pt")


def test_checkpoints_of_version_1_are_read(tmp_path):
    path = tmp_path / "old.pt"
    torch.save({"format": checkpoints.FORMAT, "version": 1, "epoch": 7}, path)
    assert checkpoints.load(path)["epoch"] == 7
    torch.save({"format": checkpoints.FORMAT, "version": 3}, path)
    with pytest.raises(InputError, match="version 3, this essl_fast reads 2"):
        checkpoints.load(path)


@pytest.mark.parametrize(
    "given", [3, {"a": 1}, {"a": torch.zeros(2).to_sparse()}, {"a": torch.zeros(2, device="meta")}]
)
def test_a_model_that_is_no_dict_of_tensors_is_refused(given):
    with pytest.raises(InputError, match="the checkpoint's model is no dict of tensors; it was made by something else"):
        checkpoints.load_trained(small_model(), given)


def test_a_checkpoint_that_the_disk_does_not_give(tmp_path):
    assert files.damage(tmp_path) == "it cannot be read: Is a directory"
    assert files.damage(tmp_path / "none.pt") == "it cannot be read: No such file or directory"


def test_weight_files_that_have_moved_are_looked_for_where_they_are(tmp_path):
    state = {"config": config.to_dict(config.load("demo")), "model": checkpoints.trained_state(small_model())}
    _, settings = checkpoints.restore(state, torch.device("cpu"), {"vgg16": str(tmp_path / "v.pth"), "vggish": ""})
    assert settings.model.vgg16_weights == str(tmp_path / "v.pth")
    assert settings.model.vggish_weights == config.load("demo").model.vggish_weights


def test_a_model_of_the_hub_that_is_none_of_ours(tmp_path, monkeypatch):
    package = SimpleNamespace(snapshot_download=lambda *_, **__: str(tmp_path))
    monkeypatch.setitem(sys.modules, "huggingface_hub", package)
    with pytest.raises(
        InputError, match="hf://org/name has no model.safetensors: it was not made by python -m essl_fast"
    ):
        hub.fetch("hf://org/name")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError, match="hf://org/name: the package huggingface_hub is missing: pip install"):
        hub.fetch("hf://org/name")


def test_weights_that_were_not_written_whole_are_told(tmp_path):
    pytest.importorskip("safetensors")
    settings, model = config.load("demo"), small_model()
    tensors.save_safetensors(tmp_path / "m.safetensors", model, settings, {})
    assert tensors.check_safetensors(tmp_path / "m.safetensors", model).endswith("tensors, read back and equal")
    with pytest.raises(InputError, match="m.safetensors does not hold the model's weights .*; write it again"):
        tensors.check_safetensors(tmp_path / "m.safetensors", small_model(seed=1))
