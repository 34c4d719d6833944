"""A compiler that fails ends no run: the same batch runs uncompiled, and nothing of the attempt is left."""

import functools
import shlex
from contextlib import ExitStack
from unittest import mock

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import nn
from torch._dynamo.backends.common import aot_autograd

from essl_fast import config
from essl_fast.common.errors import InputError, in_shell
from essl_fast.data.shards import Manifest
from essl_fast.models import heads
from essl_fast.runtime import compiling, distributed
from essl_fast.train import Observer, Trainer, step
from essl_fast.train.compilation import Compilation
from tests.tools.ranks import run_ranks

CPU = torch.device("cpu")


class Listener(Observer):
    """Keeps messages and preparations."""

    def __init__(self):
        self.lines, self.phases, self.losses = [], [], []

    def on_step(self, epoch, reading):
        self.losses.append(reading.loss)

    def on_message(self, text):
        self.lines.append(text)

    def on_prepared(self, done, step, graphs):
        self.phases.append((done.phase, done.batch))


class Breaks(torch.autograd.Function):
    """The same tensor; its backward pass fails."""

    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        raise RuntimeError("out of resource: shared memory, Required: 300000, Hardware limit: 232448")


def fails_before(function):
    def run(*given):
        raise TypeError("not traceable")

    return run


def fails_after(function):
    """A kernel that fails when batch statistics have been updated and random numbers were drawn."""

    def run(*given):
        function(*given)
        torch.rand(1)
        raise AssertionError("1024 v.s. 512\nWhile executing a node")

    return run


def fails_backward(function):
    """In a part of a model, only the audio network's: the head's gradients are then there."""

    def run(*given):
        out = function(*given)
        if isinstance(out, dict):
            return out | {"loss": Breaks.apply(out["loss"])}
        return tuple(map(Breaks.apply, out)) if "Audio" in type(function.__self__).__name__ else out

    return run


def fails_at_another_size(function):
    def run(*given):
        if given[0].shape[1] != 4:
            raise AssertionError("1024 v.s. 512")
        return function(*given)

    return run


def compiler_fails(function):
    """As Inductor did with the PCM on an H100: the forward pass is compiled and has run."""

    def refuse(graph, examples):
        raise AssertionError("1024 v.s. 512\nWhile executing a node")

    backend = aot_autograd(fw_compiler=lambda graph, _: make_boxed_func(graph), bw_compiler=refuse)
    return torch.compile(function, fullgraph=True, dynamic=False, backend=backend)


FAULTS = {  # a stand-in for `compile_graph` -> the reason that the line gives
    fails_before: "TypeError: not traceable",
    fails_after: "AssertionError: 1024 v.s. 512",
    fails_backward: "RuntimeError: out of resource: shared memory",
    compiler_fails: "AssertionError: 1024 v.s. 512",
}


def trained(prepared, fault, *overrides, world=distributed.ALONE, batch=4):
    """Losses of an epoch, the trainer and what it said. The GPU's choice of the setting auto is made on the CPU."""
    words = (
        f"--data.root {in_shell(prepared)} --data.batch_size {batch} --data.threads 1 --epochs 2 --data.last_batch keep"
    )
    settings = config.load("demo", [*shlex.split(words), *overrides])
    listener = Listener()
    torch._dynamo.reset()
    with ExitStack() as stack:
        patch = lambda *given: stack.enter_context(mock.patch.object(*given))  # noqa: E731
        patch(heads, "SimSiamHead", functools.partial(heads.SimSiamHead, dim=64, hidden=32))
        patch(step, "wants_compile", lambda setting, device: fault is not None)
        for module in (step, compiling) if fault else ():
            patch(module, "compile_graph", fault)
        trainer = Trainer(settings, Manifest.load(prepared), CPU, world)
        trainer.observers.add(listener)
        for raw in trainer.batches():
            trainer.take_step(raw)
    return listener.losses, trainer, listener


def same_state(one, other):
    theirs = other.model.state_dict()
    moments = zip(one.step.optimizer.state.values(), other.step.optimizer.state.values(), strict=True)
    return all(torch.equal(value, theirs[name]) for name, value in one.model.state_dict().items()) and all(
        torch.equal(mine[key], their[key]) for mine, their in moments for key in mine
    )


@pytest.fixture(scope="module")
def uncompiled(tiny):
    return trained(tiny[1], None, "--compile", "off")[:2]


@pytest.mark.parametrize(
    "fault",
    [pytest.param(fault, marks=[pytest.mark.slow] * (fault is compiler_fails)) for fault in FAULTS],
    ids=lambda fault: fault.__name__,
)
def test_a_compile_that_fails_leaves_the_uncompiled_step(tiny, uncompiled, fault):
    """Losses, weights, running statistics and moments are those of a run that never tried, and one line says why."""
    expected, plain = uncompiled
    losses, trainer, listener = trained(tiny[1], fault)
    assert losses == expected and same_state(trainer, plain)
    assert not trainer.step.compiled
    assert listener.phases == [("failed compile", 4)]
    (line,) = listener.lines
    assert line.startswith(f"the step runs uncompiled, more slowly: PyTorch {torch.__version__} could not compile it (")
    assert FAULTS[fault][1] in line and "\n" not in line and line.endswith("compile: off spares the attempt")


@pytest.mark.slow
def test_a_batch_of_another_size_may_be_what_fails(tiny, uncompiled):
    losses, trainer, listener = trained(tiny[1], fails_at_another_size)
    last = trainer.loader.pairs % 4
    assert last and listener.phases == [("compile", 4), ("failed compile", last)]
    assert len(listener.lines) == 1 and not trainer.step.compiled
    assert losses == uncompiled[0] and same_state(trainer, uncompiled[1])


def test_compile_on_ends_with_a_line(tiny):
    with pytest.raises(InputError) as caught:
        trained(tiny[1], fails_after, "--compile", "on")
    line = f"compile: on, but PyTorch {torch.__version__} could not compile the step (AssertionError: 1024 v.s. 512); "
    assert str(caught.value) == line + "use compile: off"


def test_a_fault_of_the_model_is_told_as_it_is():
    """Not as the compiler's: the uncompiled attempt meets it as well. Memory that is too small for the compiled step is
    too small for the uncompiled one."""
    for error in (ValueError("a batch of one"), torch.OutOfMemoryError("CUDA out of memory")):
        switched = []
        compilation = Compilation(True, False, lambda s=switched: s.append(1), model=nn.Linear(1, 1), device=CPU)

        def work(error=error):
            raise error

        with pytest.raises(type(error), match=str(error)):
            compilation.run(4, work)
        assert switched == [1] * isinstance(error, ValueError) and not compilation.note


def test_random_numbers_and_gradients_are_put_back():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    model[0].weight.grad = torch.ones(2, 2)
    drawn = []

    def work():
        model(torch.ones(3, 2)).sum().backward()
        drawn.append((torch.rand(1).item(), model[1].num_batches_tracked.item(), model[1].running_mean.tolist()))
        if len(drawn) == 1:
            raise RuntimeError("PTXASError")
        return model[0].bias.grad

    gradient = Compilation(True, False, lambda: None, model=model, device=CPU).run(3, work)
    assert len(drawn) == 2 and drawn[0] == drawn[1]
    model.zero_grad()
    model(torch.ones(3, 2)).sum().backward()
    assert torch.equal(gradient, model[0].bias.grad)


def ranks_epochs(world, prepared):
    """An epoch of a step that cannot be compiled, and one of a step that never was."""
    found = []
    for fault in (fails_backward, None):
        losses, trainer, listener = trained(prepared, fault, world=world, batch=2)
        state = {name: value.numpy().copy() for name, value in trainer.model.state_dict().items()}
        found.append((losses, state, listener.lines))
    return found


@pytest.mark.slow
def test_two_ranks_go_on_uncompiled_together(tiny):
    """Also where the backward pass failed when the head's gradients were already on their way."""
    ((losses, state, lines), (expected, plain, _)), other = run_ranks(2, ranks_epochs, tiny[1])
    assert losses == pytest.approx(expected, rel=1e-6) and len(lines) == 1 and "out of resource" in lines[0]
    for name, value in state.items():
        assert torch.allclose(torch.tensor(value), torch.tensor(plain[name]), rtol=1e-5, atol=1e-7), name
        assert (value == other[0][1][name]).all(), name


def test_a_rank_that_fails_alone_is_told_of():
    def others(value, world):
        return ["", value]

    with mock.patch.object(distributed, "gather", others), pytest.raises(InputError, match="only rank 1 of 2 failed"):
        world = distributed.World(1, 2)
        Compilation(True, False, lambda: None, model=nn.Linear(1, 1), device=CPU, world=world).run(2, lambda: 1 / 0)
