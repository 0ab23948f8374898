"""TrivialAugment and RandAugment: operations drawn at random, one or a few a picture, by the numbers of three code bases.

    "trivial_wide"            TrivialAugment, wide: one operation a picture, at a strength drawn from 31. Mueller & Hutter,
                              ICCV 2021, arXiv:2103.10158, table 1; torchvision's TrivialAugmentWide
    "randaugment"             RandAugment: num_ops operations, all at strength `magnitude` of 30. Cubuk et al., NeurIPS 2020,
                              arXiv:1909.13719; torchvision's RandAugment
    "randaugment_increasing"  timm's "rand-mM-mstd0.5-inc1", of ResNet Strikes Back (Wightman et al. 2021,
                              arXiv:2110.00476, table 2): num_ops operations, each applied with probability 1/2 at a
                              strength drawn from a normal distribution about `magnitude` of 10, of deviation 0.5

Each operation is Pillow's, on whole levels 0..255. Moved pixels are taken from the nearest (torchvision's default; timm
draws bilinear or bicubic). All pictures of a batch pass the same program: one gather, one blend, one table of levels, each
set so that it does nothing to a picture that drew another operation.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from cnn_jax.data.geometry import Number

OPS = (
    "identity", "shear_x", "shear_y", "translate_x", "translate_y", "rotate", "brightness", "color", "contrast", "sharpness",
    "posterize", "solarize", "autocontrast", "equalize", "invert", "solarize_add",
)  # fmt: skip


@dataclass(frozen=True)
class Policy:
    """Which operations are drawn, and how strong each is.

    top: the strength that `magnitude` counts up to, in steps of one where it is drawn.
    amounts: (level (N,) in 0..1, sign (N,), -1 or 1, size (height, width)) -> {operation: amount (N,), as `apply_ops` has
      it}; those without an amount are left out.
    """

    ops: tuple[str, ...]
    top: int
    amounts: Callable[[Array, Array, tuple[int, int]], dict[str, Array]]
    std: float = 0.0
    probability: float = 1.0


def random_policy(
    key: PRNGKeyArray,
    image: Float[Array, "n h w c"],
    *,
    name: str,
    num_ops: int = 2,
    magnitude: Number = 9.0,
    fill: Float[Array, " c"] | None = None,
) -> Float[Array, "n h w c"]:
    """The policy `name` of this file's docstring on each picture; fill: the colour of what comes in, None for black."""
    policy = POLICIES[name]
    n, h, w, _ = image.shape
    index_of_op = jnp.array([OPS.index(op) for op in policy.ops])

    def one(image, key):
        which_key, level_key, sign_key, applied_key = jax.random.split(key, 4)
        which = jax.random.randint(which_key, (n,), 0, len(policy.ops))
        sign = jax.random.rademacher(sign_key, (n,), jnp.float32)
        if name == "trivial_wide":
            level = jax.random.randint(level_key, (n,), 0, policy.top + 1) / policy.top
        else:
            drawn = magnitude + policy.std * jax.random.normal(level_key, (n,))
            level = jnp.clip(drawn, 0, policy.top) / policy.top
        amounts = policy.amounts(level, sign, (h, w))
        table = jnp.stack([amounts.get(op, jnp.zeros(n)) for op in policy.ops], 1)
        amount = jnp.take_along_axis(table, which[:, None], 1)[:, 0]
        is_applied = jax.random.bernoulli(applied_key, policy.probability, (n,))
        op = jnp.where(is_applied, index_of_op[which], OPS.index("identity"))
        return apply_ops(image, op, amount, fill), None

    keys = jax.random.split(key, 1 if name == "trivial_wide" else num_ops)
    return jax.lax.scan(one, image, keys)[0]


def _torchvision(
    shear: float, translate: Callable, rotate: float, enhance: float, lost_bits: int
) -> Callable[[Array, Array, tuple[int, int]], dict[str, Array]]:
    def amounts(level, sign, size):
        signed = sign * level
        factor = 1 + enhance * signed
        return {
            "shear_x": shear * signed,
            "shear_y": shear * signed,
            "translate_x": jnp.trunc(translate(size[1]) * signed),
            "translate_y": jnp.trunc(translate(size[0]) * signed),
            "rotate": rotate * signed,
            **dict.fromkeys(("brightness", "color", "contrast", "sharpness"), factor),
            "posterize": 8 - jnp.round(lost_bits * level),
            "solarize": 255 * (1 - level),
        }

    return amounts


def _increasing(level, sign, size):
    signed = sign * level
    factor = jnp.maximum(0.1, 1 + 0.9 * signed)
    return {
        "shear_x": 0.3 * signed,
        "shear_y": 0.3 * signed,
        "translate_x": 0.45 * size[1] * signed,
        "translate_y": 0.45 * size[0] * signed,
        "rotate": 30 * signed,
        **dict.fromkeys(("brightness", "color", "contrast", "sharpness"), factor),
        "posterize": 4 - jnp.floor(4 * level),
        "solarize": 256 - jnp.floor(256 * level),
        "solarize_add": jnp.floor(110 * level),
    }


POLICIES = {
    "trivial_wide": Policy(OPS[:14], 30, _torchvision(0.99, lambda side: 32.0, 135.0, 0.99, 6)),
    "randaugment": Policy(OPS[:14], 30, _torchvision(0.3, lambda side: 150 / 331 * side, 30.0, 0.9, 4)),
    "randaugment_increasing": Policy(OPS[1:], 10, _increasing, std=0.5, probability=0.5),
}


def apply_ops(
    image: Float[Array, "n h w c"],
    op: Int[Array, " n"],
    amount: Float[Array, " n"],
    fill: Float[Array, " c"] | None = None,
) -> Float[Array, "n h w c"]:
    """One operation on each picture, grey or RGB: op is its index in OPS, amount what the operation takes.

    shear_x, shear_y: tangent of the angle, the corner at (0, 0) held; translate_x, translate_y: pixels, to the left and up;
    rotate: degrees counter-clockwise about the centre; brightness, color (saturation), contrast, sharpness: factor;
    posterize: bits kept; solarize: level from which on it inverts; solarize_add: added to levels below 128. The others
    take none.
    """
    image = jnp.clip(jnp.round(image), 0, 255)
    black = jnp.zeros(image.shape[-1])
    colour = black if fill is None else jnp.round(fill)
    return jax.vmap(_apply_one, in_axes=(0, 0, 0, None))(image, op, amount, colour)


def _apply_one(image: Float[Array, "h w c"], op: Int[Array, ""], amount: Float[Array, ""], fill: Float[Array, " c"]):
    """Levels mapped, then blended, then moved: two of the three do nothing, whichever the operation."""
    channels = range(image.shape[2])
    level = image.astype(jnp.int32)
    table = jnp.concatenate([_table(level[:, :, c], op, amount) for c in channels])
    place = level + 256 * jnp.array(channels)[None, None]
    mapped = table.at[place].get(mode="promise_in_bounds").astype(jnp.float32)
    return _move(_blend(mapped, image, op, amount), op, amount, fill)


def _is(op: Int[Array, ""], *names: str):
    return jnp.isin(op, jnp.array([OPS.index(name) for name in names]))


def _move(image: Float[Array, "h w c"], op: Int[Array, ""], amount: Float[Array, ""], fill: Float[Array, " c"]):
    h, w, c = image.shape
    of = lambda name: jnp.where(_is(op, name), amount, 0)  # noqa: E731
    turn = jnp.deg2rad(of("rotate"))
    cos, sin = jnp.cos(turn), jnp.sin(turn)
    y, x = jnp.meshgrid(jnp.arange(h) + 0.5, jnp.arange(w) + 0.5, indexing="ij")
    down, right = y - h / 2, x - w / 2
    column = cos * right - sin * down + w / 2 + of("shear_x") * y + of("translate_x")
    row = sin * right + cos * down + h / 2 + of("shear_y") * x + of("translate_y")
    inside = (column >= 0) & (column < w) & (row >= 0) & (row < h)
    index = jnp.where(inside, jnp.floor(row) * w + jnp.floor(column), 0).astype(jnp.int32)
    pixels = image.reshape(h * w, c).at[index].get(mode="promise_in_bounds")
    return jnp.where(inside[:, :, None], pixels, fill[None, None])


def _blend(
    mapped: Float[Array, "h w c"], image: Float[Array, "h w c"], op: Int[Array, ""], amount: Float[Array, ""]
) -> Float[Array, "h w c"]:
    """`mapped` is what is blended, with what is made of `image`: the same where a blend is asked for, and in memory."""
    h, w, c = image.shape
    whole = image.astype(jnp.int32)
    if c == 3:  # Pillow's integers: 0.299, 0.587, 0.114 in parts of 65536
        luma = (19595 * whole[..., :1] + 38470 * whole[..., 1:2] + 7471 * whole[..., 2:] + 32768) >> 16
    else:
        luma = whole
    mean = (2 * jnp.sum(luma, (0, 1), keepdims=True) + h * w) // (2 * h * w)
    origin = jnp.where(_is(op, "color"), luma, jnp.where(_is(op, "contrast"), mean, 0)).astype(jnp.float32)
    origin = jnp.where(_is(op, "sharpness"), _smooth(image), origin)
    factor = jnp.where(_is(op, "brightness", "color", "contrast", "sharpness"), amount, 1)
    return jnp.floor(jnp.clip(origin + factor * (mapped - origin), 0, 255))


def _smooth(image: Float[Array, "h w c"]) -> Float[Array, "h w c"]:
    """Pillow's SMOOTH: the mean of 3x3 pixels, the middle one five times; the outermost pixels stay."""
    h, w, c = image.shape
    flat = image.reshape(h, w * c)  # the long axis innermost: on the CPU 15 times as fast
    padded = jnp.pad(flat, ((1, 1), (c, c)))
    total = 4 * flat
    for y in range(3):
        for x in range(3):
            total += padded[y : y + h, x * c : (x + w) * c]
    row, column = jnp.arange(h)[:, None], jnp.arange(w * c)[None]
    is_edge = (row == 0) | (row == h - 1) | (column < c) | (column >= (w - 1) * c)
    return jnp.where(is_edge, flat, jnp.floor(total / 13 + 0.5)).reshape(h, w, c)


def _table(level: Int[Array, "h w"], op: Int[Array, ""], amount: Float[Array, ""]) -> Int[Array, "256"]:
    """What becomes of each level of a channel."""
    of = jnp.arange(256)
    counts = jnp.zeros(256, jnp.int32).at[level.ravel()].add(1, mode="promise_in_bounds")
    low, high = jnp.argmax(counts > 0), 255 - jnp.argmax(counts[::-1] > 0)
    stretched = jnp.clip((of - low) * 255 // jnp.maximum(high - low, 1), 0, 255)
    # Each level to the share of pixels below it, half a step up; the brightest level's own do not count.
    step = (level.size - counts[high]) // 255
    below = jnp.cumsum(counts) - counts
    equalized = jnp.clip((step // 2 + below) // jnp.maximum(step, 1), 0, 255)
    lost = jnp.where(_is(op, "posterize"), 8 - amount, 0).astype(jnp.int32)
    tables = {
        "posterize": (of >> lost) << lost,
        "solarize": jnp.where(of < amount, of, 255 - of),
        "autocontrast": jnp.where(high > low, stretched, of),
        "equalize": jnp.where(step > 0, equalized, of),
        "invert": 255 - of,
        "solarize_add": jnp.where(of < 128, jnp.minimum(of + amount.astype(jnp.int32), 255), of),
    }
    table = of
    for name, values in tables.items():
        table = jnp.where(_is(op, name), values, table)
    return table
