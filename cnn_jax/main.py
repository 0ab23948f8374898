"""The verbs. `./launch.sh VERB ...` runs `python -m cnn_jax.main VERB ...`; heavy imports wait until a verb needs them."""

import argparse
import glob
import os
import re
import signal
import subprocess
import sys
import threading
import traceback
import warnings
from pathlib import Path
from typing import Any, NoReturn

from cnn_jax.recipe import (
    OVERRIDE_OF_MODEL,
    UsageError,
    load_config,
    member_values,
    parse_literal,
    split_members,
)

ROOT = Path(__file__).resolve().parent.parent  # configs/, experiments/ and runs/ belong to a clone

OVERRIDES = """
CONFIG is a recipe, e.g. configs/lenet_digits.py; what follows a colon is its argument (CONFIG:key=value,key=value).
Any field of it can be set: --config.seed=1 --config.optim.lr=0.05 --config.optim.step_epochs='(30, 60)'
"""

EXPERIMENT = """
FILE states a claim, lists runs and judges them; ARG is its own, as in FILE:gpu (experiments/run.py tells how to write one).
Records lie under runs/NAME of the clone, the summary under experiments/results. The same command goes on where it stood.
"""


class Parser(argparse.ArgumentParser):
    """argparse, but a mistake is one line like any other, and no option may be cut short."""

    def __init__(self, **options: Any):
        super().__init__(**options, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Raises UsageError."""
        raise UsageError(f"{message}; see {self.prog} --help")


def workdir(text: str) -> Path:
    """A directory's name; an empty one, as of a variable that is not set, would mean the current directory."""
    if not text:
        raise argparse.ArgumentTypeError("the name of the directory is empty")
    return Path(text)


def make_parser() -> argparse.ArgumentParser:
    """All verbs and their arguments."""
    debug = Parser(add_help=False)
    debug.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser = Parser(
        prog="./launch.sh",
        description="Convolutional networks in JAX and Flax. Without a verb: trains LeNet-5 on handwritten digits.",
        epilog="./launch.sh VERB --help tells more of each.",
        parents=[debug],
    )
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", parser_class=Parser)

    def add(verb: str, what: str, **more: Any) -> argparse.ArgumentParser:
        raw = argparse.RawDescriptionHelpFormatter
        return verbs.add_parser(verb, help=what, description=what, parents=[debug], formatter_class=raw, **more)

    train = add("train", "trains a recipe, or resumes it where its workdir stands", epilog=OVERRIDES)
    train.add_argument("config", metavar="CONFIG[:ARG]", help="a recipe, e.g. configs/lenet_digits.py")
    train.add_argument(
        "--workdir", required=True, type=workdir, metavar="DIR", help="where the run is kept, and resumed"
    )
    train.add_argument(
        "--plan",
        metavar="PLAN",
        help="of members: auto (measured), turns, unrolled, map, vmap, devices",
    )
    train.usage = (
        "%(prog)s [-h] [--debug] CONFIG[:ARG] --workdir=DIR [--config.KEY=VALUE ...]\n"
        "       %(prog)s CONFIG[:ARG] --workdir=DIR --members.KEY=VALUE,VALUE,... [--plan=PLAN]"
    )
    evaluate = add("evaluate", "scores a run on a whole split, every example once")
    evaluate.add_argument("workdir", type=Path, metavar="DIR")
    evaluate.add_argument("--split", default="test", choices=("train", "validation", "test"))
    evaluate.add_argument("--checkpoint", default="newest", choices=("newest", "best"), help="best: by validation")
    evaluate.add_argument("--batch_size", type=int, default=512, metavar="N", help="changes the time, not the counts")
    evaluate.add_argument("--data_dir", metavar="DIR", help="where the data lie, if not where the run's config says")
    evaluate.add_argument("--json", action="store_true", help="the whole score as JSON")
    predict = add("predict", "the five likeliest classes of your own pictures, with probabilities")
    predict.add_argument("workdir", type=Path, metavar="DIR")
    predict.add_argument("images", type=Path, nargs="+", metavar="IMAGE")
    predict.add_argument("--checkpoint", default="newest", choices=("newest", "best"), help="best: by validation")
    analyze = add("analyze", "a network as its paper's table: maps, parameters, multiply-adds, receptive fields")
    analyze.add_argument(
        "model", nargs="?", metavar="MODEL[:VARIANT]", help="e.g. resnet:50; without a variant its first"
    )
    analyze.add_argument("--format", default="table", choices=("table", "json"))
    analyze.add_argument("--size_px", type=int, metavar="N", help="square inputs of N pixels in place of the paper's")
    analyze.add_argument("--num_classes", type=int, metavar="N", help="in place of the paper's")
    analyze.add_argument("--compare", action="store_true", help="all networks side by side")
    analyze.add_argument("--plot", type=Path, metavar="FILE", help="with --compare: accuracy against complexity, drawn")
    analyze.add_argument("--write_docs", action="store_true", help="writes docs/architectures.md and .svg anew")
    analyze.usage = (
        "%(prog)s [-h] [--debug] MODEL[:VARIANT] [--format=table,json] [--size_px=N] [--num_classes=N]"
        " [--config.model.overrides.KEY=VALUE ...]\n"
        "       %(prog)s --compare [--format=table,json] [--plot=FILE]\n"
        "       %(prog)s --write_docs"
    )
    prepare = add("prepare", "downloads a data set, or takes your originals, and writes it for fast reading by index")
    prepare.add_argument("dataset", metavar="DATASET", help="e.g. cifar10, imagenet, image_folder")
    prepare.add_argument("--source", type=workdir, metavar="PATH", help="originals; without it they are downloaded")
    prepare.add_argument("--dir", type=workdir, metavar="DIR", help="default: $TFDS_DATA_DIR or ~/tensorflow_datasets")
    prepare.add_argument(
        "--short_side", type=int, metavar="N", help="reduces larger pictures to it, as JPEG, quality 90"
    )
    experiment = add("experiment", "runs, resumes and judges an experiment", epilog=EXPERIMENT)
    experiment.add_argument("file", nargs="?", metavar="FILE[:ARG]", help="e.g. experiments/NAME.py")
    experiment.add_argument("--dry_run", action="store_true", help="shows the plan, and ends there")
    experiment.add_argument("--launcher", default="local", choices=("local",), help="who does the runs")
    experiment.add_argument("--workers", type=int, metavar="N", help="processes; default: by cores, memory and GPUs")
    experiment.add_argument("--data_dir", metavar="DIR", help="where the data lie, if not where the runs' configs say")
    experiment.add_argument("--write_docs", action="store_true", help="makes experiments/README.md anew")
    test = add("test", "runs the test suite: the quick part, or all of it", add_help=True)
    test.add_argument("--full", action="store_true", help="everything (under an hour on two cores)")
    test.epilog = "Further arguments go to pytest, e.g. -k lenet."
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs a verb; returns the exit code: 0, 1 for an error, 2 for a wrong command line, 128 + the signal's number."""
    argv = sys.argv[1:] if argv is None else argv
    debug = "--debug" in argv
    try:
        args, rest = make_parser().parse_known_args(argv)
        if rest and args.verb not in ("train", "test", "analyze"):
            raise UsageError(
                f"unknown argument {rest[0]!r}; see {' '.join(('./launch.sh', *filter(None, [args.verb])))} --help"
            )
        verbs = {verb.__name__: verb for verb in (train, evaluate, predict, analyze, prepare, experiment, test)}
        return verbs.get(args.verb, demo)(args, rest)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the reader has left: not even the flush at exit may complain
        return 1
    except Exception as error:  # the one place that turns an error into a line
        if debug:
            traceback.print_exc()
        return _report(error)


def _report(error: Exception) -> int:
    """Prints one line for an error and returns the exit code."""
    signum = getattr(error, "signum", None)
    if signum is not None:
        print(f"{error}; everything is saved, the same command goes on from here", file=sys.stderr)
        return 128 + signum
    from cnn_jax.resolve import first_line

    message = first_line(error)
    if not isinstance(error, UsageError | ValueError | OSError | ArithmeticError):
        message = f"{type(error).__name__}: {message} (--debug shows where)"
    print(f"error: {message}", file=sys.stderr)
    return 2 if isinstance(error, UsageError) else 1


def configure_jax() -> None:
    """The persistent compilation cache, in .cache of the clone unless JAX_COMPILATION_CACHE_DIR says otherwise."""
    import jax

    cache = Path(os.environ.get("JAX_COMPILATION_CACHE_DIR", ROOT / ".cache" / "jax"))
    jax.config.update("jax_compilation_cache_dir", str(cache))
    show = warnings.showwarning

    def mend(message: Warning | str, *rest: Any, **more: Any) -> None:
        # A process that was killed while it wrote an entry leaves half of it, which jax would warn of ever after.
        damaged = re.search(r"Error reading persistent compilation cache entry for '([^']+)'", str(message))
        if not damaged:
            show(message, *rest, **more)
        for entry in cache.glob(f"{glob.escape(damaged[1])}-*") if damaged else ():
            entry.unlink(missing_ok=True)

    warnings.showwarning = mend
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


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
    from cnn_jax.population import run
    from cnn_jax.summary import population_summary

    print(population_summary(run(config, grid, args.workdir, args.plan or "auto"), args.workdir))
    return 0


def demo(args: argparse.Namespace, rest: list[str]) -> int:
    """No verb: the digits recipe, in runs/ of the clone."""
    _train(load_config("configs/lenet_digits.py", []), ROOT / "runs" / "lenet_digits")
    return 0


def _train(config: Any, workdir: Path) -> None:
    configure_jax()
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
    sys.path.insert(0, str(ROOT))  # experiments/ belongs to a clone
    import jax

    platforms = jax.config.jax_platforms
    jax.config.update("jax_platforms", "cpu")  # accelerators are for the workers
    try:
        from experiments import run
        from experiments.lab.summary import write_page

        if args.file:
            options = {"launcher": args.launcher, "num_workers": args.workers, "data_dir": args.data_dir}
            run.run(args.file, **options, dry_run=args.dry_run)
        if not args.dry_run:
            print(f"written: {write_page()}")
    finally:
        jax.config.update("jax_platforms", platforms)
    return 0


def test(args: argparse.Namespace, rest: list[str]) -> int:
    """`test [--full] [PYTEST ARGS]`; the exit code is pytest's."""
    options = [] if args.full else ["-m", "not full"]
    if (
        not rest
    ):  # all of it: a core for each of up to four processes, which begin with an equal share and then help out
        options += ["-n", str(min(len(os.sched_getaffinity(0)), 4)), "--dist", "worksteal"]
    return subprocess.run([sys.executable, "-m", "pytest", *options, *rest], cwd=ROOT).returncode


def _leave(signum: int, frame: Any) -> NoReturn:
    """A signal before anything could be lost, or a second one: at once, whatever is being imported or compiled."""
    print(f"\ninterrupted by {signal.Signals(signum).name}", file=sys.stderr, flush=True)
    os._exit(128 + signum)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, _leave)
    signal.signal(signal.SIGTERM, _leave)
    for stream in filter(None, (sys.stdout, sys.stderr)):
        stream.reconfigure(errors="backslashreplace")  # a name that the terminal cannot show is no reason to stop
    # TensorBoard's writer is a thread: on a full disk the run itself tells the error, once.
    threading.excepthook = lambda failed: print(
        f"warning: {failed.exc_type.__name__}: {failed.exc_value}", file=sys.stderr
    )
    sys.exit(main())
