"""The plateau by hand, and against PyTorch's rule restated."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cnn_jax.optim import current_lr
from tests.optimizers import begin, draw, make, plateau_of


@pytest.mark.parametrize("changes", [dict(), dict(momentum_form="alexnet"), dict(name="adamw"), dict(clip_norm=1.0)])
def test_plateau_by_hand(changes):
    optimizer = make(schedule="plateau", warmup_epochs=1, **changes)
    state = begin(optimizer, draw(0))
    # Patience 2, least gain 0.01, factor 0.5: the first counts as a gain, 0.505 and 0.509 do not, 0.53 and 0.56 do.
    accuracies = [0.5, 0.505, 0.509, 0.53, 0.52, 0.56, 0.56, 0.1, 0.1, 0.569, 0.58]
    factors = [1, 1, 0.5, 0.5, 0.5, 0.5, 0.5, 0.25, 0.25, 0.125, 0.125]
    for accuracy, factor in zip(accuracies, factors, strict=True):
        state = optimizer.after_eval(state, {"accuracy": accuracy, "loss": 1.0})
        assert plateau_of(state).scale == factor
        assert float(current_lr(optimizer, state.opt_state, 5)) == pytest.approx(0.05 * factor)
        assert float(current_lr(optimizer, state.opt_state, 50)) == pytest.approx(0.1 * factor)


@pytest.mark.parametrize("form", ["pytorch", "alexnet"])
def test_plateau_factor_stands_with_the_rate_and_steps_do_not_advance_it(form):
    params, grads = {"w": {"kernel": jnp.ones(1)}}, {"w": {"kernel": jnp.ones(1)}}
    optimizer = make(params=params, schedule="plateau", plateau_patience_evals=1, momentum=0.5, momentum_form=form)
    state = begin(optimizer, params)
    moved = []
    for accuracy in (0.9, 0.8):  # the second is no gain: from the third update on the rate is 0.05
        for _ in range(2):
            updates, opt_state = optimizer.tx.update(grads, state.opt_state, params)
            state = state.replace(opt_state=opt_state)
            moved.append(float(updates["w"]["kernel"][0]))
        state = optimizer.after_eval(state, {"accuracy": accuracy})
    updates, _ = optimizer.tx.update(grads, state.opt_state, params)
    moved.append(float(updates["w"]["kernel"][0]))
    velocity = [1.0, 1.5, 1.75, 1.875]
    last = -0.05 * (0.5 * 1.875 + 1) if form == "pytorch" else -0.5 * 0.1 * 1.875 - 0.05
    assert moved == pytest.approx([-0.1 * v for v in velocity] + [last])


class TorchPlateau:
    """torch.optim.lr_scheduler.ReduceLROnPlateau(mode="max", threshold_mode="abs", cooldown=0, min_lr=0, eps=0)."""

    def __init__(self, factor, patience, threshold):
        self.factor, self.patience, self.threshold = factor, patience, threshold
        self.scale, self.best, self.num_bad_epochs = 1.0, -math.inf, 0

    def step(self, metric):
        if metric > self.best + self.threshold:
            self.best, self.num_bad_epochs = metric, 0
        else:
            self.num_bad_epochs += 1
        if self.num_bad_epochs > self.patience:
            self.scale *= self.factor
            self.num_bad_epochs = 0
        return self.scale


@functools.cache  # what it compiles serves all examples
def make_plateau(patience, min_delta):
    return make(schedule="plateau", plateau_patience_evals=patience, plateau_min_delta=min_delta)


SIXTEENTHS = st.integers(0, 16).map(lambda n: n / 16)  # exact in float32, sums too


@settings(deadline=None, derandomize=True, max_examples=20)
@given(
    accuracies=st.lists(SIXTEENTHS, min_size=1, max_size=20),
    patience=st.integers(1, 4),
    min_delta=st.sampled_from([0.0, 1 / 16, 1 / 8]),
)
def test_plateau_is_pytorch_with_one_more_patience(accuracies, patience, min_delta):
    optimizer = make_plateau(patience, min_delta)
    state = begin(optimizer, draw(0))
    reference = TorchPlateau(0.5, patience - 1, min_delta)
    for accuracy in accuracies:
        state = optimizer.after_eval(state, {"accuracy": accuracy})
        assert plateau_of(state).scale == reference.step(accuracy)


def test_plateau_takes_nan_as_no_gain_and_needs_accuracy():
    optimizer = make(schedule="plateau", plateau_patience_evals=1)
    state = optimizer.after_eval(begin(optimizer, draw(0)), {"accuracy": math.nan})
    assert plateau_of(state).scale == 0.5
    assert plateau_of(state).best_value == math.inf
    with pytest.raises(ValueError, match=r"watches 'accuracy', evaluation gave \['loss', 'mean_average_precision'\]"):
        optimizer.after_eval(state, {"mean_average_precision": 0.5, "loss": 1.0})


def test_plateau_of_each_member_of_a_population():
    optimizer = make(schedule="plateau", plateau_patience_evals=1)
    one = begin(optimizer, draw(0))
    states = jax.tree.map(lambda x: jnp.stack([x, x]), one)
    for accuracies in ([0.5, 0.5], [0.6, 0.4]):
        states = jax.vmap(optimizer.after_eval)(states, {"accuracy": np.array(accuracies, np.float32)})
    np.testing.assert_array_equal(plateau_of(states).scale, [1.0, 0.5])
