"""What leaves says the same elsewhere: the program deserialised, the weights imported again."""

import json

import jax
import numpy as np
import pytest

from cnn_jax.assemble import assemble
from cnn_jax.recipe import load_config
from cnn_jax.weights.exporting import export_safetensors, export_stablehlo, facts
from cnn_jax.weights.importing import METADATA, Said, import_config, import_weights
from cnn_jax.weights.state_dict import read_state_dict
from cnn_jax.workdir import TrainedRun, load_run
from tests.weights.untrained import network_run, run_of

STD = (0.3, 0.2, 0.1)


@pytest.fixture(scope="module")
def run():
    return network_run("resnet:cifar8", (32, 32, 3), preprocessing={"mean": (0.5, 0.4, 0.3), "std": STD})


def leaves(variables):
    return {jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(variables)}


def assert_same(found, expected):
    found, expected = leaves(found), leaves(expected)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)


def bring_in(file, name, workdir):
    state, (model, variant) = read_state_dict(file), name.split(":")
    import_weights(import_config(model, variant, state), state, file, workdir, Said())
    return load_run(workdir, read_data=False)


def test_stablehlo_is_the_prediction_for_any_number_of_pictures(run, tmp_path):
    file = tmp_path / "model.stablehlo"
    told = export_stablehlo(run, file)
    exported = jax.export.deserialize(bytearray(file.read_bytes()))
    assert exported.platforms == ("cpu", "cuda", "tpu") and "uint8 pictures (n, 32, 32, 3)" in told
    for n in (1, 8):
        images = np.random.default_rng(n).integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)
        batch = {"image": np.resize(images, (8, 32, 32, 3)), "mask": np.ones(8, bool)}
        expected = run.parts.evaluator().predict(run.variables, batch)["probabilities"][:n]
        np.testing.assert_allclose(exported.call(images), expected, rtol=1e-4, atol=1e-6)
        assert expected.max() - expected.min() > 0.05  # the formula's weights are not indifferent
    about = json.loads((tmp_path / "model.stablehlo.json").read_text())
    assert about["input"] == {"dtype": "uint8", "shape": ["n", 32, 32, 3]} and about["output"] == "probabilities"
    assert about["classes"] == [f"class {i}" for i in range(5)] and about["preprocessing"]["std"] == list(STD)


def test_safetensors_by_the_library_s_names_come_back_to_the_bit_with_all_that_is_known(run, tmp_path):
    file = tmp_path / "a.safetensors"
    assert export_safetensors(run, file) == "37 tensors by akamaster's names"
    state = read_state_dict(file)
    assert state.arrays["linear.weight"].shape == (5, 64) and state.metadata["format"] == "pt"
    again = bring_in(file, "resnet:cifar8", tmp_path / "run")
    assert_same(again.variables, run.variables)
    for name in ("classes", "preprocessing", "input_shape"):
        assert json.loads(json.dumps(facts(run)[name])) == again.record[name], name
    assert again.record["imported"]["naming"] == "akamaster" and dict(again.parts.config.data) == dict(
        run.parts.config.data
    )


def test_a_network_that_no_library_has_leaves_by_our_names(tiny_config, tmp_path):
    run, file = run_of(tiny_config), tmp_path / "a.safetensors"
    told = export_safetensors(run, file)
    assert told.startswith(
        "10 tensors by cnn_jax's names (the names of no other library's are declared for models.lenet"
    )
    assert json.loads(read_state_dict(file).metadata[METADATA])["config"]["data"]["name"] == "data.xo"
    again = bring_in(file, "lenet:modern", tmp_path / "run")
    assert_same(again.variables, run.variables)
    assert again.parts.info.classes == run.parts.info.classes
    on_data = load_run(tmp_path / "run")  # the data set is told by the file, too
    assert on_data.parts.sources["test"].info.checksum == run.parts.info.checksum


def test_a_naming_of_the_user_s(run, tmp_path):
    assert export_safetensors(run, tmp_path / "a", "cnn_jax") == "37 tensors by cnn_jax's names"
    with pytest.raises(ValueError, match="--naming=torchvision: torchvision and timm have the ImageNet ResNets"):
        export_safetensors(run, tmp_path / "b", "torchvision")
    with pytest.raises(ValueError, match=r"--naming=nope: .*; this network has the names of akamaster, cnn_jax"):
        export_safetensors(run, tmp_path / "b", "nope")
    assert not (tmp_path / "b").exists()


def test_inputs_that_are_no_pictures_are_refused(tmp_path):
    run = TrainedRun(assemble(load_config("configs/rnn_parity.py", [])), {}, 0, {}, ())
    with pytest.raises(ValueError, match="takes networks of pictures"):
        export_stablehlo(run, tmp_path / "a")
    assert list(tmp_path.iterdir()) == []
