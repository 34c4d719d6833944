"""LSS: attention, triplet loss and cross-entropy against a plain float64 implementation; it trains."""

import math

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from essl_fast import config, kernels, models
from essl_fast.common.errors import InputError
from essl_fast.data.shards import Manifest
from essl_fast.models import Forward, objectives
from essl_fast.train import Trainer
from tests.tools.compiling import losses_of_one_graph

VIEWS, BATCH, CHANNELS, SIDE, DIM = 2, 3, 6, 4, 5
SIZE = 224


def inputs_of(seed, dtype=torch.float64):
    """Maps (V, B, C, h, w), projections (B, C), embeddings (B, D), boxes (V, B, K, 4), labelled (B,)."""
    g = torch.Generator().manual_seed(seed)
    maps = torch.randn(VIEWS, BATCH, CHANNELS, SIDE, SIDE, generator=g, dtype=torch.float64)
    audio = torch.randn(BATCH, CHANNELS, generator=g, dtype=torch.float64)
    embedding = torch.randn(BATCH, DIM, generator=g, dtype=torch.float64)
    boxes = torch.tensor(
        [[[10, 20, 130, 100], [100, 60, 224, 224]], [[0, 0, 56, 56], [0, 0, 0, 0]], [[3, 3, 9, 200], [0, 0, 0, 0]]],
        dtype=torch.int32,
    )
    boxes = torch.stack([boxes, torch.zeros_like(boxes)])  # the second view's crop shows no box
    boxes[1, 0, 0] = torch.tensor([200, 0, 224, 224])
    labelled = torch.tensor([True, False, True])
    return [x.to(dtype).requires_grad_() for x in (maps, audio, embedding)], boxes, labelled


def plain(maps, audio, embedding, head, boxes, labelled, weight):
    """The loss of lss_semi, position by position, pair by pair, pixel by pixel."""
    (first, first_bias), (second, second_bias) = ((layer.weight, layer.bias) for layer in (head[0], head[2]))
    triplets, entropies = [], []
    for view in range(VIEWS):
        for pair in range(BATCH):
            scores = []
            for y in range(SIDE):
                for x in range(SIDE):
                    v = maps[view, pair, :, y, x]
                    cosine = (v * audio[pair]).sum() / (v.square().sum().sqrt() * audio[pair].square().sum().sqrt())
                    scores.append(cosine.clamp(min=0).exp())
            total = sum(scores)
            attention = [score / total for score in scores]
            pooled = sum(w * maps[view, pair, :, i // SIDE, i % SIDE] for i, w in enumerate(attention))
            hidden = (first @ pooled + first_bias).clamp(min=0)
            out = second @ hidden + second_bias
            own = (out - embedding[pair]).square().sum().sqrt().exp()
            other = (out - embedding[(pair - 1) % BATCH]).square().sum().sqrt().exp()
            triplets.append((own / (own + other)).square() + (other / (own + other) - 1).square())
            if labelled[pair]:
                cell = SIZE // SIDE
                weights = [[0.0] * SIDE for _ in range(SIDE)]
                for py in range(SIZE):
                    for px in range(SIZE):
                        inside = any(x1 <= px < x2 and y1 <= py < y2 for x1, y1, x2, y2 in boxes[view, pair].tolist())
                        weights[py // cell][px // cell] += inside
                covered = sum(map(sum, weights))
                terms = [-weights[i // SIDE][i % SIDE] / covered * w.log() for i, w in enumerate(attention) if covered]
                entropies.append(sum(terms) if terms else torch.zeros((), dtype=maps.dtype))
    l_t, l_a = sum(triplets) / len(triplets), sum(entropies) / len(entropies)
    return l_t + weight * l_a, l_t, l_a


def ours(maps, audio, embedding, head, boxes, labelled, weight):
    attention = kernels.softmax_attention(maps.flatten(0, 1), audio.repeat(VIEWS, 1))
    parts = [part.unflatten(0, (VIEWS, BATCH)) for part in attention]
    forward = Forward(head(parts[0]), embedding.expand(VIEWS, -1, -1), *parts[1:])
    settings = config.ObjectiveConfig(method="lss_semi", supervised_weight=weight)
    return objectives.build(settings)(forward, boxes, labelled)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6)])
def test_values_and_gradients_equal_a_plain_implementation(dtype, tolerance):
    torch.manual_seed(0)
    exact = models.LSSHead(CHANNELS, DIM, hidden=7).double()
    head = models.LSSHead(CHANNELS, DIM, hidden=7)
    head.load_state_dict(exact.state_dict())
    wanted, boxes, labelled = inputs_of(1)
    loss, l_t, l_a = plain(*wanted, exact.layers, boxes, labelled, 0.7)
    loss.backward()
    inputs, _, _ = inputs_of(1, dtype)
    found = ours(*inputs, head.to(dtype), boxes, labelled, 0.7)
    found["loss"].backward()
    assert found["loss"].dtype == dtype
    for name, value in (("loss", loss), ("unsupervised", l_t), ("supervised", l_a)):
        assert found[name].item() == pytest.approx(value.item(), rel=tolerance), name
    pairs = [*zip(inputs, wanted, strict=True), *zip(head.parameters(), exact.parameters(), strict=True)]
    for mine, theirs in pairs:
        scale = theirs.grad.abs().max().item()
        torch.testing.assert_close(mine.grad.double(), theirs.grad, rtol=0, atol=10 * tolerance * scale)


def test_the_attention_sums_to_one_and_ignores_what_disagrees():
    torch.manual_seed(0)
    features, audio = torch.randn(2, 5, 3, 4), torch.randn(2, 5)
    found = kernels.softmax_attention(features, audio)
    torch.testing.assert_close(found.attention.sum(dim=(1, 2)), torch.ones(2))
    for similarity, attention in zip(found.similarity, found.attention, strict=True):
        against = attention[similarity < 0]
        assert len(against) > 1 and against.max() == against.min() == attention.min()
    features[0, :, 1, 2] = audio[0]
    assert kernels.softmax_attention(features, audio).attention[0].argmax() == 1 * 4 + 2


def test_known_losses_of_the_triplet():
    z = torch.eye(4)[:3].expand(2, -1, -1)
    at_home = objectives.triplet(Forward(z.clone(), z, None, None))  # near 0, far sqrt(2)
    assert at_home.item() == pytest.approx(2 / (1 + math.exp(math.sqrt(2))) ** 2)
    swapped = objectives.triplet(Forward(z.roll(1, dims=1), z, None, None))  # each at the other clip's sound
    assert swapped.item() == pytest.approx(2 / (1 + math.exp(-math.sqrt(2))) ** 2)
    alone = torch.randn(2, 1, 4, requires_grad=True)
    loss = objectives.triplet(Forward(alone, torch.zeros(2, 1, 4), None, None))
    loss.backward()
    assert loss.item() == pytest.approx(0.5) and not alone.grad.any()


def test_unlabelled_pairs_leave_the_cross_entropy_out():
    inputs, boxes, _ = inputs_of(2)
    head = models.LSSHead(CHANNELS, DIM, hidden=7).double()
    none = ours(*inputs, head, boxes, torch.zeros(BATCH, dtype=torch.bool), 1.0)
    assert none["supervised"].item() == 0
    torch.testing.assert_close(none["loss"], none["unsupervised"])
    boxes = boxes.clone()
    inputs[0].data[0, 1] = float("nan")  # of the pair without a label
    some = ours(*inputs, head, boxes, torch.tensor([True, False, True]), 1.0)
    assert some["supervised"].isfinite()


def test_ranks_take_negatives_from_their_own_part_and_weigh_by_its_size():
    """The mean over two ranks' losses is the mean over all pairs, each against the pair before it on its rank."""
    torch.manual_seed(3)
    p, z = torch.randn(2, 5, 4), torch.randn(2, 5, 4)
    similarity, boxes = torch.randn(2, 5, 4, 4), torch.tensor([[[20, 30, 120, 140]]] * 5, dtype=torch.int32)
    labelled = torch.tensor([True, False, False, True, True])
    objective = objectives.build(config.ObjectiveConfig(method="lss_semi"))
    parts, negative = [], torch.tensor([1, 0, 4, 2, 3])
    for mine in (slice(0, 2), slice(2, 5)):
        count, labels = mine.stop - mine.start, labelled[mine].sum()
        shares = objectives.Shares.of(torch.tensor([count, labels]), torch.tensor([5.0, 3.0]), 2)
        forward = Forward(p[:, mine], z[:, mine], similarity[:, mine], None)
        parts.append(objective(forward, boxes[mine], labelled[mine], shares))
    gap = (p - z).norm(dim=-1) - (p - z[:, negative]).norm(dim=-1)
    torch.testing.assert_close(sum(part["unsupervised"] for part in parts) / 2, (2 * gap.sigmoid() ** 2).mean())
    whole = objectives.attention_cross_entropy(Forward(p, z, similarity, None), boxes, labelled, 1)
    torch.testing.assert_close(sum(part["supervised"] for part in parts) / 2, whole)


def test_the_kernels_cosines_serve_it(triton_on_cpu):
    torch.manual_seed(0)
    wanted = [torch.randn(2, 24, 3, 5).double().requires_grad_(), torch.randn(2, 24).double().requires_grad_()]
    inputs = [x.detach().float().requires_grad_() for x in wanted]
    weights = torch.randn(2, 24).double(), torch.randn(2, 3, 5).double()
    for tensors in (wanted, inputs):
        found = kernels.softmax_attention(*tensors)  # in float64 no kernel runs
        ((found.pooled * weights[0]).sum() + (found.attention * weights[1]).sum()).backward()
    torch.testing.assert_close(found.pooled, kernels.softmax_attention(*wanted).pooled.float())
    for mine, theirs in zip(inputs, wanted, strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad.float(), atol=2e-6, rtol=1e-5)


def test_method_and_head_go_together():
    with pytest.raises(InputError, match="model.head: simsiam does not go with objective.method lss; give"):
        models.check(config.load("demo", ["--objective.method", "lss"]))
    with pytest.raises(InputError, match="model.head: lss does not go with objective.method semipl"):
        models.check(config.load("demo", ["--model.head", "lss"]))
    with pytest.raises(InputError, match="objective.supervised_map"):
        models.check(config.load("lss_semi", ["--objective.supervised_map", "sigmoid"]))


@pytest.mark.parametrize("name", ["lss", "lss_semi"])
def test_the_shipped_models_use_what_they_train(name):
    settings = config.load(name, ["--model.trunk", "small", "--model.audio", "small", "--model.out_dim", "16"])
    torch.manual_seed(0)
    model = models.build(settings.model)
    assert [group["name"] for group in model.parameter_groups(settings.optim)] == ["sound", "head", "trunk"]
    forward = model(torch.randn(2, 2, 3, 64, 64), torch.randn(2, 3, 96, 64))
    assert forward.p.shape == forward.z.shape == (2, 2, 128)
    boxes = torch.tensor([[[20, 30, 120, 140]]] * 2, dtype=torch.int32)
    objectives.build(settings.objective)(forward, boxes, torch.ones(2, dtype=torch.bool))["loss"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_the_paper_trunks_step_is_one_graph():
    """The whole forward pass on VGG-16 and VGGish under bf16 autocast, captured without a break, then run.

    On tensors that hold no numbers: most CPUs convolve bf16 a hundred times as slowly as float32."""
    settings = config.load("lss_semi")
    with FakeTensorMode():
        model, objective = models.build(settings.model), objectives.build(settings.objective)
        boxes = torch.zeros(2, 2, 1, 4, dtype=torch.int32)
        inputs = (torch.randn(2, 2, 3, 224, 224), torch.rand(2, 3, 128), boxes, torch.ones(2, dtype=torch.bool))
        found = losses_of_one_graph(model, objective, *inputs)
        assert set(found) == {"loss", "unsupervised", "supervised"}
        assert all(value.shape == () and value.dtype == torch.float32 for value in found.values())
        found["loss"].backward()
    trained = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None}
    assert trained == {"audio", "head"}  # VGG-16 and VGGish's front are frozen


@pytest.mark.slow
def test_it_trains(tiny):
    """Triplet loss and cross-entropy of a tiny world fall below where an untrained model stays."""
    settings = config.load(
        "demo",
        [
            "--data.root",
            str(tiny[1]),
            "--data.batch_size",
            "8",
            "--objective.method",
            "lss_semi",
            "--model.head",
            "lss",
            "--optim.schedule",
            "constant",
            "--device",
            "cpu",
            "--objective.supervised_weight",
            "1",
        ],
    )
    trainer = Trainer(settings, Manifest.load(tiny[1]), torch.device("cpu"))
    trainer.model.train()
    found = []
    with trainer.loader as loader:
        while len(found) < 24:
            for raw in loader:
                found.append({name: value.item() for name, value in trainer.train_step(raw).items()})
    names = ("unsupervised", "supervised")
    first, last = ([sum(losses[name] for losses in part) / 4 for name in names] for part in (found[:4], found[-4:]))
    assert last[0] < 0.9 * first[0] and last[1] < first[1] - 0.02, (first, last)
