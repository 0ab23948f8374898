"""What each verb of the command line does; `main.py` reads the arguments. Heavy imports wait until a verb needs them."""

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from cnn_jax import interchange
from cnn_jax.backend import configure_jax
from cnn_jax.recipe import (
    OVERRIDE_OF_MODEL,
    UsageError,
    load_config,
    member_values,
    parse_literal,
    split_members,
)

ROOT = Path(__file__).resolve().parent.parent  # configs/, experiments/ and runs/ belong to a clone


def train(args: argparse.Namespace, overrides: list[str]) -> int:
    """`train CONFIG --workdir=DIR`."""
    overrides, grid = split_members(overrides)
    config = load_config(args.config, overrides)
    if grid:
        return _train_population(config, member_values(config, grid), args)
    if args.plan:
        raise UsageError("--plan is for several members: add --members.seed=0,1,2")
    _train(config, args.workdir)
    return 0


def _train_population(config: Any, grid: dict[str, list], args: argparse.Namespace) -> int:
    configure_jax()
    from cnn_jax.processes import arguments

    if arguments(os.environ) is not None:
        raise UsageError("a population trains in one process: start it once, or with PROCESSES=1")
    from cnn_jax.population import run
    from cnn_jax.summary import population_summary

    print(population_summary(run(config, grid, args.workdir, args.plan or "auto"), args.workdir))
    return 0


def demo(args: argparse.Namespace, rest: list[str]) -> int:
    """No verb: the digits recipe, in runs/ of the clone."""
    workdir = ROOT / "runs" / "lenet_digits"
    _train(load_config("configs/lenet_digits.py", []), workdir)
    _add_report(workdir)
    return 0


def _train(config: Any, workdir: Path) -> None:
    configure_jax(starts=False)  # processes find one another before that
    from cnn_jax import backend
    from cnn_jax.processes import joined

    with joined():
        backend.start()
        from cnn_jax.summary import summary
        from cnn_jax.train import run

        print(summary(run(config, workdir), workdir))


def evaluate(args: argparse.Namespace, rest: list[str]) -> int:
    """`evaluate DIR`."""
    if args.batch_size < 1:
        raise UsageError(f"--batch_size={args.batch_size} must be at least 1")
    configure_jax()
    import json

    from cnn_jax.summary import scores
    from cnn_jax.workdir import load_run

    run = load_run(args.workdir, args.checkpoint, data_dir=args.data_dir)
    if args.split not in run.parts.sources:
        raise ValueError(
            f"{args.workdir} was trained without a {args.split} split; it has {', '.join(run.parts.sources)}"
        )
    evaluator = run.parts.evaluator()
    metrics = evaluator.evaluate(run.variables, run.parts.sources[args.split], args.batch_size)
    for warning in run.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if args.json:
        print(json.dumps({"split": args.split, "step": run.step, **metrics}))
    else:
        print(f"{args.workdir}, step {run.step}, {args.split} split")
        print(scores(metrics, run.parts.info.classes))
    return 0


def predict(args: argparse.Namespace, rest: list[str]) -> int:
    """`predict DIR IMAGE...`."""
    from cnn_jax.data.decode import read_picture

    pictures = [read_picture(path) for path in args.images]  # all of them first: a bad path is told before any work
    configure_jax()
    from cnn_jax.predict import predict_pictures
    from cnn_jax.workdir import load_run

    run = load_run(args.workdir, args.checkpoint, read_data=False)
    for warning in run.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    for path, top in zip(args.images, predict_pictures(run, pictures), strict=True):
        print(f"{path}:  " + "  ".join(f"{name} {probability:.4f}" for name, probability in top))
    return 0


def features(args: argparse.Namespace, overrides: list[str]) -> int:
    """`features DIR --layer=NAME --out=FILE.npz`."""
    splits = args.split.split(",")
    unknown = [split for split in splits if split not in ("train", "validation", "test")]
    if unknown or len(set(splits)) < len(splits):
        raise UsageError(f"--split={args.split} must name train, validation or test, each once")
    if args.batch_size < 1:
        raise UsageError(f"--batch_size={args.batch_size} must be at least 1")
    if not args.out.absolute().parent.is_dir():
        raise ValueError(f"--out={args.out}: there is no directory {args.out.absolute().parent}")
    if args.data and args.data_dir:
        raise UsageError("--data_dir is for the run's own data; with --data it is --config.data.dir")
    if overrides and not args.data:
        raise UsageError(f"unknown argument {overrides[0]!r}; fields of a data set go with --data")
    other = load_config(args.data, overrides) if args.data else None
    configure_jax()
    from cnn_jax.assemble import make_sources
    from cnn_jax.features import about, check_layer, extract, save_features
    from cnn_jax.workdir import load_run

    run = load_run(args.workdir, args.checkpoint, read_data=other is None, data_dir=args.data_dir)
    for warning in run.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    sources = make_sources(other.data) if other else run.parts.sources
    for split in splits:
        if split not in sources:
            raise ValueError(f"the data set has no {split} split; it has {', '.join(sources)}")
    info = sources[splits[0]].info
    shape = check_layer(run, args.layer, info.image_shape)
    arrays = {split: extract(run, sources[split], args.layer, args.batch_size) for split in splits}
    save_features(args.out, arrays, about(run, args.workdir, args.layer, info))
    counts = ", ".join(f"{len(arrays[split]['label']):,} {split}" for split in splits)
    print(f"{args.out}: {args.layer} of {args.workdir}, step {run.step:,}, {shape} each: {counts} of {info.name}")
    return 0


def probe(args: argparse.Namespace, rest: list[str]) -> int:
    """`probe FILE.npz`."""
    import json

    from cnn_jax.features import load_features
    from cnn_jax.linear_probe import fit_probe
    from cnn_jax.summary import scores

    splits, told = load_features(args.file)
    result = fit_probe(splits, len(told["classes"]))
    if args.json:
        print(json.dumps(result | {"about": told}))
        return 0
    print(f"{told['layer']} of {told['run']} ({told['model']}), {result['num_features']:,} features")
    print(
        f"logistic regression on {result['num_train']:,} examples of {told['dataset']}, strength {result['strength']:g} "
        "by validation; test split"
    )
    print(scores(result["metrics"], told["classes"]))
    return 0


def analyze(args: argparse.Namespace, rest: list[str]) -> int:
    """`analyze MODEL[:VARIANT]`, `analyze --compare`, `analyze --write_docs`."""
    import json

    overrides = {}
    for override in rest:
        key, equals, text = override.removeprefix("--config.").partition("=")
        if not override.startswith(f"--config.{OVERRIDE_OF_MODEL}") or not equals:
            raise UsageError(f"unknown argument {override!r}; see ./launch.sh analyze --help")
        overrides[key.removeprefix(OVERRIDE_OF_MODEL)] = parse_literal(text)
    if [args.compare, args.write_docs, bool(args.model)].count(True) != 1:
        raise UsageError(
            "analyze needs one of MODEL[:VARIANT], --compare and --write_docs; see ./launch.sh analyze --help"
        )
    if args.plot is not None and (not args.compare or not args.plot.name):
        raise UsageError("--plot=FILE goes with --compare, and names a file")
    of_one = [args.size_px, args.num_classes]
    if not args.model and (overrides or any(value is not None for value in of_one)):
        raise UsageError("--size_px, --num_classes and --config.model.overrides go with MODEL, not with all networks")
    configure_jax()
    from cnn_jax import architecture_docs, architecture_plot, architectures
    from cnn_jax.analysis.table import render

    if args.write_docs or args.compare:
        if args.plot:
            architecture_plot.check_plot_path(args.plot)
        print("counting every network takes a minute or two", file=sys.stderr)
    if args.write_docs:
        architecture_docs.write_docs()
        print(f"written: {architecture_docs.DOCUMENT}")
        return 0
    if args.compare:
        rows = architectures.comparison()
        print(json.dumps(rows) if args.format == "json" else architectures.render_comparison(rows))
        if args.plot:
            architecture_plot.plot_comparison(rows, args.plot)
            print(f"drawn: {args.plot}", file=sys.stderr)
        return 0
    description = architectures.analyze(
        args.model, size_px=args.size_px, num_classes=args.num_classes, overrides=overrides
    )
    print(json.dumps(description) if args.format == "json" else render(description))
    return 0


def report(args: argparse.Namespace, rest: list[str]) -> int:
    """`report DIR`."""
    configure_jax()
    _write_report(args.workdir)
    return 0


def _write_report(workdir: Path) -> None:
    from cnn_jax.report.write import write_report

    path = write_report(workdir)
    print(f"its page: {os.path.relpath(path) if path.absolute().is_relative_to(Path.cwd()) else path}")


def _add_report(workdir: Path) -> None:
    """As `_write_report`, of what is finished, and stays so: an error is a warning."""
    try:
        _write_report(workdir)
    except Exception as error:
        from cnn_jax.resolve import first_line

        print(f"warning: no page was written: {first_line(error)}", file=sys.stderr)


def prepare(args: argparse.Namespace, rest: list[str]) -> int:
    """`prepare DATASET`."""
    from cnn_jax.data.prepare import run

    run(args.dataset, args.source, args.dir, args.short_side)
    return 0


def experiment(args: argparse.Namespace, rest: list[str]) -> int:
    """`experiment FILE[:ARG]`, `experiment --write_docs`."""
    if bool(args.file) == args.write_docs:
        raise UsageError("experiment needs FILE[:ARG], or --write_docs alone; see ./launch.sh experiment --help")
    if args.workers is not None and args.workers < 1:
        raise UsageError(f"--workers={args.workers} must be at least 1")
    slurm_options = {}
    for option in rest:
        key, equals, text = option.removeprefix("--slurm.").partition("=")
        if not option.startswith("--slurm.") or not equals or args.launcher != "slurm":
            raise UsageError(f"unknown argument {option!r}; see ./launch.sh experiment --help")
        slurm_options[key] = parse_literal(text)
    sys.path.insert(0, str(ROOT))  # experiments/ belongs to a clone
    import jax

    platforms = jax.config.jax_platforms
    jax.config.update("jax_platforms", "cpu")  # accelerators are for the workers
    try:
        from experiments import run
        from experiments.lab.summary import write_page

        if args.file:
            options = {"launcher": args.launcher, "num_workers": args.workers, "data_dir": args.data_dir}
            made = run.run(args.file, **options, slurm_options=slurm_options, dry_run=args.dry_run)
        if not args.dry_run:
            print(f"written: {write_page()}")
        if args.file and not args.dry_run:
            _add_report(run.RUNS / made["name"])
    finally:
        jax.config.update("jax_platforms", platforms)
    return 0


def import_weights(args: argparse.Namespace, rest: list[str]) -> int:
    """`import-weights MODEL[:VARIANT] FILE --workdir=DIR`."""
    configure_jax()
    return interchange.import_weights(args, rest)


def export(args: argparse.Namespace, rest: list[str]) -> int:
    """`export DIR --format=FORMAT`."""
    configure_jax()
    return interchange.export(args, rest)


def test(args: argparse.Namespace, rest: list[str]) -> int:
    """`test [--full] [PYTEST ARGS]`; the exit code is pytest's."""
    options = [] if args.full else ["-m", "not full"]
    if (
        not rest
    ):  # all of it: a core for each of up to four processes, which begin with an equal share and then help out
        options += ["-n", str(min(len(os.sched_getaffinity(0)), 4)), "--dist", "worksteal"]
    return subprocess.run([sys.executable, "-m", "pytest", *options, *rest], cwd=ROOT).returncode
