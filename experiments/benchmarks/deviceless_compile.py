"""deviceless.py's other half, in an environment that has JAX for CUDA: compiles training steps for an H200, prints counts.

Takes a JSON list of programs for its argument, writes one JSON line for each. No GPU is needed, and none is used: fusions,
layouts, copies, the number of kernels and bytes are the real ones; the algorithms within a kernel are not chosen, since that
takes a device to time them on.
"""

import os
import sys
from pathlib import Path

os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"  # no driver to ask
os.environ["JAX_PLATFORMS"] = ""
os.environ["XLA_FLAGS"] = "--xla_gpu_autotune_level=0"
ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import json
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax._src import xla_bridge
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments.benchmarks import bare

bare.install()

from experiments.benchmarks import hlo, programs

TARGET = Path(__file__).with_name("h200.txtpb")
_canonical = xla_bridge.canonicalize_platform


def _canonical_or_cuda(name: str) -> str:
    """No GPU is registered here, yet lowering for one asks for it by its alias (jax-ml/jax issue 23971)."""
    try:
        return _canonical(name)
    except RuntimeError:
        return "cuda" if name in ("gpu", "cuda") else name


def compile_for_h200(function: Callable, *shapes: Any, **options: Any) -> jax.stages.Compiled:
    """The compiled program of `jax.jit(function, **options)` on trees of shapes."""
    topology = topologies.get_topology_desc(platform="cuda", target_config=TARGET.read_text(), topology="1x1x1")
    here = NamedSharding(Mesh(np.array(topology.devices[:1]), ("data",)), PartitionSpec())
    placed = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), shapes)
    return jax.jit(function, **options).lower(*placed).compile()


def measure(recipe: str, data: str, batch_size: int, augments: bool, fields: dict[str, Any]) -> dict:
    """The counts of a recipe's training step."""
    config, facts = programs.load(recipe), getattr(programs, data)
    for field, value in fields.items():
        *sections, last = field.split(".")
        section = config
        for name in sections:
            section = section[name]
        section[last] = value
    config.batch_size = batch_size
    if not augments:
        config.augment.update(crop_padding_px=0, flip="none")
    parts = programs.make_parts(config, facts)
    state, key = parts.abstract_state(), jax.eval_shape(parts.root_key)
    shapes = programs.batch_shapes(facts, batch_size)
    begin = time.perf_counter()
    compiled = compile_for_h200(programs.train_step_of(parts), state, shapes, key, donate_argnums=0)
    seconds, text = time.perf_counter() - begin, compiled.as_text()
    if folder := os.environ.get("DEVICELESS_HLO"):
        (Path(folder) / f"{recipe.split('.')[0]}{'-augmented' * augments}.hlo").write_text(text)
    temporary = compiled.memory_analysis().temp_size_in_bytes
    counts = hlo.count(text, batch_size)
    return {
        **counts,
        "not_donated": len(jax.tree.leaves(state)) - counts["donated"],
        "temporary_gib": temporary / 2**30,
        "compile_s": round(seconds, 1),
    }


def main() -> None:
    """The command."""
    xla_bridge.canonicalize_platform = _canonical_or_cuda
    jax.default_backend = lambda: "gpu"  # what the layers ask to choose a form; the CPU is only where tracing happens
    for program in json.loads(sys.argv[1]):
        print(json.dumps(program | measure(**{key: program[key] for key in ARGUMENTS})), flush=True)
    print(json.dumps({"versions": {"jax": jax.__version__, "jaxlib": jax.lib.__version__}}))


ARGUMENTS = ("recipe", "data", "batch_size", "augments", "fields")

if __name__ == "__main__":
    main()
