"""The step over static memory: replays equal plain steps to the bit, and know nothing but what tensors hold."""

import functools
import shlex
import time
import types

import pytest
import torch

from essl_fast import config, models
from essl_fast.common.errors import InputError, in_shell
from essl_fast.data.shards import Manifest
from essl_fast.kernels import fp8, native
from essl_fast.models import heads
from essl_fast.runtime.devices import pick_precision
from essl_fast.train import Observer, Trainer, graphs, train_epoch
from essl_fast.train.graphs import WARMUP, Inputs, Stepper, wants_capture
from essl_fast.train.meters import rate
from essl_fast.train.optimizer import Rates, optimizer_state
from essl_fast.train.state import last_state, resume
from tests.tools.recording import RecordedStep, Recorder

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
SCHEDULE = ["--optim.schedule", "cosine", "--optim.warmup", "0.5", "--optim.clip_norm", "1.0"]


@pytest.fixture(autouse=True)
def quick_and_in_order(monkeypatch):
    """One thread, so that sums are the same; a narrow head, whose 9 M parameters would be most of the time here."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    narrow = functools.partial(heads.SimSiamHead, dim=64, hidden=32)
    monkeypatch.setattr(heads, "SimSiamHead", narrow)
    yield
    torch.set_num_threads(before)


def trainer_of(prepared, captured, *overrides, batch=4):
    words = (
        f"--data.root {in_shell(prepared)} --data.batch_size {batch} --data.threads 1 --epochs 3 --data.last_batch keep"
    )
    settings = config.load("demo", [*shlex.split(words), *SCHEDULE, *overrides])
    trainer = Trainer(settings, Manifest.load(prepared), CPU)
    if captured:
        step, own = trainer.step, trainer.step.stepper

        def state():
            moments = [t for s in step.optimizer.state.values() for t in s.values()]
            guard = [step.guard.flag, step.guard.gate]
            return [*trainer.model.parameters(), *trainer.model.buffers(), *moments, *guard]

        step.stepper = Stepper(own._body, step.optimizer, batch, RecordedStep(state), held=own._held, must_capture=True)
    trainer.model.train()
    return trainer


def run(trainer, epochs):
    """Losses of every step until the end of ``epochs`` epochs."""
    found = []
    while trainer.epoch < epochs:
        for raw in trainer.loader:
            losses = trainer.train_step(raw)
            found.append({name: value.item() for name, value in losses.items()})
            trainer.steps += 1
        trainer.epoch += 1
    return found


def same_weights(one, other):
    theirs = other.model.state_dict()
    return all(torch.equal(value, theirs[name]) for name, value in one.model.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize("resident", ["always", "never"])
def test_replays_equal_plain_steps(tiny, resident):
    """Two epochs with a schedule, gradient clipping and a smaller last batch: every loss, weight and moment."""
    plain, captured = (trainer_of(tiny[1], c, "--data.resident", resident) for c in (False, True))
    expected = run(plain, 2)
    assert run(captured, 2) == expected
    assert same_weights(captured, plain)
    for mine, theirs in zip(captured.step.optimizer.state.values(), plain.step.optimizer.state.values(), strict=True):
        assert all(torch.equal(mine[key], theirs[key]) for key in theirs)
    pool = captured.loader.pool  # which is not copied
    assert (captured.step.stepper._inputs.frames is (pool and pool.frames)) == (resident == "always")
    pairs, steps = plain.loader.pairs, len(plain.loader)
    assert pairs % 4 and captured.step.stepper.captured
    full = 2 * (pairs // 4)
    assert captured.step.stepper.counts == {"plain": 2 * steps - full + WARMUP, "replayed": full - WARMUP}
    assert plain.step.stepper.counts == {"plain": 2 * steps, "replayed": 0} and not plain.step.stepper.prepared
    phases = [(done.phase, done.batch) for done in captured.step.stepper.prepared]
    assert phases == [("warm-up", 4)] * WARMUP + [("capture", 4)]
    assert len({loss["loss"] for loss in expected}) == len(expected)  # each step saw something else


def toy_step():
    """A step of three weights: (weight, optimizer, body, state)."""
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([weight], lr=0.1, fused=True)

    def body(_):
        optimizer.zero_grad()
        loss = weight.square().sum()
        loss.backward()
        optimizer.step()
        return {"loss": loss}

    def state():
        return [weight, *(tensor for moments in optimizer.state.values() for tensor in moments.values())]

    return weight, optimizer, body, state


def test_the_recorder_sees_a_step_that_depends_on_the_host():
    """Were the rates plain numbers, or a loss read by the host, these tests would fail: they can."""
    weight, optimizer, body, state = toy_step()
    given = Inputs(*(torch.arange(2) for _ in Inputs._fields))
    stepper, moved = Stepper(body, optimizer, 2, RecordedStep(state)), []
    for step in range(WARMUP + 3):
        optimizer.param_groups[0]["lr"] = 0.1 / (1 + step)
        before = weight.detach().clone()
        stepper(given)
        moved.append((weight.detach() - before).abs().max().item())
    assert moved[-1] > 0.9 * moved[WARMUP]  # baked in: it does not fall, as the schedule has it

    stepper = Stepper(lambda _: {"loss": torch.ones(()) * weight.sum().item()}, optimizer, 2, RecordedStep(state))
    for _ in range(WARMUP):
        stepper(given)
    stepper(given)
    assert "not permitted while capturing" in stepper.note and not stepper.captured


def test_without_the_compiled_module_a_step_can_be_captured_too(tiny, monkeypatch):
    """PyTorch alone then makes the views, and must not send the GPU numbers for that."""
    monkeypatch.setattr(native, "available", lambda: False)
    captured, plain = (trainer_of(tiny[1], c) for c in (True, False))
    assert run(captured, 1) == run(plain, 1)
    assert captured.step.stepper.captured and captured.step.stepper.counts["replayed"] > 0
    with pytest.raises(RuntimeError, match="not permitted while capturing"), Recorder():
        torch.tensor([1.0, 2.0])


@pytest.mark.slow
def test_a_capture_that_fails_leaves_plain_steps_and_says_so(tiny):
    plain, captured = (trainer_of(tiny[1], c) for c in (False, True))

    class Refuses(RecordedStep):
        def record(self, work):
            raise RuntimeError("CUDA error: operation failed\nlong explanation")

    own = captured.step.stepper
    captured.step.stepper = Stepper(own._body, captured.step.optimizer, 4, Refuses(None), held=own._held)
    assert run(captured, 1) == run(plain, 1) and same_weights(captured, plain)
    assert captured.step.stepper.note == "the step runs uncaptured, more slowly: CUDA error: operation failed"
    assert captured.step.stepper.counts["replayed"] == 0
    must = Stepper(own._body, captured.step.optimizer, 4, Refuses(None), held=own._held, must_capture=True)
    captured.step.stepper = must
    with pytest.raises(RuntimeError, match="cuda_graphs: on, but the step could not be captured: CUDA error"):
        run(captured, 2)


def test_a_capture_that_became_invalid_gives_back_stream_and_allocator(tiny, monkeypatch):
    """What CUDA and PyTorch do then: the context raises at its end, and does not put the stream back."""
    done, before = [], types.SimpleNamespace(device_index=3)

    class Invalid:
        def __init__(self, graph, pool, stream, mode):
            assert (pool, mode) == ((0, 7), "thread_local")

        def __enter__(self):
            pass

        def __exit__(self, *error):
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")

    cuda = {
        "graph": Invalid,
        "CUDAGraph": object,
        "graph_pool_handle": lambda: (0, 7),
        "Stream": lambda device: None,
        "current_stream": lambda device: before,
        "set_stream": lambda stream: done.append(stream),
    }
    for name, value in cuda.items():
        monkeypatch.setattr(torch.cuda, name, value)
    end = lambda device, pool: done.append((device, pool))  # noqa: E731
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", end, raising=False)

    def body(inputs):
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nlong explanation")

    trainer = trainer_of(tiny[1], False)
    stepper = Stepper(body, trainer.step.optimizer, 4, graphs.CudaCapture(CPU))
    stepper._inputs = Inputs(*(torch.zeros(1) for _ in Inputs._fields))
    assert not stepper._record()
    assert done == [before, (3, (0, 7))]
    assert stepper.note.endswith("more slowly: CUDA error: operation not permitted when stream is capturing")


@pytest.mark.slow
def test_a_resumed_run_goes_on_with_the_same_bits(tiny):
    """Between captured and plain runs, either way, in mid-epoch and with a schedule."""
    whole = trainer_of(tiny[1], False)
    expected = run(whole, 2)
    for first, second in ((True, False), (False, True)):
        begun = trainer_of(tiny[1], first)
        found, stop = [], WARMUP + 2
        while len(found) < stop:
            for raw in begun.loader:
                found.append({name: value.item() for name, value in begun.train_step(raw).items()})
                begun.steps += 1
                if len(found) == stop:
                    break
            else:
                begun.epoch += 1
        assert begun.step.stepper.captured == first
        state = last_state(begun)
        assert all(isinstance(group["lr"], float) for group in state["optimizer"]["param_groups"])
        later = trainer_of(tiny[1], second)
        resume(later, state)
        found += run(later, 2)
        assert found == expected and same_weights(later, whole)


def test_a_step_that_is_not_finite_is_caught_in_a_replay(tiny):
    """The flag that keeps it from the weights is on the device, so a capture holds it."""
    trainer = trainer_of(tiny[1], True, "--on_nonfinite", "skip", "--data.resident", "never")
    batches = [raw for raw in trainer.loader if len(raw.index) == 4]
    for raw in (batches * WARMUP)[: WARMUP + 1]:
        trainer.train_step(raw)
    assert trainer.step.stepper.captured
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    bad = batches[0]._replace(sound=torch.full_like(batches[0].sound, float("nan")))
    assert trainer.train_step(bad)["non_finite"].item() == 1
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())
    assert trainer.train_step(batches[1])["non_finite"].item() == 0
    assert not all(torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())


def test_rates_follow_the_schedule_without_another_tensor():
    weights = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
    groups = [{"params": [w], "lr": lr} for w, lr in zip(weights, (0.1, 3e-5), strict=True)]
    optimizer = torch.optim.AdamW(groups, fused=True)
    rates = Rates(optimizer, CPU)
    places = [group["lr"].data_ptr() for group in optimizer.param_groups]
    rates.scale(0.3)
    assert [group["lr"].item() for group in optimizer.param_groups] == [0.1 * 0.3, 3e-5 * 0.3]
    rates.scale(1.0)
    assert [group["lr"].item() for group in optimizer.param_groups] == [0.1, 3e-5]
    optimizer.load_state_dict(optimizer_state(optimizer, rates))
    assert optimizer.param_groups[0]["lr"] == 0.1
    rates.attach(optimizer)
    assert [group["lr"].data_ptr() for group in optimizer.param_groups] == places


def test_a_checkpoint_has_the_rates_before_a_gpu_rounds_them():
    """There they are float32. A run that goes on, and has taken no step yet, says the rates of one that did not end."""
    optimizer = torch.optim.AdamW([{"params": [torch.nn.Parameter(torch.ones(2))], "lr": 3e-5}], fused=True)
    rates = Rates(optimizer, CPU)
    rates._base, rates._now = rates._base.float(), rates._now.float()  # as on a GPU
    rates.attach(optimizer)
    rates.scale(0.3)
    said = rates.now()
    optimizer.load_state_dict(optimizer_state(optimizer, rates))
    rates.attach(optimizer)
    assert rates.now() == said == {"0": 3e-5 * 0.3} and optimizer.param_groups[0]["lr"].item() != 3e-5 * 0.3


def test_where_the_step_is_captured():
    auto, on, off = (config.load("demo", ["--cuda_graphs", name]) for name in ("auto", "on", "off"))
    for dtype in (torch.bfloat16, torch.float32):
        assert wants_capture(auto, GPU, dtype, 1) and wants_capture(on, GPU, dtype, 1)
        assert not wants_capture(off, GPU, dtype, 1)
    assert not wants_capture(auto, GPU, torch.bfloat16, 2) and wants_capture(on, GPU, torch.bfloat16, 2)
    for case, reason in (
        ((CPU, torch.float32, 1), "there is no GPU"),
        ((GPU, torch.float16, 1), "fp16"),
        ((GPU, torch.float16, 2), "fp16"),
        ((GPU, torch.bfloat16, 2, True), "statistics within a batch .* use auto or off; .* --data.global_batch"),
    ):
        assert not wants_capture(auto, *case)
        with pytest.raises(InputError, match=f"cuda_graphs: on, but .*{reason}"):
            wants_capture(on, *case)


def test_float32_is_whole_unless_tf32_is_asked_for():
    flags = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    try:
        for name, wanted in (("tf32", True), ("fp32", False), ("tf32", True), ("bf16", False)):
            dtype = pick_precision(name, CPU)
            assert dtype == (torch.bfloat16 if name == "bf16" else torch.float32)
            assert torch.backends.cuda.matmul.allow_tf32 == torch.backends.cudnn.allow_tf32 == wanted
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = flags


def test_8_bits_are_for_the_frozen_trunk_and_chips_that_have_them():
    with pytest.raises(InputError, match="model.trunk_fp8: needs the frozen trunk vgg16, got small"):
        models.check(config.load("demo", ["--model.trunk_fp8", "true"]))
    assert config.load("sspl", ["--model.trunk_fp8", "true"]).model.trunk_fp8
    assert fp8.runs(CPU, torch.float32)


def test_the_compilers_time_is_not_in_the_rate(tiny):
    class Listener(Observer):
        def on_prepared(self, done, step, graphs):
            told.append(done)

    trainer, told = trainer_of(tiny[1], False), []
    sizes = set()

    def body(inputs):
        if len(inputs.index) not in sizes:
            sizes.add(len(inputs.index))
            time.sleep(0.4)  # the compiler
        return {"loss": torch.ones(()), "non_finite": torch.zeros(())}

    trainer.step.stepper = Stepper(body, trainer.step.optimizer, 4, compiled=lambda: True)
    trainer.observers.add(Listener())
    entry, speed = train_epoch(trainer), trainer.speed
    last = trainer.loader.pairs % 4
    assert [(done.phase, done.batch) for done in told] == [("compile", 4), ("compile", last)]
    assert speed.seconds["compile"] == sum(done.seconds for done in told) >= 0.8
    assert speed.untimed == {"run": 4 + last, "epoch": 0}
    timed = trainer.loader.pairs - 4 - last
    assert entry["pairs_per_second"] == pytest.approx(timed / speed.seconds["train"])
    assert speed.mean_rate() == entry["pairs_per_second"]
    assert rate(1, 8, 8, {"train": 0.5, "compile": 5.5}) == 8 / 6  # there is nothing else to go by


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("compiled", ["off", "on"])
@pytest.mark.parametrize("resident", ["always", "never"])
def test_a_cuda_graph_trains_as_plain_steps_do(tiny, resident, compiled):
    """In float32 on a real GPU: losses and weights of two epochs, within what atomics may reorder."""
    found = {}
    for mode in ("off", "on"):
        words = (
            f"--data.root {in_shell(tiny[1])} --data.batch_size 4 --data.last_batch keep --device cuda --precision fp32"
        )
        words += f" --compile {compiled} --cuda_graphs {mode} --data.resident {resident}"
        settings = config.load("demo", [*shlex.split(words), *SCHEDULE])
        trainer = Trainer(settings, Manifest.load(tiny[1]), GPU)
        trainer.model.train()
        losses = run(trainer, 2)
        assert trainer.step.stepper.captured == (mode == "on") and not trainer.step.stepper.note
        found[mode] = losses, {name: value.cpu() for name, value in trainer.model.state_dict().items()}
        trainer.loader.close()
    for mine, theirs in zip(found["on"][0], found["off"][0], strict=True):
        assert mine == pytest.approx(theirs, rel=1e-3, abs=1e-4)
    for name, value in found["off"][1].items():
        torch.testing.assert_close(found["on"][1][name], value, rtol=1e-2, atol=1e-3, msg=name)


def test_the_caller_may_keep_the_losses_of_a_replay():
    _, optimizer, body, state = toy_step()
    stepper = Stepper(body, optimizer, 2, RecordedStep(state))
    given = Inputs(*(torch.arange(2) for _ in Inputs._fields))
    kept = [stepper(given)["loss"] for _ in range(WARMUP + 3)]
    assert len({loss.item() for loss in kept}) == WARMUP + 3
