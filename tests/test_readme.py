"""The tables of the README are what the committed records say, to the letter."""

import json
import statistics
from pathlib import Path

import pytest

from experiments import transfer

ROOT = Path(__file__).resolve().parent.parent


def table(name: str) -> str:
    """The rows of a recipe's records, seed by seed, and their mean."""
    records = [
        json.loads(path.read_text()) for path in sorted((ROOT / "experiments" / "results" / name).glob("seed*.json"))
    ]
    assert [record["seed"] for record in records] == list(range(5))
    lines = ["| seed | test accuracy | 95% interval | steps | training | record |", "|---|---|---|---|---|---|"]
    for record in records:
        metrics, timing = record["metrics"], record["timing"]
        low, high = metrics["accuracy_interval95"]
        link = f"[{record['params_sha256'][:8]}](experiments/results/{name}/seed{record['seed']}.json)"
        lines.append(
            f"| {record['seed']} | {metrics['accuracy']:.2%} | {low:.2%} to {high:.2%} | {record['step']:,} "
            f"| {record['step'] / timing['steps_per_s']:.0f} s | {link} |"
        )
    mean = sum(record["metrics"]["accuracy"] for record in records) / len(records)
    return "\n".join([*lines, f"| mean | **{mean:.2%}** | | | | |"])


@pytest.mark.parametrize(
    "name", ["lenet_digits", "lenet_mnist", "rnn_parity", "rnn_copy", "cnn1d_signals", "cnn3d_voxels"]
)
def test_table(name):
    expected = f"<!-- table: {name} -->\n{table(name)}\n"
    assert expected in (ROOT / "README.md").read_text(), f"README.md must hold\n{expected}"


SHORT_RUNS = {
    "resnet_cifar10/seed0": "ResNet-20, the paper's recipe in 6 epochs; CIFAR-10 in lossy copies, 45,000 pictures",
    "resnet_tiny_imagenet/seed0": "ResNet-20, 2 epochs; 40 classes of Tiny-ImageNet, 18,000 JPEG files streamed",
    "imagenet_shaped/run": "ResNet-18 at 64 pixels, 58 steps; 1,000 classes from archives in ImageNet's form, 1,900 images",
}


def short_runs_table() -> str:
    """One run of each recipe: what it trained on, its score, and its curve."""
    lines = ["| run | validation, by epoch | test accuracy | 95% interval | record |", "|---|---|---|---|---|"]
    for path, what in SHORT_RUNS.items():
        at = ROOT / "experiments" / "results" / path
        record = json.loads(at.with_suffix(".json").read_text())
        measured = [json.loads(line) for line in at.with_suffix(".metrics.jsonl").read_text().splitlines()]
        curve = [f"{line['accuracy']:.1%}" for line in measured if line["split"] == "validation"]
        assert measured[-1]["accuracy"] == record["metrics"]["accuracy"] and not record["git"]["dirty"]
        low, high = record["metrics"]["accuracy_interval95"]
        links = f"[record](experiments/results/{path}.json), [curve](experiments/results/{path}.metrics.jsonl)"
        lines.append(
            f"| {what} | {', '.join(curve)} | {record['metrics']['accuracy']:.2%} | {low:.2%} to {high:.2%} | {links} |"
        )
    return "\n".join(lines)


def test_short_runs():
    expected = f"<!-- table: short runs -->\n{short_runs_table()}\n"
    assert expected in (ROOT / "README.md").read_text(), f"README.md must hold\n{expected}"


def curve_table(name: str) -> str:
    """A recipe's short run beside PyTorch's: losses on the way, and what came of it."""
    record = json.loads((ROOT / "experiments" / "results" / "airbench_curve" / f"{name}.json").read_text())
    steps = range(9, len(record["ours"]["losses"]), 10)
    heads = [*(f"loss, step {step + 1}" for step in steps), "test accuracy", "by six views"]
    lines = ["| | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    sides = {
        "ours": "cnn_jax",
        "theirs_given": "PyTorch, our first weights and pictures",
        "theirs_own": "PyTorch, its own",
    }
    for side, what in sides.items():
        cells = [f"{record[side]['losses'][step]:.4f}" for step in steps]
        cells += [f"{record[side]['accuracy'][name]:.2%}" for name in ("plain", "views")]
        lines.append(f"| {what} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def test_curve():
    expected = f"<!-- table: airbench_curve sgd -->\n{curve_table('sgd')}\n"
    assert expected in (ROOT / "README.md").read_text(), f"README.md must hold\n{expected}"


def operators_table(path: Path) -> str:
    """A benchmark of operators, network by network: how many shapes, the geometric mean of the ratios, and the worst."""
    record = json.loads(path.read_text())
    lines = ["| | shapes | geometric mean | worst | where |", "|---|---|---|---|---|"]
    names = {"conv": "convolution", "pool": "pooling", "norm": "batch normalisation"}
    for kind in record["summary"]:
        rows = [row for row in record["rows"] if row["kind"] == kind]
        for network in [*dict.fromkeys(row["network"] for row in rows), "all"]:
            mine = [row for row in rows if network in (row["network"], "all")]
            worst = max(mine, key=lambda row: row["ratio"])
            mean = statistics.geometric_mean(row["ratio"] for row in mine)
            where = f"{worst['network']} {worst['shape']}" if network == "all" else worst["shape"]
            name = f"**{names[kind]}**" if network == "all" else f"{names[kind]}, {network}"
            lines.append(f"| {name} | {len(mine)} | {mean:.2f} | {worst['ratio']:.2f} | {where} |")
        assert record["summary"][kind]["geometric_mean"] == pytest.approx(
            statistics.geometric_mean(row["ratio"] for row in rows)
        )
    return "\n".join(lines)


@pytest.mark.parametrize("name", ["cpu_float32"])
def test_operators(name):
    path = ROOT / "experiments" / "results" / "operators" / f"{name}.json"
    expected = f"<!-- table: operators {name} -->\n{operators_table(path)}\n"
    assert expected in (ROOT / "README.md").read_text(), f"README.md must hold\n{expected}"
    record = json.loads(path.read_text())
    assert not record["git"]["dirty"] and not any(row["disturbed"] for row in record["rows"])


RESULTS = ROOT / "experiments" / "results"


def deviceless_table() -> str:
    """What our training steps would do on an H200, by its compiler, and the budget that holds them."""
    record = json.loads((RESULTS / "deviceless" / "h200.json").read_text())
    budget = json.loads((ROOT / "experiments" / "benchmarks" / "deviceless_budget.json").read_text())
    names = {"resnet50": "ResNet-50 v1.5", "airbench94": "airbench94", "resnet20": "CIFAR ResNet-20"}
    lines = [
        "| step, bfloat16 | batch | kernels | at most | MB a picture | at most | scratch memory |",
        "|---" * 7 + "|",
    ]
    for name, row in record["programs"].items():
        program, _, varied = name.partition(", ")
        lines.append(
            f"| {names[program]}{', pictures varied' if varied else ''} | {row['batch_size']:,} | {row['kernels']:,} "
            f"| {budget[name]['kernels']:,} | {row['megabytes_an_image']:.2f} | {budget[name]['megabytes_an_image']:g} "
            f"| {row['temporary_gib']:.2f} GiB |"
        )
    return "\n".join(lines)


def cpu_table() -> str:
    """Whole steps and inference on the CPU, beside PyTorch."""
    record = json.loads((RESULTS / "cpu" / "float32.json").read_text())
    heads = ["", "batch", "step", "PyTorch", "ratio", "inference", "PyTorch", "ratio"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for row in record["rows"]:
        cells = [row["network"], str(row["batch"])]
        for what in ("step", "infer"):
            side = row[what]
            cells += [f"{side[which]['median_s'] * 1e3:.1f} ms" for which in ("ours", "theirs")]
            cells.append(f"{side['ratio']:.2f}")
        lines.append("| " + " | ".join(cells) + " |")
    means = [f"**{record['summary'][what]['geometric_mean']:.2f}**" for what in ("step", "infer")]
    return "\n".join([*lines, f"| geometric mean | | | | {means[0]} | | | {means[1]} |"])


def gpu_table() -> str:
    """One accelerator beside PyTorch and its floors; what has not been measured says so."""
    lines = ["| | here | PyTorch | floor | ratio |", "|---|---|---|---|---|"]
    for section, what in (("resnet50", "ResNet-50, 224x224"), ("resnet20", "CIFAR ResNet-20, by scan")):
        path = RESULTS / "gpu" / f"{section}.json"
        rows = [row for row in json.loads(path.read_text())["rows"] if "ratio" in row] if path.exists() else []
        for row in rows:
            ms = [seconds / row["steps_a_call"] * 1e3 for seconds in (*_medians(row), row["floor_s"])]
            cells = " | ".join(f"{value:.2f} ms" for value in ms)
            lines.append(f"| {what}, batch {row['batch']} | {cells} | {row['ratio']:.2f} |")
        if not rows:
            lines.append(f"| {what} | not measured yet | | | |")
    for kind in ("sgd", "muon"):
        paths = sorted((RESULTS / "gpu").glob(f"airbench_{kind}_*.json"))
        for record in [json.loads(path.read_text()) for path in paths]:
            found = record["summary"]
            sides = [f"{found[s]['median_s']:.2f} s, {found[s]['accuracy']:.2%}" for s in ("ours", "theirs")]
            lines.append(
                f"| airbench94, {kind}, {found['runs']} runs | {sides[0]} | {sides[1]} "
                f"| {record['serial_floor_s']:.2f} s | {found['ratio']:.2f} |"
            )
        if not paths:
            lines.append(f"| airbench94, {kind} | not measured yet | | | |")
    path = RESULTS / "gpu" / "population.json"
    if path.exists():
        rate = json.loads(path.read_text())["rate"]
        best = max(rate, key=rate.get)
        lines.append(f"| eight ResNet-20 together | {rate[best]:.2f} times the rate, by {best} | | | |")
    else:
        lines.append("| eight ResNet-20 together | not measured yet | | | |")
    return "\n".join(lines)


def _medians(row: dict) -> list[float]:
    return [row[side]["median_s"] for side in ("ours", "theirs")]


def input_table() -> str:
    """The benchmark of input, set by set: pictures a second end to end, ours by threads, beside each peer's."""
    record = json.loads((RESULTS / "input" / "cpu.json").read_text())
    rows = [row for row in record["rows"] if row["stage"].startswith("end to end") and row["stage"].endswith("threads")]
    lines = ["| pictures | beside | cnn_jax, a second | theirs, a second | times as fast |", "|---|---|---|---|---|"]
    for row in rows:
        facts = record["sets"][row["set"]]
        size = "{:.0f}x{:.0f} px, {:.0f} kB".format(*facts["mean_size_px"][::-1], facts["mean_bytes"] / 1000)
        ratio = row["ours_per_s"] / row["theirs_per_s"]
        lines.append(
            f"| {row['set']} ({size}) | {row['beside']} | {row['ours_per_s']:,.0f} | {row['theirs_per_s']:,.0f} "
            f"| {ratio:.2f} |"
        )
    return "\n".join(lines)


def resident_table() -> str:
    """The benchmark of resident data: a step with its gathering and augmentation, beside the step alone."""
    record = json.loads((RESULTS / "resident" / "cpu.json").read_text())
    ours, ready = (1000 * record[side]["median_s"] for side in ("ours", "theirs"))
    return "\n".join([
        "| recipe | from the resident set, augmented | on a batch that lies ready | more |",
        "|---|---|---|---|",
        f"| `{record['config']}` | {ours:.0f} ms a step | {ready:.0f} ms | {record['share_of_a_step']:.1%} |",
    ])  # fmt: skip


def transfer_table() -> str:
    """Mean test accuracies of the transfer experiment, at 5, 20 and 100 pictures a class."""
    arms = ("scratch", "random", "probe", "head", "block", "all")
    lines = [f"| task, verdict | {' | '.join(arms)} |", "|" + "---|" * (len(arms) + 1)]
    for path in sorted(RESULTS.glob("transfer-*.json")):
        summary = json.loads(path.read_text())
        scores, task = transfer.scores_of(summary), path.stem.removeprefix("transfer-")
        for of in ("", transfer.PUBLISHED):
            if f"{of}all/5" not in scores:
                continue
            cells = []
            for arm in arms:
                group = arm if arm in ("scratch", "random") else of + arm
                means = [statistics.mean(scores[f"{group}/{size}"]) for size in transfer.SIZES]
                cells.append(" / ".join(f"{100 * mean:.1f}" for mean in means))
            told = f"from the {of}network" if of else f"[{summary['verdict']}](experiments/results/{path.name})"
            lines.append(f"| {task}, {told} | {' | '.join(cells)} |")
    return "\n".join(lines)


def test_a_streamed_run_killed_within_its_epoch_ended_with_the_straight_ones_bits():
    killed, straight = (
        json.loads((RESULTS / "resume_tiny_imagenet" / f"{name}.json").read_text()) for name in ("killed", "straight")
    )
    for name in ("config", "step", "metrics", "params_sha256"):
        assert killed[name] == straight[name]
    assert killed["steps_per_epoch"] == killed["step"] == 140 and not killed["git"]["dirty"]
    ends = f"gone on from the checkpoint at 70, ends with the parameters\n`{killed['params_sha256'][:8]}`"
    assert f"ended by SIGKILL at step 80 of 140, {ends}" in (ROOT / "README.md").read_text()


SPEED = {"deviceless": deviceless_table, "gpu": gpu_table} | (
    {"cpu float32": cpu_table} if (RESULTS / "cpu" / "float32.json").exists() else {}
)
SPEED |= {"input cpu": input_table, "resident cpu": resident_table, "transfer": transfer_table}


@pytest.mark.parametrize("name", SPEED)
def test_speed(name):
    """Where the README has the table it is what the record says."""
    expected = f"<!-- table: {name} -->\n{SPEED[name]()}\n"
    readme = (ROOT / "README.md").read_text()
    assert expected in readme or f"<!-- table: {name} -->" not in readme, f"README.md must hold\n{expected}"


@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("lenet_digits", 0.985),
        ("lenet_mnist", 0.992),
        ("rnn_parity", 0.99),
        ("rnn_copy", 0.99),
        ("cnn1d_signals", 0.99),
        ("cnn3d_voxels", 0.99),
    ],
)
def test_accuracy_and_provenance(name, least):
    records = [json.loads(path.read_text()) for path in (ROOT / "experiments" / "results" / name).glob("seed*.json")]
    assert sum(record["metrics"]["accuracy"] for record in records) / len(records) >= least
    for record in records:
        assert record["status"] == "finished" and not record["git"]["dirty"]
        config = {k: v for k, v in record["config"].items() if k != "seed"}
        assert config == {k: v for k, v in records[0]["config"].items() if k != "seed"}
