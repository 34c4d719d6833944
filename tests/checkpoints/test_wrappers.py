"""Checkpoints of models that were wrapped when they were saved."""

import pytest
import torch

from essl_fast import checkpoints, models
from essl_fast.checkpoints import sspl
from essl_fast.checkpoints.model_state import unwrapped
from essl_fast.common.errors import InputError

PREFIXES = [
    "",
    "module.",
    "_orig_mod.",
    "module._orig_mod.",
    "_orig_mod.module.",
    "module.module.",
    "_orig_mod._orig_mod.",
    "module._orig_mod.module._orig_mod.",
    "_fsdp_wrapped_module.",
    "_orig_mod._fsdp_wrapped_module.module.",
]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_names_lose_every_wrapper(prefix):
    assert unwrapped(f"{prefix}projector.layer1.0.weight") == "projector.layer1.0.weight"
    assert unwrapped(f"projector.{prefix}layer1.0.weight") == "projector.layer1.0.weight"
    assert sspl.from_sspl_name("ssl_head", f"{prefix}projector.layer1.0.weight") == "projector.0.weight"


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_wrapped_model_is_loaded(prefix):
    head = models.SimSiamHead(8, 16, 4)
    own = {name: torch.full_like(value, 3) for name, value in head.state_dict().items()}
    checkpoints.load_trained(head, {f"{prefix}{name}": value for name, value in own.items()})
    assert all(torch.equal(value, own[name]) for name, value in head.state_dict().items())
    published = {f"{prefix}{sspl.to_sspl_name('ssl_head', name)}": value + 1 for name, value in own.items()}
    sspl.load_sspl_part(head, "ssl_head", published)
    assert all(torch.equal(value, own[name] + 1) for name, value in head.state_dict().items())


@pytest.mark.parametrize("prefix", PREFIXES[1:])
def test_an_entry_twice_is_refused(prefix):
    head = models.SimSiamHead(8, 16, 4)
    own = head.state_dict()
    name = next(iter(own))
    with pytest.raises(InputError, match="twice"):
        checkpoints.load_trained(head, {**own, f"{prefix}{name}": own[name]})
    theirs = {sspl.to_sspl_name("ssl_head", key): value for key, value in own.items()}
    first = next(iter(theirs))
    with pytest.raises(InputError, match="twice"):
        sspl.load_sspl_part(head, "ssl_head", {**theirs, f"{prefix}{first}": theirs[first]})
