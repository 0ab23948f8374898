"""A network's maps: their names in forward order, their shapes, the picture among the program's inputs."""

import flax.linen as nn
import jax.numpy as jnp
import pytest

from cnn_jax.analysis.maps import named_map, traced_maps, unit_place


class Pyramid(nn.Module):
    with_logits: bool = True

    @nn.compact
    def __call__(self, x, *, train):
        feats = {"z": x[:, ::2, ::2], "a": x[:, ::4, ::4]}
        x = nn.BatchNorm(use_running_average=not train, name="norm")(feats["a"])
        return nn.Dense(5, name="fc")(x.reshape(1, -1)) if self.with_logits else None, feats


def shapes(network, input_shape=(8, 12, 3)):
    maps, program = traced_maps(network, input_shape)
    assert program.inputs[-1].shape == (1, *input_shape)
    return [(name, value.shape) for name, value in maps.items()]


def test_maps_of_a_module_are_its_features_and_logits_in_forward_order():
    feats = [("z", (1, 4, 6, 3)), ("a", (1, 2, 3, 3))]
    assert shapes(Pyramid()) == [*feats, ("logits", (1, 5))]
    assert shapes(Pyramid(with_logits=False)) == feats


def test_maps_of_a_function():
    assert shapes(lambda x: x[:, 1:]) == [("output", (1, 7, 12, 3))]
    assert [name for name, _ in shapes(lambda x: {"b": x, "a": x + 1})] == ["b", "a"]
    assert [name for name, _ in shapes(lambda x: (x.sum(), {"b": x}))] == ["b", "logits"]


def test_no_spatial_axis_is_refused():
    with pytest.raises(
        ValueError, match=r"input_shape=\(3,\): must be \(\*spatial, C\) with at least one spatial axis"
    ):
        traced_maps(lambda x: x, (3,))


def test_a_map_by_name():
    maps, _ = traced_maps(lambda x: {"b": x, "a": jnp.tanh(x)}, (4, 1))
    assert named_map(maps, "a") is maps["a"]
    with pytest.raises(ValueError, match=r"name='c': no map of the network, must be one of b, a"):
        named_map(maps, "c")


def test_the_place_of_a_unit():
    assert unit_place(None, (8, 5)) == [4, 2]
    assert unit_place((0, 4), (8, 5)) == (0, 4)
    for unit in ((8, 0), (-1, 0), (4,)):
        with pytest.raises(ValueError, match=r"unit=.*must be a place in the map, which is \(8, 5\)"):
            unit_place(unit, (8, 5))
