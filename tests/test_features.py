"""Features equal the network's own maps, whatever the batch; other data sets' pictures; the file; and the verbs."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from cnn_jax.assemble import assemble, make_sources
from cnn_jax.data.source import ArraySource
from cnn_jax.features import about, check_layer, extract, layer_shapes, load_features, save_features
from cnn_jax.leaves import params_sha256
from cnn_jax.main import main
from cnn_jax.train import run as train
from cnn_jax.workdir import TrainedRun, load_run, new_record


@pytest.fixture
def lenet(tiny_config):
    parts = assemble(tiny_config)
    return TrainedRun(parts, new_record(parts), 3, jax.device_get(parts.init_state().eval_variables), ())


def test_they_are_the_networks_maps_whatever_the_batch(lenet):
    source, info = lenet.parts.sources["test"], lenet.parts.info
    image = (source.arrays["image"] / np.float32(255) - np.float32(info.preprocessing["mean"][0])) / np.float32(
        info.preprocessing["std"][0]
    )
    apply = jax.jit(lambda variables, image: lenet.parts.task.module.apply(variables, image, train=False)[1])
    feats = apply(lenet.variables, image)
    for layer, batch_size in (("C3", 16), ("F6", 50), ("F6", 7)):
        found = extract(lenet, source, layer, batch_size)
        np.testing.assert_allclose(found["features"], feats[layer], rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(found["label"], source.arrays["label"])
    assert list(layer_shapes(lenet, (32, 32, 1))) == ["C1", "S2", "C3", "S4", "C5", "F6"]  # of the forward pass
    assert {name: map_.shape[1:] for name, map_ in feats.items()} == layer_shapes(lenet, (32, 32, 1))


def in_colour(config):
    """A network of three channels, whose data set's are all normalised alike."""
    parts = assemble(config)
    same = {name: values * 3 for name, values in parts.info.preprocessing.items()}
    info = dataclasses.replace(parts.info, image_shape=(32, 32, 3), preprocessing=same)
    parts = dataclasses.replace(parts, info=info)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda leaf: rng.normal(0, 0.1, leaf.shape).astype(leaf.dtype), parts.abstract_variables())
    return TrainedRun(parts, {}, 3, variables, ())


def test_grey_pictures_are_shown_to_a_colour_network_as_equal_channels(tiny_config):
    colour, grey = in_colour(tiny_config), make_sources(tiny_config.data)["test"]
    found = extract(colour, grey, "F6")
    info = dataclasses.replace(grey.info, image_shape=(32, 32, 3))
    as_colour = {"image": np.repeat(grey.arrays["image"], 3, axis=-1), "label": grey.arrays["label"]}
    same = extract(colour, ArraySource(as_colour, info), "F6")
    np.testing.assert_array_equal(found["features"], same["features"])
    assert np.ptp(found["features"], axis=0).max() > 0


def test_pictures_of_another_size_where_the_network_takes_them(tiny_config):
    tiny_config.model.update(name="models.resnet", variant="cifar8")
    shapes = layer_shapes(in_colour(tiny_config), (40, 36, 1))
    assert shapes["conv3_x"] == (20, 18, 32) and shapes["pool5"] == (64,)


def test_layers_and_pictures_that_there_are_not(lenet, tiny_config, monkeypatch):
    names = ", ".join(layer_shapes(lenet, (32, 32, 1)))
    with pytest.raises(
        ValueError, match=rf"^--layer=F7 is no layer of models.lenet \(did you mean 'F6'\?\); it has: {names}$"
    ):
        check_layer(lenet, "F7", (32, 32, 1))
    with pytest.raises(ValueError, match=r"^the network takes pictures like \(32, 32, 1\); these are \(32, 32, 3\)$"):
        layer_shapes(lenet, (32, 32, 3))
    with pytest.raises(ValueError, match=r"^a network trained on pictures of \(32, 32, 1\) cannot take \(8, 8, 1\) \("):
        layer_shapes(lenet, (8, 8, 1))
    monkeypatch.setattr("os.sysconf", lambda name: 100)
    with pytest.raises(ValueError, match=r"^--layer=C1 of 50 examples, \(28, 28, 6\) each, is 0\.0 GiB, too much for"):
        extract(lenet, lenet.parts.sources["test"], "C1")
    told = {name: value for name, value in lenet.parts.info.preprocessing.items() if name != "mean"}
    info = dataclasses.replace(lenet.parts.info, preprocessing=told)
    with pytest.raises(ValueError, match=r"^features are those of pictures; this run was trained on xo$"):
        layer_shapes(dataclasses.replace(lenet, parts=dataclasses.replace(lenet.parts, info=info)), (32, 32, 1))


def test_a_file_comes_back_and_a_broken_one_is_named(lenet, tmp_path):
    splits = {"test": extract(lenet, lenet.parts.sources["test"], "F6")}
    told = about(lenet, tmp_path, "F6", lenet.parts.info)
    file = tmp_path / "f.npz"
    save_features(file, splits, told)
    again, told_again = load_features(file)
    assert told_again == told and told["classes"] == ["X", "O"] and told["model"] == "models.lenet:modern"
    for name, array in splits["test"].items():
        np.testing.assert_array_equal(again["test"][name], array)
    first = file.read_bytes()
    save_features(file, splits, told)
    assert file.read_bytes() == first and [path.name for path in tmp_path.iterdir()] == ["f.npz"]
    for content in (first[: len(first) // 2], b"no archive"):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"f\.npz is no file of features .* \./launch\.sh features writes one$"):
            load_features(file)


def test_the_verbs(tiny_config, tmp_path, capsys):
    tiny_config.num_epochs = 1
    train(tiny_config, tmp_path / "run")
    capsys.readouterr()
    file = tmp_path / "f.npz"
    assert main(["features", str(tmp_path / "run"), "--layer=F6", f"--out={file}"]) == 0
    assert "F6 of" in (out := capsys.readouterr().out) and "80 train, 40 validation, 50 test of xo" in out
    assert main(["probe", str(file), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["num_features"] == 84 and result["metrics"]["count"] == 50
    assert result["about"]["params_sha256"] == params_sha256(load_run(tmp_path / "run").variables["params"])
    assert main(["probe", str(file)]) == 0
    assert f"accuracy {result['metrics']['accuracy']:.2%}" in capsys.readouterr().out
    digits = ["--data=configs/lenet_digits.py", "--config.data.digit_px=20", "--split=test"]
    assert main(["features", str(tmp_path / "run"), "--layer=F6", f"--out={file}", *digits]) == 0
    assert "450 test of digits" in capsys.readouterr().out
    for arguments, code, message in (
        (["--layer=F9"], 1, "--layer=F9 is no layer of models.lenet"),
        (["--layer=F6", "--split=all"], 2, "--split=all must name train, validation or test, each once"),
        (["--layer=F6", "--config.data.digit_px=20"], 2, "fields of a data set go with --data"),
        (["--layer=F6", "--data_dir=x", "--data=configs/xo.py"], 2, "--data_dir is for the run's own data"),
        (["--layer=F6", "--batch_size=0"], 2, "--batch_size=0 must be at least 1"),
    ):
        assert main(["features", str(tmp_path / "run"), f"--out={file}", *arguments]) == code
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    assert main(["features", str(tmp_path / "run"), "--layer=F6", "--out=/nowhere/f.npz"]) == 1
    assert "there is no directory /nowhere" in capsys.readouterr().err
    assert main(["probe", str(file)]) == 1
    assert "none of train" in capsys.readouterr().err
