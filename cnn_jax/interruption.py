"""SIGTERM and Ctrl-C, turned into an exception at a place of the run's choosing, where everything can still be saved."""

import signal
from types import FrameType, TracebackType


class Interrupted(Exception):
    """A signal asked the run to stop. `signum` is its number; a shell's exit code for it is 128 + signum."""

    def __init__(self, signum: int):
        super().__init__(f"interrupted by {signal.Signals(signum).name}")
        self.signum = signum


class Interruption:
    """While open, the first SIGTERM or SIGINT is remembered until `poll`; a second one acts at once, as it used to."""

    SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self) -> None:
        self._signum: int | None = None

    def __enter__(self) -> "Interruption":
        self._before = {signum: signal.getsignal(signum) for signum in self.SIGNALS}
        for signum in self.SIGNALS:
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

    def poll(self) -> None:
        """Raises Interrupted if a signal has come."""
        if self._signum is not None:
            signum, self._signum = self._signum, None
            raise Interrupted(signum)
