"""cnn_jax as a process of its own, for tests of what only a process can show: exit codes, signals, several processes."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def command(*arguments: object) -> list[str]:
    """The command line of `./launch.sh ARGUMENTS`, less the making of its environment."""
    return [sys.executable, "-m", "cnn_jax.main", *map(str, arguments)]


def process_environment(devices: int = 1) -> dict[str, str]:
    """This environment with so many CPU devices, output that is not held back, and a compilation cache for processes.

    A process that is killed may leave half an entry there, which is a warning to the next, and an error in a test.
    """
    flags = f"--xla_force_host_platform_device_count={devices}"
    cache = str(ROOT / ".cache" / "test_processes")
    return os.environ | {"XLA_FLAGS": flags, "PYTHONUNBUFFERED": "1", "JAX_COMPILATION_CACHE_DIR": cache}


def run_cnn_jax(*arguments: object, devices: int = 1, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a verb to its end; stdout and stderr as text."""
    everything = process_environment(devices) | environment
    return subprocess.run(command(*arguments), env=everything, cwd=ROOT, text=True, capture_output=True, timeout=300)
