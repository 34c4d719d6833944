"""AdamW with the recipe's groups, and its learning rates as tensors on the device."""

import math

import torch

from essl_fast import config, models


def build_optimizer(model: models.Localizer, optim: config.OptimConfig) -> torch.optim.AdamW:
    """AdamW with the recipe's groups, in the published order; fused: one pass over all parameters of a group."""
    return torch.optim.AdamW(model.parameter_groups(optim), betas=(0.9, 0.999), eps=1e-8, fused=True)


def learning_rate_factor(schedule: str, step: int, steps: int, warmup: int) -> float:
    """The factor of the learning rates at ``step`` (from 0) of ``steps``; cosine's rates rise for ``warmup`` steps."""
    if schedule == "constant":
        return 1.0
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


class Rates:
    """The learning rates of an optimizer's groups as one tensor on the device, so that a captured step follows them.

    float32 on a GPU, as the fused update wants it there; float64 on a CPU, where it equals a plain number to the bit.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
        kind = torch.float64 if device.type == "cpu" else torch.float32
        rates = [float(group["lr"]) for group in optimizer.param_groups]
        names = [group.get("name", str(number)) for number, group in enumerate(optimizer.param_groups)]
        self._first = dict(zip(names, rates, strict=True))
        self._base = torch.tensor(rates, dtype=kind, device=device)
        self._now = self._base.clone()
        self.attach(optimizer)

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """Make the groups use these rates. Call it again after the optimizer loaded a state.

        Until the next step, the rates are the groups' own: those of the last step before.
        """
        own = [float(group["lr"]) for group in optimizer.param_groups]
        self._own: dict[str, float] = dict(zip(self._first, own, strict=True))
        self._factor: float | None = None
        self._now.copy_(torch.tensor(own, dtype=self._now.dtype))
        for group, rate in zip(optimizer.param_groups, self._now.unbind(), strict=True):
            group["lr"] = rate

    def now(self) -> dict[str, float]:
        """The rate of each group by its name, without waiting for the device."""
        factor = self._factor
        return dict(self._own) if factor is None else {name: rate * factor for name, rate in self._first.items()}

    def scale(self, factor: float) -> None:
        """Set every rate to its first value times ``factor``, without waiting for the device."""
        if factor != self._factor:
            torch.mul(self._base, factor, out=self._now)
            self._factor = factor


def optimizer_state(optimizer: torch.optim.Optimizer, rates: Rates) -> dict:
    """``optimizer.state_dict()`` with plain numbers as learning rates: those of the last step, before any rounding.

    rates: what the optimizer's groups are attached to.
    """
    state = optimizer.state_dict()
    groups = [{**group, "lr": rate} for group, rate in zip(state["param_groups"], rates.now().values(), strict=True)]
    return {**state, "param_groups": groups}
