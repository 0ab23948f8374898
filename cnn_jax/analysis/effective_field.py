"""The effective receptive field: how much each pixel moves a unit, and a picture of it.

It is the magnitude of the true gradient, over random pictures; where it is not 0 lies within the receptive field.

W. Luo et al., "Understanding the Effective Receptive Field in Deep Convolutional Neural Networks", NeurIPS 2016,
https://arxiv.org/abs/1701.04128.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
from jaxtyping import Array, Float, UInt8

from cnn_jax.analysis.maps import unit_place
from cnn_jax.analysis.receptive_field import ReceptiveField, extent


def effective_receptive_field(
    f: Callable[[Array], Array],
    input_shape: tuple[int, ...],
    *,
    unit: Sequence[int] | None = None,
    num_probes: int = 32,
    seed: int = 0,
) -> Float[np.ndarray, "*size"]:
    """How much each pixel moves a unit: |gradient|, summed over the picture's channels, its mean over random pictures.

    The gradient is that of the unit's sum over the map's channels, at pictures of independent normal numbers, one after
    another.

    Args:
      f: from pictures (N, *spatial, C) to maps, `equivariance.feature` of a model for instance.
      input_shape: (*spatial, C), without a batch.
      unit: its place in the map, by default the middle.

    Raises:
      ValueError: num_probes is below 1, f's result is no map, or it has no such unit.
    """
    if num_probes < 1:
        raise ValueError(f"num_probes={num_probes}: must be at least 1")
    x = jax.ShapeDtypeStruct((1, *input_shape), jnp.float32)
    shape = jax.eval_shape(f, x).shape
    if len(shape) != len(x.shape):
        raise ValueError(f"f: shape {shape} of a picture {x.shape}, must be a map (1, *spatial, C)")
    place = unit_place(unit, shape[1:-1])
    slope = jax.make_jaxpr(jax.grad(lambda x: f(x)[(0, *place)].sum()))(x)

    @jax.jit
    def probe(weights, i):  # what f holds is an argument: constants would be compiled into the program
        x = jax.random.normal(jax.random.fold_in(jax.random.key(seed), i), (1, *input_shape))
        (gradient,) = jaxpr_as_fun(ClosedJaxpr(slope.jaxpr, weights))(x)
        return jnp.abs(gradient[0]).sum(axis=-1)

    return np.mean([np.asarray(probe(slope.consts, i)) for i in np.arange(num_probes)], axis=0)


def plot_effective(
    effective: Float[np.ndarray, "h w"],
    path: str | Path | None = None,
    *,
    theory: ReceptiveField | None = None,
    zoom: int = 1,
) -> UInt8[np.ndarray, "zh zw 3"]:
    """A picture of an effective receptive field, from black (no gradient) over red and yellow to white (the most).

    Args:
      path: where to write it too, in the format of its suffix.
      theory: the field of the same map, whose extent for the middle unit is drawn as a blue frame.
      zoom: how large a square each pixel becomes.
    """
    heat = np.clip(3 * (effective / (effective.max() or 1))[..., None] - np.arange(3), 0, 1)
    picture = np.kron(np.round(255 * heat), np.ones((zoom, zoom, 1))).astype(np.uint8)
    if theory is not None:
        (top, bottom, _), (left, right, _) = (extent(theory.support(), i) for i in (0, 1))
        top, left, bottom, right = zoom * top, zoom * left, zoom * (bottom + 1) - 1, zoom * (right + 1) - 1
        picture[[top, bottom], left : right + 1] = picture[top : bottom + 1, [left, right]] = (0, 128, 255)
    if path is not None:
        from PIL import Image

        Image.fromarray(picture).save(path)
    return picture
