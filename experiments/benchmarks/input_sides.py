"""What our side of input.py and the peer's must do alike. Imports the standard library only."""

import contextlib
import time
from pathlib import Path

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
IMAGE_PX, RESIZE_PX = 224, 256
SEED = 0


def picture_files(folder: str) -> list[Path]:
    """The JPEG files of a folder and all below it, in order of their names."""
    return sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))


def family(pid: int) -> list[int]:
    """A process and all that descend from it."""
    found = [pid]
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # of a thread that has just ended
            found += [one for child in children.read_text().split() for one in family(int(child))]
    return found


def ticks(pids: list[int]) -> int:
    """The CPU time that these processes have used, in ticks of the clock."""
    total = 0
    for pid in pids:
        try:
            parts = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        total += int(parts[11]) + int(parts[12])
    return total


def settle(pid: int, seconds: float = 0.3) -> None:
    """Waits until this family of processes rests, its buffers full: so that it does not run on in the other's turn."""
    before = ticks(family(pid))
    while True:
        time.sleep(seconds)
        now = ticks(family(pid))
        if now - before <= 2:
            return
        before = now


def time_batches(next_batch, use, ready, drain: int, calls: int, pid: int) -> float:
    """Seconds a batch, of `calls` in a row, after the `drain` that lay ready have been taken; then `settle`."""
    for _ in range(drain):
        last = use(next_batch())
    ready(last)
    begin = time.perf_counter()
    for _ in range(calls):
        last = use(next_batch())
    ready(last)
    seconds = (time.perf_counter() - begin) / calls
    del last
    settle(pid)
    return seconds
