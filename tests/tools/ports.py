"""Ports that nobody else is given while a test's processes start."""

import random
import socket
from pathlib import Path

RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")  # for connections, and for servers that ask for port 0


def free_port() -> int:
    """A port that is free, from below those that the kernel gives away where that leaves enough of them."""
    lowest = int(RANGE.read_text().split()[0]) if RANGE.exists() else 0
    for _ in range(100 if lowest > 12_000 else 0):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port := random.SystemRandom().randrange(10_000, lowest)))
                return port
            except OSError:
                continue  # a server of this machine has it
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
