"""What a run begins from: every leaf accounted for, grey and colour, what cannot be taken, the table; the whole, trained."""

import dataclasses
import json
import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from cnn_jax.analysis.complexity import count
from cnn_jax.assemble import assemble
from cnn_jax.data import xo
from cnn_jax.freeze import path_name
from cnn_jax.leaves import params_sha256
from cnn_jax.recipe import load_config
from cnn_jax.step import make_train_step
from cnn_jax.train import run
from cnn_jax.transfer import first_weights, graft, load_base, table
from cnn_jax.workdir import TrainedRun, load_run, new_record
from experiments import transfer

DIGITS = {"name": "data.digits", "digit_px": 28}


def tiny(**fields):
    """LeNet-5 on X and O, five steps an epoch."""
    from configs.common import base
    from tests.conftest import XO

    config = base()
    config.model.name, config.model.variant = "models.lenet", "modern"
    config.data = XO
    config.batch_size, config.num_epochs = 16, 1
    config.optim.lr = 0.02
    config.log.every_steps, config.log.use_tensorboard = 3, False
    for name, value in fields.items():
        config[name] = value
    return config


def resnet(variant="cifar8"):
    config = tiny()
    config.model.update(name="models.resnet", variant=variant)
    return config


def drawn(parts, seed=0):
    """Variables of the network's shapes, each number another."""
    rng = np.random.default_rng(seed)
    draw = lambda leaf: rng.normal(0.5, 0.1, leaf.shape).astype(leaf.dtype)  # noqa: E731
    return jax.tree.map(draw, parts.abstract_variables())


def base_of(config):
    """A base that nobody trained and that lies nowhere."""
    parts = assemble(config)
    return TrainedRun(parts, new_record(parts), 40, drawn(parts), ())


def with_taken(parts, taken, seed=1):
    """Variables of which some are taken from elsewhere, as `Parts.init_state` takes them."""
    own = drawn(parts, seed)
    return jax.tree_util.tree_map_with_path(lambda path, leaf: taken.get(path_name(path), leaf), own)


@pytest.fixture(scope="module")
def base_run(tmp_path_factory):
    """LeNet-5, trained on X and O for an epoch."""
    workdir = tmp_path_factory.mktemp("base")
    run(tiny(), workdir)
    return workdir


def taking(workdir, config=None, **init):
    config = config or tiny()
    config.init.update({"from": str(workdir), **init})
    return config


def bits(tree):
    return jax.tree.map(lambda leaf: np.asarray(leaf).tobytes(), tree)


def test_every_leaf_is_taken_with_its_bits(base_run):
    parts = assemble(taking(base_run, tiny(seed=3)))
    taken, told, text = first_weights(parts)
    state, base = parts.init_state(taken), load_run(base_run)
    assert bits(state.params) == bits(base.variables["params"])
    assert told["init"]["params_sha256"] == json.loads((base_run / "run.json").read_text())["params_sha256"]
    assert told["init"]["step"] == 5 and told["init"]["num_taken"] == 61_706 - 8 * 85
    assert text.splitlines()[0] == f"begins from {base_run}: models.lenet:modern of xo, step 5"


def test_what_is_skipped_is_drawn_by_the_seed_and_the_table_says_so(base_run):
    config = taking(base_run, tiny(data=DIGITS), skip=("output/.*",))
    config.freeze.patterns = ("C[135]/.*", ("F6/bias", 0.5))
    config.optim.lr_scale = (("output/.*", 10.0),)
    config.phases = ((0.75, "freeze.patterns", ("C1/.*",)),)
    parts = assemble(config)
    taken, _, text = first_weights(parts)
    state, drawn = parts.init_state(taken), parts.init_state()
    assert bits(state.params["output"]) == bits(drawn.params["output"])
    assert all(bits(state.params[group]) != bits(drawn.params[group]) for group in ("C1", "C3", "C5", "F6"))
    rows = [line.split("  ") for line in text.splitlines()[1:]]
    rows = [[cell.strip() for cell in row if cell.strip()] for row in rows]
    assert rows == [
        ["part", "parameters", "begins", "epoch 0", "epoch 0.746269"],  # 67 steps an epoch, of which 50
        ["C1", "156", "loaded", "frozen", "frozen"],
        ["C3 .. C5", "50,536", "loaded", "frozen", "trains"],
        ["F6", "10,164", "loaded", "1 trains, frozen from epoch 0.507463; 1 trains", "trains"],
        ["output", "850", "new", "trains at 10 lr", "trains at 10 lr"],
        ["all", "61,706", "11,014 train", "61,550 train"],
        [text.splitlines()[-1]],
    ]
    assert "normalised by mean" in text.splitlines()[-1]


def test_running_statistics_come_along_and_are_counted():
    base, config = base_of(resnet()), resnet()
    config.init.update({"from": "elsewhere", "skip": ("bn1/mean",)})
    config.freeze.update(patterns=("conv1/.*",), batch_stats=("conv2_1/.*",))
    parts = assemble(config)
    taken, notes = graft(base, parts)
    theirs, here = bits(base.variables), bits(with_taken(parts, taken))
    assert here["params"] == theirs["params"]
    assert here["batch_stats"]["conv2_1"] == theirs["batch_stats"]["conv2_1"]
    assert here["batch_stats"]["bn1"]["var"] == theirs["batch_stats"]["bn1"]["var"]
    assert here["batch_stats"]["bn1"]["mean"] == bits(drawn(parts, 1))["batch_stats"]["bn1"]["mean"]
    assert table(parts, notes).splitlines()[-1] == (
        "running statistics of 7 normalisations begin: 1 new; 13 loaded. In training: 2 frozen, 5 updated"
    )


def in_colour(monkeypatch):
    """X and O with three equal channels, from here on."""
    make = xo.make_source

    def make_source(data, split):
        source = make(data, split)
        tell = {name: values * 3 for name, values in source.info.preprocessing.items()}
        info = dataclasses.replace(source.info, image_shape=(32, 32, 3), preprocessing=tell)
        image = np.repeat(source.arrays["image"], 3, axis=-1)
        return type(source)({**source.arrays, "image": image}, info)

    monkeypatch.setattr(xo, "make_source", make_source)


def logits_of(parts, variables, image):
    return jax.jit(lambda image: parts.task.module.apply(variables, image, train=False)[0])(image)


def test_from_grey_to_colour_and_back_grey_pictures_give_the_same_logits(monkeypatch):
    config = tiny()
    config.init["from"] = "elsewhere"
    grey = base_of(config)
    in_colour(monkeypatch)
    colour = base_of(config)
    image = np.random.default_rng(0).normal(size=(2, 32, 32, 1)).astype(np.float32)

    taken, notes = graft(grey, colour.parts)
    assert notes["params/C1/kernel"] == "loaded, repeated for 3 channels and divided by 3"
    expected = logits_of(grey.parts, grey.variables, image)
    logits = logits_of(colour.parts, with_taken(colour.parts, taken), np.repeat(image, 3, -1))
    np.testing.assert_allclose(logits, expected, rtol=1e-4)

    taken, notes = graft(colour, grey.parts)
    assert notes["params/C1/kernel"] == "loaded, summed over 3 channels"
    expected = logits_of(colour.parts, colour.variables, np.repeat(image, 3, -1))
    np.testing.assert_allclose(logits_of(grey.parts, with_taken(grey.parts, taken), image), expected, rtol=1e-4)


def test_another_picture_size_loads_where_the_network_averages_over_space():
    config = resnet()
    config.init["from"] = "elsewhere"
    config.data.size_px = 40
    taken, notes = graft(base_of(resnet()), assemble(config))
    assert set(notes.values()) == {"loaded"} and len(taken) == len(notes)
    config = tiny()
    config.init["from"] = "elsewhere"
    config.data.size_px = 36
    with pytest.raises(
        ValueError, match=r"F6/kernel is \(120, 84\) there, \(480, 84\) here.*keep the pictures of \(32, 32"
    ):
        graft(base_of(tiny()), assemble(config))


def refused(base, config):
    with pytest.raises(ValueError) as error:
        graft(base, assemble(config))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_another_head_and_another_network_are_named(base_run):
    base = load_base(base_run, "newest")
    assert refused(base, taking("DIR", tiny(data=DIGITS))) == (
        "config.init.from=DIR: output/bias is (2,) there, (10,) here; output/kernel is (84, 2) there, (84, 10) here; "
        "--config.init.skip=\"('output/.*',)\" leaves it out"
    )
    told = refused(base, taking("DIR", resnet()))
    assert told.startswith("config.init.from=DIR: bn1/mean is absent there, (16,) here; ")
    assert told.endswith("more; models.lenet:modern there is another network than models.resnet:cifar8 here")
    assert refused(base, taking("DIR", skip=("conv9/.*",))) == (
        "config.init.skip: 'conv9/.*' matches no parameter of either network, whose paths are like 'C1/bias'"
    )
    assert refused(base, taking("DIR", skip=(".*",))).startswith("config.init.skip=('.*',): skips all of DIR")


@pytest.mark.parametrize(
    ("init", "message"),
    [
        ({"from": "", "skip": ("a",)}, r"^config\.init\.skip=\('a',\): skips nothing, config\.init\.from names no"),
        ({"from": "DIR", "checkpoint": "last"}, r"^config\.init\.checkpoint='last': must be one of 'newest', 'best'"),
        ({"from": "DIR", "skip": ("(",)}, r"^config\.init\.skip=\('\(',\): must be a tuple, each of it a regular exp"),
        ({"from": "/nowhere/at/all"}, r"^config\.init\.from: /nowhere/at/all is no directory"),
    ],
)
def test_fields_that_cannot_be_meant(init, message):
    with pytest.raises((ValueError, OSError), match=message):
        first_weights(assemble(taking("", **init)))


def test_a_base_that_cannot_be_read_stops_the_run_before_it_begins(base_run, tmp_path):
    old = tmp_path / "old"
    shutil.copytree(base_run, old)
    record = json.loads((old / "run.json").read_text())
    for section, field in (("init", None), ("freeze", None), ("phases", None), ("optim", "lr_scale")):
        record["config"].pop(section) if field is None else record["config"][section].pop(field)
    (old / "run.json").write_text(json.dumps(record))
    assert load_base(old, "best").step == 5  # what has been added since is off
    del record["config"]["model"]
    (old / "run.json").write_text(json.dumps(record))
    with pytest.raises(
        ValueError, match=r"^config\.init\.from: .*old/run\.json is damaged, or of other code than this"
    ):
        run(taking(old), tmp_path / "new")
    assert not (tmp_path / "new" / "run.json").exists()
    shutil.rmtree(old / "checkpoints")
    shutil.copy(base_run / "run.json", old)
    with pytest.raises(OSError, match=r"^config\.init\.from: no checkpoint directory"):
        run(taking(old), tmp_path / "new")


def two_phases(base_run):
    config = taking(base_run, tiny(num_epochs=2), skip=("output/.*",))
    config.freeze.patterns = ("C[135]/.*|F6/.*",)
    config.phases = ((1, "freeze.patterns", ("C1/.*",)), (1, "optim.lr", 0.01))
    config.optim.ema_decay = 0.5
    return config


def test_a_head_then_more_in_one_command_from_a_base_that_may_be_gone_after(base_run, tmp_path, capsys):
    base = tmp_path / "base"
    shutil.copytree(base_run, base)
    config = two_phases(base)
    record = run(config, tmp_path / "new")
    assert "begins from" in capsys.readouterr().out
    assert record["init"]["step"] == 5 and record["status"] == "finished"
    shutil.rmtree(base)
    config.num_epochs = 3
    record = run(config, tmp_path / "new")
    assert record["init"]["step"] == 5 and record["step"] == 15 and "begins from" not in capsys.readouterr().out
    there, here = load_run(base_run).variables["params"], load_run(tmp_path / "new").variables["params"]
    assert bits(here["C1"]) == bits(there["C1"]) and params_sha256(here) != record["params_sha256"]  # the average's
    for group in ("C3", "C5", "F6"):
        assert np.any(here[group]["kernel"] != there[group]["kernel"])


def macs_of_a_step(config):
    parts = assemble(config)
    step = make_train_step(parts.loss_fn(), parts.optimizer.tx, parts.optimizer.after_step)
    shapes = {"image": ((16, 32, 32, 1), np.uint8), "label": ((16,), np.int32), "index": ((16,), np.int32)}
    batch = {name: jax.ShapeDtypeStruct(*shape) for name, shape in shapes.items()}
    forward = count(
        lambda variables, x: parts.task.module.apply(variables, x, train=True, mutable=["batch_stats"]),
        parts.abstract_variables(),
        jax.ShapeDtypeStruct((16, 32, 32, 1), np.float32),
    )
    return count(step, parts.abstract_state(), batch, jax.eval_shape(lambda: jax.random.key(0))).macs, forward.macs


def test_a_frozen_prefix_costs_no_backward_pass(monkeypatch):
    monkeypatch.setenv("CNN_JAX_TUNING", "off")  # with which a step measures itself by products, which would count, too
    config = resnet()
    whole, forward = macs_of_a_step(config)
    assert 2.8 * forward < whole <= 3 * forward
    config.freeze.update(patterns=("(?!fc/).*",), batch_stats=(".*",))
    head, _ = macs_of_a_step(config)
    assert head == forward + 16 * 64 * 2  # the head's kernel (64, 2) by 16 pictures: its gradient, and nothing else
    config.freeze.patterns = ("(?!fc/|conv4_1/).*",)
    block, _ = macs_of_a_step(config)
    # Of the last block, 3x3 convolutions from 32 to 64 maps and from 64 to 64 of 8x8: both kernels' gradients, and that of
    # what lies between; of the head, its kernel's and that of its input.
    convs = [16 * 8 * 8 * 9 * 32 * 64, 16 * 8 * 8 * 9 * 64 * 64]
    assert block == forward + convs[0] + 2 * convs[1] + 2 * 16 * 64 * 2


def test_statistics_that_are_frozen_stay_and_others_move():
    config = resnet()
    config.freeze.update(batch_stats=("bn1|conv2_1/.*",))
    parts = assemble(config)
    variables = drawn(parts)
    params, state = variables.pop("params"), variables
    batch = {"image": np.arange(16 * 1024).reshape(16, 32, 32, 1) % 251, "label": np.arange(16, dtype=np.int32) % 2}
    rngs = {"augment": jax.random.key(0), "dropout": jax.random.key(1)}
    _, (after, _) = jax.jit(parts.loss_fn())(params, state, batch | {"step": 0}, rngs)
    for name in ("bn1", "conv2_1"):
        assert bits(after["batch_stats"][name]) == bits(state["batch_stats"][name])
    assert bits(after["batch_stats"]["conv3_1"]) != bits(state["batch_stats"]["conv3_1"])


def test_statistics_that_no_network_freezes_are_named():
    config = tiny()
    config.freeze.batch_stats = (".*",)
    with pytest.raises(ValueError, match=r"batch_stats: '\.\*' matches no normalisation of this model: it has none"):
        assemble(config)
    config = resnet()
    config.freeze.batch_stats = ("conv1",)
    with pytest.raises(ValueError, match=r"batch_stats: 'conv1' matches no normalisation .* like 'bn1'$"):
        assemble(config)
    config.freeze.batch_stats = ("bn1",)
    with config.model.overrides.unlocked():
        config.model.overrides.frozen_stats = "bn1"
    with pytest.raises(ValueError, match=r"config\.model\.overrides\.frozen_stats freezes some already"):
        assemble(config)


def test_a_phase_that_freezes_everything_is_named_with_its_epoch():
    config = tiny(num_epochs=4)
    config.phases = ((2, "freeze.patterns", (".*",)),)
    with pytest.raises(ValueError, match=r"^config\.phases, from epoch 2: config\.freeze\.patterns=.*freezes every"):
        assemble(config)


def records(gains):
    """Made-up results of the transfer experiment: accuracy 0.5 of a run from scratch, and what an arm gains at a size."""
    arms = {run["group"] for run in transfer.runs("tiny")}
    return {
        group: {
            seed: {"metrics": {"accuracy": 0.5 + gains.get(group, 0) + seed * len(group) % 5 / 1000}}
            for seed in range(5)
        }
        for group in arms
    }


@pytest.mark.parametrize(
    ("gains", "verdict"),
    [
        ({"all/5": 0.1, "all/100": 0.02, "head/5": 0.1}, "supported"),
        ({"all/5": 0.1, "all/100": 0.02}, "refuted"),  # the base's features serve no better
        ({"all/5": 0.1, "all/100": 0.2, "head/5": 0.1}, "refuted"),  # the gain does not fall
        ({"published all/5": 0.3, "published head/5": 0.3}, "refuted"),  # which stand beside
    ],
)
def test_the_verdict_on_transfer(monkeypatch, gains, verdict):
    monkeypatch.setattr(transfer, "compare_probes", lambda results, arm_of: [])
    judged = transfer.judge(records(gains))
    assert judged.verdict == verdict
    names = [told["name"] for told in judged.secondary]
    assert len(names) == len(set(names)) == 22 and "published all - scratch at 5" in names


def test_arms_of_a_task_share_their_pictures_and_the_figure_finds_every_arm():
    planned = list(transfer.runs("tiny"))
    assert len(planned) == (5 + 3) * 3 * 5
    drawn = {(run["group"], run["seed"]): run["overrides"]["data.draw_seed"] for run in planned}
    assert all(draw == seed for (_, seed), draw in drawn.items())
    groups = {"head/5": {"runs": {"0": {"test": {"accuracy": 0.5}}, "1": {"test": {"accuracy": 0.25}}}}}
    told = [{"name": "probe - head at 5", "differences": {"0": 0.25, "1": -0.25}}, {"name": "all - head at 5"}]
    assert transfer.scores_of({"groups": groups, "secondary": told}) == {"head/5": [0.5, 0.25], "probe/5": [0.75, 0.0]}
    with pytest.raises(ValueError, match="task 'tin' must be one of digits59, digits, tiny"):
        next(transfer.runs("tin"))


def test_a_probe_is_compared_with_the_head_of_the_same_pictures(monkeypatch):
    """Nothing is trained: sources are their drawing's seed, and a probe's accuracy is told by what it was fitted to."""
    config = load_config("configs/transfer.py:head,base=elsewhere,per_class=5", [])
    base = SimpleNamespace(parts=SimpleNamespace(config=config), record={"params_sha256": "ab" * 32})
    read = []
    monkeypatch.setattr(transfer, "SIZES", (5,))
    monkeypatch.setattr("cnn_jax.workdir.load_run", lambda path, read_data: read.append(path) or base)
    monkeypatch.setattr("cnn_jax.workdir.record_config", lambda record: record["config"])
    monkeypatch.setattr(
        "cnn_jax.assemble.make_sources",
        lambda data: {split: (split, data.draw_seed) for split in ("train", "validation", "test")},
    )
    monkeypatch.setattr("cnn_jax.features.extract", lambda base, source, layer: (*source, layer))

    def fit_probe(features, num_classes):
        assert num_classes == 5 and features["test"] == ("test", 0, "F6")  # held out once, whatever was drawn
        seed = features["train"][1]
        return {"metrics": {"accuracy": 0.5 + seed / 10}, "strength": 0.01}

    monkeypatch.setattr("cnn_jax.linear_probe.fit_probe", fit_probe)
    results = {}
    for seed in range(2):
        own = config.copy_and_resolve_references()
        own.data.draw_seed = seed
        results[seed] = {"config": own, "classes": list(range(5)), "metrics": {"accuracy": 0.25}}
    ((comparison, note),) = transfer.compare_probes({"head/5": results}, "")
    assert read == [transfer.ROOT / "elsewhere"] and comparison.name == "probe - head at 5"
    assert comparison.differences == {0: 0.25, 1: pytest.approx(0.35)}
    assert note == "probe - head at 5: F6 of models.lenet, params abababababab, strengths 0.01, 0.01"
