"""What a long job shows: a live line on a terminal, elsewhere plain lines some seconds apart."""

import shutil
import sys
import time
from types import TracebackType


class ProgressLine:
    """How far a job is, and how long it will last, judged by bytes: pictures are of very different sizes.

    name: what is being done. total_bytes: of the whole job; 0 where nobody knows. unit: what `num` counts, if anything.
    """

    def __init__(self, name: str, total_bytes: int, unit: str = "", every_s: float | int = 5.0):
        self._name, self._total, self._unit = name, total_bytes, unit
        self._is_live = sys.stdout is not None and sys.stdout.isatty()
        self._every_s = 0.2 if self._is_live else every_s
        self._started = self._shown = time.monotonic()
        self.num, self.num_bytes = 0, 0

    def advance(self, num_bytes: int, num: int = 1) -> None:
        """So much more is done."""
        self.num, self.num_bytes = self.num + num, self.num_bytes + num_bytes
        now = time.monotonic()
        if now - self._shown >= self._every_s:
            self._shown = now
            self._show(now)

    def rate(self) -> float:
        """Units a second since the start."""
        return self.num / max(time.monotonic() - self._started, 1e-9)

    def _show(self, now: float | int) -> None:
        elapsed = now - self._started
        parts = [self._name]
        if self._unit:
            parts += [f"{self.num:,} {self._unit}", f"{self.num / elapsed:,.0f} {self._unit}/s"]
        else:
            parts += [f"{self.num_bytes / elapsed / 1e6:,.0f} MB/s"]
        if self._total:
            done = min(self.num_bytes / self._total, 1.0)
            parts += [f"{done:.1%}", f"{clock(elapsed * (1 - done) / max(done, 1e-9))} left"]
        line = "  ".join(parts)
        if self._is_live:
            print("\r" + line[: shutil.get_terminal_size().columns - 1] + "\x1b[K", end="", flush=True)
        else:
            print(line, flush=True)

    def __enter__(self) -> "ProgressLine":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Leaves the terminal's line empty for what comes next."""
        if self._is_live:
            print("\r\x1b[K", end="", flush=True)


def clock(seconds: float | int) -> str:
    """m:ss, or h:mm:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
