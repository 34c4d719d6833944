"""What the tests of `export` share: untrained runs of small networks."""

import json

import pytest
import torch

from essl_fast import checkpoints, config, models

KINDS = {
    "plain": [],
    "pcm": ["--model.pcm", "true", "--model.pcm_cycles", "1", "--model.out_dim", "32"],
    "lss": ["--model.head", "lss", "--objective.method", "lss"],
}
BEST = {"epoch": 18, "score": [0.92, 0.739], "split": "val", "min_score": 0.51}


def make_run(folder, kind: str = "plain"):
    """A run directory of the demo's network, untrained, with what a real best.pt says of itself."""
    settings = config.load("demo", KINDS[kind])
    torch.manual_seed(1)
    model = models.build(settings.model)
    for module in model.modules():  # running statistics as if it had been trained
        if hasattr(module, "running_var"):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    header = {"dataset": "demo", "classes": ["bell", "car"], "consensus": 1, "settings": {"videos": "/home/me/videos"}}
    state = {"kind": "best", "config": config.to_dict(settings), "data_root": "/home/me/demo/prepared", "data": header}
    folder.mkdir(exist_ok=True)
    checkpoints.save(folder / "best.pt", state | {"model": checkpoints.trained_state(model), "best": BEST})
    result = {"pairs": 118, "success_at_half": 0.9322, "auc": 0.7576}
    (folder / "summary.json").write_text(json.dumps({"test": result, "centre_prior": result | {"auc": 0.138}}))
    return folder


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("run"))
