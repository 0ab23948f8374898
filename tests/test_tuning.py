"""What is tuned for the CPU means what is not; the switch turns all of it off."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn_jax import step, tuning
from cnn_jax.resolve import resolve


def loss_and_gradient(model, variant, switch, monkeypatch):
    """Of a whole network on four pictures, in float64, and the program that they came by."""
    monkeypatch.setenv(tuning.SWITCH, switch)
    paper = resolve(model, "model", "VARIANTS")
    shape = paper.VARIANTS[variant].input_shape
    module = paper.build(variant, num_classes=10, dtype=jnp.float64)
    rng = np.random.default_rng(0)
    x, y = jnp.asarray(rng.standard_normal((4, *shape))), jnp.asarray(rng.integers(0, 10, 4))
    variables = jax.jit(lambda key: module.init(key, x, train=False))(jax.random.key(0))
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), variables.pop("params"))

    def loss(params):
        (logits, _), _ = module.apply({"params": params, **variables}, x, train=True, mutable=list(variables))
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], 1))

    traced = jax.jit(jax.value_and_grad(loss)).trace(params)
    compiled = traced.lower().compile(compiler_options=tuning.compiler_options())
    return compiled(params), str(traced.jaxpr)


@pytest.mark.parametrize(
    ("model", "variant"), [("models.resnet", "cifar8"), pytest.param("models.airbench", "94", marks=pytest.mark.full)]
)
def test_tuned_networks_mean_the_same(model, variant, monkeypatch):
    with jax.enable_x64(True):
        (loss, grads), program = loss_and_gradient(model, variant, "on", monkeypatch)
        (own_loss, own_grads), own_program = loss_and_gradient(model, variant, "off", monkeypatch)
    assert "platform_index" in program and "platform_index" not in own_program
    assert float(loss) == pytest.approx(float(own_loss), rel=1e-12)
    for ours, own in zip(jax.tree.leaves(grads), jax.tree.leaves(own_grads), strict=True):
        np.testing.assert_allclose(ours, own, rtol=1e-9, atol=1e-12)


def test_the_switch(monkeypatch):
    monkeypatch.delenv(tuning.SWITCH, raising=False)
    assert tuning.is_tuned_cpu() and step.compiler_options() == tuning.compiler_options() != {}
    monkeypatch.setenv(tuning.SWITCH, "off")
    assert not tuning.is_tuned() and not tuning.is_tuned_cpu() and tuning.compiler_options() == {}
    monkeypatch.setenv(tuning.SWITCH, "no")
    with pytest.raises(ValueError, match="CNN_JAX_TUNING=no must be on or off"):
        tuning.is_tuned()


def test_nothing_is_tuned_for_the_cpu_elsewhere(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert tuning.is_tuned() and not tuning.is_tuned_cpu() and tuning.compiler_options() == {}


@pytest.mark.parametrize("value", [1.0, 3e38, -3e38, np.inf, np.nan])
@pytest.mark.parametrize("switch", ["on", "off"])
def test_what_is_not_finite_is_told_by_group_and_what_is_only_large_is_not(value, switch, monkeypatch):
    monkeypatch.setenv(tuning.SWITCH, switch)
    grads = {"a": {"kernel": jnp.ones((3, 3, 4, 5)), "bias": jnp.full(5, value)}, "b": jnp.float32(2), "c": jnp.ones(7)}
    params = {"a": {"kernel": jnp.ones((3, 3, 4, 5)), "bias": jnp.ones(5)}, "b": jnp.float32(value), "c": jnp.ones(7)}
    nonfinite, norm = jax.jit(step._measure)(grads, params)
    bad = not np.isfinite(value)
    assert {group: bool(hit) for group, hit in nonfinite.items()} == {"a": bad, "b": bad, "c": False}
    if value == 1:
        assert float(norm) == pytest.approx(np.sqrt(180 + 5 + 4 + 7), rel=1e-6)
