"""A step that torch.compile cannot compile runs uncompiled: under ``compile: auto`` a compiler's fault ends no run.

Compilers fail at the first call of a batch size, in the forward pass or (since the backward pass is compiled when it is
first needed) in the middle of the step. So that first call is an attempt: if it fails, the model and the random numbers
are put back to where they were, and the same batch runs uncompiled, as all later ones do. The update comes after both.
"""

import gc
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

from essl_fast.common.errors import InputError
from essl_fast.runtime import distributed
from essl_fast.runtime.compiling import root_reason
from essl_fast.runtime.distributed import ALONE, World

Result = TypeVar("Result")


class Compilation:
    """Whether forward and backward pass run compiled, which ends with the first failure of the compiler.

    Args:
        on: they do, to begin with.
        must: a failure is an error (the setting ``compile: on``).
        switch_off: makes forward and backward pass run uncompiled from then on.
        model: its buffers and gradients are what a failed attempt may have changed.
        device: of the model.
        world: the processes that train together; they go on uncompiled together.

    Attributes:
        on: they run compiled by now.
        note: why they do not, although they were to; "" otherwise.
    """

    def __init__(
        self,
        on: bool,
        must: bool,
        switch_off: Callable[[], None],
        *,
        model: nn.Module,
        device: torch.device,
        world: World = ALONE,
    ) -> None:
        self.on, self.note = on, ""
        self._must, self._switch_off = must, switch_off
        self._model, self._device, self._world = model, device, world
        self._sizes: set[int] = set()  # batch sizes that have been compiled

    def run(self, size: int, work: Callable[..., Result], *given) -> Result:
        """``work(*given)``, the forward and backward pass of a batch of ``size`` pairs.

        Raises:
            InputError: the compiler failed, and the settings say that the step must be compiled; or it failed on some
                of several processes.
        """
        if not self.on or size in self._sizes:
            return work(*given)
        first = not self._sizes
        self._sizes.add(size)
        put_back = self._remember()
        try:
            result, reason = work(*given), ""
        except (InputError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # a compiler's faults have no common type: errors of Triton, of ptxas, assertions
            if self._world.size > 1 and not first:  # the other ranks may have no batch of this size, and go on
                raise InputError(self._refusal(root_reason(error))) from error
            result, reason = None, root_reason(error)
        if self._world.size > 1 and first:
            reason = self._agree(reason)
        if not reason:
            return result  # type: ignore[return-value]  # None only with a reason
        put_back()
        self.on = False
        self._switch_off()
        gc.collect()  # what the attempt has kept for its backward pass, which the errors' tracebacks may hold
        result = work(*given)  # if the fault is not the compiler's, this raises it
        if self._must:
            put_back()
            raise InputError(self._refusal(reason))
        self.note = (
            f"the step runs uncompiled, more slowly: PyTorch {torch.__version__} could not compile it ({reason}); "
            "compile: off spares the attempt"
        )
        return result

    def _refusal(self, reason: str) -> str:
        setting = "on" if self._must else "auto"
        version = torch.__version__
        return f"compile: {setting}, but PyTorch {version} could not compile the step ({reason}); use compile: off"

    def _agree(self, reason: str) -> str:
        """All ranks go on compiled, or all uncompiled; the first reason of a rank. "" if none has one."""
        reasons = distributed.gather(reason, self._world)
        failed = [rank for rank, each in enumerate(reasons) if each]
        if failed and len(failed) < len(reasons):  # those are now at other places of the step's collectives
            ranks = ", ".join(map(str, failed))
            raise InputError(f"{self._refusal(reasons[failed[0]])} (only rank {ranks} of {len(reasons)} failed)")
        return reasons[0]

    def _remember(self) -> Callable[[], None]:
        """A function that puts buffers, gradients and random numbers back to what they are now."""
        buffers = [(buffer, buffer.clone()) for buffer in self._model.buffers()]
        # Of the update's batches before this one, where several are added up.
        gradients = [(each, each.grad.clone()) for each in self._model.parameters() if each.grad is not None]
        gpu = self._device.type == "cuda"
        host, own = torch.get_rng_state(), torch.cuda.get_rng_state(self._device) if gpu else None

        def put_back() -> None:
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)
            self._model.zero_grad(set_to_none=True)
            for each, before in gradients:
                each.grad = before.clone()
            torch.set_rng_state(host)
            if own is not None:
                torch.cuda.set_rng_state(own, self._device)

        return put_back
