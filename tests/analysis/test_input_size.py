"""Where a network runs out of pixels, and the smallest input that works, on networks whose answer is known by hand."""

import flax.linen as nn
import jax.numpy as jnp
import pytest

from cnn_jax.analysis.input_size import check_size
from cnn_jax.layers.conv import Conv
from cnn_jax.layers.pool import max_pool
from cnn_jax.models import alexnet, googlenet
from cnn_jax.resolve import resolve


class Stack(nn.Module):
    """5x5, 2x2 pooling, 5x5 without padding: 14 is the smallest, 14 -> 10 -> 5 -> 1."""

    @nn.compact
    def __call__(self, x, *, train):
        x = Conv(2, (5,) * (x.ndim - 2), name="conv1")(x)
        x = max_pool(x, 2)
        return None, {"conv2": Conv(2, (5,) * (x.ndim - 2), name="conv2")(x)}


class Pools(nn.Module):
    """A convolution, then a pooling outside any layer, which may have no name."""

    name_of_map: str = "pool1"

    @nn.compact
    def __call__(self, x, *, train):
        feats = {"conv1": Conv(2, (3, 3), name="conv1")(x)}
        feats["norm1"] = feats["conv1"] * jnp.float32(2)
        x = max_pool(feats["norm1"], 4)
        return None, feats | ({self.name_of_map: x} if self.name_of_map else {}) | {
            "conv2": Conv(2, (1, 1), name="conv2")(x)
        }


class PoolsToNothing(nn.Module):
    """flax's own pooling makes an empty map, which a mean hides."""

    @nn.compact
    def __call__(self, x, *, train):
        feats = {"conv1": Conv(2, (3, 3), name="conv1")(x)}
        x = feats["pool1"] = nn.max_pool(feats["conv1"], (2, 2), (2, 2))
        return nn.Dense(3, name="fc")(nn.Conv(2, (1, 1), name="conv2")(x).mean((1, 2))), feats


class OwnWord(nn.Module):
    """Says itself what it cannot take."""

    @nn.compact
    def __call__(self, x, *, train):
        if x.shape[1] < 9:
            raise ValueError("x must have nine rows")
        return None, {"conv1": Conv(2, (3, 3), name="conv1")(x)}


class Vanishes(nn.Module):
    """flax's own convolution makes an empty map where ours would raise."""

    @nn.compact
    def __call__(self, x, *, train):
        return None, {"conv1": nn.Conv(2, (7, 7), padding="VALID", name="conv1")(x)}


@pytest.mark.parametrize("size", [(14, 14), (14, 30), (15, 200)])
def test_what_fits_passes(size):
    check_size(Stack(), (*size, 3), (32, 32, 3))


@pytest.mark.parametrize(
    ("module", "shape", "message"),
    [
        (
            Stack(),
            (13, 13, 3),
            "inputs of 13x13 are too small: conv2 ran out of pixels; the smallest that works is 14x14",
        ),
        (
            Stack(),
            (40, 9, 3),
            "inputs of 40x9 are too small: conv2 ran out of pixels; the smallest that works is 14x14",
        ),
        (Stack(), (4, 4, 3), "inputs of 4x4 are too small: conv1 ran out of pixels; the smallest that works is 14x14"),
        (Stack(), (12, 1), "inputs of 12 are too small: conv2 ran out of pixels; the smallest that works is 14"),
        (
            Pools(),
            (5, 5, 1),
            "inputs of 5x5 are too small: pool1 ran out of pixels; the smallest that works is 6x6",
        ),
        (
            Pools(name_of_map=""),
            (5, 5, 1),
            "inputs of 5x5 are too small: what follows conv1 ran out of pixels; the smallest that works is 6x6",
        ),
        (
            PoolsToNothing(),
            (3, 9, 1),
            "inputs of 3x9 are too small: pool1 ran out of pixels; the smallest that works is 4x4",
        ),
        (Vanishes(), (6, 6, 1), "inputs of 6x6 are too small: conv1 ran out of pixels; the smallest that works is 7x7"),
    ],
)
def test_the_layer_and_the_smallest_size_are_named(module, shape, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        check_size(module, shape, (*[32] * (len(shape) - 1), shape[-1]))


def test_what_no_size_mends_is_told_in_the_layers_own_words():
    class Grouped(nn.Module):
        @nn.compact
        def __call__(self, x, *, train):
            return None, {"conv1": Conv(2, (3, 3), groups=2, name="conv1")(x)}

    with pytest.raises(ValueError, match=r"^inputs of \(9, 9, 3\): groups=2: must divide"):
        check_size(Grouped(), (9, 9, 3), (9, 9, 2))


@pytest.mark.parametrize(
    ("name", "size", "layer", "smallest"),
    [
        ("alexnet:one-tower", 66, "pool5", 67),
        ("alexnet:one-tower", 40, "pool5", 67),
        ("alexnet:one-tower", 34, "pool2", 67),
        ("alexnet:one-tower-pool-first", 18, "pool1", 67),
        ("alexnet:two-tower", 10, "conv1", 67),
        ("alexnet:torchvision", 62, "pool5", 63),
        ("zfnet:figure-3", 62, "pool5", 63),
        ("zfnet:figure-3", 14, "conv2", 63),
        ("vgg:A", 31, "pool5", 32),
        ("vgg:A", 3, "pool2", 32),
        ("lenet:modern", 28, "C5", 32),
        ("lenet:modern", 5, "S2", 32),
        ("lenet:1998", 9, "C3", 32),
        ("airbench:94", 24, "pool", 25),
        ("cnn3d:voxnet16", 8, "conv2", 11),
    ],
)
def test_the_first_layer_that_runs_out_of_pixels_is_blamed(name, size, layer, smallest):
    """The layers and their sizes by hand, from the numbers of the models' own tables."""
    model, _, variant = name.partition(":")
    paper = resolve(f"models.{model}", "model", "VARIANTS")
    *axes, channels = paper.VARIANTS[variant].input_shape
    module = paper.build(variant, num_classes=2)
    size, least = ("x".join([str(n)] * len(axes)) for n in (size, smallest))
    message = f"^inputs of {size} are too small: {layer} ran out of pixels; the smallest that works is {least}$"
    with pytest.raises(ValueError, match=message):
        check_size(module, (*[int(n) for n in size.split("x")], channels), (*axes, channels))


@pytest.mark.full
@pytest.mark.parametrize(
    ("variant", "size", "layer", "smallest"),
    [("paper", 46, "pool4", 47), ("paper", 14, "pool3", 47), ("paper-aux", 78, "aux1", 79)],
)  # fmt: skip
def test_googlenet_blames_its_first(variant, size, layer, smallest):
    message = f"{layer} ran out of pixels; the smallest that works is {smallest}x{smallest}$"
    with pytest.raises(ValueError, match=message):
        check_size(googlenet.build(variant), (size, size, 3), (224, 224, 3))


def test_what_a_model_says_itself_is_told():
    with pytest.raises(ValueError, match=r"^inputs of \(8, 8, 1\): x must have nine rows$"):
        check_size(OwnWord(), (8, 8, 1), (9, 9, 1))
    with pytest.raises(ValueError, match=r"^inputs of \(32, 32, 3\): widths=\(8,\): must be seven"):
        check_size(alexnet.build("one-tower", widths=(8,)), (32, 32, 3), (227, 227, 3))


def test_an_empty_map_that_no_size_mends():
    class Empty(nn.Module):
        @nn.compact
        def __call__(self, x, *, train):
            return None, {"cut": Conv(2, (1, 1), name="conv1")(x[:, :0])}

    with pytest.raises(ValueError, match=r"^inputs of \(8, 8, 1\): "):
        check_size(Empty(), (8, 8, 1), (9, 9, 1))


def test_nothing_is_computed():
    class Huge(nn.Module):
        @nn.compact
        def __call__(self, x, *, train):
            return nn.Dense(10**7, name="fc")(jnp.reshape(x, (1, -1))), {}

    check_size(Huge(), (2000, 2000, 3), (1, 1, 3))
