"""The plain PyTorch ops: formulas, gradients in float64, edge cases, and the counter-based generator."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from essl_fast import kernels
from essl_fast.kernels import reference


def test_philox_known_answers():
    def one(counter, key):
        return [int(word) for word in reference.philox(tuple(torch.tensor([c]) for c in counter), key)]

    # Random123's published vectors.
    assert one((0, 0, 0, 0), (0, 0)) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    ones = 0xFFFFFFFF
    assert one((ones,) * 4, (ones, ones)) == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]
    pi = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)
    assert one(pi, (0xA4093822, 0x299F31D0)) == [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]


def test_a_pixel_of_exactly_the_threshold_is_inferred():
    maps = torch.tensor([[[0.0, 1.0], [2.0, 4.0]]])
    boxes = torch.tensor([[[0, 1, 1, 2]]], dtype=torch.int32)  # the pixel that has half of the range
    intersection, union = reference.localization_counts(maps, boxes, size=2)
    assert (intersection.item(), union.item()) == (1, 2)


def test_view_params_depend_on_the_pair_alone():
    index = torch.randperm(5000)
    top, left, flip = reference.view_params(7, 3, index, 22)
    for values in (top, left):
        assert values.dtype == torch.int32 and values.min() == 0 and values.max() == 22
        assert np.abs(np.bincount(values.ravel().numpy()) / values.numel() - 1 / 23).max() < 0.01
    assert abs(flip.float().mean().item() - 0.5) < 0.02
    some = torch.tensor([4321, 17])
    again = reference.view_params(7, 3, index[some], 22)
    assert all(torch.equal(a, b[:, some]) for a, b in zip(again, (top, left, flip), strict=True))
    assert not torch.equal(top[0], top[1])  # the views differ
    for other in (reference.view_params(8, 3, index, 22), reference.view_params(7, 4, index, 22)):
        assert not torch.equal(other[0], top)


def test_view_boxes_follow_the_pixels():
    """A frame white inside its box only: the view's white pixels must be the view's box, give or take rounding."""
    torch.manual_seed(0)
    box = torch.tensor(
        [[[30, 60, 110, 150]], [[0, 0, 224, 224]], [[200, 10, 224, 40]], [[0, 0, 0, 0]]], dtype=torch.int32
    )
    stored = (box * 246 / 224).round().int()
    frames = (
        torch.stack([reference.box_weights(b[None], 246)[0] for b in stored])
        .mul(255)
        .byte()[..., None]
        .repeat(1, 1, 1, 3)
    )
    top, left, flip = reference.view_params(0, 0, torch.arange(4), 22)
    views = reference.two_views(frames, torch.arange(4), top, left, flip)
    boxes = reference.view_boxes(box, top, left, flip)
    assert boxes.shape == (2, 4, 1, 4) and boxes.dtype == torch.int32
    for view, its_boxes in zip(views, boxes, strict=True):
        white = (view[:, 0] > 0).float()
        assert torch.equal(white, reference.box_weights(its_boxes))


def test_two_views_formula():
    torch.manual_seed(0)
    frames = torch.randint(0, 256, (3, 40, 40, 3), dtype=torch.uint8)
    rows, top, left = torch.tensor([2, 0]), torch.tensor([[0, 8], [3, 5]]), torch.tensor([[1, 7], [0, 8]])
    flip = torch.tensor([[True, False], [False, True]])
    out = reference.two_views(frames, rows, top, left, flip, size=32)
    mean, std = torch.tensor(reference.IMAGENET_MEAN), torch.tensor(reference.IMAGENET_STD)
    for v in range(2):
        for b in range(2):
            y, x = int(top[v, b]), int(left[v, b])
            crop = frames[rows[b], y : y + 32, x : x + 32]
            crop = crop.flip(1) if flip[v, b] else crop
            assert torch.equal(out[v, b], ((crop.float() / 255 - mean) / std).permute(2, 0, 1))
    assert out[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.slow
@pytest.mark.parametrize(("h", "w"), [(14, 14), (5, 9), (1, 3)])
def test_attention_gradcheck(h, w):
    torch.manual_seed(0)
    features = torch.randn(2, 5, h, w, dtype=torch.float64, requires_grad=True)
    audio = torch.randn(2, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda f, a: tuple(kernels.audio_guided_attention(f, a)), (features, audio))


def test_attention_by_hand():
    torch.manual_seed(1)
    features, audio = torch.randn(3, 7, 4, 6), torch.randn(3, 7)
    out = kernels.audio_guided_attention(features, audio)
    similarity = F.cosine_similarity(features.flatten(2), audio[:, :, None], dim=1)
    low, high = similarity.amin(1, keepdim=True), similarity.amax(1, keepdim=True)
    weights = (similarity - low) / (high - low)
    torch.testing.assert_close(out.similarity.flatten(1), similarity)
    torch.testing.assert_close(out.attention.flatten(1), weights)
    torch.testing.assert_close(out.pooled, (features.flatten(2) * weights[:, None]).sum(2))
    half = kernels.audio_guided_attention(features.bfloat16(), audio.bfloat16())
    assert {part.dtype for part in half} == {torch.float32}


@pytest.mark.parametrize("which", ["maximum", "minimum"])
def test_attention_tie_sends_the_gradient_to_the_first_position(which):
    """Four positions, two of which tie; the gradient through their extreme lands on the first of them alone."""
    sign = 1 if which == "maximum" else -1
    vectors = torch.tensor([[0.9, 0.3], [0.9, 0.3], [0.1, 0.8], [0.5, 0.5]], dtype=torch.float64) * sign
    features = vectors.T.reshape(1, 2, 1, 4).clone().requires_grad_()
    out = kernels.audio_guided_attention(features, torch.tensor([[1.0, 0.2]], dtype=torch.float64))
    assert out.similarity[0, 0, 0] == out.similarity[0, 0, 1]
    assert (sign * out.similarity[0, 0]).argmax() in (0, 1)
    out.attention[0, 0, 3].backward()  # between the extremes: it depends on both
    size = features.grad[0, :, 0].norm(dim=0)
    assert size[1] == 0 and (size[[0, 2, 3]] > 1e-3).all()


def test_cosine_loss_and_constant_z():
    torch.manual_seed(0)
    p1, p2, z1, z2 = (torch.randn(4, 9, dtype=torch.float64, requires_grad=True) for _ in range(4))
    loss = kernels.negative_cosine_similarity(p1, p2, z1, z2)
    expected = -0.5 * sum(
        (p @ z) / p.norm() / z.norm() / 4 for a, b in ((p1, z2), (p2, z1)) for p, z in zip(a, b, strict=True)
    )
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert z1.grad is None and z2.grad is None and p1.grad is not None
    same = kernels.negative_cosine_similarity(p1, p2, p2, p1)
    torch.testing.assert_close(same, torch.tensor(-1.0, dtype=torch.float64))
    zero = kernels.negative_cosine_similarity(*(torch.zeros(2, 3) for _ in range(4)))
    assert zero == 0


def test_box_weights_and_consensus():
    boxes = torch.tensor([[[0, 0, 2, 2], [1, 1, 3, 3], [0, 0, 0, 0]]], dtype=torch.int32)
    one = kernels.box_weights(boxes, size=4, consensus=1)[0]
    two = kernels.box_weights(boxes, size=4, consensus=2)[0]
    assert one.sum() == 7 and set(one.unique().tolist()) == {0.0, 1.0}
    assert two[1, 1] == 1 and two[0, 0] == 0.5 and two.sum() == 4


def test_pixel_bce():
    torch.manual_seed(0)
    attention = torch.rand(3, 5, 7, dtype=torch.float64, requires_grad=True)
    boxes = torch.tensor([[[2, 3, 9, 12]], [[0, 0, 16, 16]], [[4, 4, 4, 9]]], dtype=torch.int32)
    labelled = torch.tensor([True, True, False])
    loss = kernels.pixel_bce(attention, boxes, labelled, size=16)
    heat = F.interpolate(attention[:, None], (16, 16), mode="bilinear")[:, 0].clamp(1e-6, 1 - 1e-6)
    target = torch.zeros(3, 16, 16, dtype=torch.float64)
    target[0, 3:12, 2:9] = 1
    target[1] = 1
    torch.testing.assert_close(loss, F.binary_cross_entropy(heat[:2], target[:2]))
    loss.backward()
    assert attention.grad[2].abs().sum() == 0
    assert torch.autograd.gradcheck(lambda a: kernels.pixel_bce(a, boxes, labelled, size=16), (attention,))
    nothing = kernels.pixel_bce(attention, boxes, torch.zeros(3, dtype=torch.bool), size=16)
    assert nothing.item() == 0
    poisoned = attention.detach().clone()
    poisoned[2] = float("nan")  # an unlabelled sample's map must not touch the loss
    torch.testing.assert_close(kernels.pixel_bce(poisoned, boxes, labelled, size=16), loss.detach())


def test_pixel_bce_is_finite_at_the_ends():
    attention = torch.tensor([[[0.0, 1.0], [1.0, 0.0]]], requires_grad=True)
    boxes = torch.tensor([[[0, 0, 8, 8]]], dtype=torch.int32)
    loss = kernels.pixel_bce(attention, boxes, torch.tensor([True]), size=16)
    loss.backward()
    assert loss.isfinite() and attention.grad.isfinite().all()


def test_localization_counts_by_brute_force():
    rng = np.random.default_rng(0)
    for _ in range(20):
        heat = torch.from_numpy(rng.standard_normal((1, 3, 4)).astype(np.float32))
        x1, x2 = sorted(rng.integers(0, 17, 2))
        y1, y2 = sorted(rng.integers(0, 17, 2))
        boxes = torch.tensor([[[x1, y1, x2, y2]]], dtype=torch.int32)
        inter, union = kernels.localization_counts(heat, boxes, size=16)
        big = F.interpolate(heat[None].double(), (16, 16), mode="bilinear")[0, 0]
        infer = ((big - big.min()) / (big.max() - big.min()) >= 0.5).numpy()
        inside = np.zeros((16, 16), bool)
        inside[y1:y2, x1:x2] = True
        assert inter.item() == (infer & inside).sum()
        assert union.item() == (infer | inside).sum()


def test_a_constant_map_infers_nothing():
    boxes = torch.tensor([[[0, 0, 10, 10]]], dtype=torch.int32)
    inter, union = kernels.localization_counts(torch.ones(1, 14, 14), boxes)
    assert (inter.item(), union.item()) == (0, 100)


def test_log_mel_input_checks_and_int16():
    with pytest.raises(ValueError, match="pcm must be"):
        kernels.log_mel(torch.zeros(1, 100))
    rng = np.random.default_rng(0)
    pcm = torch.from_numpy(rng.integers(-20000, 20000, (2, 48000)).astype(np.int16))
    torch.testing.assert_close(kernels.log_mel(pcm), kernels.log_mel(pcm.float() / 32768))
    assert kernels.log_mel(pcm).shape == (2, 3, 96, 64)
    silent = kernels.log_mel(torch.zeros(1, 48000, dtype=torch.int16))
    assert silent.isfinite().all()


def test_autocast_changes_nothing():
    """Under autocast the ops still compute in float32: einsum and matmul would otherwise fall to bfloat16."""
    torch.manual_seed(0)
    features, audio = torch.randn(3, 16, 5, 6, requires_grad=True), torch.randn(3, 16, requires_grad=True)
    p1, p2, z1, z2 = (torch.randn(3, 16) for _ in range(4))
    boxes = torch.tensor([[[10, 20, 90, 100]], [[0, 0, 224, 224]], [[5, 5, 200, 80]]], dtype=torch.int32)

    def everything(autocast):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out = kernels.audio_guided_attention(features, audio)
            loss = kernels.negative_cosine_similarity(p1, p2, z1, z2)
            loss = loss + kernels.pixel_bce(out.attention, boxes, torch.ones(3, dtype=torch.bool))
            counts = kernels.localization_counts(out.similarity.detach(), boxes)
        return [*out, loss, *counts, *torch.autograd.grad(loss + out.pooled.sum(), (features, audio))]

    for mine, expected in zip(everything(True), everything(False), strict=True):
        assert mine.dtype == expected.dtype and torch.equal(mine, expected)
