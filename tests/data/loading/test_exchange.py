"""On GPUs rows and gradients go through one communicator: two that run at once may wait for one another for ever."""

import types
from unittest import mock

import pytest
import torch
import torch.distributed as dist

from essl_fast.data.loading.exchange import Exchange


@pytest.mark.parametrize("device, own", [("cpu", True), ("cuda", False)])
def test_rows_on_gpus_use_the_steps_communicator(device, own):
    made = []

    def new_group(backend):
        made.append(backend)
        return object()

    group = types.SimpleNamespace(WORLD="the default group")
    with mock.patch.multiple(dist, new_group=new_group, group=group), mock.patch.object(torch.cuda, "Stream"):
        exchange = Exchange(0, 2, torch.device(device))
    assert made == ["gloo"]
    assert (exchange._rows is exchange._objects) == own and (exchange._rows == group.WORLD) == (not own)
