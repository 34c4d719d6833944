"""The thread that decodes ahead."""

import threading
from types import SimpleNamespace

from essl_fast.data.loading.producer import Producer


def test_a_producer_that_its_own_thread_stops_does_not_wait_for_itself():
    """A garbage collection may end a loader in any thread, the decoding one too."""
    producer = object.__new__(Producer)
    producer.stopped, producer.thread = threading.Event(), threading.current_thread()
    producer.shards = SimpleNamespace(pause=lambda: None)
    producer.stop()
    assert producer.stopped.is_set()
