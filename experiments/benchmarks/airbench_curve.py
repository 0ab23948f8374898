"""A short run of airbench94's recipe on few pictures, beside PyTorch: do both sides' losses fall alike?

    python -m experiments.benchmarks.airbench_curve --data=DIR [--kind=sgd] [--torch_python=PATH] [--out=FILE]

DIR holds CIFAR-10. Three runs of the same length in float32: ours, the recipe itself but for its length and batch; PyTorch's
(tests/oracles/airbench94.py) from our first weights on our pictures in our order, varied as ours; and PyTorch's with
first weights, order and variation of its own. The first two differ by rounding alone, which steps amplify; the third tells
how much two runs differ. All are scored on test pictures, as they are and by six views.

A record goes to experiments/results/airbench_curve/<kind>.json. Two CPU cores take two to four minutes a run.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from cnn_jax import sharding
from cnn_jax.assemble import Parts, assemble
from cnn_jax.data.augment import make_augment
from cnn_jax.data.pipeline import Pipeline
from cnn_jax.recipe import load_config
from cnn_jax.step import compiler_options, make_train_step, step_rngs
from experiments.benchmarks import peer

NUM_TRAIN, NUM_TEST, BATCH, EPOCHS, SEED = 5000, 2000, 500, 4, 0
VIEW_BATCH = 250


def make_parts(kind: str, data: str) -> Parts:
    """The recipe on 5,000 pictures, in epochs of ten batches."""
    config = load_config(f"configs/airbench94_cifar10.py:{kind}", [])
    of = {"name": "data.cifar10", "dir": data, "num_validation": 1000}
    fields = {"crop_px": 0, "num_train": NUM_TRAIN, "draw_seed": SEED, "permute_seed": -1}
    config.data = {"name": "data.altered", "of": of, **fields}
    config.seed, config.batch_size, config.num_epochs, config.model.dtype = SEED, BATCH, float(EPOCHS), "float32"
    if kind == "sgd":
        config.optim.warmup_epochs = 0.23 * EPOCHS
    return assemble(config, sharding.make_mesh(jax.devices()[:1]))


def run_ours(parts: Parts, folder: Path) -> tuple[list[float], dict[str, float], float]:
    """Losses a step, the score, and seconds; in `folder`, for the peer, first weights and each epoch's batches."""
    config, state = parts.config, parts.init_state()
    leaves = traverse_util.flatten_dict(jax.device_get(state.params), sep="/")
    np.savez(folder / "weights.npz", **leaves)
    pipeline = Pipeline(parts.sources["train"], BATCH, SEED)
    augment = make_augment(config, mean=parts.info.preprocessing["mean"])

    @jax.jit
    def shown(batch, step):
        batch = augment(step_rngs(parts.root_key(), step)["augment"], {**batch, "epoch": step // parts.steps_per_epoch})
        return batch["image"]

    train_step = make_train_step(parts.loss_fn(), parts.optimizer.tx, parts.optimizer.after_step)
    train_step = jax.jit(train_step, donate_argnums=0, compiler_options=compiler_options())
    losses, begin = [], time.perf_counter()
    for epoch in range(EPOCHS):
        images, labels = [], []
        for step in range(epoch * parts.steps_per_epoch, (epoch + 1) * parts.steps_per_epoch):
            batch = pipeline.batch(step)
            images.append(np.asarray(jnp.round(shown(batch, jnp.int32(step)))).astype(np.uint8))
            labels.append(batch["label"])
            state, metrics = train_step(state, batch, parts.root_key())
            losses.append(float(metrics["loss"]))
            print(f"ours {step} {losses[-1]:.4f}", flush=True)
        np.savez(folder / f"epoch{epoch}.npz", image=np.stack(images), label=np.stack(labels))
    seconds = time.perf_counter() - begin
    return losses, score_ours(parts, state.eval_variables), seconds


def score_ours(parts: Parts, variables: dict) -> dict[str, float]:
    """Accuracy on the first test pictures, as they are and by the recipe's views."""
    test, correct = parts.sources["test"], {"plain": 0, "views": 0}
    config = parts.config.copy_and_resolve_references()
    config.eval.update(views="whole", view_average="probabilities")
    plain = assemble(config, parts.mesh).evaluator()
    for name, evaluator in (("plain", plain), ("views", parts.evaluator())):
        for begin in range(0, NUM_TEST, VIEW_BATCH):
            rows = slice(begin, begin + VIEW_BATCH)
            batch = {key: array[rows] for key, array in test.arrays.items()}
            batch |= {"index": np.arange(VIEW_BATCH, dtype=np.int32), "mask": np.ones(VIEW_BATCH, bool)}
            correct[name] += int(np.sum(evaluator.predict(variables, batch)["rank"] == 0))
    return {name: count / NUM_TEST for name, count in correct.items()}


def run_theirs(parts: Parts, kind: str, folder: Path, other: peer.Peer, own: bool) -> tuple[list[float], dict, float]:
    """As `run_ours`, by the peer, which draws everything itself or is given all."""
    fields = {"steps_per_epoch": parts.steps_per_epoch, "num_steps": parts.num_steps, "batch_size": BATCH}
    file = "" if own else str(folder / "weights.npz")
    preprocessing = {name: list(parts.info.preprocessing[name]) for name in ("mean", "std")}
    other.ask(do="begin", kind=kind, recipe=fields, weights=file, train=str(folder / "train.npz"), **preprocessing)
    losses, begin = [], time.perf_counter()
    for epoch in range(EPOCHS):
        losses += other.ask(do="epoch", epoch=epoch, file="" if own else str(folder / f"epoch{epoch}.npz"))["losses"]
        print(f"theirs, {'their' if own else 'our'} pictures, epoch {epoch} {losses[-1]:.4f}", flush=True)
    seconds = time.perf_counter() - begin
    return losses, other.ask(do="score", file=str(folder / "test.npz"))["accuracy"], seconds


def compare(ours: list[float], given: list[float], own: list[float]) -> dict[str, float]:
    """How far the curves lie apart: absolute differences of a step's loss over the loss, their mean and their largest."""
    a, b, c = (np.array(losses) for losses in (ours, given, own))
    return {
        "given_mean": float(np.mean(np.abs(a - b) / b)),
        "given_largest": float(np.max(np.abs(a - b) / b)),
        "own_mean": float(np.mean(np.abs(a - c) / c)),
        "own_largest": float(np.max(np.abs(a - c) / c)),
    }


def main() -> None:
    """Runs all three, and writes the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a directory that holds CIFAR-10")
    parser.add_argument("--kind", default="sgd", choices=("sgd", "muon"))
    parser.add_argument("--torch_python", help="an interpreter that has PyTorch; otherwise an environment is made")
    parser.add_argument("--out", type=Path, help="where the record goes")
    args = parser.parse_args()
    git = peer.git_commit()  # of what is imported now
    parts = make_parts(args.kind, str(Path(args.data).absolute()))
    script = Path(__file__).with_name("torch_airbench.py")
    runs = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for split, rows in (("train", None), ("test", NUM_TEST)):
            arrays = parts.sources[split].arrays
            np.savez(folder / f"{split}.npz", **{key: array[:rows] for key, array in arrays.items()})
        runs["ours"] = run_ours(parts, folder)
        other = peer.Peer(peer.torch_python(args.torch_python), script)
        runs["theirs_given"] = run_theirs(parts, args.kind, folder, other, own=False)
        runs["theirs_own"] = run_theirs(parts, args.kind, folder, other, own=True)
        torch_version = other.ask(do="version")["torch"]
        other.close()
    sides = {
        side: {"losses": [round(loss, 5) for loss in losses], "accuracy": accuracy, "seconds": round(seconds, 1)}
        for side, (losses, accuracy, seconds) in runs.items()
    }
    record = {
        "kind": args.kind,
        "pictures": {"train": NUM_TRAIN, "test": NUM_TEST, "checksum": parts.info.checksum},
        "batch_size": BATCH,
        "epochs": EPOCHS,
        "git": git,
        "versions": peer.versions() | {"torch": torch_version},
        "apart": {name: round(value, 6) for name, value in compare(*(run[0] for run in runs.values())).items()},
        **sides,
    }
    out = args.out or peer.ROOT / "experiments" / "results" / "airbench_curve" / f"{args.kind}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps({key: record[key] for key in ("apart",)} | {side: sides[side]["accuracy"] for side in sides}))
    print(f"written to {out}")


if __name__ == "__main__":
    main()
