"""One whole training step of the published code, with and without PCM, within the golden index's tolerances."""

import numpy as np
import pytest
import torch

from essl_fast import config, models, objectives
from essl_fast.checkpoint import from_sspl_name, load_sspl
from essl_fast.trainer import build_optimizer
from tests.golden.store import golden, recipe_state

PARTS = {"frame": "frame", "sound": "sound", "pcm": "pcm", "head": "ssl_head"}  # golden's prefix -> part
MODULES = {"sound": "audio", "pcm": "pcm", "head": "head"}  # golden's prefix -> ours
TOLERANCES = ("eval_loss", "eval_map", "loss0", "grad", "step", "loss1", "train_map")
CASES = {
    "e2e_w_pcm": ("sspl_pcm", dict(zip(TOLERANCES, (1e-6, 3e-6, 2e-5, 2e-3, 5e-3, 3e-4, 2e-5), strict=True))),
    "e2e_wo_pcm": ("sspl", dict(zip(TOLERANCES, (1e-6, 3e-6, 1e-6, 2e-4, 1e-3, 5e-5, 3e-6), strict=True))),
}


def our_name(published: str) -> str:
    prefix, name = published.split(".", 1)
    return f"{MODULES[prefix]}.{from_sspl_name(PARTS[prefix], name)}"


@pytest.mark.parametrize("case", CASES)
def test_one_step(case):
    data = golden(case)
    config_name, tolerance = CASES[case]
    settings = config.load(config_name)
    seeds = dict(zip(("frame", "sound", "pcm", "head"), data["wseeds"], strict=True))
    gains = {"frame": np.sqrt(2), "sound": np.sqrt(2), "pcm": 1.0, "head": 1.0}
    used = [prefix for prefix in seeds if settings.model.pcm or prefix != "pcm"]
    model = models.build(settings.model)
    load_sspl(model, {PARTS[p]: recipe_state(data, f"{p}_", seeds[p], gains[p]) for p in used})
    objective = objectives.build(settings.objective)
    views = torch.stack([torch.from_numpy(data[f"low_view{k}"]) for k in (1, 2)])
    views = views.repeat_interleave(28, dim=3).repeat_interleave(28, dim=4)
    log_mel = torch.from_numpy(data["spect"])[:, :, 0]
    batch = views.shape[1]
    boxes, labelled = torch.zeros(batch, 1, 4, dtype=torch.int32), torch.zeros(batch, dtype=torch.bool)

    def evaluate():
        model.eval()
        with torch.no_grad():
            forward = model(views, log_mel)
            return objective(forward, boxes, labelled)["loss"].item(), forward.similarity[0]

    loss, similarity = evaluate()
    assert abs(loss - data["eval_loss"]) < tolerance["eval_loss"]
    assert np.abs(similarity.numpy() - data["eval_sim_map"]).max() < tolerance["eval_map"]
    softmax = similarity.relu().flatten(1).softmax(1).view_as(similarity)
    assert np.abs(softmax.numpy() - data["eval_sim_map_rsf"]).max() < tolerance["eval_map"]

    optimizer = build_optimizer(model, settings.optim)
    own = dict(model.named_parameters())
    in_order = [(p, group) for group in optimizer.param_groups for p in group["params"]]
    assert [id(p) for p, _ in in_order] == [id(own[our_name(str(name))]) for name in data["group_param"]]
    np.testing.assert_array_equal([g["lr"] for _, g in in_order], data["group_lr"])
    np.testing.assert_array_equal([g["weight_decay"] for _, g in in_order], data["group_wd"])

    model.train()
    forward = model(views, log_mel)
    loss = objective(forward, boxes, labelled)["loss"]
    assert abs(loss.item() - data["loss0"]) < tolerance["loss0"]
    assert np.abs(forward.similarity[0].detach().numpy() - data["train_sim_map_view1"]).max() < tolerance["train_map"]
    state = model.state_dict()
    for name, norm in zip(data["buffer_names"], data["buffer_norm"], strict=True):
        assert state[our_name(str(name))].double().norm().item() == pytest.approx(norm, rel=1e-4, abs=1e-6), name
    loss.backward()
    assert {our_name(str(name)) for name in data["grad_names"]} == {n for n, p in own.items() if p.grad is not None}
    for name, norm in zip(data["grad_names"], data["grad_norm"], strict=True):
        assert own[our_name(str(name))].grad.double().norm().item() == pytest.approx(norm, rel=tolerance["grad"]), name

    before = [p.detach().clone() for p, _ in in_order]
    optimizer.step()
    for (p, _), old, name, norm in zip(in_order, before, data["group_param"], data["step_norm"], strict=True):
        assert (p.detach() - old).double().norm().item() == pytest.approx(norm, rel=tolerance["step"]), name
    with torch.no_grad():
        loss = objective(model(views, log_mel), boxes, labelled)["loss"].item()
    assert abs(loss - data["loss1"]) < tolerance["loss1"]
    loss, similarity = evaluate()
    assert abs(loss - data["eval_loss_after"]) < 1e-4
    assert np.abs(similarity.numpy() - data["eval_sim_map_after"]).max() < 5e-4
