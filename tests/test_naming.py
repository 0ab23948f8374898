"""What model files declare of other libraries' names, held against torchvision's own, and the papers' tables."""

import dataclasses
import hashlib
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from flax import traverse_util

from cnn_jax.naming import IMAGENET, Naming
from cnn_jax.resolve import module_names, resolve
from cnn_jax.weights.mapping import namings_of, their_names, their_shapes, variants_that_fit

# Written by tests/oracles/torch_files.py from torchvision itself.
TORCHVISION = json.loads((Path(__file__).parent / "weights" / "torchvision_names.json").read_text())
OURS = {
    "alexnet": "alexnet:torchvision",
    "googlenet": "googlenet:torchvision-aux",
    **{f"vgg{n}{end}": f"vgg:{v}{end.replace('_bn', '-BN')}" for n, v in ((11, "A"), (13, "B"), (16, "D"), (19, "E"))
       for end in ("", "_bn")},
    **{f"resnet{n}": f"resnet:{n}{'-v1.5' * (n >= 50)}" for n in (18, 34, 50, 101, 152)},
}  # fmt: skip
DECLARING = [
    paper for name in module_names("models") if hasattr(paper := resolve(name, "model", "VARIANTS"), "NAMINGS")
]
LARGE = ("googlenet", "resnet34", "resnet101", "resnet152", "resnet50")


def network(name):
    """(paper, module, shapes of its variables) of "model:variant"."""
    model, variant = name.split(":")
    paper = resolve(f"models.{model}", "model", "VARIANTS")
    module = paper.build(variant)
    x = jax.ShapeDtypeStruct((1, *paper.VARIANTS[variant].input_shape), jnp.float32)
    return paper, module, jax.eval_shape(lambda x: module.init(jax.random.key(0), x, train=False), x)


@pytest.mark.parametrize(
    "theirs", [pytest.param(name, marks=pytest.mark.full if name in LARGE else ()) for name in TORCHVISION]
)
def test_every_tensor_of_torchvision_has_one_here_of_its_shape(theirs):
    paper, module, shapes = network(OURS[theirs])
    naming = paper.NAMINGS["torchvision"](module)
    names, shape_of = their_names(shapes, naming), their_shapes(shapes, naming)
    lines = sorted(f"{name} {shape_of[path]}" for path, name in names.items())
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    assert {"count": len(set(lines)), "sha256": digest} == TORCHVISION[theirs]


@pytest.mark.parametrize("paper", DECLARING, ids=lambda paper: paper.__name__)
def test_declarations_are_one_to_one_and_of_known_data(paper):
    for variant in paper.VARIANTS:
        namings, reasons = namings_of(paper, paper.build(variant))
        assert namings or reasons
        for naming in namings.values():
            assert len(set(naming.modules.values())) == len(naming.modules)
            assert naming.dataset in ("imagenet", "cifar10") and naming.preprocessing.keys() == {"mean", "std"}
            assert naming.flattened.keys() <= naming.modules.keys() | {"aux1/fc", "aux2/fc"}


@pytest.mark.parametrize("name", ["resnet:cifar8", "resnet:cifar20-B", "resnet:18", "vgg:A-BN"])
def test_declared_modules_are_those_with_parameters_in_their_order(name):
    paper, module, shapes = network(name)
    modules = list(dict.fromkeys("/".join(path[:-1]) for path in traverse_util.flatten_dict(shapes["params"])))
    for naming in namings_of(paper, module)[0].values():
        assert set(naming.modules) == set(modules) and list(naming.modules)[-1] in ("fc", "fc8")


@pytest.mark.parametrize(
    ("name", "library", "why"),
    [
        ("resnet:50", "torchvision", "stride of a bottleneck in its 3x3 convolution: take a -v1.5"),
        ("resnet:18-plain", "torchvision", "shortcut B"),
        ("resnet:cifar20", "timm", "ImageNet ResNets"),
        ("resnet:cifar20-plain", "akamaster", "not plain"),
        ("alexnet:one-tower", "torchvision", "alexnet:torchvision"),
        ("vgg:A-LRN", "torchvision", "A, B, D and E"),
        ("vgg:C", "timm", "A, B, D and E"),
        ("googlenet:bn", "torchvision", "googlenet:torchvision"),
    ],
)
def test_a_network_that_a_library_lacks_says_why(name, library, why):
    model, variant = name.split(":")
    paper = resolve(f"models.{model}", "model", "VARIANTS")
    with pytest.raises(ValueError, match=why):
        paper.NAMINGS[library](paper.build(variant))


def test_names_tell_variants_apart():
    paper = resolve("models.resnet", "model", "VARIANTS")
    names = [f"{module}.weight" for module in paper.NAMINGS["akamaster"](paper.build("cifar32")).modules.values()]
    assert variants_that_fit(paper, paper.build, names) == ["cifar32"]
    assert variants_that_fit(paper, paper.build, names[1:]) == []


def test_a_naming_is_a_value_of_its_own():
    first, second = Naming({"a": "b"}), Naming({"a": "b"})
    assert first == second and first.preprocessing is not second.preprocessing and first.preprocessing == IMAGENET
    with pytest.raises(dataclasses.FrozenInstanceError):
        first.dataset = "cifar10"
