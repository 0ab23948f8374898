"""A peer in an environment of its own, and trials that take turns with it.

A time on a busy machine says little: a trial counts only while other processes used less than OTHERS_AT_MOST of the
CPU, and every ratio is of medians taken within one run. A record tells how many trials were counted and refused.
"""

import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
OTHERS_AT_MOST = 0.06
TORCH = "2.13.0"


def torch_python(given: str | None) -> str:
    """The interpreter of an environment that has PyTorch: `given`, or one made once under .cache/peers."""
    return given or environment(f"torch-{TORCH}", (f"torch=={TORCH}", "numpy"))


def environment(name: str, requirements: Sequence[str], python: str = sys.executable) -> str:
    """The interpreter of an environment that has `requirements`, made of `python` once under .cache/peers."""
    folder = ROOT / ".cache" / "peers" / name
    inside = folder / "bin" / "python"
    if not (folder / "made").exists():
        print(f"making an environment for {requirements[0]} in {folder.relative_to(ROOT)} (once)", flush=True)
        subprocess.run([python, "-m", "venv", "--clear", str(folder)], check=True)
        subprocess.run([inside, "-m", "pip", "install", "-q", *requirements], check=True)
        (folder / "made").touch()
    return str(inside)


def keep_memory() -> None:
    """Starts this process anew with launch.sh's settings of the C library's memory; so has the peer, its child."""
    memory = re.search("^memory=(.+)$", (ROOT / "launch.sh").read_text(), re.MULTILINE)[1]
    known = os.environ.get("GLIBC_TUNABLES", "")
    if memory not in known:
        environment = os.environ | {"GLIBC_TUNABLES": ":".join(filter(None, [memory, known]))}
        os.execve(sys.executable, sys.orig_argv, environment)


class Peer:
    """A process that answers one JSON line with another."""

    def __init__(self, python: str, script: Path):
        if shutil.which(python) is None:
            raise SystemExit(
                f"error: no interpreter {python} for the peer's side; leave its option out, and one is made"
            )
        # Threads that wait must sleep, or each side would slow the other's turn.
        environment = os.environ | {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"}
        self.process = subprocess.Popen(
            [python, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def ask(self, **request) -> dict:
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the peer ended with code {self.process.wait()}; what it said stands above")
        return json.loads(line)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def time_calls(call: Callable[[], object], ready: Callable[[object], object], calls: int) -> float:
    """Seconds a call, over `calls` of them in a row, the clock stopped when the last result is ready."""
    begin = time.perf_counter()
    for _ in range(calls):
        result = call()
        last, result = result, None
    ready(last)
    return (time.perf_counter() - begin) / calls


class Machine:
    """How much of the CPU other processes took since the last look, from /proc."""

    def __init__(self, peer: Peer):
        self.own = [os.getpid(), peer.process.pid]
        self.last = self._ticks()

    def _ticks(self) -> tuple[float, float, float]:
        fields = [int(n) for n in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
        busy = sum(fields[:8]) - fields[3] - fields[4]  # without idle and waiting for the disk; guests count twice else
        own = 0
        for pid in self.own:
            parts = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
            own += int(parts[11]) + int(parts[12])
        return sum(fields[:8]), busy, own

    def others(self) -> float:
        """The share of all cores' time since the last call that went to other processes."""
        now = self._ticks()
        total, busy, own = (a - b for a, b in zip(now, self.last, strict=True))
        self.last = now
        return max(busy - own, 0) / max(total, 1)


def take_turns(
    ours: Callable[[int], float], theirs: Callable[[int], float], machine: Machine, *, trials: int, seconds: float
) -> dict:
    """Times both sides in turn until `trials` pairs count, or five times as many were refused.

    Returns medians, least and greatest of each side in seconds, the ratio of the medians and of the least, and how
    many pairs counted. Where too few were undisturbed, the least disturbed ones fill up, and "disturbed" says so.
    """
    calls = {side: max(1, round(seconds / max(fn(2), 1e-7))) for side, fn in (("ours", ours), ("theirs", theirs))}
    pairs = []
    machine.others()
    while len(pairs) < 5 * trials and sum(share < OTHERS_AT_MOST for share, *_ in pairs) < trials:
        a, b = ours(calls["ours"]), theirs(calls["theirs"])
        pairs.append((machine.others(), a, b))
    good = [pair for pair in pairs if pair[0] < OTHERS_AT_MOST]
    used = good if len(good) >= trials else sorted(pairs)[:trials]
    sides = {}
    for side, index in (("ours", 1), ("theirs", 2)):
        times = [pair[index] for pair in used]
        sides[side] = {"median_s": statistics.median(times), "min_s": min(times), "max_s": max(times)}
    return {
        **sides,
        "ratio": sides["ours"]["median_s"] / sides["theirs"]["median_s"],
        "ratio_of_least": sides["ours"]["min_s"] / sides["theirs"]["min_s"],
        "trials": len(used),
        "refused": len(pairs) - len(good),
        "disturbed": len(good) < trials,
    }


def git_commit() -> dict:
    """The commit that was measured, and whether the tree had changes."""

    def git(*args):
        return subprocess.run(["git", "-C", str(ROOT), *args], capture_output=True, text=True).stdout.strip()

    return {"commit": git("rev-parse", "HEAD") or None, "dirty": bool(git("status", "--porcelain"))}


def versions() -> dict:
    """What this side runs on."""
    import flax
    import jax
    import jaxlib

    python = ".".join(map(str, sys.version_info[:3]))
    return {"python": python, "jax": jax.__version__, "jaxlib": jaxlib.__version__, "flax": flax.__version__}
