"""The exponential moving average of the weights (`optim.ema`).

After every update, each trained weight and each running statistic w moves its average a: a ← d·a + (1 − d)·w. The decay
d rises with the number of updates t, min(ema, (1 + t) / (10 + t)), so that the average soon forgets the random weights
that it begins with. An update that was refused, since a value was not finite, moves nothing.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn


class AveragedWeights:
    """The averages of a model's trained weights and running statistics.

    Args:
        model: on its device. Weights that are not trained, and counters, are not averaged.
        decay: of the average, at least 0 and below 1.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        saved = model.state_dict().keys()
        named: dict[str, Tensor] = {name: each for name, each in model.named_parameters() if each.requires_grad}
        named |= {name: each for name, each in model.named_buffers() if name in saved and each.is_floating_point()}
        self._names, self._live = list(named), [each.detach() for each in named.values()]
        self._averages = [each.clone() for each in self._live]

    @torch.no_grad()
    def update(self, step: int, closed: Tensor) -> None:
        """Move the averages after an update, without waiting for the device.

        Args:
            step: number of the update, from 0.
            closed: 0-d, 1 if the update changed nothing, else 0.
        """
        share = 1.0 - min(self.decay, (1.0 + step) / (10.0 + step))
        moves = torch._foreach_sub(self._live, self._averages)
        torch._foreach_mul_(moves, (1.0 - closed) * share)
        torch._foreach_add_(self._averages, moves)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Within the context the model has its averages; afterwards what it had before."""
        kept = [each.clone() for each in self._live]
        with torch.no_grad():
            torch._foreach_copy_(self._live, self._averages)
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(self._live, kept)

    def state_dict(self) -> dict[str, Tensor]:
        """The averages by name."""
        return dict(zip(self._names, self._averages, strict=True))

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from what :meth:`state_dict` gave."""
        with torch.no_grad():
            torch._foreach_copy_(self._averages, [state[name].to(self._averages[0].device) for name in self._names])
