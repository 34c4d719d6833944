"""`objective.method multisource`: its head and losses against plain implementations, and what it refuses."""

import pytest
import torch
import torch.nn.functional as F

from essl_fast import config, kernels, models
from essl_fast.common.errors import InputError
from essl_fast.models import Forward, objectives
from essl_fast.models.heads import ClassesHead

VIEWS, BATCH, CLASSES, MOST = 2, 3, 4, 2


def forward_and_boxes(seed=0):
    """Forward with logits and a map a class; boxes (V, B, K * M, 4): of pair 0 classes 0 and 3, of 1 class 1 twice."""
    g = torch.Generator().manual_seed(seed)
    p = torch.randn(1, BATCH, CLASSES, generator=g).requires_grad_()
    attention = torch.rand(VIEWS, BATCH, CLASSES, 6, 6, generator=g).requires_grad_()
    boxes = torch.zeros(VIEWS, BATCH, CLASSES, MOST, 4, dtype=torch.int32)
    boxes[:, 0, 0, 0] = torch.tensor([10, 20, 90, 200])
    boxes[0, 0, 3, 0] = torch.tensor([100, 0, 224, 60])  # the crop of the second view has cut it off
    boxes[:, 1, 1] = torch.tensor([[0, 0, 50, 50], [40, 40, 99, 224]])
    boxes[:, 2, 2, 0] = torch.tensor([5, 5, 100, 100])
    forward = Forward(p.expand(VIEWS, -1, -1), torch.zeros(VIEWS, BATCH, 5), attention[:, :, 0], attention)
    return forward, boxes, torch.tensor([True, True, False])


@pytest.mark.parametrize("all_maps", [False, True], ids=["cpu", "as on a GPU"])
def test_losses_by_their_definition(monkeypatch, all_maps):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: all_maps)  # a compiler and a GPU leave none out
    forward, boxes, labelled = forward_and_boxes()
    maps, heard = 0.0, 0.0
    for view in range(VIEWS):
        for pair in range(2):  # the labelled ones
            for kind in range(CLASSES):
                own, sounds = boxes[view, pair, kind], bool(boxes[:, pair, kind].any())
                if own.any():
                    one = forward.attention[view, pair, kind][None]
                    maps += kernels.pixel_bce(one, own[None], torch.tensor([True])) / (VIEWS * 2)
                chance = forward.p[view, pair, kind].sigmoid()
                heard -= (chance if sounds else 1 - chance).log() / (VIEWS * 2 * CLASSES)
    found = objectives.build(config.ObjectiveConfig(method="multisource"))(forward, boxes.flatten(2, 3), labelled)
    torch.testing.assert_close(found["maps"], maps)
    torch.testing.assert_close(found["classes"], heard)
    torch.testing.assert_close(found["loss"], maps + heard)
    found["loss"].backward()
    assert forward.attention.is_leaf and forward.attention.grad[:, 2].abs().sum() == 0  # it has no label
    assert forward.attention.grad[0, 0, 3].abs().sum() > 0 == forward.attention.grad[1, 0, 3].abs().sum()


def test_shares_make_the_mean_over_ranks_the_loss_of_all_pairs():
    forward, boxes, labelled = forward_and_boxes()
    objective = objectives.build(config.ObjectiveConfig(method="multisource"))
    whole, losses = objective(forward, boxes.flatten(2, 3), labelled), []
    for mine in (slice(0, 1), slice(1, 3)):
        counts, totals = torch.tensor([mine.stop - mine.start, 1.0]), torch.tensor([3.0, 2.0])
        shares = objectives.Shares.of(counts, totals, 2)
        part = Forward(*(field[:, mine] for field in forward))
        losses.append(objective(part, boxes[:, mine].flatten(2, 3), labelled[mine], shares))
    for name, value in whole.items():
        torch.testing.assert_close(sum(loss[name] for loss in losses) / 2, value)


def test_a_query_for_each_class_gives_a_map_for_each():
    torch.manual_seed(0)
    head = ClassesHead(CLASSES, in_dim=6, embedding_dim=5)
    maps, embedding, projection = torch.randn(BATCH, 6, 7, 7), torch.randn(BATCH, 5), torch.randn(BATCH, 6)
    found = head.attend(maps, embedding, projection)
    weights, biases = head.queries.weight.unflatten(0, (CLASSES, 6)), head.queries.bias.unflatten(0, (CLASSES, 6))
    strongest = []
    for kind in range(CLASSES):
        query = projection @ weights[kind].T + biases[kind]
        one = kernels.audio_guided_attention(maps, query)
        torch.testing.assert_close(found.attention[:, kind], one.attention, atol=1e-5, rtol=1e-4)
        strongest.append(head.sounding(embedding)[:, kind, None, None].sigmoid() * one.similarity)
    torch.testing.assert_close(found.similarity, torch.stack(strongest).amax(0), atol=1e-5, rtol=1e-4)


def settings_of(*words):
    return config.load("demo", ["--objective.method", "multisource", *words])


def test_the_whole_network_learns_which_object_is_which():
    """Two colours, two classes, both sound in every frame: each map goes to its own colour."""
    torch.manual_seed(0)
    model = models.build(models.check(settings_of("--model.head", "classes", "--model.classes", "2")).model)
    views = torch.zeros(2, 4, 3, 64, 64)
    boxes = torch.zeros(2, 4, 2, 4, dtype=torch.int32)
    for pair, (first, second) in enumerate([(0, 32), (32, 0), (0, 32), (32, 0)]):
        for kind, left in enumerate((first, second)):
            views[:, pair, kind, 16:48, left : left + 32] = 2.0
            boxes[:, pair, kind] = torch.tensor([left, 16, left + 32, 48]) * 3.5
    log_mel, labelled = torch.rand(4, 3, 96, 64), torch.ones(4, dtype=torch.bool)
    objective = objectives.build(config.ObjectiveConfig(method="multisource"))
    optimizer = torch.optim.Adam([each for each in model.parameters() if each.requires_grad], 3e-3)
    losses = []
    for _ in range(25):
        loss = objective(model(views, log_mel), boxes, labelled)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]
    maps = F.interpolate(model(views, log_mel).attention[0], 64)
    for pair in range(4):
        for kind in range(2):
            left = int(boxes[0, pair, kind, 0] / 3.5)
            own, other = (maps[pair, kind, 16:48, x : x + 32].mean() for x in (left, 32 - left))
            assert own > other + 0.2


WRONG = [
    ([], "model.head: simsiam does not go with objective.method multisource; give --model.head classes"),
    (["--model.head", "classes"], "model.classes: 0 does not go with model.head classes; give the number"),
    (["--model.classes", "3", "--model.head", "simsiam", "--objective.method", "semipl"], "leave it at 0"),
]


@pytest.mark.parametrize("words, message", WRONG)
def test_what_does_not_go_together_is_named(words, message):
    with pytest.raises(InputError, match=message):
        models.check(settings_of(*words))
