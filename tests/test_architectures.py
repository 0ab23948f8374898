"""What a network costs, by name, and all of them side by side."""

import json

import pytest

from cnn_jax import architectures
from cnn_jax.main import main

FIELDS = {"dataset", "top1", "top5", "protocol", "source"}
ROW = {
    "model": "vgg", "variant": "D", "input_shape": [224, 224, 3], "params": 138_357_544, "macs": 15_470_264_320,
    "activation_bytes": 60_348_320, "ours": [],
    "published": {"dataset": "ImageNet", "top1": 71.592, "top5": 90.382, "protocol": "one crop", "source": "somewhere"},
}  # fmt: skip
OWN = {
    "recipe": "lenet_mnist",
    "dataset": "mnist",
    "top1": 99.4,
    "num_seeds": 5,
    "num_epochs": 20.0,
    "input_shape": [32, 32, 1],
}


def test_description_of_lenet():
    description = architectures.analyze("models.lenet:modern")
    assert list(description) == ["model", "variant", "input_shape", "layers", "totals"]
    assert (description["model"], description["variant"]) == ("lenet", "modern")
    assert description["input_shape"] == [32, 32, 1]
    assert description["totals"]["params"] == 61_706
    macs = 28 * 28 * 6 * 25 + 10 * 10 * 16 * 25 * 6 + 120 * 400 + 84 * 120 + 10 * 84
    assert description["totals"]["macs"] == macs
    assert set(description["totals"]) == {"params", "macs", "flops", "activation_bytes", "training_activation_bytes"}
    keys = {"name", "kind", "output_shape", "params", "macs", "receptive_field", "stride", "sees"}
    assert all(set(layer) == keys for layer in description["layers"])
    c3 = next(layer for layer in description["layers"] if layer["name"] == "C3")
    assert c3 == {
        "name": "C3", "kind": "conv", "output_shape": [10, 10, 16], "params": 2416, "macs": 240_000,
        "receptive_field": [14, 14], "stride": [2, 2], "sees": "part",
    }  # fmt: skip
    assert json.loads(json.dumps(description)) == description


def test_the_first_variant_other_inputs_classes_and_fields():
    assert architectures.analyze("alexnet")["totals"]["params"] == 60_965_224
    assert architectures.analyze("lenet", num_classes=26)["totals"]["params"] == 61_706 + 16 * 85
    assert architectures.analyze("zfnet", size_px=256)["input_shape"] == [256, 256, 3]
    wide = architectures.analyze("resnet:cifar8", overrides={"width": 32})["totals"]["params"]
    assert 3.5 * 75_290 < wide < 4 * 75_290


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("resnte", {}, "no model 'resnte' (did you mean 'resnet'?); there are: airbench, alexnet"),
        ("", {}, "no model ''"),
        ("vgg:F", {}, "vgg has no variant 'F'"),
        ("resnet:cifar21", {}, "resnet has no variant 'cifar21' (did you mean 'cifar"),
        ("lenet", {"size_px": 0}, "size_px=0 must lie in 1..32768"),
        ("lenet", {"size_px": -5}, "size_px=-5 must lie in 1..32768"),
        ("lenet", {"size_px": 9}, "inputs of 9x9 are too small: C3 ran out of pixels; the smallest that works is "),
        ("lenet", {"num_classes": 0}, "num_classes=0"),
        ("lenet:1998", {"num_classes": 11}, "11"),
        ("lenet", {"overrides": {"width": 2}}, "width"),
    ],
)
def test_what_cannot_be_is_one_line(name, options, words):
    with pytest.raises(ValueError) as error:
        architectures.analyze(name, **options)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_networks_are_sorted_by_model_with_variants_in_their_order():
    networks = architectures.networks()
    models = list(dict.fromkeys(model for model, _ in networks))
    assert models == sorted(models) and {"alexnet", "googlenet", "lenet", "resnet", "vgg", "zfnet"} <= set(models)
    vgg = [variant for model, variant in networks if model == "vgg"]
    assert vgg[:6] == ["A", "A-LRN", "B", "C", "D", "E"]
    assert len(set(networks)) == len(networks)


def test_published_accuracies_name_networks_and_are_complete():
    published = json.loads(architectures.PUBLISHED.read_text())
    assert set(published) <= set(map(":".join, architectures.networks()))
    for name, score in published.items():
        assert set(score) == FIELDS, name
        assert score["top5"] is None or score["top1"] < score["top5"] < 100, name
        assert 50 < score["top1"] < 100 and all(score[field] for field in ("dataset", "protocol", "source")), name
    torchvision = {name for name, score in published.items() if score["source"].startswith("torchvision")}
    assert len(torchvision) == 15 and len({published[name]["protocol"] for name in torchvision}) == 1


def test_comparison_of_a_few():
    lenet, alexnet = architectures.comparison([("lenet", "modern"), ("alexnet", "torchvision")])
    assert (lenet["params"], lenet["input_shape"], lenet["published"]) == (61_706, [32, 32, 1], None)
    assert {own["recipe"]: own["num_seeds"] for own in lenet["ours"]}["lenet_mnist"] == 5
    assert all(98 < own["top1"] < 100 for own in lenet["ours"])
    assert alexnet["ours"] == [] and alexnet["published"]["top1"] == 56.522
    assert f"{alexnet['macs'] / 1e9:.3f}" == "0.714"  # torchvision's own count
    assert set(alexnet) == set(ROW)


def test_many_are_counted_in_processes_the_deepest_first(monkeypatch):
    class Pool:
        def __init__(self, count, context, first):
            assert (count, context.get_start_method(), first) == (3, "spawn", architectures._stay_on_cpu)

        __enter__, __exit__ = lambda self: self, lambda self, *_: None

        def map(self, measure, networks):
            assert networks[:3] == [("m", "cifar1202"), ("m", "cifar1202-B"), ("m", "30")] and len(networks) == 32
            return map(measure, networks)

    monkeypatch.setattr(architectures, "ProcessPoolExecutor", Pool)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2})
    wanted = [*(("m", f"{i}") for i in range(1, 31)), ("m", "cifar1202"), ("m", "cifar1202-B")]
    assert architectures.in_processes(":".join, wanted) == list(map(":".join, wanted))
    monkeypatch.setattr(architectures, "ProcessPoolExecutor", None)  # of a few it has no need
    assert architectures.in_processes(":".join, wanted[:15]) == list(map(":".join, wanted[:15]))


@pytest.mark.full
def test_processes_bring_back_what_they_counted(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    wanted = [network for network in architectures.networks() if network[0] in ("lenet", "mlp", "xonet", "dilated")] * 2
    assert len(wanted) >= 16
    expected = [
        {key: row[key] for key in ("params", "macs", "activation_bytes")}
        for row in architectures.comparison(wanted[:3])
    ]
    assert architectures.in_processes(architectures.totals_of, wanted)[:3] == expected


def test_own_records_are_the_means_of_a_recipe(tmp_path, monkeypatch):
    def record(recipe, seed, accuracy, **model):
        folder = tmp_path / recipe
        folder.mkdir(exist_ok=True)
        value = {
            "config": {"model": {"name": "models.lenet", "variant": "modern", "overrides": {}, **model}, "num_epochs": 3.0},
            "dataset": {"name": "mnist"}, "metrics": {"accuracy": accuracy}, "input_shape": [32, 32, 1],
        }  # fmt: skip
        (folder / f"seed{seed}.json").write_text(json.dumps(value))

    record("plain", 0, 0.5)
    record("plain", 1, 0.75)
    record("better", 0, 0.875)
    record("changed", 0, 0.9, overrides={"num_maps": 3})
    monkeypatch.setattr(architectures, "RESULTS", tmp_path)
    (row,) = architectures.comparison([("lenet", "modern")])
    assert [(own["recipe"], own["top1"], own["num_seeds"], own["num_epochs"]) for own in row["ours"]] == [
        ("better", 87.5, 1, 3.0),
        ("plain", 62.5, 2, 3.0),
    ]


def test_render():
    small = ROW | {
        "model": "lenet",
        "variant": "modern",
        "input_shape": [32, 32, 1],
        "macs": 416_520,
        "published": None,
    }
    other = OWN | {"num_seeds": 1, "input_shape": [28, 28, 1], "dataset": "other"}
    lines = architectures.render_comparison([ROW, small | {"ours": [OWN, other]}]).splitlines()
    assert lines[0].split() == " ".join(architectures.COLUMNS).split() and set(lines[1]) == {"-"}
    assert lines[2].split() == ["vgg:D", "224x224x3", "138,357,544", "15.470", "60.3", "71.59/90.38", "ImageNet"]
    assert lines[3].split()[:4] == ["lenet:modern", "32x32x1", "138,357,544", "0.00042"]
    assert lines[3].endswith("99.40 mnist (5 seeds, 20 epochs); 99.40 other (1 seed, 20 epochs, 28x28x1)")
    assert len({line.index("224x224x3") for line in lines if "224x224x3" in line} | {lines[0].index("input")}) == 1


def test_the_command_line(capsys):
    assert main(["analyze", "lenet:modern", "--format=json", "--num_classes=5"]) == 0
    assert json.loads(capsys.readouterr().out)["totals"]["params"] == 61_706 - 5 * 85
    assert main(["analyze", "lenet"]) == 0
    assert "61,706" in capsys.readouterr().out
    assert main(["analyze", "resnet:51"]) == 1
    assert capsys.readouterr().err.startswith("error: resnet has no variant '51' (did you mean '5")


@pytest.mark.parametrize(
    "argv", [[], ["lenet", "--compare"], ["--compare", "--write_docs"], ["lenet", "--plot=x.png"], ["lenet", "--wrong"]]
)
def test_a_wrong_command_line(argv, capsys):
    assert main(["analyze", *argv]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_bad_place_for_the_picture_is_told_before_the_counting(monkeypatch, capsys):
    monkeypatch.setattr(architectures, "comparison", lambda: pytest.fail("counted first"))
    assert main(["analyze", "--compare", "--plot=/no/such/place/x.png"]) == 1
    assert capsys.readouterr().err == (
        "error: cannot draw /no/such/place/x.png: there is no directory /no/such/place\n"
    )
