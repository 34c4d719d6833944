"""A signal ends training after the current step, with everything saved.

Ctrl-C, SIGTERM and SIGHUP (the terminal is gone) do, and so do the warnings of schedulers before their limits: SIGUSR1
(SLURM), SIGUSR2 (submitit, Grid Engine) and SIGXCPU (Grid Engine, `ulimit -t`).

    with Stopping() as stopping:
        for step, batch in ...:
            ...
            if signum := stopping.agreed(world):      # every rank gets the same answer
                save(); raise Stopped(signum)

The first signal is only noted, and training looks at the note between two steps. The second ends the process at once.
"""

import contextlib
import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

import torch

from essl_fast.runtime import distributed
from essl_fast.runtime.distributed import ALONE, World

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)
_NOTICE = b"\nstopping after this step, with a checkpoint; once more stops at once\n"


class Stopped(KeyboardInterrupt):
    """Training ended because of a signal; ``code`` is the exit status that shells use for it, 128 + the signal."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.code = 128 + signum


class Stopping:
    """Within the context the first of SIGNALS is noted, and a second one raises :class:`Stopped` at once.

    In a thread other than the main one it changes nothing, because signals cannot be caught there.
    """

    def __init__(self) -> None:
        self.signum = 0  # the first signal; 0: there was none
        self._before: dict[int, Any] = {}  # signal -> its handler

    def __enter__(self) -> "Stopping":
        if threading.current_thread() is threading.main_thread():
            for signum in SIGNALS:
                before = signal.getsignal(signum)
                if before not in (signal.SIG_IGN, None):  # a shell lets its background jobs ignore signals
                    self._before[signum] = signal.signal(signum, self._note)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        while self._before:
            signum, handler = self._before.popitem()
            signal.signal(signum, handler)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self.signum:
            if signum == signal.SIGXCPU:  # the kernel repeats it every second
                return
            raise Stopped(signum)
        self.signum = signum
        with contextlib.suppress(OSError):  # the terminal may be gone
            os.write(2, _NOTICE)  # not print: the signal may have interrupted one

    def agreed(self, world: World = ALONE) -> int:
        """The signal that any rank has received, the same on all ranks; 0 if none. Every rank has to call it.

        The ranks talk through the CPU, so that none waits for its GPU.
        """
        if world.size == 1:
            return self.signum
        asked = distributed.total(torch.tensor([int(self.signum == signum) for signum in SIGNALS]), world).tolist()
        return next((signum for signum, ranks in zip(SIGNALS, asked, strict=True) if ranks), 0)
