r"""What does a network that was trained on other pictures give, where there are few of one's own?

Claim      : Weights from another task beat weights drawn anew, and the more so the fewer pictures a class there are; its
             features do, too, where only a new head is trained.
Source     : J. Yosinski et al., "How transferable are features in deep neural networks?", NeurIPS 2014, sections 4 and 5;
             the lectures' slides on transfer: few similar data, a linear classifier; more data, finetune layers, or all.
Expectation: Test accuracy, over seeds that share the drawn pictures: fine-tuning all layers above training from scratch
             at 5 pictures a class; that gain at 5 above the same gain at 100; a new head on the base's features above a
             new head on random features at 5. Each at 95% confidence, Holm's over the three.
Margin     : 0.02 of accuracy for the first and third: less would not be worth keeping a base for. 0 for the second.
Refuted if : one of the differences lies below its margin beyond doubt.
Cost       : 5 arms x 3 sizes x 5 seeds of 120 steps of LeNet-5, some 5 minutes of two cores; for tiny of ResNet-20, an
             hour.

The argument is the task, of configs/transfer.py, with its base:

  digits59   LeNet-5 trained on the embedded digits 0 to 4; the task is 5 to 9
  digits     LeNet-5 trained on MNIST, for an epoch; the task is the embedded digits
  tiny       ResNet-20 trained on CIFAR-10; the task is 40 classes of Tiny-ImageNet at 32x32

    ./launch.sh train configs/transfer.py:base,task=digits04 --workdir=runs/transfer/base-digits59
    ./launch.sh train configs/lenet_mnist.py --config.num_epochs=1 --config.optim.warmup_epochs=0.2 \
        --config.data.dir=MNIST --workdir=runs/transfer/base-digits
    ./launch.sh train configs/resnet_cifar10.py:20,epochs=6 --config.data.dir=CIFAR --workdir=runs/transfer/base-tiny
    .venv/bin/python -m experiments.transfer digits59        # the runs in one process, results and figure

The sixth arm is no run: a linear probe of the base's last map, its strength of regularisation chosen on validation.

No rate was tuned: all arms have one, fixed before the first run, so that an arm whose best rate is another is shown below
its best. Validation and test are whole, whatever the size of training; the test split decides nothing.
"""

import dataclasses
import functools
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.verdicts import Verdict, compare, conclude, t_interval

CONFIG = "configs/transfer.py"
ROOT = Path(__file__).resolve().parent.parent
RUNS = Path("runs/transfer")  # below the clone, where commands are typed
RESULTS = ROOT / "experiments" / "results"
FIGURE = ROOT / "docs" / "transfer.svg"
ARMS = ("scratch", "random", "head", "block", "all")
SIZES = (5, 20, 100)
SEEDS = range(5)
TASKS = {  # the last map before the head; what the figure says
    "digits59": ("F6", "LeNet-5: digits 0 to 4, then 5 to 9"),
    "digits": ("F6", "LeNet-5: MNIST, then the 8x8 digits"),
    "tiny": ("pool5", "ResNet-20: CIFAR-10, then 40 classes of Tiny-ImageNet at 32x32"),
}


def base_of(task: str) -> Path:
    """The workdir that the task's runs begin from."""
    return RUNS / f"base-{task}"


def runs(arg: str | None = None) -> Iterator[dict[str, Any]]:
    """The runs of a task."""
    task = arg or "digits59"
    for arm in ARMS:
        for size in SIZES:
            for seed in SEEDS:
                options = f"{arm},task={task},per_class={size},base={base_of(task)}"
                yield dict(arg=options, overrides={"data.draw_seed": seed}, seed=seed, group=f"{arm}/{size}")


def judge(results: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> Verdict:
    """See Expectation."""

    def accuracies(group: str) -> dict[int, float]:
        return {seed: record["metrics"]["accuracy"] for seed, record in results[group].items()}

    def difference(a: str, b: str) -> dict[int, float]:
        of_a, of_b = accuracies(a), accuracies(b)
        return {seed: of_a[seed] - of_b[seed] for seed in sorted(of_a.keys() & of_b.keys())}

    few, many = difference("all/5", "scratch/5"), difference("all/100", "scratch/100")
    falls = {seed: few[seed] - many[seed] for seed in sorted(few.keys() & many.keys())}
    told = functools.partial(compare, metric="test accuracy")
    return conclude(
        told(few, name="all - scratch at 5", refuted_below=0.02),
        told(falls, name="(all - scratch) at 5 - the same at 100"),
        told(difference("head/5", "random/5"), name="head - random at 5", refuted_below=0.02),
        secondary=[
            told(difference(f"{a}/{size}", f"{b}/{size}"), name=f"{a} - {b} at {size}")
            for a, b in (("all", "scratch"), ("all", "head"), ("block", "head"), ("head", "random"))
            for size in SIZES
            if (a, b, size) not in (("all", "scratch", 5), ("head", "random", 5))
        ],
    )


def probe(base: Any, record: Mapping[str, Any], layer: str, held_out: dict[str, Any]) -> dict[str, Any]:
    """A linear probe of the base, fitted to the pictures that the run of `record` was trained on.

    held_out: features of validation and test, which are the same whichever training pictures are drawn; filled here.
    """
    from cnn_jax.assemble import make_sources
    from cnn_jax.features import extract
    from cnn_jax.linear_probe import fit_probe
    from cnn_jax.workdir import record_config

    sources = make_sources(record_config(dict(record)).data)
    for split in ("validation", "test"):
        if split not in held_out:
            held_out[split] = extract(base, sources[split], layer)
    return fit_probe({"train": extract(base, sources["train"], layer)} | held_out, len(record["classes"]))


def train_all(task: str, options: Sequence[str]) -> dict[str, dict[int, dict[str, Any]]]:
    """The runs of a task, in this process; those that are done are read."""
    from cnn_jax.recipe import load_config
    from cnn_jax.train import run

    results: dict[str, dict[int, dict[str, Any]]] = {}
    for planned in runs(task):
        overrides = [f"--config.{name}={value}" for name, value in planned["overrides"].items()]
        config = load_config(f"{CONFIG}:{planned['arg']}", [*overrides, f"--config.seed={planned['seed']}", *options])
        workdir = RUNS / task / planned["group"].replace("/", "-") / f"seed{planned['seed']}"
        results.setdefault(planned["group"], {})[planned["seed"]] = run(config, workdir)
    return results


def write_results(task: str, results: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> Path:
    """experiments/results/transfer_<task>/results.json: every score, what it is of, and the verdict."""
    from cnn_jax.records import provenance, read_run, write_json
    from cnn_jax.workdir import load_run

    base, of_base, held_out = load_run(base_of(task), read_data=False), read_run(base_of(task)), {}
    scores = {
        group: {str(seed): _told(record["metrics"]) | _made_by(record) for seed, record in by_seed.items()}
        for group, by_seed in results.items()
    }
    for size in SIZES:
        fits = {seed: probe(base, record, TASKS[task][0], held_out) for seed, record in results[f"head/{size}"].items()}
        scores[f"probe/{size}"] = {
            str(seed): _told(fit["metrics"]) | {"strength": fit["strength"]} for seed, fit in fits.items()
        }
    told = {
        "task": task,
        "question": __doc__.splitlines()[0],
        **provenance(),
        "base": {"config": of_base["config"], "dataset": of_base["dataset"]} | _made_by(of_base),
        "scores": scores,
        "verdict": dataclasses.asdict(judge(results)),
    }
    if "metrics" in of_base:
        told["base"] |= _told(of_base["metrics"])
    path = RESULTS / f"transfer_{task}" / "results.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, told)
    return path


def _told(metrics: Mapping[str, Any]) -> dict[str, Any]:
    return {name: metrics[name] for name in ("accuracy", "correct", "count", "loss")}


def _made_by(record: Mapping[str, Any]) -> dict[str, Any]:
    return {name: record.get(name) for name in ("step", "params_sha256", "git")}


def plot(file: Path = FIGURE) -> None:
    """Accuracy against pictures a class: means with 95% t intervals over seeds, and each run, of the results there are."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "transfer"
    from matplotlib import pyplot

    found = {task: RESULTS / f"transfer_{task}" / "results.json" for task in TASKS}
    found = {task: json.loads(path.read_text()) for task, path in found.items() if path.exists()}
    figure, axes = pyplot.subplots(1, len(found), figsize=(5.2 * len(found), 4.6), squeeze=False)
    labels = {
        "scratch": "from scratch", "random": "head on random features", "probe": "linear probe of the base",
        "head": "new head, trained by SGD", "block": "and the last block", "all": "all layers",
    }  # fmt: skip
    for axis, (task, told) in zip(axes[0], found.items(), strict=True):
        for i, (arm, label) in enumerate(labels.items()):
            by_size = [[s["accuracy"] for s in told["scores"][f"{arm}/{size}"].values()] for size in SIZES]
            means = [sum(values) / len(values) for values in by_size]
            ends = [t_interval(values) if len(set(values)) > 1 else (values[0],) * 2 for values in by_size]
            errors = [[m - low for m, (low, _) in zip(means, ends, strict=True)]]
            errors.append([high - m for m, (_, high) in zip(means, ends, strict=True)])
            places = [size * 1.05 ** (i - 2.5) for size in SIZES]
            line = axis.errorbar(places, means, errors, label=label, marker="o", markersize=3, capsize=2, linewidth=1.2)
            for place, values in zip(places, by_size, strict=True):
                axis.plot([place] * len(values), values, "_", color=line[0].get_color(), alpha=0.5, markersize=5)
        num_seeds = len(told["scores"]["all/5"])
        axis.set(
            xscale="log",
            ylim=(0.15, 1.01),
            xlabel="training pictures a class",
            title=f"{TASKS[task][1]}\n{num_seeds} seeds",
        )
        axis.title.set_fontsize(9)
        axis.set_xticks(SIZES, [str(size) for size in SIZES])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("test accuracy (mean, 95% interval, runs)")
    figure.legend(*axes[0][0].get_legend_handles_labels(), fontsize=8, loc="lower center", ncols=3)
    figure.tight_layout(rect=(0, 0.12, 1, 1))
    figure.savefig(file, metadata={"Date": None})


def main() -> int:
    """`python -m experiments.transfer TASK [--config.KEY=VALUE ...]`, or `plot`."""
    from cnn_jax.backend import configure_jax

    os.chdir(ROOT)
    configure_jax()
    what, *options = sys.argv[1:] or ["plot"]
    if what != "plot":
        print(write_results(what, train_all(what, options)))
    plot()
    return 0


if __name__ == "__main__":
    sys.exit(main())
