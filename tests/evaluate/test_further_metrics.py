"""The further metrics of evaluate: silence and other pairs' sounds, with nothing decoded twice; the command."""

import json

import numpy as np
import pytest
import torch

from essl_fast import checkpoints, config, kernels, models
from essl_fast.data.shards import Manifest, Shards
from essl_fast.evaluate import Evaluation, centre_view, evaluate, evaluation_loader, extra_tables, metrics
from essl_fast.evaluate import __main__ as evaluate_door

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def untrained(tiny):
    """A small model as it begins, the tiny world's manifest, and settings."""
    settings = config.load("demo", ["--data.root", str(tiny[1]), "--data.threads", "1"])
    torch.manual_seed(0)
    return models.build(settings.model).eval(), Manifest.load(tiny[1]), settings


@pytest.mark.parametrize("batch_size", [3, 64])
def test_foreign_sounds_against_each_pair_by_itself(untrained, monkeypatch, batch_size):
    """Whatever the batches, a frame meets the sound of the pair half the split further on; frames are read once."""
    model, manifest, settings = untrained
    settings.data.batch_size = batch_size
    read, decoded = Shards.read, []

    def recording(self, positions, *rest):
        decoded.extend(positions.tolist())
        return read(self, positions, *rest)

    monkeypatch.setattr(Shards, "read", recording)
    found = evaluate(model, manifest, "train", settings, CPU, torch.float32, foreign=True)
    count = manifest.pairs("train")
    assert sorted(decoded) == list(range(count)) and count > 7
    plain = evaluate(model, manifest, "train", settings, CPU, torch.float32)
    np.testing.assert_array_equal(plain.similarity, found.similarity)
    assert plain.foreign == {} and set(found.foreign) == {"silent", "noise", "mismatched"}

    loader = evaluation_loader(manifest, "train", settings, model, CPU, torch.float32)
    with loader, torch.inference_mode():
        views, sounds = [], []
        for raw in loader:
            views += centre_view(raw.frames, torch.float32, raw.rows).transpose(0, 1)
            sounds += list(raw.sound)
        silence = kernels.log_mel(torch.zeros(1, 48000, dtype=torch.int16))
        for at in range(0, count, 3):
            other = sounds[(at + count // 2) % count][None]
            for kind, sound in (("silent", silence), ("mismatched", other)):
                expected = model.attend(views[at][:, None], sound).similarity.max().item()
                assert found.foreign[kind][at].max() == pytest.approx(expected, abs=1e-5), kind
    assert not np.allclose(found.foreign["mismatched"], found.similarity, atol=1e-5)
    assert not np.allclose(found.foreign["noise"], found.foreign["silent"], atol=1e-5)


def test_what_they_add_to_a_result(untrained):
    model, manifest, settings = untrained
    found = evaluate(model, manifest, "test", settings, CPU, torch.float32, foreign=True)
    extra = found.extra(manifest, 1)
    maps, boxes = torch.from_numpy(found.similarity), torch.from_numpy(np.array(manifest.boxes[found.rows]))
    summary = metrics.summarize(metrics.ciou_adaptive(maps, boxes))
    assert extra["ciou_adaptive"] == {
        "pairs": len(maps),
        "success_at_half": summary.success_at_half,
        "auc": summary.auc,
    }
    assert sum(entry["pairs"] for entry in extra["per_size"].values()) == len(maps)
    for kind, negative in found.foreign.items():
        told = dict(extra["foreign"][kind])
        assert {name: len(told.pop(name)) for name in ("deaf", "perfect")} == {"deaf": 2, "perfect": 2}
        expected = metrics.detection(found.similarity.max((1, 2)), found.ciou >= 0.5, negative.max((1, 2)))
        assert told == expected._asdict()
    gone = found._replace(
        ciou=np.full_like(found.ciou, np.nan),
        similarity=np.full_like(found.similarity, np.nan),
        foreign={kind: np.full_like(one, np.nan) for kind, one in found.foreign.items()},
    ).extra(manifest, 1)
    json.dumps(gone, allow_nan=False)  # of a model that diverged: no threshold, but a result
    lost = {"average_precision": 0, "max_f1": 0}
    perfect = {"average_precision": 1, "max_f1": 1}
    assert gone["foreign"]["silent"] == {**lost, "threshold": None, "deaf": lost, "perfect": perfect}
    assert len(extra_tables(gone)) == 3
    alone = Evaluation(found.rows[:1], found.ciou[:1], found.similarity[:1], []).extra(manifest, 1)
    assert alone["foreign"] == {} and len(extra_tables(alone)) == 2


def test_what_a_deaf_and_a_perfect_model_would_get(untrained):
    """Of N pairs, n are found. Deaf: recall n/N at a precision of n/2N. Perfect: S other sounds are of the class."""
    _, manifest, _ = untrained
    rows = manifest.rows("train")
    count = len(rows)
    heard = np.roll(rows, -(count // 2))
    ciou = np.where(np.arange(count) % 4, 0.9, 0.1)
    flat = np.full((count, 2, 2), 0.5, np.float32)
    found = Evaluation(rows, ciou, flat, [], {"mismatched": flat}, heard=heard)
    told = found.extra(manifest, 1)["foreign"]["mismatched"]
    right, alike = int((ciou >= 0.5).sum()), int((manifest.class_id[heard] == manifest.class_id[rows]).sum())
    assert 0 < alike < count
    assert told["deaf"] == pytest.approx(
        {"average_precision": right / count * right / (2 * count), "max_f1": 2 * right / (3 * count)}
    )
    assert told["perfect"] == pytest.approx(
        {"average_precision": count / (count + alike), "max_f1": 2 * count / (2 * count + alike)}
    )
    assert told["average_precision"] == pytest.approx(told["deaf"]["average_precision"])  # it has one confidence


def test_the_command(untrained, tmp_path, capsys):
    model, manifest, settings = untrained
    state = {"config": config.to_dict(settings), "data_root": str(manifest.root), "data": manifest.header}
    state["model"] = model.state_dict()
    checkpoints.save(tmp_path / "best.pt", state)
    arguments = [str(tmp_path / "best.pt"), "--device", "cpu", "--json", str(tmp_path / "result.json")]
    assert evaluate_door.main(arguments) == 0
    assert "extra" not in json.loads((tmp_path / "result.json").read_text())
    assert "does it listen?" not in capsys.readouterr().out
    assert evaluate_door.main([*arguments, "--extra"]) == 0
    extra = json.loads((tmp_path / "result.json").read_text())["extra"]
    assert set(extra) == {"ciou_adaptive", "loc_acc", "per_size", "foreign", "universal", "guidance"}
    assert set(extra["foreign"]) == set(extra["universal"]["negatives"]) == {"silent", "noise", "mismatched"}
    said = capsys.readouterr().out
    assert "area of the boxes as threshold" in said and "another pair's sound" in said and "max-F1" in said
    assert "a deaf model" in said and "a perfect model" in said


def most_judged_rightly(scores, found) -> float:
    """How many pairs the best threshold judges rightly, by trying all."""
    return max(sum((score >= t) == right for score, right in zip(scores, found, strict=True)) for t in (*scores, 9.0))


@pytest.mark.parametrize("seed", range(20))
def test_the_confidence_from_which_on_a_model_is_right(seed):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 8, 25) / 10
    found = rng.random(25) < scores + 0.2
    least = metrics.trusted_from(scores, found)
    t = 9.0 if least is None else least
    assert sum((score >= t) == right for score, right in zip(scores, found, strict=True)) == most_judged_rightly(
        scores, found
    )
    assert least is None or least in scores


@pytest.mark.parametrize(
    "scores, found, least",
    [
        ([0.1, 0.2, 0.3, 0.4], [0, 0, 1, 1], 0.3),
        ([0.4, 0.1, 0.3, 0.2], [1, 1, 1, 0], 0.1),  # one mistake among right ones
        ([0.1, 0.2, 0.3], [1, 1, 1], 0.1),
        ([0.1, 0.2, 0.3], [0, 0, 0], None),
        ([0.2, 0.2, 0.3], [0, 1, 1], 0.2),  # equal confidences stand on one side
        ([float("nan"), 0.2], [0, 1], 0.2),
        ([], [], None),
    ],
)
def test_that_confidence_by_hand(scores, found, least):
    assert metrics.trusted_from(scores, found) == least
