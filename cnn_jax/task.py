"""The contract of a task: how a model is trained and scored. `classification.py` is the plainest example.

A batch is a dict of arrays with a leading N: `index`, `mask` (False on padding), `image`, and the labels of the task.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import numpy as np
from jaxtyping import Array, PyTree

Batch = Mapping[str, Any]


@dataclass(frozen=True)
class Task:
    """A model's loss, prediction and score.

    loss_fn(params, model_state, batch, rngs) -> (loss, (new_model_state, metrics)): pure; metrics are scalars.
    predict_fn(variables, batch) -> dict of arrays with a leading N: pure; compiled by `evaluate.py`.
    score(predictions) -> metrics: on the host, over exactly the true examples, padding already removed.
    headline: the name of the score's metric that training watches, higher is better.
    """

    module: nn.Module
    loss_fn: Callable[[PyTree, PyTree, Batch, Mapping[str, Array]], tuple[Array, tuple[PyTree, dict[str, Array]]]]
    predict_fn: Callable[[PyTree, Batch], dict[str, Array]]
    score: Callable[[Mapping[str, np.ndarray]], dict[str, Any]]
    headline: str = "accuracy"
