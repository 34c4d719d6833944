"""All maps of a split are scored together, in few launches, to the same bits as batch by batch."""

import numpy as np
import pytest
import torch

from essl_fast import config, kernels, models
from essl_fast.data.shards import Manifest
from essl_fast.evaluate import evaluate, evaluation
from essl_fast.evaluate import metrics as measures

CPU = torch.device("cpu")


@pytest.mark.parametrize("together", [512, 4])
def test_scores_of_all_pairs(tiny, monkeypatch, together):
    settings = config.load("demo", ["--data.root", str(tiny[1]), "--data.threads", "1", "--data.batch_size", "3"])
    torch.manual_seed(0)
    model, manifest = models.build(settings.model).eval(), Manifest.load(tiny[1])
    counted, calls = kernels.localization_counts, []
    monkeypatch.setattr(kernels, "localization_counts", lambda *given: calls.append(len(given[0])) or counted(*given))
    monkeypatch.setattr(evaluation, "TOGETHER", together)
    found = evaluate(model, manifest, "train", settings, CPU, torch.float32)
    pairs = manifest.pairs("train")
    assert len(calls) == -(-pairs // together) and sum(calls) == pairs > 8
    assert max(calls) <= together
    boxes = torch.from_numpy(np.array(manifest.boxes))[found.rows]
    singly = [measures.ciou(torch.from_numpy(found.similarity[[n]]), boxes[[n]]).item() for n in range(pairs)]
    np.testing.assert_array_equal(found.ciou, singly)
