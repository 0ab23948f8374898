"""Weights made into runs: the logits that PyTorch gave for them, what such a run tells, and what is refused."""

import base64
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from ml_collections import ConfigDict

from cnn_jax.models import resnet
from cnn_jax.naming import IMAGENET
from cnn_jax.predict import predict_pictures
from cnn_jax.recipe import load_config, override_fields
from cnn_jax.resolve import resolve
from cnn_jax.weights.importing import METADATA, Said, import_config, import_weights, known_num_classes
from cnn_jax.weights.mapping import to_state_dict
from cnn_jax.weights.state_dict import StateDict, read_state_dict
from cnn_jax.workdir import load_run
from tests.data.originals import cifar10_files, cifar_arrays, write
from tests.oracles.formula_weights import parameter, pictures

FILES = json.loads(Path(__file__).with_name("torch_files.json").read_text())
FORMULA = json.loads((Path(__file__).parents[1] / "models" / "torchvision_logits.json").read_text())
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def by_formula(module, shape):
    """Variables as tests/oracles/formula_weights.py has them."""
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros((1, *shape)), train=False))
    flat = traverse_util.flatten_dict(shapes)
    return traverse_util.unflatten_dict({path: parameter("/".join(path[1:]), x.shape) for path, x in flat.items()})


def cifar8(folder, num_classes=10, **changes):
    """A file of ResNet-8's weights by akamaster's names, and what it holds."""
    module = resnet.build("cifar8", num_classes=num_classes)
    arrays = to_state_dict(by_formula(module, (32, 32, 3)), resnet.NAMINGS["akamaster"](module)) | changes
    np.savez(folder / "weights.npz", **{name: array for name, array in arrays.items() if array is not None})
    return folder / "weights.npz"


def bring_in(file, name, workdir, *overrides, recipe=None, size_px=None, **said):
    model, _, variant = name.partition(":")
    state = read_state_dict(file)
    config = import_config(model, variant, state, recipe, size_px)
    override_fields(config, list(overrides), "the config")
    return import_weights(config, state, file, workdir, Said(**said))


def logits_of(run, x):
    apply = jax.jit(lambda variables, x: run.parts.task.module.apply(variables, x, train=False)[0])
    return np.asarray(apply(jax.device_get(run.variables), x))


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_a_file_of_torch_gives_the_logits_that_torch_gave(library, tmp_path):
    """Through the flattened map and the convolutions in place of dense layers, whose order would show."""
    case = FILES[f"small vgg, {library}"]
    (tmp_path / "vgg.pth").write_bytes(base64.b64decode(case["file"]))
    widths = f"--config.model.overrides.widths={tuple(case['widths'])}"
    record, lines = bring_in(
        tmp_path / "vgg.pth", "vgg:A", tmp_path / "run", widths, size_px=case["size"], num_classes=3
    )
    run = load_run(tmp_path / "run", read_data=False)
    assert run.record["imported"]["naming"] == library and record["classes"] == ["0", "1", "2"]
    expected, x = np.array(case["logits"]), pictures(case["size"])
    np.testing.assert_allclose(logits_of(run, x), expected, atol=1e-5 * np.abs(expected).max())
    assert np.abs(expected[0] - expected[1]).max() > 0.01 * np.abs(expected).max()
    assert lines[0].startswith(f"vgg:A: 22 tensors by {library}'s names") and "--classes=FILE names them" in lines[-1]


@pytest.mark.full
def test_resnet_18_gives_the_logits_of_torchvision(tmp_path):
    case, module = FORMULA["resnet:18"], resnet.build("18", num_classes=16)
    arrays = to_state_dict(by_formula(module, (224, 224, 3)), resnet.NAMINGS["torchvision"](module))
    np.savez(tmp_path / "a.npz", **arrays)
    bring_in(tmp_path / "a.npz", "resnet:18", tmp_path / "run", size_px=case["size"], num_classes=16)
    logits = logits_of(load_run(tmp_path / "run", read_data=False), pictures(case["size"]))
    np.testing.assert_allclose(logits, case["logits"], atol=1e-4 * np.abs(case["logits"]).max())


def test_an_imported_run_tells_what_is_known_of_it(tmp_path):
    file = cifar8(tmp_path)
    record, lines = bring_in(file, "resnet:cifar8", tmp_path / "run")
    assert json.loads(json.dumps(record)) == load_run(tmp_path / "run", read_data=False).record
    record = json.loads(json.dumps(record))
    assert record["status"] == "imported" and record["step"] == 0 and record["num_params"] == 75_290
    assert record["imported"]["file"] == "weights.npz" and len(record["imported"]["sha256"]) == 64
    assert record["classes"] == list(CIFAR10) and record["preprocessing"] == {k: list(v) for k, v in IMAGENET.items()}
    assert record["dataset"] == {"name": "cifar10", "checksum": ""} and record["input_shape"] == [32, 32, 3]
    assert lines[1].startswith("pictures are normalised by mean 0.485, 0.456, 0.406 and deviation 0.229")
    assert lines[2] == "10 classes: airplane, automobile, bird, ..."


def test_an_imported_run_predicts_without_data_and_is_evaluated_with_them(tmp_path):
    """Its pictures are normalised as the weights expect, not by the statistics of the data that it is evaluated on."""
    image, label = cifar_arrays(50)
    test_image, test_label = cifar_arrays(24, seed=1)
    write(tmp_path / "data", cifar10_files(image, label, test_image, test_label, CIFAR10))
    bring_in(
        cifar8(tmp_path), "resnet:cifar8", tmp_path / "run", "--config.data.num_validation=10", std=(0.3, 0.2, 0.1)
    )
    run = load_run(tmp_path / "run", read_data=False)
    x = (test_image / 255 - np.array(IMAGENET["mean"])) / np.array([0.3, 0.2, 0.1])
    logits = logits_of(run, x.astype(np.float32))
    for row, answer in zip(logits, predict_pictures(run, list(test_image), most=1), strict=True):
        assert answer[0][0] == CIFAR10[row.argmax()]
    run = load_run(tmp_path / "run", data_dir=str(tmp_path / "data"))
    metrics = run.parts.evaluator().evaluate(run.variables, run.parts.sources["test"], 512)
    assert metrics["correct"] == int((logits.argmax(1) == test_label).sum()) and metrics["count"] == 24


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (CIFAR10[::-1], "has the classes of cifar10 in another order: class 0 is 'truck', 'airplane' here"),
        (None, "7 classes"),
    ],
)
def test_data_of_other_classes_are_refused(names, says, tmp_path):
    image, label = cifar_arrays(50)
    write(tmp_path / "data", cifar10_files(image, label, image, label, CIFAR10))
    num_classes = 10 if names else 7
    bring_in(
        cifar8(tmp_path, num_classes),
        "resnet:cifar8",
        tmp_path / "run",
        "--config.data.num_validation=10",
        classes=names,
        num_classes=num_classes,
    )
    with pytest.raises(ValueError, match=says):
        load_run(tmp_path / "run", data_dir=str(tmp_path / "data"))


def test_a_recipe_says_whose_data_they_are_but_nothing_of_training(tmp_path):
    recipe = load_config("configs/resnet_cifar10.py:20", [])
    config = import_config("models.resnet", "cifar8", StateDict({}), recipe)
    assert config.data.num_validation == 5000 and config.data.name == "data.cifar10"
    assert config.augment.flip == "none" and config.optim.momentum == 0 and config.model.variant == "cifar8"
    with pytest.raises(ValueError, match=r"--size_px=48: the pictures of data.cifar10 have their own size"):
        import_config("resnet", "cifar8", StateDict({}), recipe, 48)


def test_without_a_recipe_the_data_are_imagenet_as_torchvision_shows_it():
    config = import_config("resnet", "50-v1.5", StateDict({}))
    data = config.data
    assert (data.name, data.eval_resize_px, data.eval_image_px, data.image_px) == ("data.imagenet", 256, 224, 224)
    assert import_config("resnet", "18", StateDict({}), None, 288).data.eval_resize_px == 329
    assert import_config("vgg", "", StateDict({})).model.variant == "A"


@pytest.mark.parametrize(
    ("model", "variant", "says"),
    [
        ("resnet", "50", "resnet:50 is none of another library's networks: .* take a -v1.5"),
        ("resnet", "51", r"models.resnet has no variant '51' \(did you mean"),
        ("resnett", "", "did you mean 'models.resnet'"),
        ("lenet", "modern", "models.lenet declares no other library's names"),
    ],
)
def test_a_network_that_no_library_has_is_told(model, variant, says):
    with pytest.raises(ValueError, match=says):
        import_config(model, variant, StateDict({}))


@pytest.mark.parametrize(
    ("changes", "said", "says"),
    [
        ({"linear.bias": None}, {}, "1 missing there: linear.bias"),
        ({"linear.weight": np.zeros((10, 65), np.float32)}, {}, "linear.weight is 10x65 there, 10x64 in this network"),
        ({"extra": np.zeros(1, np.float32)}, {}, "1 left over there: extra"),
        ({}, {"classes": ("a", "b")}, "--classes gives 2 names; the network tells 10 classes apart"),
        ({}, {"num_classes": 12}, "linear.weight is 10x64 there, 12x64 in this network"),
        ({}, {"mean": (0.5,)}, "--mean must be 3 numbers, one a channel"),
        ({}, {"std": (0.5, 0.0, 1.0)}, r"--std=\(0.5, 0.0, 1.0\) must be above 0"),
        ({}, {"mean": (123.0, 117.0, 104.0)}, r"--mean=\(123.0, 117.0, 104.0\) must be of pixels / 255"),
        ({}, {"std": (58.0, 57.0, 57.0)}, r"--std=\(58.0, 57.0, 57.0\) must be above 0, and of pixels / 255 at most 1"),
        ({}, {"library": "torchvision"}, "has no names of torchvision: .* ImageNet ResNets"),
        ({}, {"library": "caffe"}, "has no names of caffe: .* known of akamaster, cnn_jax"),
        ({}, {"library": "cnn_jax"}, "37 missing there: .*; 37 left over there: "),
    ],
)
def test_weights_that_do_not_fit_leave_nothing_behind(changes, said, says, tmp_path):
    with pytest.raises(ValueError, match=says) as error:
        bring_in(cifar8(tmp_path, **changes), "resnet:cifar8", tmp_path / "run", **said)
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("recipe", "num_classes", "said", "says"),
    [
        (
            "lenet_digits.py",
            10,
            {},
            "resnet:cifar8 takes pictures of 3 channels, those of digits have 1; name other data",
        ),
        (
            "resnet_cifar10.py:20",
            7,
            {"num_classes": 7},
            "tells 7 classes apart, cifar10 has 10; name other data, --config=",
        ),
        (
            None,
            7,
            {},
            "tells 7 classes apart, cifar10 has 10; .*, or say that these are other classes, --num_classes=7",
        ),
        (None, 7, {"num_classes": 7, "data_is_named": True}, "tells 7 classes apart, cifar10 has 10"),
    ],
)
def test_data_that_contradict_the_network_are_refused(recipe, num_classes, said, says, tmp_path):
    recipe = load_config(f"configs/{recipe}", []) if recipe else None
    said = {"data_is_named": recipe is not None} | said
    with pytest.raises(ValueError, match=says) as error:
        bring_in(cifar8(tmp_path, num_classes), "resnet:cifar8", tmp_path / "run", recipe=recipe, **said)
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "name", ["cifar10", "cifar100", "digits", "image_folder", "imagenet", "mnist", "tiny_imagenet"]
)
def test_what_is_known_of_a_data_set_without_it(name):
    """The published numbers."""
    module = resolve(f"data.{name}", "data", "make_source")
    channels = 1 if name in ("digits", "mnist") else 3
    assert channels == module.CHANNELS
    counts = {"cifar100": 100, "imagenet": 1000, "tiny_imagenet": 200, "image_folder": None}
    assert known_num_classes(ConfigDict({"name": f"data.{name}"})) == counts.get(name, 10)
    assert not hasattr(module, "known_classes") or len(module.known_classes()) == module.NUM_CLASSES


def test_another_architecture_is_told_before_the_number_of_classes(tmp_path):
    with pytest.raises(ValueError, match=r"is not of resnet:cifar20 .* its names are those of cifar8"):
        bring_in(cifar8(tmp_path), "resnet:cifar20", tmp_path / "run", classes=("a", "b"))


def test_another_architecture_s_first_tensors_are_named_and_whose_they_may_be(tmp_path):
    with pytest.raises(ValueError, match=r"weights.npz is not of resnet:cifar20") as error:
        bring_in(cifar8(tmp_path), "resnet:cifar20", tmp_path / "run")
    for words in ("60 missing there: layer1.1.conv1.weight", "and 57 more", "its names are those of cifar8"):
        assert words in str(error.value), error.value


def test_a_workdir_holds_one_run(tmp_path):
    file = cifar8(tmp_path)
    bring_in(file, "resnet:cifar8", tmp_path / "run")
    before = (tmp_path / "run" / "run.json").read_bytes()
    with pytest.raises(ValueError, match="holds a run already; name another --workdir"):
        bring_in(file, "resnet:cifar8", tmp_path / "run")
    assert (tmp_path / "run" / "run.json").read_bytes() == before
    (tmp_path / "run" / "run.json").unlink()
    with pytest.raises(ValueError, match=r"holds checkpoints but no run.json"):
        bring_in(file, "resnet:cifar8", tmp_path / "run")


def test_an_import_that_was_killed_is_done_again(tmp_path, monkeypatch):
    file = cifar8(tmp_path)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("cnn_jax.checkpoint.Checkpoints.save", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        bring_in(file, "resnet:cifar8", tmp_path / "run")
    with pytest.raises(FileNotFoundError, match="has no checkpoint yet"):
        load_run(tmp_path / "run", read_data=False)
    bring_in(file, "resnet:cifar8", tmp_path / "run")
    assert load_run(tmp_path / "run", read_data=False).record["status"] == "imported"


def test_it_is_not_trained_on_where_it_lies(tmp_path):
    from cnn_jax.train import run

    image, label = cifar_arrays(200)
    write(tmp_path / "data", cifar10_files(image, label, image, label, CIFAR10))
    bring_in(cifar8(tmp_path), "resnet:cifar8", tmp_path / "run")
    config = load_config("configs/resnet_cifar10.py:8", [])
    config.data.update(dir=str(tmp_path / "data"), num_validation=40)
    with pytest.raises(ValueError, match=re.escape(f"train from them, --config.init.from={tmp_path / 'run'}")):
        run(config, tmp_path / "run")


def test_damaged_metadata_of_a_file_of_ours_are_told():
    with pytest.raises(ValueError, match=f"the metadata {METADATA!r} of the file is damaged"):
        import_config("lenet", "modern", StateDict({}, {METADATA: "{"}))
    with pytest.raises(ValueError, match=f"the metadata {METADATA!r} of the file is damaged"):
        import_config("lenet", "modern", StateDict({}, {METADATA: "{}"}))
