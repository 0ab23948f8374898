"""What the literature prints of the networks, met by the instruments: multiply-adds, and receptive fields.

GMACs: torchvision's own metadata for the networks that it has, to the three decimals that it prints; the others worked out
from the papers' tables. Receptive fields: Araujo et al. 2019 (Distill) and its table of networks; the rest by the recursion
size' = size + (k - 1) stride.
"""

import jax.numpy as jnp
import pytest

from cnn_jax.analysis.complexity import analyze_module
from cnn_jax.analysis.receptive_field import receptive_fields
from cnn_jax.resolve import resolve

GMACS = {
    "alexnet:torchvision": 0.714,
    "alexnet:two-tower": 0.724,
    "alexnet:one-tower": 1.135,
    "zfnet:figure-3": 1.168,
    "vgg:A": 7.609,
    "vgg:B": 11.308,
    "vgg:C": 11.771,
    "vgg:D": 15.470,
    "vgg:E": 19.632,
    "googlenet:paper": 1.583,
    "googlenet:paper-aux": 1.591,
    "googlenet:torchvision": 1.498,
    "resnet:18": 1.814,
    "resnet:34": 3.664,
    "resnet:50": 3.858,
    "resnet:50-v1.5": 4.089,
    "resnet:101": 7.570,
    "resnet:101-v1.5": 7.801,
    "resnet:152": 11.282,
    "resnet:152-v1.5": 11.514,
    "resnet:cifar20": 0.041,
    "resnet:cifar110": 0.253,
}
FIELDS = {
    ("alexnet:two-tower", "pool5"): 195,
    ("zfnet:figure-3", "pool5"): 171,
    ("vgg:A", "pool5"): 150,
    ("vgg:D", "pool5"): 212,
    ("resnet:18", "conv5_x"): 435,
    ("resnet:34", "conv5_x"): 899,
    ("resnet:50", "conv5_x"): 483,
    ("resnet:50-v1.5", "conv5_x"): 427,
    ("resnet:101", "conv5_x"): 1027,
    ("resnet:101-v1.5", "conv5_x"): 971,
    ("resnet:152", "conv5_x"): 1507,
    ("resnet:152-v1.5", "conv5_x"): 1451,
    ("dilated:basic", "layer8"): 67,
}
SOON = ("alexnet:two-tower", "resnet:18", "resnet:cifar20", "vgg:D", "dilated:basic")


def build(name):
    model, _, variant = name.partition(":")
    model = resolve(f"models.{model}", "model", "VARIANTS")
    row = model.VARIANTS[variant]
    classes = {"num_classes": row.num_classes} if hasattr(row, "num_classes") else {}
    return model.build(variant, dtype=jnp.float32, **classes), row.input_shape


def cases(table):
    return [pytest.param(key, marks=() if name in SOON else pytest.mark.full) for key in table
            for name in [key if isinstance(key, str) else key[0]]]  # fmt: skip


@pytest.mark.parametrize("name", cases(GMACS))
def test_multiply_adds(name):
    cost = analyze_module(*build(name))
    assert round(cost.macs / 1e9, 3) == GMACS[name] and cost.is_exact


@pytest.mark.parametrize("case", cases(FIELDS), ids=lambda case: f"{case[0]}-{case[1]}")
def test_receptive_field(case):
    name, layer = case
    module, shape = build(name)
    assert receptive_fields(module, shape)[layer].size == (FIELDS[case],) * 2
