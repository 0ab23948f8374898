"""What makes a step fast, guarded without a clock: how often it is compiled, what it is given and what is in it."""

import json
import os
import re
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn_jax import drivers, population, sharding, train
from cnn_jax.assemble import assemble
from cnn_jax.data.pipeline import Pipeline
from cnn_jax.drivers import make_driver
from cnn_jax.evaluate import Evaluator
from cnn_jax.plans import Plan
from cnn_jax.step import make_train_step
from tests.processes import ROOT, process_environment

TALK = r"callback|infeed|outfeed|stablehlo\.(send|recv)\b"
FULL = pytest.mark.full


def parts_of(tiny_config, dtype="float32", devices=1):
    """A small residual network: convolutions of three sizes, normalisation, a shift; with everything that a state holds."""
    with tiny_config.unlocked():
        tiny_config.model = dict(name="models.resnet", variant="cifar8", dtype=dtype, overrides={"width": 4})
        tiny_config.augment.update(max_shift_px=1.0, flip="random")
        tiny_config.optim.momentum = 0.9
    return assemble(tiny_config, sharding.make_mesh(jax.devices()[:devices]))


def lowered(parts, driver, steps_per_dispatch):
    config = parts.config
    pipeline = Pipeline(parts.sources["train"], config.batch_size, config.seed)
    step = make_train_step(parts.loss_fn(), parts.optimizer.tx, parts.optimizer.after_step)
    made = make_driver(driver, step, pipeline, parts.root_key(), parts.mesh, steps_per_dispatch)
    return made.lower(parts.abstract_state(), config.batch_size)


@pytest.fixture
def compiled(monkeypatch):
    """Every driver, plan and evaluator made from here on."""
    jax.clear_caches()  # one cache for all functions of a process: full of other tests' programs, it forgets some of these
    made = []
    for kind in (drivers.Streamed, drivers.Resident, Evaluator, Plan):
        begin = kind.__init__
        monkeypatch.setattr(kind, "__init__", lambda self, *a, _b=begin, **k: (made.append(self), _b(self, *a, **k))[1])
    return made


def programs(thing):
    """How many times its functions have been compiled."""
    names = ("_step", "_steps", "_predict")
    return sum(getattr(thing, name)._cache_size() for name in names if hasattr(thing, name))


@pytest.mark.parametrize(
    ("driver", "steps_per_dispatch"),
    [("resident", 4), pytest.param("streamed", 1, marks=FULL), pytest.param("resident", 1, marks=FULL)],
)
def test_a_run_compiles_its_step_once_and_its_evaluation_once(
    tiny_config, tmp_path, compiled, driver, steps_per_dispatch
):
    """Five steps an epoch and a log line every three: those cut no dispatch of many steps, each length being a program."""
    tiny_config.driver, tiny_config.steps_per_dispatch = driver, steps_per_dispatch
    if steps_per_dispatch > 1:
        tiny_config.eval.every_epochs = tiny_config.checkpoint.every_epochs = 0.8  # 4 steps, of 12
        tiny_config.num_epochs = 2.4
    train.run(tiny_config, tmp_path)
    driven, evaluator = [thing for thing in compiled if not isinstance(thing, Evaluator)], compiled[:]
    assert [programs(thing) for thing in driven] == [1]
    sizes = {programs(thing) for thing in evaluator if isinstance(thing, Evaluator)}
    assert sizes == {2}  # of the validation's last batch and the test's: batches are cut to a split that is smaller
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    last = 12 if steps_per_dispatch > 1 else 10
    assert [line["step"] for line in lines if line["split"] == "train"] == sorted({*range(3, last + 1, 3), last})


@FULL
def test_log_lines_within_a_dispatch_tell_what_they_tell_without(tiny_config, tmp_path):
    tiny_config.eval.every_epochs = tiny_config.checkpoint.every_epochs = 2.0
    told = []
    for steps in (1, 7):
        tiny_config.steps_per_dispatch = steps
        train.run(tiny_config, tmp_path / str(steps))
        lines = (tmp_path / str(steps) / "metrics.jsonl").read_text().splitlines()
        told.append([json.loads(line) for line in lines])
    for one, many in zip(*told, strict=True):
        assert (one["step"], one["split"]) == (many["step"], many["split"])
        np.testing.assert_allclose(one["loss"], many["loss"], rtol=1e-4)
        assert one.get("lr") == many.get("lr")


@FULL
def test_a_population_compiles_once(tiny_config, tmp_path, compiled):
    tiny_config.num_epochs = 1
    population.run(tiny_config, {"seed": [0, 1, 2]}, tmp_path, "turns")
    assert [programs(thing) for thing in compiled if isinstance(thing, Plan)] == [1]


@pytest.mark.parametrize(
    ("driver", "steps_per_dispatch", "dtype", "kind"),
    [("streamed", 1, "float32", "f32"), ("resident", 1, "float16", "f16"), ("resident", 3, "bfloat16", "bf16")],
)
def test_what_a_step_is_made_of(tiny_config, driver, steps_per_dispatch, dtype, kind):
    parts = parts_of(tiny_config, dtype)
    text, leaves = lowered(parts, driver, steps_per_dispatch).as_text(), jax.tree.leaves(parts.abstract_state())
    assert text.count("tf.aliasing_output") == len(leaves)  # the state is donated, whole
    assert not re.search(TALK, text)  # from its first operation to its last on the device
    assert "f64" not in text
    # It convolves in what was asked for; what it keeps is float32 all the same: parameters, statistics, momentum, averages.
    assert set(re.findall(r"stablehlo\.convolution.*-> tensor<(?:\d+x)*(\w+)>", text)) == {kind}
    floats = {leaf.dtype for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating)}
    assert floats == {np.dtype(np.float32)}


def test_what_the_guards_look_for_is_found():
    """They could not fail otherwise."""

    def bad(state, x):
        jax.debug.callback(print, x[0])
        return state.astype(jnp.bfloat16), x

    text = jax.jit(bad).lower(jnp.ones(3), jnp.ones(3)).as_text()
    assert re.search(TALK, text) and "tf.aliasing_output" not in text
    with jax.enable_x64(True):
        assert "f64" in jax.jit(lambda x: x * 2).lower(np.ones(2)).as_text()


def test_a_start_imports_what_it_needs(tmp_path):
    """Up to LeNet's first step, and told by the benchmark of it; seconds are not for tests."""
    command = [sys.executable, "-m", "experiments.benchmarks.cold_start", "--one=lenet"]
    environment = process_environment() | {"COLD_START_FOLDER": str(tmp_path)}
    environment["COLD_START_BEGAN"] = repr(time.perf_counter())
    done = subprocess.run(command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, check=True)
    told = json.loads(done.stdout.splitlines()[-1])
    heavy = {
        "scipy",
        "sklearn",
        "matplotlib",
        "tensorflow_datasets",
        "grain",
        "cv2",
        "simplejpeg",
        "orbax",
        "pandas",
        "torch",
    }
    assert heavy & set(told["imported"]) == set()
    assert {"jax", "flax", "optax", "PIL"} <= set(told["imported"])
    assert [stage[0] for stage in told["stages"]][-1] == "first step"


def test_import_of_the_package_is_light():
    """Nothing but the standard library, of which argparse and re are the most."""
    code = "import sys; before = set(sys.modules); import cnn_jax, cnn_jax.main; print(*set(sys.modules) - before)"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, text=True, capture_output=True, check=True)
    assert {name.split(".")[0] for name in done.stdout.split()} - sys.stdlib_module_names == {"cnn_jax"}
