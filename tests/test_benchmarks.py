"""The benchmarks measure what they say: shapes that the networks have, trials that count only undisturbed."""

import json
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from cnn_jax.layers.conv import Conv
from cnn_jax.layers.norm import BatchNorm
from cnn_jax.resolve import resolve
from experiments.benchmarks import airbench_curve, native_size, operators, peer, shapes


def layers_of(name, variant):
    """Every convolution's and normalisation's numbers, taken from the calls that a forward pass makes."""
    model = resolve(name, "model", "VARIANTS")
    module, convs, norms = model.build(variant, num_classes=10), set(), set()

    def see(next_call, args, kwargs, context):
        layer = context.module
        if context.method_name == "__call__" and isinstance(layer, (Conv, nn.Conv)):
            stride, padding = layer.strides, layer.padding
            stride = stride if isinstance(stride, int) else stride[0]
            padding = 0 if padding == "VALID" else padding if isinstance(padding, int) else padding[0]
            size, channels = args[0].shape[1], args[0].shape[-1]
            kernel = layer.kernel_size if isinstance(layer.kernel_size, int) else layer.kernel_size[0]
            convs.add((size, channels, layer.features, kernel, stride, padding, layer.use_bias))
        elif context.method_name == "__call__" and isinstance(layer, BatchNorm):
            norms.add((args[0].shape[1], args[0].shape[-1]))
        return next_call(*args, **kwargs)

    x = jax.ShapeDtypeStruct((1, *model.VARIANTS[variant].input_shape), jnp.float32)
    with nn.intercept_methods(see):
        jax.eval_shape(lambda x: module.init(jax.random.key(0), x, train=False), x)
    return convs, norms


@pytest.mark.parametrize(
    ("network", "name", "variant"),
    [
        ("LeNet-5", "models.lenet", "modern"),
        ("ResNet-20", "models.resnet", "cifar20"),
        ("VGG-16", "models.vgg", "D"),
        ("ResNet-50", "models.resnet", "50-v1.5"),
    ],
)
def test_shapes_are_the_networks(network, name, variant):
    convs, norms = layers_of(name, variant)
    assert {tuple(spec[1:8]) for spec in shapes.CONVS if spec.network == network} == convs
    assert {tuple(spec[1:]) for spec in shapes.NORMS if spec.network == network} == norms
    firsts = [spec for spec in shapes.CONVS if spec.network == network and spec.is_first]
    assert len(firsts) == 1 and firsts[0].channels in (1, 3)


@pytest.mark.parametrize("spec", [shapes.CONVS[1], shapes.POOLS[1], shapes.NORMS[2]], ids=lambda spec: spec.name())
def test_a_step_gives_the_result_and_every_gradient(spec):
    step, norms = operators.build_step(spec, 2, jnp.float32)
    y, grads = step()
    assert len(norms) == 1 + len(grads) and all(norm >= 0 for norm in norms) and norms[0] > 0
    assert grads[0].shape[0] == 2 and y.shape[0] == 2


class Busy:
    """A machine whose other processes take what the list says, trial by trial."""

    def __init__(self, shares):
        self.shares = iter([0.0, *shares])

    def others(self):
        return next(self.shares)


def test_only_undisturbed_trials_count():
    times = iter([0.0, 9.0, 1.0, 2.0, 3.0])
    row = peer.take_turns(
        lambda calls: next(times), lambda calls: 4.0, Busy([0.5, 0.0, 0.05, 0.01]), trials=3, seconds=1
    )
    assert row["ours"] == {"median_s": 2.0, "min_s": 1.0, "max_s": 3.0}
    assert row["ratio"] == 0.5 and row["ratio_of_least"] == 0.25
    assert row["trials"] == 3 and row["refused"] == 1 and not row["disturbed"]


def test_a_machine_that_never_rests_is_told():
    row = peer.take_turns(lambda calls: 1.0, lambda calls: 1.0, Busy([0.9] * 10), trials=2, seconds=1)
    assert row["disturbed"] and row["trials"] == 2 and row["refused"] == 10


@pytest.mark.parametrize("dtype", native_size.DTYPES)
def test_a_forward_and_backward_pass_at_native_size(dtype):
    row = native_size.measure("mlp:xor", dtype)
    assert row["passed"] and row["num_params"] == 12 and row["loss"] > 0
    assert row["seconds"] > 0 and row["compile_s"] > 0 and 0.05 < row["peak_rss_gib"] < 24


def test_what_has_passed_at_native_size_is_not_run_again(tmp_path, monkeypatch, capsys):
    ran, good = (
        [],
        {"passed": True, "seconds": 1.0, "compile_s": 1.0, "peak_rss_gib": 0.5, "loss": 1.0, "num_params": 6},
    )

    def run(name, dtype, limit_gib):
        ran.append((name, dtype, limit_gib))
        return {"passed": False, "error": "above 2 GiB"} if (name, dtype) == ("mlp:xor", "bfloat16") else good

    monkeypatch.setattr(native_size, "in_a_process", run)
    command = ["--only=mlp:[px]*", "--limit_gib=2", f"--out={tmp_path / 'native.json'}"]
    assert native_size.main(command) == 1
    assert ran == [(f"mlp:{name}", dtype, 2) for name in ("perceptron", "xor") for dtype in native_size.DTYPES]
    assert "mlp:xor                        bfloat16  failed: above 2 GiB\n1 of 4 failed" in capsys.readouterr().out
    assert native_size.main(command) == 1
    assert ran[4:] == [("mlp:xor", "bfloat16", 2)]  # only what failed
    record = json.loads((tmp_path / "native.json").read_text())
    assert [row["passed"] for row in record["rows"]] == [True, True, True, False]
    assert set(record["rows"][0]["git"]) == {"commit", "dirty"} and record["rows"][0]["limit_gib"] == 2
    with pytest.raises(SystemExit):
        native_size.main(["--only=mlp:y*", command[-1]])


def test_a_process_above_its_memory_is_ended():
    hungry = "import time; kept = bytearray(b'1') * 300_000_000; time.sleep(60)"
    assert native_size.run_limited([sys.executable, "-c", hungry], 0.2)[0] is None
    assert native_size.run_limited([sys.executable, "-c", "print(7)"], 0.2) == (0, "7\n", "")
    code, out, error = native_size.run_limited([sys.executable, "-c", "raise ValueError('no')"], 0.2)
    assert (code, out) == (1, "") and error.endswith("ValueError: no\n")


def test_curves_are_compared_by_the_parts_of_their_losses():
    apart = airbench_curve.compare([2.0, 1.0], [2.0, 0.8], [4.0, 1.0])
    assert apart == pytest.approx({"given_mean": 0.125, "given_largest": 0.25, "own_mean": 0.25, "own_largest": 0.5})


@pytest.mark.parametrize("path", sorted((peer.ROOT / "experiments" / "results" / "airbench_curve").glob("*.json")))
def test_both_sides_follow_the_same_curve(path):
    """Step by step from the same weights and pictures far closer than runs of their own."""
    record = json.loads(path.read_text())
    sides = ("ours", "theirs_given", "theirs_own")
    losses = [record[side]["losses"] for side in sides]
    assert {len(curve) for curve in losses} == {record["pictures"]["train"] // record["batch_size"] * record["epochs"]}
    assert airbench_curve.compare(*losses) == pytest.approx(record["apart"], abs=2e-5)
    assert record["apart"]["given_mean"] < 0.1 * record["apart"]["own_mean"] and record["apart"]["given_largest"] < 0.01
    plain, views = ([record[side]["accuracy"][name] for side in sides] for name in ("plain", "views"))
    assert (
        max(plain) - min(plain) < 0.03 and max(views) - min(views) < 0.03
    )  # of 2,000 pictures: 0.011 is one deviation


def test_a_benchmark_starts_anew_with_the_memory_settings_of_launch_sh(monkeypatch):
    started = []
    monkeypatch.setattr("os.execve", lambda *arguments: started.append(arguments))
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.cpu.x86_shstk=off")
    peer.keep_memory()
    tunables = started[0][2]["GLIBC_TUNABLES"]
    assert f"\nmemory={tunables.removesuffix(':glibc.cpu.x86_shstk=off')}\n" in (peer.ROOT / "launch.sh").read_text()
    monkeypatch.setenv("GLIBC_TUNABLES", tunables)
    peer.keep_memory()
    assert len(started) == 1 and "hugetlb=1" in tunables


def test_a_peer_that_is_not_there_is_told_in_one_line(tmp_path):
    with pytest.raises(SystemExit, match=r"^error: no interpreter .*nowhere for the peer's side"):
        peer.Peer(str(tmp_path / "nowhere"), tmp_path / "script.py")
