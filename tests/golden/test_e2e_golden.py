"""One whole training step of the published code, with and without PCM, within the golden index's tolerances.

Eager, and as one compiled graph: traced, made functional, differentiated and partitioned as for training, and then run
by PyTorch's own kernels, or with ESSL_GOLDEN_COMPILED=inductor by those that Inductor makes, which takes it minutes.

Without PCM, three of the 24,576 inputs of the projector's second ReLU are nearer to 0 than float32's rounding. With
AVX2 alone, two of them get the other sign: gradients' norms are 1e-3 off, the loss after the step 1e-4. So float32 is
held to SIGNS there, and the index's tolerances to what no sign changes; in float64 the step is the published float64
one, to 5e-14 on every CPU.
"""

import os
from functools import partial

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters

from essl_fast import config, models
from essl_fast.checkpoints.sspl import from_sspl_name, load_sspl
from essl_fast.models import objectives
from essl_fast.train import build_optimizer
from tests.golden.store import golden, recipe_state

PARTS = {"frame": "frame", "sound": "sound", "pcm": "pcm", "head": "ssl_head"}  # golden's prefix -> part
MODULES = {"sound": "audio", "pcm": "pcm", "head": "head"}  # golden's prefix -> ours
TOLERANCES = ("eval_loss", "eval_map", "loss0", "grad", "step", "loss1", "train_map", "after")
CASES = {
    "e2e_w_pcm": ("sspl_pcm", dict(zip(TOLERANCES, (1e-6, 3e-6, 2e-5, 2e-3, 5e-3, 3e-4, 2e-5, 1e-4), strict=True))),
    "e2e_wo_pcm": ("sspl", dict(zip(TOLERANCES, (1e-6, 3e-6, 1e-6, 2e-4, 1e-3, 5e-5, 3e-6, 1e-4), strict=True))),
}
SIGNS = {"grad": 3e-3, "loss1": 3e-4, "after": 5e-4}  # in place of the index's where a ReLU's sign is rounding's


def our_name(published: str) -> str:
    prefix, name = published.split(".", 1)
    return f"{MODULES[prefix]}.{from_sspl_name(PARTS[prefix], name)}"


class Golden:
    """One case: its numbers, the model with the published weights, the batch."""

    def __init__(self, case):
        self.data = data = golden(case)
        config_name, tolerance = CASES[case]
        self.tolerance = dict(tolerance)
        self.settings = config.load(config_name)
        seeds = dict(zip(("frame", "sound", "pcm", "head"), data["wseeds"], strict=True))
        gains = {"frame": np.sqrt(2), "sound": np.sqrt(2), "pcm": 1.0, "head": 1.0}
        used = [prefix for prefix in seeds if self.settings.model.pcm or prefix != "pcm"]
        self.model = models.build(self.settings.model)
        load_sspl(self.model, {PARTS[p]: recipe_state(data, f"{p}_", seeds[p], gains[p]) for p in used})
        self.objective = objectives.build(self.settings.objective)
        views = torch.stack([torch.from_numpy(data[f"low_view{k}"]) for k in (1, 2)])
        self.views = views.repeat_interleave(28, dim=3).repeat_interleave(28, dim=4)
        self.log_mel = torch.from_numpy(data["spect"])[:, :, 0]
        batch = self.views.shape[1]
        self.boxes, self.labelled = torch.zeros(batch, 1, 4, dtype=torch.int32), torch.zeros(batch, dtype=torch.bool)
        self.optimizer = build_optimizer(self.model, self.settings.optim)
        self.in_order = [(p, group) for group in self.optimizer.param_groups for p in group["params"]]

    def remember_maps(self):
        """Let the frozen trunk compute its maps of the batch once: seconds, for what no step may change.

        Returns a function that says whether its weights are still those that the maps were made with.
        """
        maps, weights = self.model.frame_maps(self.views), [p.detach().clone() for p in self.model.trunk.parameters()]

        def remembered(views):
            assert views is self.views
            return maps

        self.model.frame_maps = remembered
        return lambda: all(map(torch.equal, self.model.trunk.parameters(), weights))

    def losses_of(self, views, log_mel):
        forward = self.model(views, log_mel)
        return forward, self.objective(forward, self.boxes, self.labelled)["loss"]

    def evaluate(self):
        self.model.eval()
        with torch.no_grad():
            forward, loss = self.losses_of(self.views, self.log_mel)
            return loss.item(), forward.similarity[0]

    def gradient_norms(self, step):
        """The norm of each parameter's gradient after one backward pass."""
        self.model.train()
        step(self.views, self.log_mel)[1].backward()
        return {n: p.grad.double().norm().item() for n, p in self.model.named_parameters() if p.grad is not None}

    def train(self, step):
        """One training step, in which ``step`` is losses_of or does the same, held to the published one."""
        data, tolerance, model = self.data, self.tolerance, self.model
        own = dict(model.named_parameters())
        model.train()
        forward, loss = step(self.views, self.log_mel)
        assert abs(loss.item() - data["loss0"]) < tolerance["loss0"]
        apart = forward.similarity[0].detach().numpy() - data["train_sim_map_view1"]
        assert np.abs(apart).max() < tolerance["train_map"]
        state = model.state_dict()
        for name, norm in zip(data["buffer_names"], data["buffer_norm"], strict=True):
            assert state[our_name(str(name))].double().norm().item() == pytest.approx(norm, rel=1e-4, abs=1e-6), name
        loss.backward()
        assert {our_name(str(name)) for name in data["grad_names"]} == {n for n, p in own.items() if p.grad is not None}
        for name, norm in zip(data["grad_names"], data["grad_norm"], strict=True):
            found = own[our_name(str(name))].grad.double().norm().item()
            assert found == pytest.approx(norm, rel=tolerance["grad"]), name

        before = [p.detach().clone() for p, _ in self.in_order]
        self.optimizer.step()
        steps = zip(self.in_order, before, data["group_param"], data["step_norm"], strict=True)
        for (p, _), old, name, norm in steps:
            assert (p.detach() - old).double().norm().item() == pytest.approx(norm, rel=tolerance["step"]), name


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_one_step(case):
    run = Golden(case)
    unchanged = run.remember_maps()
    data, tolerance = run.data, run.tolerance
    loss, similarity = run.evaluate()
    assert abs(loss - data["eval_loss"]) < tolerance["eval_loss"]
    assert np.abs(similarity.numpy() - data["eval_sim_map"]).max() < tolerance["eval_map"]
    softmax = similarity.relu().flatten(1).softmax(1).view_as(similarity)
    assert np.abs(softmax.numpy() - data["eval_sim_map_rsf"]).max() < tolerance["eval_map"]

    own = dict(run.model.named_parameters())
    assert [id(p) for p, _ in run.in_order] == [id(own[our_name(str(name))]) for name in data["group_param"]]
    np.testing.assert_array_equal([g["lr"] for _, g in run.in_order], data["group_lr"])
    np.testing.assert_array_equal([g["weight_decay"] for _, g in run.in_order], data["group_wd"])

    if case == "e2e_wo_pcm":
        tolerance |= SIGNS
    run.train(run.losses_of)
    with torch.no_grad():
        loss = run.losses_of(run.views, run.log_mel)[1].item()
    assert abs(loss - data["loss1"]) < tolerance["loss1"]
    loss, similarity = run.evaluate()
    assert abs(loss - data["eval_loss_after"]) < tolerance["after"]
    assert np.abs(similarity.numpy() - data["eval_sim_map_after"]).max() < 5e-4
    assert unchanged()


@pytest.mark.slow
def test_one_step_in_float64():
    """Without PCM, where float32 has the widest tolerances; the published code ran in float64, too."""
    run = Golden("e2e_wo_pcm")
    run.model.double()
    run.views, run.log_mel = run.views.double(), run.log_mel.double()
    run.remember_maps()
    data = {name.removesuffix("_f64"): run.data[name] for name in run.data if name.endswith("_f64")}
    near = partial(pytest.approx, rel=1e-11)
    assert run.evaluate()[0] == near(data["eval_loss"])
    found = run.gradient_norms(run.losses_of)
    expected = zip(run.data["grad_names"], data["grad_norm"], strict=True)
    assert found == near({our_name(str(name)): norm for name, norm in expected})

    before = [p.detach().clone() for p, _ in run.in_order]
    run.optimizer.step()
    steps = [(p.detach() - old).norm().item() for (p, _), old in zip(run.in_order, before, strict=True)]
    assert steps == near(list(data["step_norm"]))
    with torch.no_grad():
        assert run.losses_of(run.views, run.log_mel)[1].item() == near(data["loss1"])
    assert run.evaluate()[0] == near(data["eval_loss_after"])


@pytest.mark.slow
@pytest.mark.parametrize("case", [pytest.param("e2e_w_pcm", marks=pytest.mark.nightly), "e2e_wo_pcm"])
def test_one_compiled_step(case, tmp_path, monkeypatch):
    """The same training step as one graph, without a break; its gradients are those of the step run eagerly.

    The trunk's form for inference rounds differently; both forms are 2e-6 off float64. The published norms are held to
    SIGNS here, and the graph is held to the eager step of the same form, at a tenth of the index's tolerance; with PCM
    at a quarter, since both are up to 2.4e-4 off float64, where they agree to 1e-14.
    """
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    backend = os.environ.get("ESSL_GOLDEN_COMPILED", "aot_eager")
    torch._dynamo.reset()
    eager = Golden(case)
    eager.model.prepare(torch.float32)  # as the trainer does
    expected = eager.gradient_norms(eager.losses_of)
    run = Golden(case)
    run.model.prepare(torch.float32)
    tolerance = run.tolerance["grad"] / (4 if run.settings.model.pcm else 10)
    run.tolerance["grad"] = max(run.tolerance["grad"], SIGNS["grad"])
    counters.clear()
    run.train(torch.compile(run.losses_of, fullgraph=True, dynamic=False, backend=backend))
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]
    found = {name: p.grad.double().norm().item() for name, p in run.model.named_parameters() if p.grad is not None}
    assert found == pytest.approx(expected, rel=tolerance)
