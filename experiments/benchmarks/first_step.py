"""From a command to a network's first training step: seconds of import, of making and compiling, and of all, as a JSON line.

    python -m experiments.benchmarks.first_step NETWORK BATCH DTYPE [CACHE]

CACHE is a directory of compiled programs: empty for a cold start.
"""

import time

BEGIN = time.perf_counter()

import json
import os
import sys


def main() -> None:
    """The command."""
    name, batch_size, dtype, *cache = sys.argv[1:]
    if cache:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = cache[0]
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
    from experiments.benchmarks import bare

    bare.install()
    from experiments.benchmarks.our_steps import Side

    imported = time.perf_counter()
    side = Side(name, int(batch_size), dtype)
    made = time.perf_counter()
    side.compile_step()
    compiled = time.perf_counter()
    loss = float(side.step())
    done = time.perf_counter()
    print(
        json.dumps(
            {
                "import_s": imported - BEGIN,
                "make_s": made - imported,
                "compile_s": compiled - made,
                "step_s": done - compiled,
                "all_s": done - BEGIN,
                "loss": loss,
            }
        )
    )


if __name__ == "__main__":
    main()
