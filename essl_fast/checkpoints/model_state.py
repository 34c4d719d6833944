"""The model in a checkpoint: its trained weights and buffers, and the settings that it was built from."""

from collections.abc import Sequence

import torch
from torch import nn

from essl_fast import models
from essl_fast.common.errors import InputError
from essl_fast.config import Config, from_dict


def trained_state(model: nn.Module, keep: Sequence[str] = ()) -> dict[str, torch.Tensor]:
    """The model's state dict without its frozen parameters, which published files hold.

    Args:
        model: the model.
        keep: prefixes of frozen parameters that stay in it, see :func:`essl_fast.models.unpublished_parts`.
    """
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad and not name.startswith(tuple(keep))}
    return {name: value for name, value in model.state_dict().items() if name not in frozen}


def settings_of(state: dict) -> Config:
    """The settings that a checkpoint was trained with.

    The modules that registered its parts, ``imports`` of the settings, are imported.

    Raises:
        InputError: there are no settings or no model, a module cannot be imported, or a part is unknown.
    """
    if missing := [name for name in ("config", "model") if name not in state]:
        raise InputError(f"the checkpoint has no {missing[0]}; give last.pt or best.pt of a run directory")
    return models.check(from_dict(state["config"]))


WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}


def unwrapped(name: str) -> str:
    """An entry's name without what DDP, torch.compile, FSDP and checkpointing put into it, in any order and number."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def load_trained(model: nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Load :func:`trained_state` into a model that has its frozen weights already.

    Raises:
        InputError: the state is no dict of tensors, or is of another architecture.
    """
    if not isinstance(state, dict) or not all(
        isinstance(value, torch.Tensor) and value.layout == torch.strided and value.device.type != "meta"
        for value in state.values()
    ):
        raise InputError("the checkpoint's model is no dict of tensors; it was made by something else")
    own, given = model.state_dict(), state
    if not state.keys() <= own.keys():  # another program may have saved a model that was wrapped
        state = {unwrapped(str(name)): value for name, value in given.items()}
        if len(state) < len(given):
            raise InputError("the checkpoint has an entry twice, wrapped and not: it was made by something else")
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    unknown = [name for name in state if name not in own]
    missing = [name for name in own if name not in state and name not in frozen]
    shapes = [name for name in state if name in own and state[name].shape != own[name].shape]
    if unknown or missing or shapes:
        raise InputError(
            f"the checkpoint is of another architecture: {len(unknown)} entries are unknown, {len(missing)} missing, "
            f"{len(shapes)} of another shape (the first: {(unknown + missing + shapes)[0]})"
        )
    model.load_state_dict({**own, **state})
