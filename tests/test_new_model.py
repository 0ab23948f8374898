"""A model and a recipe are one file each: thrown into a copy of the tree, they are found, tested and trained as they are."""

import os
import shutil
import subprocess
import sys

import pytest

from tests.processes import ROOT

MODEL = '''"""A throw-away network.  Nobody, "Nothing", 2026, https://example.org

Differs from the paper: nothing.
"""

from dataclasses import dataclass

import flax.linen as nn
import jax.numpy as jnp

from cnn_jax.layers.conv import Conv
from cnn_jax.layers.pool import global_average_pool


@dataclass(frozen=True)
class Variant:
    input_shape: tuple[int, int, int] = (32, 32, 1)


VARIANTS = {"only": Variant()}


class Throwaway(nn.Module):
    num_classes: int | None
    dtype: object

    @nn.compact
    def __call__(self, x, *, train):
        feats = {"conv1": nn.relu(Conv(4, (3, 3), name="conv1", dtype=self.dtype)(x.astype(self.dtype)))}
        x = global_average_pool(feats["conv1"])
        return (None if self.num_classes is None else nn.Dense(self.num_classes, dtype=self.dtype, name="fc")(x)), feats


def build(variant, *, num_classes=10, dtype=jnp.float32):
    """The network."""
    return Throwaway(num_classes, dtype)
'''


@pytest.mark.full
def test_one_file_and_one_config_suffice(tmp_path):
    for folder in ("cnn_jax", "configs", "tests"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "cnn_jax" / "models" / "throwaway.py").write_text(MODEL)
    recipe = (ROOT / "configs" / "lenet_digits.py").read_text()
    for old, new in (
        ("models.lenet", "models.throwaway"),
        ("lenet_digits", "throwaway_digits"),
        ('"modern"', '"only"'),
    ):
        recipe = recipe.replace(old, new)
    (tmp_path / "configs" / "throwaway_digits.py").write_text(recipe)
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}  # one device

    def run(*arguments):
        done = subprocess.run(
            [sys.executable, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=500
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    out = run(
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "tests/test_contracts.py",
        "tests/test_configs.py",
        "-k",
        "throwaway and not overfits",
    )
    assert int(out.rpartition(" passed")[0].split()[-1]) >= 8
    run(
        "-m",
        "cnn_jax.main",
        "train",
        "configs/throwaway_digits.py",
        f"--workdir={tmp_path / 'run'}",
        "--config.num_epochs=2",
    )
    assert "throwaway:only" in run("-m", "cnn_jax.main", "analyze", "throwaway")
