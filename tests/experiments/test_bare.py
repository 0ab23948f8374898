"""Without jaxtyping and ml_collections the recipes are the same, and a program of theirs gives the same."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cnn_jax.recipe import ROOT, load_recipe
from experiments.benchmarks import bare, programs

RECIPES = sorted(path.name for path in (ROOT / "configs").glob("*.py") if path.stem != "common")
SCRIPT = """
import json, sys
for name in ("jaxtyping", "ml_collections", "orbax", "grain", "tensorflow_datasets", "sklearn", "matplotlib", "PIL"):
    sys.modules[name] = None
from experiments.benchmarks import bare
assert bare.install() == ("jaxtyping", "ml_collections"), sys.modules["jaxtyping"]
from pathlib import Path
from cnn_jax.recipe import load_recipe
configs = {}
for name in json.loads(sys.argv[1]):
    configs[name] = load_recipe(Path("configs") / name).get_config(None).to_dict()
from experiments.benchmarks.our_steps import Side
side = Side("LeNet-5", 8)
side.compile_step()
print(json.dumps({"configs": configs, "losses": [float(side.step()) for _ in range(2)]}))
"""


def test_nothing_is_put_in_place_of_what_is_there():
    assert bare.install() == ()


def test_recipes_and_a_step_without_them():
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(RECIPES)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout.splitlines()[-1])
    for name in RECIPES:
        expected = load_recipe(Path("configs") / name).get_config(None).to_dict()
        assert found["configs"][name] == json.loads(json.dumps(expected)), name
    from experiments.benchmarks.our_steps import Side

    side = Side("LeNet-5", 8)
    side.compile_step()
    assert [float(side.step()) for _ in range(2)] == pytest.approx(found["losses"], rel=1e-5)


def test_a_locked_config_takes_no_new_field():
    config = bare.ConfigDict({"a": 1, "b": {"c": 2}}).lock()
    config.a, config.b.c = 3, 4
    config.update(b={"c": 5})
    assert config.to_dict() == {"a": 3, "b": {"c": 5}} and config.get("x", 7) == 7
    with pytest.raises(AttributeError):
        config.x = 1
    with pytest.raises(AttributeError):
        config.b.x = 1
    with config.unlocked():
        config.x = {"y": 1}
    assert config.x.y == 1 and config.copy_and_resolve_references() == config


def test_programs_are_the_recipes_own():
    config = programs.load("airbench94_cifar10.py:muon")
    parts = programs.make_parts(config, programs.CIFAR10)
    assert parts.num_steps == 200 and parts.config.batch_size == 2000 and parts.sources == {}
    batch, shapes = programs.random_batch(programs.CIFAR10, 4, 0), programs.batch_shapes(programs.CIFAR10, 4)
    assert {key: (a.shape, a.dtype) for key, a in batch.items()} == {k: (s.shape, s.dtype) for k, s in shapes.items()}
