"""A web server of files that has faults when it is told to: slow, 503, cut connections, wrong bytes, no file.

python -m tests.tools.web FOLDER SECONDS      serves it, each answer after SECONDS; prints the URL
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

SLOW, STUCK, BUSY, CUT, WRONG, GONE, DENIED = "slow", "stuck", "503", "cut", "wrong", "gone", "denied"


class Web:
    """Serves a folder, with Range.

    Attributes:
        url: of the folder.
        fault: fault(name, number of the request for it, from 1) → one of the faults above, or None.
        asked: name → how many requests there were.
        ranges: whether parts are given; without, everything is.
        stuck: seconds that a STUCK answer takes, unless `freed` is set.
        freed: ends the wait of STUCK answers.
    """

    def __init__(self, folder: Path):
        self.folder, self.asked = folder, {}
        self.fault: Callable[[str, int], str | None] = lambda name, count: None
        self.ranges, self.delay, self.stuck, self.freed = True, 0.0, 2.0, threading.Event()
        web, lock = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            protocol_version, disable_nagle_algorithm = "HTTP/1.1", True

            def do_GET(self) -> None:
                web._answer(self, lock)

            def do_HEAD(self) -> None:
                web._answer(self, lock)

            def log_message(self, *_: Any) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def reset(self) -> None:
        """No faults, nothing asked."""
        self.fault, self.ranges, self.delay, self.stuck = (lambda name, count: None), True, 0.0, 2.0
        self.asked.clear()
        self.freed.clear()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, to: BaseHTTPRequestHandler, lock: threading.Lock) -> None:
        name = to.path.partition("?")[0].strip("/")
        with lock:
            self.asked[name] = count = self.asked.get(name, 0) + 1
        fault, path = self.fault(name, count), self.folder / name
        time.sleep(self.delay + (0.3 if fault == SLOW else 0.0))
        if fault == STUCK:
            self.freed.wait(self.stuck)
        if fault in (BUSY, GONE, DENIED) or not path.is_file():
            to.send_response({BUSY: 503, DENIED: 403}.get(fault or GONE, 404))
            to.send_header("Content-Length", "0")
            to.end_headers()
            return
        size, asked, code, begin = path.stat().st_size, to.headers.get("Range"), 200, 0
        end = size
        if asked and self.ranges:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            code, begin, end = 206, int(first), min(int(last) + 1, size) if last else size
        with open(path, "rb") as file:
            file.seek(begin)
            data = file.read(end - begin)
        if fault == WRONG:
            data = data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :]
        to.send_response(code)
        to.send_header("Content-Length", str(len(data)))
        if code == 206:
            to.send_header("Content-Range", f"bytes {begin}-{end - 1}/{size}")
        to.end_headers()
        if to.command == "GET":
            to.wfile.write(data[: len(data) // 2] if fault == CUT else data)
        if fault == CUT:
            to.close_connection = True


if __name__ == "__main__":
    served = Web(Path(sys.argv[1]))
    served.delay = float(sys.argv[2])
    print(served.url, flush=True)
    sys.stdin.read()  # until the end of who started it
