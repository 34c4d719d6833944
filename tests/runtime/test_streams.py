"""What waits for what on a GPU, by a recording stub of its streams: no value is used before it is there."""

import queue
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist

from essl_fast.data.loading import exchange
from essl_fast.data.loading.decode_queue import DecodeQueue
from essl_fast.data.loading.producer import Decoded, Producer
from essl_fast.data.loading.sounds import raw_samples
from essl_fast.train.graphs import CudaCapture, Inputs, Stepper
from tests.tools.streams import Event, StreamRecord

CPU = torch.device("cpu")


@pytest.fixture
def record(monkeypatch):
    return StreamRecord(monkeypatch)


def test_a_step_on_the_side_stream_comes_between_the_callers_work(record, monkeypatch):
    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    clone = torch.Tensor.clone
    monkeypatch.setattr(torch.Tensor, "clone", lambda tensor: record.note("copy") or clone(tensor))
    made = torch.ones(2)
    result = CudaCapture(CPU).run(lambda: record.note("step") or made)
    assert record.lines == ["side waits for main", "side: step", "main waits for side", "main: copy"]
    assert torch.equal(result, made) and result.data_ptr() != made.data_ptr()


def test_a_capture_begins_without_gradients():
    """Gradients of before are in memory that the graph does not own."""
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer, found = torch.optim.SGD([weight], lr=0.1), []

    class Capture:
        def run(self, work):
            return work()

        def record(self, work):
            found.append(weight.grad)
            return work()

        def replay(self):
            pass

    def body(_):
        loss = weight.square().sum()
        loss.backward()  # a step that clears no gradients itself
        return {"loss": loss}

    stepper = Stepper(body, optimizer, 2, Capture())
    while not stepper.captured:
        stepper(Inputs(*(torch.arange(2) for _ in Inputs._fields)))
    assert found == [None]


def test_a_batch_is_used_after_its_copy_and_its_memory_is_not_given_away(record):
    decoded = Decoded(np.arange(2), torch.zeros(2, 4, 4, 3), torch.zeros(2, 8), [], Event("the copy"))
    decoder = DecodeQueue(None, SimpleNamespace(device=CPU), None, raw_samples, None)
    decoder._producer = SimpleNamespace(get=lambda: decoded)
    assert len(decoder.next(0, 0).positions) == 2
    assert record.lines == ["main waits for the copy", *["memory is kept for main"] * 2]


def test_a_batch_is_ready_when_its_copies_are(record):
    class Samples:
        def to(self, device, non_blocking):
            record.note("copy")
            return self

    producer = SimpleNamespace(device=CPU, queue=queue.Queue(1))
    producer._put = producer.queue.put
    batch = SimpleNamespace(positions=np.arange(1), pcm=Samples(), faults=[])
    with torch.cuda.stream(torch.cuda.Stream()):
        Producer._hand_over(producer, batch, torch.zeros(1), record.current)
    assert record.lines == ["side: copy", "side records an event"]
    assert producer.queue.get().ready.name == "side's event"


@pytest.mark.parametrize("written", [Event("the pool"), None])
def test_rows_are_sent_when_they_are_written_and_used_when_they_came(record, monkeypatch, written):
    def all_to_all(out, packed, coming, going, group, async_op):
        assert not async_op  # NCCL works in the stream
        record.note("rows")
        out.copy_(packed)

    monkeypatch.setattr(dist, "new_group", lambda backend: None)
    monkeypatch.setattr(dist, "all_to_all_single", all_to_all)
    between = exchange.Exchange(0, 1, torch.device("cuda", 0))
    between.device = CPU  # where this test's tables are
    pool = torch.arange(12).view(4, 3)
    transfer = between.send_rows([pool], [np.array([2, 0])], [2], written)
    event = "main's event" if written is None else written.name
    sent = ["main records an event"] * (written is None)
    assert record.lines == [*sent, f"side waits for {event}", "side: rows", "side records an event"]
    record.lines.clear()
    (rows,) = transfer.wait()
    assert rows.tolist() == [[6, 7, 8], [0, 1, 2]]
    assert record.lines == ["main waits for side's event", "memory is kept for main"]


def test_rows_on_cpus_are_used_when_they_came(monkeypatch):
    came = []

    def all_to_all(out, packed, coming, going, group, async_op):
        assert async_op
        return SimpleNamespace(wait=lambda: came.append(out.copy_(packed)))

    monkeypatch.setattr(dist, "new_group", lambda backend: None)
    monkeypatch.setattr(dist, "all_to_all_single", all_to_all)
    pool = torch.arange(12).view(4, 3)
    transfer = exchange.Exchange(0, 1, CPU).send_rows([pool], [np.array([3])], [1])
    assert not came
    assert transfer.wait()[0].tolist() == [[9, 10, 11]] and len(came) == 1
