"""The baseline computes what the published code computes, and what essl_fast computes from the same weights."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

pytest.importorskip("h5py")

from benchmarks.baselines import published_nets as nets  # noqa: E402
from benchmarks.baselines import published_style as published  # noqa: E402
from benchmarks.baselines.published_data import PublishedSet, data_loader, export, files_of, target_map  # noqa: E402
from benchmarks.stages import StageClock  # noqa: E402
from essl_fast import config, kernels, models
from essl_fast.data.shards import Manifest  # noqa: E402
from essl_fast.evaluate import metrics  # noqa: E402
from tests.golden.store import golden, recipe_state, rel_l2, x_max  # noqa: E402

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def exported(tiny, tmp_path_factory):
    """The tiny world in the published layout: (manifest, folder)."""
    manifest = Manifest.load(tiny[1])
    return manifest, export(manifest, tmp_path_factory.mktemp("published"), batch=5)


def filled(module, data, seed, gain):
    """The module with golden's recipe weights under the published names."""
    missing, unknown = module.load_state_dict(recipe_state(data, "", seed, gain), strict=False)
    assert not unknown and all(name.endswith("num_batches_tracked") for name in missing)
    return module


@pytest.mark.slow
def test_networks_match_the_published_code():
    data = golden("vgg16")
    with torch.no_grad():
        out = filled(nets.FrameNet(), data, data["cfg"][0], np.sqrt(2))(torch.from_numpy(data["image"]))
    assert x_max(out, data["out"]) < 2e-5

    data = golden("vggish")
    with torch.no_grad():
        sound = filled(nets.SoundNet(512), data, data["cfg"][1], np.sqrt(2))
        embedding, projection = sound(torch.from_numpy(data["spect"]))
    assert x_max(embedding, data["emb128"]) < 1e-5 and x_max(projection, data["fc_out"]) < 1e-5

    data = golden("simsiam")
    head = filled(nets.SimSiam(512), data, data["cfg"][2], 1.0).train()
    p1, p2, z1, z2 = head(torch.from_numpy(data["x1"]), torch.from_numpy(data["x2"]))
    for found, name in ((p1, "p1"), (p2, "p2"), (z1, "z1"), (z2, "z2")):
        assert np.abs(found.detach().numpy() - data[name]).max() < 1e-4
    assert abs(nets.similarity_loss((p1, p2), (z1, z2)).item() - data["loss"]) < 1e-6

    data = golden("attention")
    pooled, similarity, attention = nets.attention_of(*(torch.from_numpy(data[name]) for name in ("b_vis", "b_aud")))
    assert np.abs(similarity.numpy() - data["b_att_map_orig"]).max() < 1e-6
    assert np.abs(attention.numpy() - data["b_att_map"]).max() < 5e-6
    assert x_max(pooled, data["b_fav"]) < 5e-6


def test_pcm_matches_the_published_code():
    data = golden("pcm_c2")
    cycles, audio_dim, out_dim, batch, seed, input_seed = (int(n) for n in data["cfg"])
    rng = np.random.default_rng(input_seed)
    visual = torch.from_numpy(rng.standard_normal((batch, 512, 14, 14), dtype=np.float32)).requires_grad_()
    audio = torch.from_numpy(data["audio"]).requires_grad_()
    rng.standard_normal((batch, audio_dim), dtype=np.float32)
    weight = torch.from_numpy(rng.standard_normal((batch, out_dim, 14, 14), dtype=np.float32))
    pcm = filled(nets.PCNet(cycles, audio_dim, out_dim), data, seed, 1.0).train()
    out = pcm(visual, audio)
    (out * weight).sum().backward()
    assert x_max(out.detach(), data["out_train_view1"]) < 5e-5
    assert rel_l2(visual.grad, data["grad_vis"]) < 5e-4 and rel_l2(audio.grad, data["grad_audio"]) < 5e-4


@pytest.mark.parametrize("method", ["sspl", "semipl", "supervised"])
def test_same_loss_and_gradients_as_ours(method):
    settings = config.load("demo", ["--objective.method", method])
    found = published.check(settings, CPU)
    assert found.ok and found.loss_error < 1e-5 and found.gradient_error < 1e-4


def test_the_check_notices_another_loss(monkeypatch):
    monkeypatch.setattr(published, "similarity_loss", lambda p, z: 1.01 * nets.similarity_loss(p, z))
    assert not published.check(config.load("demo", ["--objective.method", "sspl"]), CPU).ok


def test_export_holds_what_our_loader_gives(exported):
    import h5py

    manifest, root = exported
    for split in ("train", "test"):
        files, rows = files_of(root, split), manifest.rows(split)
        with h5py.File(files["frames"]) as frames, h5py.File(files["spects"]) as spects:
            pictures, examples = frames[f"{split}_frames"], spects[f"{split}_spects"]
            assert pictures.shape == (len(rows), 256, 256, 3) and pictures.dtype == np.float32
            assert examples.shape == (len(rows), 3, 96, 64) and pictures[0].max() > 100
            assert np.isfinite(examples[:]).all() and examples[0].std() > 0.1
        np.testing.assert_array_equal(np.load(files["boxes"]), manifest.boxes[rows])


def test_training_samples_move_target_and_picture_together(exported, monkeypatch):
    manifest, root = exported
    dataset = PublishedSet(root, "train", targets=True)
    row = int(np.flatnonzero(dataset.labelled)[0])
    shown = np.zeros((256, 256, 3), np.float32)
    x1, y1, x2, y2 = np.round(dataset.boxes[row, 0] * 256 / 224).astype(int)
    shown[y1:y2, x1:x2] = 255
    monkeypatch.setattr(dataset, "_data", lambda: ({row: shown}, {row: np.zeros((3, 96, 64), np.float32)}))
    dataset.boxes[row, 1:] = 0
    flips = set()
    for seed in range(8):
        torch.manual_seed(seed)
        sample = dataset[row]
        for view in (1, 2):
            bright = sample[f"view{view}"][0] > 0
            assert (bright == (sample[f"target{view}"] > 0.5)).float().mean() > 0.97  # all but the box's edge
        flips.add(bool(torch.equal(sample["view1"], sample["view2"])))
    assert flips == {False}  # two draws
    assert sample["spect"].shape == (3, 1, 96, 64) and sample["view1"].dtype == torch.float32


def test_target_map_is_the_box_map():
    boxes = torch.tensor([[[10, 20, 100, 90], [50, 60, 224, 224]], [[0, 0, 0, 0], [5, 5, 6, 7]]], dtype=torch.int32)
    for consensus in (1, 2):
        ours = kernels.box_weights(boxes, 224, consensus).numpy()
        theirs = np.stack([target_map(each, consensus) for each in boxes.numpy()])
        np.testing.assert_array_equal(ours, theirs)


def test_ciou_one_by_one_equals_ours(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(40, 14, 14, generator=generator)
    maps[0] = 0.25  # a constant map infers nothing
    corner = torch.randint(0, 150, (40, 1, 2), generator=generator)
    boxes = torch.cat([corner, corner + torch.randint(1, 74, (40, 1, 2), generator=generator)], -1).int()
    ours = metrics.ciou(maps, boxes).numpy()
    pairs = zip(maps.numpy(), boxes.numpy(), strict=True)
    theirs = [published.ciou_of(heat, target_map(box, 1)) for heat, box in pairs]
    np.testing.assert_allclose(theirs, ours, atol=2e-3)  # a pixel at the threshold may fall to either side
    monkeypatch.setattr(published, "cv2", None)
    numpy_only = published.resize(maps[1].numpy(), 224)
    expected = torch.nn.functional.interpolate(maps[None, 1:2], (224, 224), mode="bilinear")[0, 0].numpy()
    np.testing.assert_allclose(numpy_only, expected, atol=1e-5)


def test_an_epoch_and_an_evaluation_run(exported):
    manifest, root = exported
    settings = config.load("demo", ["--data.batch_size", "5", "--objective.method", "semipl"])
    torch.manual_seed(0)
    start = models.build(settings.model)
    run = published.PublishedStyle(settings, CPU, start)
    before = [p.detach().clone() for p in run.net.parameters()]
    clock = StageClock()
    loader = data_loader(PublishedSet(root, "train", targets=True), 5, workers=0, keep_last=False, pin=False)
    losses = run.train_epoch(loader, clock)
    assert len(losses) == 1 and np.isfinite(losses[0])
    moved = [not torch.equal(a, b) for a, b in zip(before, run.net.parameters(), strict=True)]
    assert all(moved)
    test = data_loader(PublishedSet(root, "test"), 4, workers=0, keep_last=True, pin=False)
    scores, loss = run.evaluate(test, np.asarray(manifest.boxes)[manifest.rows("test")], clock)
    assert scores.shape == (manifest.pairs("test"),) and -1 <= loss <= 1
    assert {"data", "forward", "backward", "optimizer", "evaluation"} <= set(clock.seconds)
    assert json.dumps(clock.seconds)


def test_evaluation_agrees_with_ours_from_the_same_weights(exported):
    from essl_fast.evaluate import evaluate

    manifest, root = exported
    settings = config.load("demo")
    torch.manual_seed(3)
    model = models.build(settings.model).eval()
    run = published.PublishedStyle(settings, CPU, model)
    test = data_loader(PublishedSet(root, "test"), 4, workers=0, keep_last=True, pin=False)
    theirs, _ = run.evaluate(test, np.asarray(manifest.boxes)[manifest.rows("test")])
    ours = evaluate(model, manifest, "test", settings, CPU, torch.float32).ciou
    # The published frames were resized twice, by way of 256 pixels.
    assert np.abs(theirs - ours).mean() < 0.05


WORKERS = """
import sys
from benchmarks.baselines.published_data import PublishedSet, data_loader
loader = data_loader(PublishedSet(sys.argv[1], "train"), 4, workers=2, keep_last=True, pin=False)
for _ in range(2):  # the workers stay
    print(sorted(index for sample in loader for index in sample["index"].tolist()))
"""


@pytest.mark.slow
def test_workers_give_every_pair_once(exported):
    manifest, root = exported
    command = [sys.executable, "-c", WORKERS, str(root)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.stdout.splitlines() == [str(list(range(manifest.pairs("train"))))] * 2, done.stderr
