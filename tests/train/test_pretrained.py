"""The small networks as `essl_fast.pretrain` makes them: found again, checked by their hash, frozen, in checkpoints."""

import hashlib
import json
import re
import threading

import numpy as np
import pytest
import torch

from essl_fast import checkpoints, config, models, pretrain
from essl_fast.common.errors import InputError
from essl_fast.data.synthetic import singles

FROZEN = ["--model.trunk", "small_frozen", "--model.audio", "small_frozen"]
TINY = {"PICTURES": 36, "SIDE": 64, "PICTURE_EPOCHS": 1, "SOUNDS": 36, "SOUND_EPOCHS": 1, "BATCH": 10}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A file of weights from a few steps."""
    path = tmp_path_factory.mktemp("weights") / "small.pt"
    with pytest.MonkeyPatch.context() as patched:
        for name, value in TINY.items():
            patched.setattr(pretrain, name, value)
        before = torch.get_rng_state()
        facts = pretrain.pretrain(path, 0, lambda line: None)
        assert torch.equal(before, torch.get_rng_state())  # a run's own numbers do not depend on it
    assert 0 <= facts["picture_accuracy"] <= 1 and 0 <= facts["sound_accuracy"] <= 1
    return path


def test_single_objects_and_sounds():
    shown, kinds = singles.pictures(16, 64, np.random.default_rng(0))
    assert shown.shape == (16, 64, 64, 3) and sorted(kinds) == sorted([*range(8)] * 2)
    again, _ = singles.pictures(16, 64, np.random.default_rng(0))
    np.testing.assert_array_equal(shown, again)
    heard, kinds = singles.sounds(8, np.random.default_rng(0))
    assert heard.shape == (8, 48000) and heard.dtype == np.int16 and sorted(kinds) == list(range(8))
    assert (np.abs(heard.astype(int)).max(axis=1) > 1000).all()


def test_a_file_that_is_whole_is_found_and_another_is_refused(made, tmp_path):
    assert pretrain.intact(made)["version"] == pretrain.VERSION
    assert pretrain.small_weights(str(made), print) == made
    assert pretrain.small_weights("none", print) is None
    with pytest.raises(InputError, match="there is no file .*; write it with python -m essl_fast.pretrain --out"):
        pretrain.small_weights(str(tmp_path / "nowhere.pt"), print)
    damaged = tmp_path / "small.pt"
    damaged.write_bytes(made.read_bytes()[:-1] + b"x")
    (tmp_path / "small.pt.json").write_bytes(made.with_name("small.pt.json").read_bytes())
    with pytest.raises(InputError, match="is not as python -m essl_fast.pretrain wrote it"):
        pretrain.small_weights(str(damaged), print)


def test_the_command_keeps_a_file_of_another_seed_or_kind(made, tmp_path, monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(
        pretrain, "pretrain", lambda path, seed, say: calls.append((path, seed)) or pretrain.intact(made)
    )
    assert pretrain.main(["--out", str(made)]) == 0 and "was already there" in capsys.readouterr().out
    mine = tmp_path / "mine.pt"
    mine.write_text("mine")
    for words, holds in (
        ((str(made), "--seed", "3"), "has the weights of seed 0"),
        ((str(mine),), "is not a file of this command"),
    ):
        with pytest.raises(InputError, match=f"^--out: {re.escape(words[0])} {holds}.*: give --overwrite"):
            pretrain.main(["--out", *words])
        assert not calls
        assert pretrain.main(["--out", *words, "--overwrite"]) == 0
        assert calls.pop()[0].name == words[0].rpartition("/")[2]


def test_auto_makes_them_once_and_again_if_they_are_damaged(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    calls = []

    def fake(path, seed, say):
        calls.append(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"weights")
        facts = {"version": pretrain.VERSION, "sha256": hashlib.sha256(b"weights").hexdigest()}
        path.with_name(f"{path.name}.json").write_text(json.dumps(facts))

    monkeypatch.setattr(pretrain, "pretrain", fake)
    first = pretrain.small_weights("auto", print)
    assert pretrain.small_weights("auto", print) == first and calls == [first]
    first.write_bytes(b"weight?")
    assert pretrain.small_weights("auto", print) == first and len(calls) == 2


def test_several_at_once_make_them_once(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made, said, found = [], [], []
    waits = threading.Event()

    def fake(path, seed, say):
        made.append(path)
        assert waits.wait(60)  # until another one has come
        path.write_bytes(b"weights")
        facts = {"version": pretrain.VERSION, "sha256": hashlib.sha256(b"weights").hexdigest()}
        path.with_name(f"{path.name}.json").write_text(json.dumps(facts))

    def say(line):
        said.append(line)
        if line.startswith("waiting for "):
            waits.set()

    monkeypatch.setattr(pretrain, "pretrain", fake)
    threads = [threading.Thread(target=lambda: found.append(pretrain.small_weights("auto", say))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1 and found == made * 4
    assert sorted(path.name for path in made[0].parent.iterdir()) == [made[0].name, f"{made[0].name}.json"]


def test_without_a_place_for_them_the_message_says_what_to_give(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(InputError, match="cannot be written to keep them in; .* give --model.small_weights FILE"):
        pretrain.small_weights("auto", print)
    monkeypatch.setattr(pretrain.places, "cache_folder", lambda: None)
    with pytest.raises(InputError, match="has no home folder .* give --model.small_weights FILE"):
        pretrain.small_weights("auto", print)


def test_frozen_networks_load_the_weights_and_keep_them(made):
    settings = config.load("demo", FROZEN)
    model = models.build(settings.model)
    assert models.made_parts(settings.model) == ["trunk", "audio"]
    assert models.load_made(model, settings.model, made) == f"trunk and audio from {made}"
    held = torch.load(made, weights_only=True)
    model.train()
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert not [name for name in trained if name.startswith("trunk.")]
    assert {name for name in trained if name.startswith("audio.")} == {
        f"audio.fc.{layer}.{part}" for layer in (0, 2) for part in ("weight", "bias")
    }
    images, mel = torch.randn(4, 3, 64, 64), torch.rand(4, 3, 96, 64)
    alone = torch.cat([model.trunk(one[None]) for one in images])
    torch.testing.assert_close(model.trunk(images, 2), alone)  # a frame's map depends on that frame alone
    embedded = model.audio.embed(mel)
    for whole, kept in zip(model.audio(mel), model.audio(embedded), strict=True):
        torch.testing.assert_close(whole, kept)
    for part in ("trunk", "audio"):
        for name, value in held[part].items():
            assert torch.equal(getattr(model, part).state_dict()[name], value), name


def test_the_doctor_says_what_train_will_do(made, monkeypatch, tmp_path):
    from essl_fast.doctor.weight_files import made as finding

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert "train will make it" in finding("auto").what and not list(tmp_path.iterdir())
    assert "its hash is right" in finding(str(made)).what
    assert "there is no file" in finding(str(tmp_path / "x.pt")).what


def test_a_checkpoint_has_the_frozen_weights(made, tmp_path):
    """So it can be evaluated where nobody has pretrained."""
    settings = config.load("demo", [*FROZEN, "--model.small_weights", str(made)])
    model = models.build(settings.model)
    models.load_made(model, settings.model, made)
    state = checkpoints.trained_state(model, models.unpublished_parts(settings.model))
    settings.model.small_weights = str(tmp_path / "gone.pt")
    restored, _ = checkpoints.restore({"config": config.to_dict(settings), "model": state}, torch.device("cpu"))
    for name, value in model.state_dict().items():
        assert torch.equal(restored.state_dict()[name], value), name


def test_weights_of_another_size_are_refused(made):
    settings = config.load("demo", [*FROZEN, "--model.out_dim", "64"])
    with pytest.raises(models.WeightsError, match="does not fit"):
        models.load_made(models.build(settings.model), settings.model, made)
