"""Eight devices on one CPU, no silent broadcasting of ranks, shapes in signatures checked; set before jax is imported."""

import os

# Eight devices on few cores: programs that are dispatched ahead of one another may take the threads that a sum over the
# devices waits for, on a busy machine for ever; XLA ends the process after 40 s of that.
os.environ["JAX_CPU_ENABLE_ASYNC_DISPATCH"] = "false"
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8 --xla_cpu_collective_call_terminate_timeout_seconds=1200"
)
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"

import sys
from pathlib import Path

# A program that many tests run is compiled once. What takes less than a moment is not worth a file.
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(Path(__file__).resolve().parent.parent / ".cache" / "tests")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import jaxtyping
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # configs/ and experiments/ are no installed packages
jaxtyping.install_import_hook("cnn_jax", "beartype.beartype")


@pytest.fixture
def tiny_config():
    """A run of seconds: LeNet-5 on X and O, a few steps an epoch, everything that a state can hold switched on."""
    from configs.common import base

    config = base()
    config.model.name, config.model.variant = "models.lenet", "modern"
    config.data = XO
    config.batch_size, config.num_epochs = 16, 2
    config.optim.lr, config.optim.ema_decay = 0.02, 0.9
    config.log.every_steps, config.log.use_tensorboard = 3, False
    return config


XO = {
    "name": "data.xo", "data_seed": 0, "size_px": 32, "num_train": 80, "num_validation": 40, "num_test": 50,
    "max_shift_px": 2.0, "max_rotation_deg": 10.0, "scale_range": (0.8, 1.1), "stroke_px": (1.0, 3.0),
}  # fmt: skip
