"""SIGTERM and Ctrl-C, turned into an exception at a place of the run's choosing, where everything can still be saved."""

import os
import signal
from types import FrameType, TracebackType


class Interrupted(Exception):
    """A signal asked the run to stop. `signum` is its number; a shell's exit code for it is 128 + signum."""

    def __init__(self, signum: int):
        super().__init__(f"interrupted by {signal.Signals(signum).name}")
        self.signum = signum


class Interruption:
    """While open, the first SIGTERM or SIGINT is remembered until `poll`; a second one acts at once, as it used to.

    num_processes: where it exceeds 1, a signal to any process stops all of them at the same poll, which must be called
    equally often in each. SIGTERM is jax's then, which tells the others and finds the poll that none has passed; Ctrl-C
    becomes a SIGTERM.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self, num_processes: int = 1) -> None:
        self._signum: int | None = None
        self._is_shared, self._num_polls = num_processes > 1, 0

    def __enter__(self) -> "Interruption":
        signals = (signal.SIGINT,) if self._is_shared else self.SIGNALS
        self._before = {signum: signal.getsignal(signum) for signum in signals}
        for signum in signals:
            signal.signal(signum, self._remember)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._restore()

    def _restore(self) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def _remember(self, signum: int, frame: FrameType | None) -> None:
        self._signum = signum
        self._restore()  # of both: who sends the one and then the other means at once, too
        if self._is_shared:
            os.kill(os.getpid(), signal.SIGTERM)

    def poll(self) -> None:
        """Raises Interrupted if a signal has come."""
        if self._is_shared:
            from jax.experimental import multihost_utils

            self._num_polls += 1
            if not multihost_utils.reached_preemption_sync_point(self._num_polls):
                return
            self._signum = self._signum or signal.SIGTERM
        if self._signum is not None:
            signum, self._signum = self._signum, None
            raise Interrupted(signum)
