"""A recording stub of CUDA's streams: who waits for what, where work is given, and which memory is kept for whom.

    recorded = StreamRecord(monkeypatch)   torch.cuda's streams and events are the stub's from here on
    recorded.note("the work")              a line with the stream that is current
    recorded.lines                         all of it, in order

The host sees the order in which it gives out work; on a GPU, only what a stream waits for has happened before.
"""

import contextlib

import torch


class Event:
    def __init__(self, name: str) -> None:
        self.name = name


class Stream:
    def __init__(self, record: "StreamRecord", name: str) -> None:
        self._record, self.name = record, name

    def wait_stream(self, other: "Stream") -> None:
        self._record.lines.append(f"{self.name} waits for {other.name}")

    def wait_event(self, event: Event) -> None:
        self._record.lines.append(f"{self.name} waits for {event.name}")

    def record_event(self) -> Event:
        self._record.lines.append(f"{self.name} records an event")
        return Event(f"{self.name}'s event")


class StreamRecord:
    """The caller's stream is "main"; those that are made are "side"."""

    def __init__(self, monkeypatch) -> None:
        self.lines: list[str] = []
        self.current = Stream(self, "main")
        monkeypatch.setattr(torch.cuda, "Stream", lambda device=None: Stream(self, "side"))
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: self.current)
        monkeypatch.setattr(torch.cuda, "stream", self._stream)
        keep = lambda tensor, stream: self.lines.append(f"memory is kept for {stream.name}")  # noqa: E731
        monkeypatch.setattr(torch.Tensor, "record_stream", keep)

    def note(self, what: str) -> None:
        self.lines.append(f"{self.current.name}: {what}")

    @contextlib.contextmanager
    def _stream(self, stream: Stream | None):
        before, self.current = self.current, stream or self.current
        yield
        self.current = before
