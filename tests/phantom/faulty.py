"""python -m tests.phantom.faulty: steps with a fault each, and what the checks say of them. test_phantom.py runs it."""

import sys
from collections.abc import Callable
from unittest import mock

import tests.phantom.chip  # before torch
from essl_fast.train.guard import Guard
from essl_fast.train.step import TrainStep
from tests.phantom import eager

torch = tests.phantom.chip.torch
begin, update, gradients = Guard.begin, TrainStep._update, TrainStep._gradients


def reads_a_loss(self, loss):
    update(self, loss)
    loss.item()


def sends_numbers(self):
    begin(self)
    torch.ones(3).to(self.flag.device)


def loses_a_gradient(self, loss):
    update(self, loss)
    next(p for p in self.model.parameters() if p.requires_grad).grad = None


def loses_channels_last(self, *batch):
    losses = gradients(self, *batch)
    weight = next(p for p in self.model.parameters() if p.ndim == 4 and p.grad is not None and min(p.shape[1:]) > 1)
    weight.grad = weight.grad.contiguous()
    return losses


def loses_the_device(self, loss):
    update(self, loss)
    name, buffer = next(iter(self.model.named_buffers()))
    module = self.model.get_submodule(name.rpartition(".")[0])
    setattr(module, name.rpartition(".")[2], buffer.cpu())


FAULTS: dict[Callable, tuple[type, str, str]] = {  # a method, whose it is, and what must be said of it
    reads_a_loss: (TrainStep, "_update", "DataDependentOutput|waits for the GPU"),
    sends_numbers: (Guard, "begin", "has tensors of host and GPU [(3,)]"),
    loses_a_gradient: (TrainStep, "_update", "got no gradient"),
    loses_channels_last: (TrainStep, "_gradients", "fused AdamW: parameter, gradient and moments differ"),
    loses_the_device: (TrainStep, "_update", "is on cpu|two different devices"),
}


def main() -> int:
    """1 if a fault was not found."""
    missed = 0
    for method, (owner, name, words) in FAULTS.items():
        case = eager.Case(method.__name__, lambda: eager.step_faults("demo", "bf16"))
        with mock.patch.object(owner, name, method), mock.patch.object(eager, "cases", lambda everything, c=case: [c]):
            ((_, said),) = eager.check(False)
        found = any(word in line for line in said for word in words.split("|"))
        print(f"{method.__name__}: {'found' if found else 'MISSED'}: {said[:2]}", flush=True)
        missed += not found
    return bool(missed)


if __name__ == "__main__":
    sys.exit(main())
