"""Muon: the momentum of a kernel, made orthogonal, is its step.

K. Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024,
https://kellerjordan.github.io/posts/muon/, in the form of airbench94_muon.py of
https://github.com/KellerJordan/cifar10-airbench.

A kernel (*window, inputs, outputs) is the matrix of one row an output. Momentum U S V^T is replaced by U V^T, or nearly so:
by a few steps, 3 there and 5 elsewhere, of a Newton-Schulz iteration whose polynomial rises so steeply at 0 that singular
values do not converge to 1 but scatter around it. With each step the kernel itself is rescaled so that its Frobenius norm
is the root of its number of outputs, which takes the place of decay.

Differs from optax.contrib.scale_by_muon: its momentum is Adam's, with a bias correction of another count for each of its two
terms, which alters the direction of the first ten or so steps; it has no rescaling; and kernels of equal shape are one
batch of products here, not one each. Differs from the author's: float32 where the iteration there is bfloat16.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of x, x^3 and x^5
EPSILON = 1e-7  # below the norm that divides the momentum

Tree = Any  # a pytree of arrays


def is_muons(name: str, leaf: Any) -> bool:
    """Whether the parameter of that path is Muon's: a kernel with a window."""
    return name.rpartition("/")[2] == "kernel" and len(leaf.shape) > 2


def scale_by_muon(momentum: float, use_nesterov: bool, num_steps: int) -> optax.GradientTransformation:
    """Gradients of kernels to orthogonal momenta."""
    return optax.chain(
        optax.trace(momentum, use_nesterov),
        optax.stateless(lambda updates, params: orthogonalized_kernels(updates, num_steps)),
    )


def rescale_kernels() -> optax.GradientTransformation:
    """Adds to each update what takes its kernel to the root of its number of outputs in norm; comes after the rate."""

    def rescale(update, kernel):
        scale = kernel.shape[-1] ** 0.5 / jnp.linalg.norm(kernel.ravel())
        return update + (scale - 1) * kernel

    return optax.stateless(lambda updates, params: jax.tree.map(rescale, updates, params))


def orthogonalized_kernels(updates: Tree, num_steps: int) -> Tree:
    """Each kernel (*window, inputs, outputs) as `orthogonalized`; those of equal shape are one batch."""
    leaves, structure = jax.tree.flatten(updates)
    matrices = [leaf.reshape(-1, leaf.shape[-1]).T for leaf in leaves]
    results: dict[int, Array] = {}
    for shape in sorted({matrix.shape for matrix in matrices}):
        members = [i for i, matrix in enumerate(matrices) if matrix.shape == shape]
        made = orthogonalized(jnp.stack([matrices[i] for i in members]), num_steps)
        results |= {i: made[k].T.reshape(leaves[i].shape).astype(leaves[i].dtype) for k, i in enumerate(members)}
    return jax.tree.unflatten(structure, [results[i] for i in range(len(leaves))])


def orthogonalized(matrices: Array, num_steps: int) -> Array:
    """Matrices (n, rows, columns) with their singular values brought near 1, in float32; of all zeros, all zeros."""
    rows, columns = matrices.shape[1:]
    x = matrices.astype(jnp.float32)
    x = x if rows <= columns else jnp.swapaxes(x, 1, 2)  # the products are of the shorter side
    x = x / (jnp.linalg.norm(x, axis=(1, 2), keepdims=True) + EPSILON)
    first, third, fifth = COEFFICIENTS
    for _ in range(num_steps):
        gram = jnp.einsum("nij,nkj->nik", x, x)
        x = first * x + jnp.einsum("nik,nkj->nij", third * gram + fifth * (gram @ gram), x)
    return x if rows <= columns else jnp.swapaxes(x, 1, 2)
