"""A run that was never trained, its weights by formula: enough to be exported, and quicker."""

import jax
from flax import traverse_util

from cnn_jax.assemble import assemble
from cnn_jax.weights.importing import import_config
from cnn_jax.weights.state_dict import StateDict
from cnn_jax.workdir import TrainedRun, new_record
from tests.oracles.formula_weights import parameter

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def run_of(config, record=None):
    """The run of a config; record: of its data set, which is read without one."""
    parts = assemble(config, record=record)
    state = jax.eval_shape(parts.init_state)
    flat = traverse_util.flatten_dict({"params": state.params, **state.model_state})
    variables = {path: parameter("/".join(path[1:]), x.shape) for path, x in flat.items()}
    return TrainedRun(parts, new_record(parts), 3, traverse_util.unflatten_dict(variables), ())


def network_run(name, shape, num_classes=5, preprocessing=IMAGENET, **overrides):
    """The run of "model:variant" on pictures of `shape`."""
    model, _, variant = name.partition(":")
    config = import_config(model, variant, StateDict({}), size_px=None if shape[0] == 32 else shape[0])
    with config.model.overrides.unlocked():
        config.model.overrides.update(overrides)
    classes = [f"class {i}" for i in range(num_classes)]
    dataset = {"name": config.data.name.removeprefix("data."), "checksum": ""}
    record = {"dataset": dataset, "classes": classes, "input_shape": shape, "preprocessing": preprocessing}
    return run_of(config, record)
