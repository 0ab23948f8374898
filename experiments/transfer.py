"""What does a network that was trained on other pictures give, where there are few of one's own?

Claim      : Weights from another task beat weights drawn anew, and the more so the fewer pictures a class there are; its
             features do, too, where only a new head is trained.
Source     : J. Yosinski et al., "How transferable are features in deep neural networks?", NeurIPS 2014, sections 4 and 5;
             the lectures' slides on transfer: few similar data, a linear classifier; more data, finetune layers, or all.
Expectation: Test accuracy, over seeds that share the drawn pictures: fine-tuning all layers above training from scratch
             at 5 pictures a class; that gain at 5 above the same gain at 100; a new head on the base's features above a
             new head on random features at 5. Each at 95% confidence, Holm's over the three.
Margin     : 0.02 of accuracy for the first and third: less would not be worth keeping a base for. 0 for the second.
Refuted if : one of the differences lies below its margin beyond doubt.
Cost       : 5 arms x 3 sizes x 5 seeds of 120 steps of LeNet-5, some 5 minutes of two cores; for tiny 8 arms of ResNet-20,
             some 40.

The argument is the task, of configs/transfer.py, with its base:

  digits59   LeNet-5 trained on the embedded digits 0 to 4; the task is 5 to 9
  digits     LeNet-5 trained on MNIST, for an epoch; the task is the embedded digits
  tiny       ResNet-20 trained on CIFAR-10; the task is 40 classes of Tiny-ImageNet at 32x32. Arms named "published" begin
             from the published ResNet-20 instead, and see pictures normalised as it did; they stand beside the verdict

    ./launch.sh train configs/transfer.py:base,task=digits04 --workdir=runs/transfer/base-digits59
    ./launch.sh train configs/lenet_mnist.py --config.num_epochs=1 --config.optim.warmup_epochs=0.2 \
        --config.data.dir=MNIST --workdir=runs/transfer/base-digits
    ./launch.sh train configs/resnet_cifar10.py:20,epochs=4 --config.data.dir=CIFAR --workdir=runs/transfer/base-tiny
    ./launch.sh import-weights resnet:cifar20 resnet20-12fca82f.th --workdir=runs/transfer/base-published
    ./launch.sh experiment experiments/transfer.py:digits59
    ./launch.sh experiment experiments/transfer.py:tiny --data_dir=TINY
    .venv/bin/python -m experiments.transfer                     # docs/transfer.svg, of the summaries there are

The sixth arm is no run: a linear probe of the base's last map, its strength of regularisation chosen on validation.

No rate was tuned: all arms have one, fixed before the first run, so that an arm whose best rate is another is shown below
its best. Validation and test are whole, whatever the size of training; the test split decides nothing. digits59 and digits
had been asked once before, of the same runs on another number of threads.
"""

import functools
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from experiments.verdicts import Comparison, Verdict, compare, conclude, t_interval

CONFIG = "configs/transfer.py"
ROOT = Path(__file__).resolve().parent.parent
RUNS = Path("runs/transfer")  # below the clone, where commands are typed
RESULTS = ROOT / "experiments" / "results"
FIGURE = ROOT / "docs" / "transfer.svg"
ARMS = ("scratch", "random", "head", "block", "all")
FROM_BASE = ("head", "block", "all")
SIZES = (5, 20, 100)
SEEDS = range(5)
LAST_MAPS = {"models.lenet": "F6", "models.resnet": "pool5"}  # before the head
PUBLISHED = "published "
AS_PUBLISHED = {"data.mean": (0.485, 0.456, 0.406), "data.std": (0.229, 0.224, 0.225)}
TASKS = {
    "digits59": "LeNet-5: digits 0 to 4, then 5 to 9",
    "digits": "LeNet-5: MNIST, then the 8x8 digits",
    "tiny": "ResNet-20: CIFAR-10, then 40 classes of Tiny-ImageNet",
}

Results = Mapping[str, Mapping[int, Mapping[str, Any]]]


def runs(arg: str | None = None) -> Iterator[dict[str, Any]]:
    """The runs of a task. Raises ValueError for one that is unknown."""
    task = arg or "digits59"
    if task not in TASKS:
        raise ValueError(f"task {task!r} must be one of {', '.join(TASKS)}")
    arms = [(arm, f"base-{task}", {}) for arm in ARMS]
    if task == "tiny":
        arms += [(PUBLISHED + arm, "base-published", AS_PUBLISHED) for arm in FROM_BASE]
    for arm, base, overrides in arms:
        for size in SIZES:
            for seed in SEEDS:
                options = f"{arm.removeprefix(PUBLISHED)},task={task},per_class={size},base={RUNS / base}"
                changes = {**overrides, "data.draw_seed": seed}
                yield dict(arg=options, overrides=changes, seed=seed, group=f"{arm}/{size}")


def judge(results: Results) -> Verdict:
    """See Expectation."""

    def difference(a: str, b: str) -> dict[int, float]:
        of_a, of_b = accuracies(results[a]), accuracies(results[b])
        return {seed: of_a[seed] - of_b[seed] for seed in sorted(of_a.keys() & of_b.keys())}

    few, many = difference("all/5", "scratch/5"), difference("all/100", "scratch/100")
    falls = {seed: few[seed] - many[seed] for seed in sorted(few.keys() & many.keys())}
    told = functools.partial(compare, metric="test accuracy")
    pairs = [("all", "scratch"), ("all", "head"), ("block", "head"), ("head", "random")]
    bases = [""]
    if f"{PUBLISHED}all/5" in results:
        bases.append(PUBLISHED)
        pairs += [(PUBLISHED + a, b if b in ("scratch", "random") else PUBLISHED + b) for a, b in pairs]
    probes = [probe for base in bases for probe in compare_probes(results, base)]
    return conclude(
        told(few, name="all - scratch at 5", refuted_below=0.02),
        told(falls, name="(all - scratch) at 5 - the same at 100"),
        told(difference("head/5", "random/5"), name="head - random at 5", refuted_below=0.02),
        secondary=[
            told(difference(f"{a}/{size}", f"{b}/{size}"), name=f"{a} - {b} at {size}")
            for a, b in pairs
            for size in SIZES
            if (a, b, size) not in (("all", "scratch", 5), ("head", "random", 5))
        ]
        + [comparison for comparison, _ in probes],
        notes=[note for _, note in probes],
    )


def accuracies(by_seed: Mapping[int, Mapping[str, Any]]) -> dict[int, float]:
    """Of a group's records, on the test split."""
    return {seed: record["metrics"]["accuracy"] for seed, record in by_seed.items()}


def compare_probes(results: Results, arm_of: str) -> list[tuple[Comparison, str]]:
    """A linear probe of a base against its head that was trained, by size; and what the base was, as a note.

    Each probe is fitted to the pictures that the run of the same seed was trained on. arm_of: "" or PUBLISHED.
    """
    from cnn_jax.assemble import make_sources
    from cnn_jax.features import extract
    from cnn_jax.linear_probe import fit_probe
    from cnn_jax.workdir import load_run, record_config

    first = record_config(dict(next(iter(results[f"{arm_of}head/{SIZES[0]}"].values()))))
    base = load_run(ROOT / first.init["from"], read_data=False)
    layer = LAST_MAPS[first.model.name]
    held_out: dict[str, Any] = {}  # validation and test are the same whichever training pictures are drawn
    told = []
    for size in SIZES:
        trained, probed, strengths = results[f"{arm_of}head/{size}"], {}, []
        for seed, record in trained.items():
            sources = make_sources(record_config(dict(record)).data)
            for split in ("validation", "test"):
                if split not in held_out:
                    held_out[split] = extract(base, sources[split], layer)
            splits = {"train": extract(base, sources["train"], layer)} | held_out
            fit = fit_probe(splits, len(record["classes"]))
            probed[seed] = fit["metrics"]["accuracy"]
            strengths.append(f"{fit['strength']:g}")
        differences = {seed: probed[seed] - of_head for seed, of_head in accuracies(trained).items()}
        name = f"{arm_of}probe - {arm_of}head at {size}"
        note = f"{name}: {layer} of {base.parts.config.model.name}, params {base.record['params_sha256'][:12]}, "
        note += f"strengths {', '.join(strengths)}"
        told.append((compare(differences, name=name, metric="test accuracy"), note))
    return told


def scores_of(summary: Mapping[str, Any]) -> dict[str, list[float]]:
    """Test accuracies by "arm/size" of a summary; a probe's are its head's plus what it gains on it, by seed."""
    scores = {
        group: {seed: run["test"]["accuracy"] for seed, run in told["runs"].items()}
        for group, told in summary["groups"].items()
    }
    for told in summary["secondary"]:
        arm, _, rest = told["name"].partition(" - ")
        if arm.endswith("probe"):
            head, _, size = rest.partition(" at ")
            gains = {str(seed): gain for seed, gain in told["differences"].items()}
            scores[f"{arm}/{size}"] = {seed: scores[f"{head}/{size}"][seed] + gain for seed, gain in gains.items()}
    return {group: list(by_seed.values()) for group, by_seed in scores.items()}


def plot(file: Path = FIGURE) -> None:
    """Accuracy against pictures a class: means with 95% t intervals over seeds, and each run, of the summaries there are."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "transfer"
    from matplotlib import pyplot

    files = {task: RESULTS / f"transfer-{task}.json" for task in TASKS}
    panels = [
        (TASKS[task] + (", published weights" if of else ""), scores_of(json.loads(path.read_text())), of)
        for task, path in files.items()
        if path.exists()
        for of in (("", PUBLISHED) if task == "tiny" else ("",))
    ]
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = pyplot.subplots(rows, columns, figsize=(5.2 * columns, 4.2 * rows + 0.5), squeeze=False)
    labels = {
        "scratch": "from scratch", "random": "head on random features", "probe": "linear probe of the base",
        "head": "new head, trained by SGD", "block": "and the last block", "all": "all layers",
    }  # fmt: skip
    for axis, (title, scores, of) in zip(axes.flat, panels, strict=False):
        for i, (arm, label) in enumerate(labels.items()):
            group = arm if arm in ("scratch", "random") else of + arm
            by_size = [scores[f"{group}/{size}"] for size in SIZES]
            means = [sum(values) / len(values) for values in by_size]
            ends = [t_interval(values) if len(set(values)) > 1 else (values[0],) * 2 for values in by_size]
            errors = [[m - low for m, (low, _) in zip(means, ends, strict=True)]]
            errors.append([high - m for m, (_, high) in zip(means, ends, strict=True)])
            places = [size * 1.05 ** (i - 2.5) for size in SIZES]
            line = axis.errorbar(places, means, errors, label=label, marker="o", markersize=3, capsize=2, linewidth=1.2)
            for place, values in zip(places, by_size, strict=True):
                axis.plot([place] * len(values), values, "_", color=line[0].get_color(), alpha=0.5, markersize=5)
        axis.set(xscale="log", xlabel="training pictures a class", title=f"{title}\n{len(scores['all/5'])} seeds")
        axis.title.set_fontsize(9)
        axis.set_ylim(top=min(1.01, axis.get_ylim()[1]))
        axis.set_xticks(SIZES, [str(size) for size in SIZES])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    for axis in axes.flat[len(panels) :]:
        axis.remove()
    for axis in axes[:, 0]:
        axis.set_ylabel("test accuracy (mean, 95% interval, runs)")
    figure.legend(*axes[0][0].get_legend_handles_labels(), fontsize=8, loc="lower center", ncols=3)
    figure.tight_layout(rect=(0, 0.12 / rows, 1, 1))
    figure.savefig(file, metadata={"Date": None})


if __name__ == "__main__":
    sys.exit(plot())
