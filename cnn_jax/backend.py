"""The devices that JAX finds, and in one line what is amiss where it finds none, an unknown XLA flag, or too little memory.

`check_flags` comes before JAX is started: XLA ends the process when it meets a flag that it does not know.
"""

import functools
import glob
import importlib.util
import math
import os
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cnn_jax.resolve import first_line

ROOT = Path(__file__).resolve().parent.parent  # whose .cache it is

# What asks for it in JAX_PLATFORMS -> what it is, the extra that installs its build of JAX, a package of that extra.
ACCELERATORS = {
    "cuda": ("NVIDIA GPU", "cuda", "jax_cuda13_plugin"),
    "gpu": ("NVIDIA GPU", "cuda", "jax_cuda13_plugin"),
    "tpu": ("TPU", "tpu", "libtpu"),
}


def check_flags(flags: str) -> None:
    """Lets a copy of this process read XLA_FLAGS, before JAX is started. ValueError for what this version does not know."""
    if not flags or not hasattr(os, "fork"):
        return
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")  # as jax does before it imports jaxlib: else that chatters
    from jaxlib import version, xla_client

    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", DeprecationWarning
        )  # of threads: NumPy's, which wait, and which the copy never asks
        child = os.fork()
    if child == 0:
        os.dup2(writer, 2)
        xla_client.CompileOptions()  # reads them; ends the process where they are wrong
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, errors="replace") as said:
        words = said.read()
    _, status = os.waitpid(child, 0)
    if status == 0:
        return
    unknown = re.search(r"Unknown flags? in XLA_FLAGS: (.*)", words)
    told = f"does not know {unknown[1].strip()}" if unknown else f"cannot read {flags!r}"
    raise ValueError(f"XLA_FLAGS: jaxlib {version.__version__} {told}; take it out, or mend it")


def configure_jax(starts: bool = True) -> None:
    """Starts JAX. Its compilation cache persists, in .cache of the clone unless JAX_COMPILATION_CACHE_DIR says otherwise.

    starts: False where this process may be one of several, which must find one another before `start()`.
    Raises ValueError for an accelerator that is not there.
    """
    import jax

    cache = Path(os.environ.get("JAX_COMPILATION_CACHE_DIR", ROOT / ".cache" / "jax"))
    jax.config.update("jax_compilation_cache_dir", str(cache))
    show = warnings.showwarning

    def mend(message: Warning | str, *rest: Any, **more: Any) -> None:
        # A process that was killed while it wrote an entry leaves half of it, which jax would warn of ever after.
        damaged = re.search(r"Error reading persistent compilation cache entry for '([^']+)'", str(message))
        if not damaged:
            show(message, *rest, **more)
        for entry in cache.glob(f"{glob.escape(damaged[1])}-*") if damaged else ():
            entry.unlink(missing_ok=True)

    warnings.showwarning = mend
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    if starts:
        start()


def start() -> None:
    """Starts JAX on the devices that are asked for. ValueError where they are not there, or their build of JAX is not."""
    import jax

    asked = (jax.config.jax_platforms or "").split(",")[0]
    try:
        platform, error = jax.devices()[0].platform, None
    except (RuntimeError, AssertionError) as failed:  # the latter where JAX_PLATFORMS names cuda, and there is none
        platform, error = "", failed
    if error is None and not (
        asked in ACCELERATORS and platform == "cpu"
    ):  # of cuda,cpu JAX passes over cuda in silence
        return
    raise ValueError(_why_not(asked, error)) from error


def _why_not(asked: str, error: Exception | None) -> str:
    words = first_line(error) if error and str(error) else "JAX sees none"
    if asked not in ACCELERATORS:
        return f"JAX finds no device (JAX_PLATFORMS={asked}): {words}"
    what, extra, package = ACCELERATORS[asked]
    by = "by ACCELERATOR or JAX_PLATFORMS"
    if importlib.util.find_spec(package) is None:
        return (
            f"{asked} is asked for ({by}), and its build of JAX is not installed: ACCELERATOR={extra} ./launch.sh ... "
            f"installs it (the extra cnn_jax[{extra}]); JAX_PLATFORMS=cpu does without"
        )
    return f"{asked} is asked for ({by}), and there is no {what} here ({words}); JAX_PLATFORMS=cpu does without"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether it is a device's word for that."""
    return type(error).__name__ == "JaxRuntimeError" and "RESOURCE_EXHAUSTED" in str(error)


def memory_limit() -> int | None:
    """Bytes that JAX may take of a device; None where it does not tell, as on the CPU."""
    import jax

    return (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")


def program_bytes(lowered: Any) -> float:
    """What a lowered program takes of each device, as the compiler counts it; infinite where it finds no room itself."""
    import jax

    try:
        memory = lowered.compile().memory_analysis()
    except jax.errors.JaxRuntimeError as error:
        if is_out_of_memory(error):
            return math.inf
        raise
    sizes = memory.argument_size_in_bytes, memory.output_size_in_bytes, memory.temp_size_in_bytes
    return float(sum(sizes) - memory.alias_size_in_bytes)  # what is donated is an argument and an output at once


def largest_batch(bytes_of: Callable[[int], float], batch_size: int, limit: int, multiple: int = 1) -> int:
    """The largest batch below `batch_size` that is found to fit; 0 where none is.

    bytes_of: what a batch needs. Each call may compile, so that few are made: two for a straight line through the batch and
    half of it, one for what the line promises, then one for each further half. limit: in bytes. multiple: of what number a
    batch must be a multiple.
    """
    half = batch_size // 2 // multiple * multiple
    if half and bytes_of(half) <= limit:
        per_example = (bytes_of(batch_size) - bytes_of(half)) / (batch_size - half)
        more = int((limit - bytes_of(half)) / per_example) if per_example > 0 else 0
        between = min(half + more, batch_size - 1) // multiple * multiple
        return between if between > half and bytes_of(between) <= limit else half
    while half and bytes_of(half) > limit:
        half = half // 2 // multiple * multiple
    return half


def out_of_memory(bytes_of: Callable[[int], float], batch_size: int, limit: int | None, multiple: int = 1) -> str:
    """One line for a step that a device has no room for: what it needs, and which batch would fit. As `largest_batch`;
    limit None: not known."""
    says = f"config.batch_size={batch_size} does not fit in the device's memory"
    in_parts = "config.accumulate_steps takes a batch in parts"
    if limit is None:
        return f"{says}; lower it, or keep it: {in_parts}"
    bytes_of = functools.cache(bytes_of)
    needs = bytes_of(batch_size)
    needed = "more than the compiler can place" if math.isinf(needs) else f"{needs / 2**30:,.2f} GiB"
    says += f": a step needs {needed}, and JAX may take {limit / 2**30:,.2f} GiB"
    fits = largest_batch(bytes_of, batch_size, limit, multiple)
    if not fits:
        return f"{says}; no smaller batch was found to fit: take a smaller network, or smaller pictures"
    return f"{says}; config.batch_size={fits} would fit, or keep yours: {in_parts}"
