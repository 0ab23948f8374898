"""A workdir belongs to one run and one process, and gives the trained network back."""

import json

import jax
import numpy as np
import pytest

from cnn_jax import records
from cnn_jax.assemble import assemble
from cnn_jax.train import run
from cnn_jax.workdir import flat, load_run, locked, new_record, open_workdir, record_config


@pytest.fixture
def trained(tiny_config, tmp_path):
    tiny_config.num_epochs = 1
    run(tiny_config, tmp_path)
    return tmp_path


def test_a_trained_run_comes_back_with_its_moving_average(trained):
    loaded = load_run(trained)
    assert loaded.step == 5 and set(loaded.variables) == {"params"}
    record = json.loads((trained / "run.json").read_text())
    from cnn_jax.evaluate import Evaluator
    from cnn_jax.leaves import params_sha256

    assert params_sha256(loaded.variables["params"]) != record["params_sha256"]  # that is of the parameters themselves
    evaluator = Evaluator(loaded.parts.task, loaded.parts.info.preprocessing, loaded.parts.mesh)
    metrics = evaluator.evaluate(loaded.variables, loaded.parts.sources["test"], 50)
    assert metrics["confusion"] == record["metrics"]["confusion"]
    assert load_run(trained, "best").step == record["best"]["step"]


def test_a_config_survives_its_record(tiny_config):
    record = json.loads(json.dumps(new_record(assemble(tiny_config))))
    assert flat(record_config(record)) == flat(record["config"]) == flat(tiny_config)
    assert isinstance(record_config(record).optim.decay_kinds, tuple)


def test_an_empty_directory_holds_no_run(tiny_config, tmp_path):
    assert open_workdir(tmp_path, assemble(tiny_config)) is None


def test_checkpoints_without_a_record_are_not_overwritten(trained, tiny_config):
    (trained / "run.json").unlink()
    with pytest.raises(ValueError, match=r"holds (metrics.jsonl|checkpoints) but no run.json"):
        run(tiny_config, trained)


def test_other_data_under_the_same_config_are_refused(trained, tiny_config):
    path = trained / "run.json"
    record = json.loads(path.read_text())
    record["dataset"]["checksum"] = "0" * 64
    path.write_text(json.dumps(record))
    with pytest.raises(ValueError, match="other contents of xo"):
        run(tiny_config, trained)
    with pytest.raises(ValueError, match="has other contents"):
        load_run(trained)


def test_a_record_changed_by_hand_is_warned_of_and_not_sealed_anew(trained, tiny_config, capsys):
    path = trained / "run.json"
    sealed = json.loads(path.read_text())
    assert load_run(trained).warnings == ()
    tiny_config.log.every_steps = 3  # which may change: the record is written anew
    run(tiny_config, trained)
    assert json.loads(path.read_text())["config"]["log"]["every_steps"] == 3
    assert load_run(trained).warnings == ()
    sealed["metrics"]["accuracy"] = 0.987
    path.write_text(json.dumps(sealed))
    capsys.readouterr()
    run(tiny_config, trained)
    assert f"warning: {records.CHANGED}" in capsys.readouterr().out
    assert load_run(trained, read_data=False).warnings == (records.CHANGED,)


@pytest.mark.parametrize("name", ["optim", "data", "model"])
def test_a_record_without_a_part_of_its_config_is_damaged(trained, name):
    path = trained / "run.json"
    record = json.loads(path.read_text())
    del record["config"][name]
    path.write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"run\.json is damaged, or of other code than this .*restore it") as caught:
        load_run(trained)
    assert "\n" not in str(caught.value)


def test_the_lock_falls_with_its_holder(tmp_path):
    with locked(tmp_path / "a"):
        pass
    with locked(tmp_path / "a"), pytest.raises(ValueError, match="another process is training"), locked(tmp_path / "a"):
        pass


def test_the_variables_are_on_every_device(trained):
    for leaf in jax.tree.leaves(load_run(trained).variables):
        assert len(leaf.sharding.device_set) == 8 and np.all(np.isfinite(leaf))
