"""Containers that behave badly, or that count what is read: stand-ins for what `opening.open_file` returns."""

from __future__ import annotations

import av


class Wrapped:
    """Passes everything on to an open container."""

    def __init__(self, container):
        self.container = container

    def __getattr__(self, name):
        return getattr(self.container, name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.container.close()


class Counted(Wrapped):
    """Counts the packets that are read, and the seeks, in `seen`."""

    def __init__(self, container, seen: dict[str, int]):
        super().__init__(container)
        self.seen = seen

    def seek(self, *args, **how):
        self.seen["seeks"] += 1
        self.container.seek(*args, **how)

    def demux(self, stream):
        for packet in self.container.demux(stream):
            self.seen["packets"] += 1
            yield packet


class Astray(Wrapped):
    """Its index leads 3 s too far. `sought` gets the ticks of all seeks."""

    def __init__(self, container, sought: list[int]):
        super().__init__(container)
        self.sought = sought

    def seek(self, tick, **how):
        self.sought.append(tick)
        self.container.seek(tick + 3000, **how)


class Adrift(Astray):
    """Its index leads nowhere: every seek fails."""

    def seek(self, tick, **how):
        self.sought.append(tick)
        raise av.error.PermissionError(1, "Operation not permitted")  # as FFmpeg says of some damaged files


class Flagged(Wrapped):
    """Gives out the packets that are shown at `ticks` as cut off."""

    def __init__(self, container, ticks: list[int]):
        super().__init__(container)
        self.ticks = ticks

    def demux(self, *streams):
        for packet in self.container.demux(*streams):
            yield CutOff(packet) if packet.pts in self.ticks else packet


class CutOff:
    """A packet that is known to be cut off."""

    is_corrupt = True

    def __init__(self, packet):
        self.packet = packet

    def __getattr__(self, name):
        return getattr(self.packet, name)
