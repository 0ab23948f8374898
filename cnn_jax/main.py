"""The command line: `./launch.sh VERB ...` runs `python -m cnn_jax.main VERB ...`. What a verb does stands in `verbs.py`."""

import argparse
import os
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import Any, NoReturn

from cnn_jax import interchange, verbs
from cnn_jax.recipe import UsageError

OVERRIDES = """
CONFIG is a recipe, e.g. configs/lenet_digits.py; what follows a colon is its argument (CONFIG:key=value,key=value).
Any field of it can be set: --config.seed=1 --config.optim.lr=0.05 --config.optim.step_epochs='(30, 60)'
"""

EXPERIMENT = """
FILE states a claim, lists runs and judges them; ARG is its own, as in FILE:gpu (experiments/run.py tells how to write one).
Records lie under runs/NAME of the clone, the summary under experiments/results. The same command goes on where it stood.
With --launcher=slurm, sbatch's options are set as --slurm.partition=gpu --slurm.time=240 (minutes), docs/scale_out.md.
"""


OF_DATA = """
With --data, fields of that recipe's data set are set as in training: --config.data.dir=DIR
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
    subparsers = parser.add_subparsers(dest="verb", metavar="VERB", parser_class=Parser)

    def add(verb: str, what: str, **more: Any) -> argparse.ArgumentParser:
        raw = argparse.RawDescriptionHelpFormatter
        return subparsers.add_parser(verb, help=what, description=what, parents=[debug], formatter_class=raw, **more)

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
    features = add(
        "features", "what a trained network makes of a data set: one of its layers, into a file", epilog=OF_DATA
    )
    features.add_argument("workdir", type=Path, metavar="DIR")
    features.add_argument("--layer", required=True, metavar="NAME", help="a map of the network, e.g. pool5")
    features.add_argument("--out", required=True, type=workdir, metavar="FILE.npz")
    features.add_argument("--split", default="train,validation,test", metavar="SPLIT,...", help="default: all three")
    features.add_argument(
        "--data", metavar="CONFIG[:ARG]", help="a recipe whose data set is shown, in place of the run's"
    )
    features.add_argument("--checkpoint", default="newest", choices=("newest", "best"), help="best: by validation")
    features.add_argument("--batch_size", type=int, default=512, metavar="N")
    features.add_argument("--data_dir", metavar="DIR", help="where the run's data lie, if not where its config says")
    probe = add("probe", "a linear classifier on features: how much of the classes they tell")
    probe.add_argument(
        "file", type=Path, metavar="FILE.npz", help="as ./launch.sh features writes it, of all three splits"
    )
    probe.add_argument("--json", action="store_true", help="the whole result as JSON")
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
    report = add(
        "report", "one offline HTML page of a run, a population or an experiment: curves, mistakes, config, costs"
    )
    report.add_argument(
        "workdir", type=workdir, metavar="DIR", help="what it is about, and where report.html is written"
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
    experiment.add_argument("--launcher", default="local", choices=("local", "slurm"), help="who does the runs")
    experiment.add_argument("--workers", type=int, metavar="N", help="processes; default: by cores, memory and GPUs")
    experiment.add_argument("--data_dir", metavar="DIR", help="where the data lie, if not where the runs' configs say")
    experiment.add_argument("--write_docs", action="store_true", help="makes experiments/README.md anew")
    interchange.add_import_weights(add)
    interchange.add_export(add)
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
        if rest and args.verb not in ("train", "test", "analyze", "features", "import-weights", "experiment"):
            raise UsageError(
                f"unknown argument {rest[0]!r}; see {' '.join(('./launch.sh', *filter(None, [args.verb])))} --help"
            )
        if args.verb not in ("prepare", "test") and "jax" not in sys.modules:  # which may have read them
            from cnn_jax.backend import check_flags

            check_flags(os.environ.get("XLA_FLAGS", ""))
        return getattr(verbs, (args.verb or "demo").replace("-", "_"))(args, rest)
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
    from cnn_jax.backend import is_out_of_memory
    from cnn_jax.resolve import first_line

    message = first_line(error)
    if is_out_of_memory(error):
        sizes = "config.batch_size, config.eval.batch_size or config.steps_per_dispatch"
        message = f"the device is out of memory ({message}); lower {sizes}, or set config.driver=streamed"
    elif not isinstance(error, UsageError | ValueError | OSError | ArithmeticError):
        message = f"{type(error).__name__}: {message} (--debug shows where)"
    print(f"error: {message}", file=sys.stderr)
    return 2 if isinstance(error, UsageError) else 1


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
