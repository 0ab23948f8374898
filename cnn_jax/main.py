"""The verbs. `./launch.sh VERB ...` runs `python -m cnn_jax.main VERB ...`; heavy imports wait until a verb needs them."""

import argparse
import ast
import functools
import glob
import importlib.util
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

ROOT = Path(__file__).resolve().parent.parent  # configs/, experiments/ and runs/ belong to a clone

OVERRIDES = """
CONFIG is a recipe, e.g. configs/lenet_digits.py; what follows a colon is its argument (CONFIG:key=value,key=value).
Any field of it can be set: --config.seed=1 --config.optim.lr=0.05 --config.optim.step_epochs='(30, 60)'
"""


class UsageError(Exception):
    """A command line that cannot be understood: exit code 2."""


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
    train.usage = "%(prog)s [-h] [--debug] CONFIG[:ARG] --workdir=DIR [--config.KEY=VALUE ...]"
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
        if rest and args.verb not in ("train", "test"):
            raise UsageError(
                f"unknown argument {rest[0]!r}; see {' '.join(('./launch.sh', *filter(None, [args.verb])))} --help"
            )
        return {"train": train, "evaluate": evaluate, "predict": predict, "test": test}.get(args.verb, demo)(args, rest)
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


def load_config(config: str, overrides: list[str]) -> Any:
    """The config of `FILE[:ARG]` with `--config.key=value` overrides. Raises UsageError, FileNotFoundError, ValueError."""
    from ml_collections import ConfigDict

    from cnn_jax.resolve import first_line, nearest
    from cnn_jax.workdir import flat

    path, _, arg = config.partition(":")
    recipe = load_recipe(Path(path))
    try:
        value = recipe.get_config(arg or None)
    except (Exception, SystemExit) as error:
        raise ValueError(f"{path}: get_config: {type(error).__name__}: {first_line(error)}") from error
    if not isinstance(value, ConfigDict):
        raise ValueError(f"{path}: get_config gives {type(value).__name__}; it must give the ConfigDict of base()")
    fields = flat(value)
    for override in overrides:
        if not override.startswith("--config."):
            raise UsageError(f"unknown argument {override!r}; a field is set by --config.KEY=VALUE")
        key, equals, text = override.removeprefix("--config.").partition("=")
        if key not in fields:
            raise UsageError(f"{path} has no field config.{key}{nearest(key, fields)}")
        if not equals:
            raise UsageError(f"--config.{key} needs a value: --config.{key}=VALUE")
        *sections, last = key.split(".")
        section = functools.reduce(lambda section, name: section[name], sections, value)
        section[last] = parse_value(f"--config.{key}", text, section[last])
    return value


def parse_value(flag: str, text: str, default: Any) -> Any:
    """The value that `text` spells, of the type of the field's default. Raises UsageError."""
    kind = type(default)
    try:
        if kind is bool:
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        if kind is not tuple:
            return kind(text)
        value = tuple(ast.literal_eval(text))
        if any(isinstance(item, str) != isinstance(default[0], str) for item in value if default):
            raise ValueError
        return value
    except (KeyError, ValueError, TypeError, SyntaxError, MemoryError):
        like = f", like {default!r}" if kind is tuple and default else {bool: ", true or false"}.get(kind, "")
        raise UsageError(f"{flag}={text} must be of type {kind.__name__}{like}") from None


def load_recipe(path: Path) -> Any:
    """A config file as a module; `configs` is importable from it."""
    names = (path, path.with_suffix(".py")) if path.name else ()
    found = next((p for name in names for p in (name, ROOT / name) if p.is_file()), None)
    if found is None:
        from cnn_jax.resolve import nearest

        known = [f"configs/{p.name}" for p in sorted((ROOT / "configs").glob("*.py")) if p.stem != "common"]
        raise FileNotFoundError(f"no config {path}{nearest(str(path), known)}; there are: {', '.join(known)}")
    sys.path.insert(0, str(ROOT))  # first, lest another directory's `configs` be taken for ours
    spec = importlib.util.spec_from_file_location(f"configs.{found.stem}", found)
    if spec is None or spec.loader is None:
        raise ValueError(f"{found} is not Python: a config is a .py file with get_config(arg)")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        where = f"{found}, line {error.lineno}" if error.lineno else f"{found} is not Python"
        raise ValueError(f"{where}: {error.msg}") from error
    except (Exception, SystemExit) as error:
        raise ValueError(f"{found} does not load: {type(error).__name__}: {error}") from error
    if not hasattr(module, "get_config"):
        raise ValueError(f"{found} has no get_config(arg); see configs/lenet_digits.py")
    return module


def train(args: argparse.Namespace, overrides: list[str]) -> int:
    """`train CONFIG --workdir=DIR`."""
    config = load_config(args.config, overrides)
    _train(config, args.workdir)
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

    from cnn_jax.evaluate import Evaluator
    from cnn_jax.summary import scores
    from cnn_jax.workdir import load_run

    run = load_run(args.workdir, args.checkpoint, data_dir=args.data_dir)
    evaluator = Evaluator(run.parts.task, run.parts.info.preprocessing, run.parts.mesh)
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


def test(args: argparse.Namespace, rest: list[str]) -> int:
    """`test [--full] [PYTEST ARGS]`; the exit code is pytest's."""
    marks = [] if args.full else ["-m", "not full"]
    return subprocess.run([sys.executable, "-m", "pytest", *marks, *rest], cwd=ROOT).returncode


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
