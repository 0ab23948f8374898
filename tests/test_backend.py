"""What JAX does not find, or has no room for, in one line; which batch would fit, by arithmetic and by the compiler."""

import json
import subprocess

import jax
import jax.numpy as jnp
import pytest

from cnn_jax import backend, main
from cnn_jax.drivers import Resident, Streamed
from cnn_jax.train import run
from tests.processes import ROOT, run_cnn_jax

XO = "configs/xo.py"


def refused(**environment):
    """The one line with which a run is refused."""
    done = run_cnn_jax("train", XO, "--workdir=/nowhere/run", **environment)
    assert done.returncode == 1 and done.stdout == "", done.stdout
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def test_an_accelerator_whose_build_is_missing_names_the_extra():
    words = refused(JAX_PLATFORMS="cuda,cpu")  # which JAX passes over in silence
    assert "cuda is asked for (by ACCELERATOR or JAX_PLATFORMS), and its build of JAX is not installed" in words
    assert "ACCELERATOR=cuda ./launch.sh" in words and "cnn_jax[cuda]" in words
    assert "cnn_jax[tpu]" in backend._why_not("tpu", None)


@pytest.mark.parametrize(
    ("asked", "raised", "says"),
    [
        ("cuda", AssertionError(), "cuda is asked for"),  # JAX's own word, where there is none
        ("gpu", RuntimeError("Unable to initialize backend 'rocm'"), "cnn_jax[cuda]"),
        ("abacus", RuntimeError("not in the list of known backends"), "no device (JAX_PLATFORMS=abacus): not in the"),
        ("", RuntimeError("no device at all\nmore"), "no device at all"),
    ],
)
def test_what_jax_fails_with_becomes_a_line(monkeypatch, asked, raised, says):
    def devices():
        raise raised

    monkeypatch.setattr(jax, "devices", devices)
    before = jax.config.jax_platforms
    try:
        jax.config.update("jax_platforms", asked)
        with pytest.raises(ValueError) as told:
            backend.start()
    finally:
        jax.config.update("jax_platforms", before)
    assert says in str(told.value) and "\n" not in str(told.value)


def test_an_accelerator_that_is_not_there(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda package: object())  # as if its build were installed
    why = backend._why_not("cuda", RuntimeError("no CUDA-capable device is detected\nmore"))
    assert "there is no NVIDIA GPU here (no CUDA-capable device is detected)" in why and "\n" not in why
    assert "there is no TPU here (JAX sees none)" in backend._why_not("tpu", None)


def test_launch_sh_hands_on_what_is_asked_for():
    line = next(line for line in (ROOT / "launch.sh").read_text().splitlines() if "export JAX_PLATFORMS" in line)
    for accelerator, given, expected in (
        ("cuda", "", "cuda,cpu"),
        ("tpu", "", "tpu,cpu"),
        ("cuda", "cpu", "cpu"),
        ("",) * 3,
    ):
        script = (
            f"set -euo pipefail; ACCELERATOR={accelerator}; JAX_PLATFORMS={given}; {line}\necho ${{JAX_PLATFORMS:-}}"
        )
        assert subprocess.run(["bash", "-c", script], text=True, capture_output=True).stdout.strip() == expected


def test_a_flag_that_xla_does_not_know():
    assert "does not know --xla_of_tomorrow=1" in refused(XLA_FLAGS="--xla_of_tomorrow=1")


# Bytes of a batch, each with what `largest_batch` must find.
def line(batch):
    return 1000 + 10 * batch


def stairs(batch):
    return 4096 * -(-batch // 64)


@pytest.mark.parametrize(
    ("bytes_of", "batch_size", "limit", "multiple", "expected"),
    [
        (line, 128, 2279, 1, 127),  # 128 needs 2,280
        (line, 128, 2000, 1, 100),
        (line, 128, 2000, 8, 96),
        (line, 128, 1640, 1, 64),
        (line, 128, 1639, 1, 32),  # the half needs 1,640: halves from there on
        (line, 128, 1320, 32, 32),
        (line, 128, 1000, 1, 0),  # what no batch is needed for fills it
        (line, 1, 500, 1, 0),
        (line, 8, 1040, 8, 0),  # 8 devices: no smaller batch divides among them
        (stairs, 128, 5000, 1, 64),  # the line promises 78, which the compiler refuses
        (lambda batch: float("inf") if batch > 16 else 10, 128, 100, 1, 16),  # the compiler itself runs out
    ],
)
def test_the_batch_that_fits(bytes_of, batch_size, limit, multiple, expected):
    asked = []
    found = backend.largest_batch(lambda batch: asked.append(batch) or bytes_of(batch), batch_size, limit, multiple)
    assert found == expected and found % multiple == 0
    assert not found or bytes_of(found) <= limit
    assert len(set(asked)) <= 3 or found < batch_size // 2  # each may be a compilation


def test_the_line_says_what_is_needed_and_what_fits():
    gib = 2**30
    says = backend.out_of_memory(lambda batch: batch * gib, 256, 139 * gib, 8)
    assert says == (
        "config.batch_size=256 does not fit in the device's memory: a step needs 256.00 GiB, and JAX may take 139.00 GiB; "
        "config.batch_size=136 would fit, or keep yours: config.accumulate_steps takes a batch in parts"
    )
    assert "no smaller batch was found to fit" in backend.out_of_memory(lambda batch: gib, 256, 1)
    assert "does not fit in the device's memory; lower it" in backend.out_of_memory(lambda batch: 1 / 0, 256, None)


def test_the_compiler_counts_what_a_program_needs():
    def step(state, x):
        return state + 1, jnp.sum(jnp.sort(x @ x.T, axis=0))

    state, x = jnp.zeros(1000), jnp.zeros((256, 4))
    kept, given = (
        backend.program_bytes(jax.jit(step, donate_argnums=donated).lower(state, x)) for donated in ((), (0,))
    )
    assert kept - given == state.nbytes  # what is donated is there once
    assert given >= state.nbytes + x.nbytes + 4 * 256 * 256  # the product lies in memory


def test_a_machine_of_its_own_kind_is_told_apart():
    assert backend.memory_limit() is None  # the CPU does not tell
    assert not backend.is_out_of_memory(ValueError("RESOURCE_EXHAUSTED"))
    assert backend.is_out_of_memory(jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes."))


@pytest.mark.parametrize(
    ("driver", "steps_per_dispatch"),
    [
        ("resident", 1),
        pytest.param("resident", 2, marks=pytest.mark.full),
        pytest.param("streamed", 1, marks=pytest.mark.full),
    ],
)
def test_a_first_step_without_room_says_which_batch_would_fit(
    tiny_config, tmp_path, monkeypatch, driver, steps_per_dispatch
):
    """The compiler's own count, at a limit that is made up: what half the batch needs."""
    tiny_config.driver, tiny_config.steps_per_dispatch = driver, steps_per_dispatch
    say, asked = backend.out_of_memory, []

    def with_a_limit(bytes_of, batch_size, limit, multiple):
        assert (batch_size, limit, multiple) == (16, None, 8)
        asked.extend(map(bytes_of, (8, 16)))
        return say(dict(zip((8, 16), asked, strict=True)).get, batch_size, int(asked[0]), multiple)

    def no_room(*args):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.")

    monkeypatch.setattr(backend, "out_of_memory", with_a_limit)
    for kind in (Streamed, Resident):
        monkeypatch.setattr(kind, "__call__", no_room)
    with pytest.raises(ValueError, match=r"config.batch_size=16 does not fit .* config.batch_size=8 would fit") as told:
        run(tiny_config, tmp_path)
    assert "\n" not in str(told.value)
    assert 0 < asked[0] <= asked[1]  # equal where a loop's most needy moment is of gradients, which know of no batch
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["status"] == "failed" and "config.batch_size=8 would fit" in record["error"]


def test_elsewhere_what_a_device_has_no_room_for_is_a_line(capsys):
    error = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\nmore")
    assert main._report(error) == 1
    told = capsys.readouterr().err
    assert told.startswith("error: the device is out of memory (RESOURCE_EXHAUSTED") and told.count("\n") == 1
    assert "config.eval.batch_size" in told
