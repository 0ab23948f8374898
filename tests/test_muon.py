"""Muon against a numpy restatement of its rule, and against what its step is to be."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cnn_jax.muon import is_muons, orthogonalized, orthogonalized_kernels, scale_by_muon
from tests.optimizers import make

RNG = np.random.default_rng(0)


def newton_schulz(matrix, num_steps):
    """On the singular values, where the iteration is a polynomial of each by itself."""
    u, s, v = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
    s = s / np.sqrt(np.sum(s**2))
    for _ in range(num_steps):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return u @ np.diag(s) @ v


@pytest.mark.parametrize("shape", [(4, 9), (9, 4), (6, 6), (1, 5)])
@pytest.mark.parametrize("num_steps", [1, 3, 5])
def test_the_iteration_is_a_polynomial_of_the_singular_values(shape, num_steps):
    matrices = RNG.normal(size=(3, *shape)).astype(np.float32)
    actual = orthogonalized(jnp.asarray(matrices), num_steps)
    for matrix, made in zip(matrices, actual, strict=True):
        np.testing.assert_allclose(made, newton_schulz(matrix, num_steps), rtol=1e-4, atol=1e-4)


def test_singular_values_come_near_1_and_zeros_stay():
    made = orthogonalized(jnp.asarray(RNG.normal(size=(2, 32, 100)), jnp.float32), 5)
    values = np.linalg.svd(np.asarray(made), compute_uv=False)
    assert values.min() > 0.5 and values.max() < 1.3
    assert not np.any(orthogonalized(jnp.zeros((1, 3, 5)), 5))


def test_kernels_are_matrices_of_one_row_an_output_whatever_the_order_of_their_windows():
    kernels = {
        "a": RNG.normal(size=(3, 3, 4, 8)).astype(np.float32),
        "b": RNG.normal(size=(3, 3, 4, 8)).astype(np.float32),
        "c": RNG.normal(size=(5, 2, 7)).astype(np.float32),  # of one axis
    }
    made = orthogonalized_kernels(jax.tree.map(jnp.asarray, kernels), 3)
    for name, kernel in kernels.items():
        rows = np.moveaxis(kernel, -1, 0)
        by_hand = newton_schulz(rows.reshape(len(rows), -1), 3).reshape(rows.shape)
        np.testing.assert_allclose(np.moveaxis(made[name], -1, 0), by_hand, rtol=1e-3, atol=1e-4)


def test_muon_is_for_kernels_with_a_window():
    leaves = {"conv1/kernel": (3, 3, 1, 4), "conv1d/kernel": (3, 1, 4), "fc1/kernel": (8, 4), "conv1/bias": (4,)}
    chosen = [name for name, shape in leaves.items() if is_muons(name, jax.ShapeDtypeStruct(shape, jnp.float32))]
    assert chosen == ["conv1/kernel", "conv1d/kernel"]


SHAPES = {"conv1": {"kernel": (3, 3, 2, 5), "bias": (5,)}, "fc1": {"kernel": (5, 3)}}


def drawn(seed):
    rng = np.random.default_rng(seed)
    return {
        layer: {name: rng.normal(size=shape).astype(np.float32) for name, shape in leaves.items()}
        for layer, leaves in SHAPES.items()
    }


@pytest.mark.parametrize("nesterov", [False, True])
def test_steps_follow_the_rule(nesterov):
    """Kernels by airbench94_muon's rule, the rest by PyTorch's SGD; rates by group, decay of the rest alone."""
    groups = (("conv1/bias", 0.5, 2.0), ("fc1/kernel", 3.0, 1.0))
    optimizer = make(
        params=drawn(0), name="muon", num_steps=10, schedule="linear", lr=0.2, momentum=0.8, muon_momentum=0.6,
        muon_steps=3, use_nesterov=nesterov, weight_decay=0.1, decay_kinds=("kernel",), groups=groups,
    )  # fmt: skip
    params = jax.tree.map(jnp.asarray, drawn(0))
    opt_state, expected, buffers = optimizer.tx.init(params), drawn(0), {}
    for t in range(4):
        grads = drawn(t + 1)
        updates, opt_state = jax.jit(optimizer.tx.update)(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        for layer, name, lr, decay in (("conv1", "kernel", 1, 0), ("conv1", "bias", 0.5, 2), ("fc1", "kernel", 3, 1)):
            is_kernel, mu = (layer, name) == ("conv1", "kernel"), 0.6 if (layer, name) == ("conv1", "kernel") else 0.8
            w, g = expected[layer][name], grads[layer][name]
            g = g + 0.1 * decay * w
            buffers[layer, name] = mu * buffers.get((layer, name), 0) + g
            move = g + mu * buffers[layer, name] if nesterov else buffers[layer, name]
            if is_kernel:
                w = w * np.sqrt(5) / np.linalg.norm(w)
                rows = np.moveaxis(move, -1, 0)
                move = np.moveaxis(newton_schulz(rows.reshape(5, -1), 3).reshape(rows.shape), 0, -1)
            expected[layer][name] = w - 0.2 * (1 - t / 10) * lr * move
            np.testing.assert_allclose(params[layer][name], expected[layer][name], rtol=1e-4, atol=1e-5)


def test_muon_holds_no_memory_of_what_is_frozen():
    freeze = {"patterns": ("conv1/kernel",)}
    with pytest.raises(ValueError, match="there is no kernel with a window to train"):
        make(params=drawn(0), name="muon", freeze=freeze)
    both = {"conv1": drawn(0)["conv1"], "conv2": drawn(1)["conv1"]}
    tx = make(params=both, name="muon", freeze=freeze, clip_norm=1.0).tx
    params = jax.tree.map(jnp.asarray, both)
    sizes = sorted(leaf.size for leaf in jax.tree.leaves(tx.init(params)) if leaf.ndim)
    assert sizes == [5, 5, 90]  # both biases and conv2/kernel
    updates, _ = tx.update(params, tx.init(params), params)
    after = optax.apply_updates(params, updates)
    assert np.asarray(after["conv1"]["kernel"]).tobytes() == both["conv1"]["kernel"].tobytes()
    np.testing.assert_array_less(1e-3, np.abs(after["conv2"]["kernel"] - both["conv2"]["kernel"]).max())


def test_momentum_is_optaxs_trace():
    tx = scale_by_muon(0.6, True, 3)
    kernels = {"kernel": jnp.asarray(RNG.normal(size=(3, 3, 2, 4)), jnp.float32)}
    _, state = tx.update(kernels, tx.init(kernels))
    np.testing.assert_array_equal(state[0].trace["kernel"], kernels["kernel"])
