"""An experiment's file, read: what it asks, and which runs that takes. See experiments/run.py for the contract."""

import ast
import functools
import hashlib
import importlib.util
import inspect
import json
import re
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from cnn_jax.population import MEMBER_FIELDS
from cnn_jax.recipe import OVERRIDE_OF_MODEL, UsageError, load_config
from cnn_jax.resolve import first_line, nearest
from cnn_jax.workdir import flat
from experiments.lab.search import Search, read_search, work

ROOT = Path(__file__).resolve().parent.parent.parent
PARTS = ("Claim", "Source", "Expectation", "Margin", "Refuted if", "Cost")
# What may differ without the run being another: where its data lie, how they are read, and what it tells.
IS_NOT_THE_RUN = re.compile(r"log\..*|data\.dir|data\.of\.dir|input\..*")
FIELDS_OF_RUN = ("arg", "overrides", "seed", "group", "config")


@dataclass(frozen=True)
class PlannedRun:
    """One run that a question asks for. Several may have one key: they are one run, done once."""

    group: str
    seed: int
    config: ConfigDict

    @functools.cached_property
    def fields(self) -> dict[str, Any]:
        """The config's, by dotted name."""
        return flat(self.config)

    @functools.cached_property
    def key(self) -> str:
        """sha256 of all of the config that makes the run what it is."""
        return digest({name: value for name, value in self.fields.items() if not IS_NOT_THE_RUN.fullmatch(name)})

    @functools.cached_property
    def program(self) -> str:
        """sha256 of what runs must share to be members of one population: the config, less MEMBER_FIELDS."""
        shared = {name: value for name, value in self.fields.items() if name not in MEMBER_FIELDS}
        # 0 is another program, and so is the momentum where the rate hangs on it: see `population.expand`.
        is_zero = [self.fields[name] == 0 for name in ("optim.weight_decay", "optim.momentum")]
        fixed = self.fields["optim.momentum"] if self.fields.get("optim.use_decoupled") else None
        return digest([shared, is_zero, fixed])

    @property
    def label(self) -> str:
        return f"{self.group}, seed {self.seed}"


@dataclass(frozen=True)
class Question:
    """What an experiment's file says. `parts`: the docstring's, by the names of PARTS; `title`: its first sentence."""

    path: Path
    arg: str | None
    title: str
    parts: dict[str, str]
    runs: tuple[PlannedRun, ...]
    judge: Callable[[dict[str, dict[int, dict[str, Any]]]], Any]
    data_dir: str | None
    recipe: str | None = None  # the file's CONFIG
    search: Search | None = None
    found: dict[str, Any] | None = None  # what came of the search; None while it has not ended

    @property
    def name(self) -> str:
        """Names its records: runs/NAME, experiments/results/NAME.json."""
        return self.path.stem + (f"-{self.arg}" if self.arg else "")

    @property
    def shown_path(self) -> str:
        """Relative to the clone where it lies there."""
        return str(self.path.relative_to(ROOT) if self.path.is_relative_to(ROOT) else self.path)

    @property
    def command(self) -> str:
        arg = f":{self.arg}" if self.arg else ""
        options = f" --data_dir={shlex.quote(self.data_dir)}" if self.data_dir else ""
        return f"./launch.sh experiment {shlex.quote(self.shown_path + arg)}{options}"

    @property
    def config_sha256(self) -> str:
        """Of all the configs, with their groups and seeds."""
        return digest([[run.group, run.seed, run.key] for run in self.runs])


def digest(value: Any) -> str:
    """sha256 of a value as JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def load(file: str, data_dir: str | None = None, found: dict[str, Any] | None = None) -> Question:
    """The question of FILE[:ARG]. data_dir: where the data lie, for every run whose data set asks for that. found: what
    came of its search, of `search.find`; without, its runs are those of the middle of the space.

    Raises FileNotFoundError, ValueError with one line that names what the file lacks.
    """
    name, _, arg = file.partition(":")
    path = _find(name)
    module = _execute(path)
    for needed in ("runs", "judge"):
        if not callable(getattr(module, needed, None)):
            raise ValueError(f"{path} is no experiment: it has no {needed}(); see experiments/run.py")
    title, parts = read_docstring(path, module.__doc__)
    search = read_search(path, module)
    takes = inspect.signature(module.runs).parameters
    takes_arg = bool(takes.keys() - {"found"})
    if ("found" in takes) != (search is not None):
        raise ValueError(f"{path}: runs(found) and search(trial) go together")
    if arg and not takes_arg:
        raise UsageError(f"{path}: runs() takes no argument; leave out :{arg}")
    if arg and not re.fullmatch(r"[\w.=,-]+", arg):
        raise UsageError(f"{path}:{arg}: an argument is of letters, digits and . = , -")
    try:
        winner = {"found": found["overrides"] if found else search.middle()} if search else {}
        listed = list(module.runs(arg or None, **winner) if takes_arg else module.runs(**winner))
    except Exception as error:
        raise ValueError(f"{path}: runs() raises {type(error).__name__}: {first_line(error)}") from error
    if not listed:
        raise ValueError(f"{path}: runs() yields no run")
    recipe = getattr(module, "CONFIG", None)
    runs = tuple(planned(path, number, run, recipe, data_dir) for number, run in enumerate(listed))
    seen: dict[tuple[str, int], int] = {}
    for number, run in enumerate(runs):
        if (run.group, run.seed) in seen:
            before = seen[run.group, run.seed]
            raise ValueError(f"{path}: runs {before} and {number} are both of group {run.group!r}, seed {run.seed}")
        seen[run.group, run.seed] = number
        if search and run.seed == search.settings["seed"]:
            raise ValueError(
                f"{path}, run {number}: seed {run.seed} is the search's; the winner is judged on fresh seeds"
            )
    return Question(path, arg or None, title, parts, runs, module.judge, data_dir, recipe, search, found)


def search_on(folder: Path, *, file: str, data_dir: str | None, worker: int, cut_off: list[int]) -> None:
    """A worker of the search of the experiment `file`, in this process, until no trial is left."""
    from cnn_jax.train import run

    question = load(file, data_dir)
    recipe, seed = question.recipe, question.search.settings["seed"]

    def make_config(overrides: dict[str, Any]) -> ConfigDict:
        trial = {"group": "search", "seed": seed, "overrides": overrides}
        return planned(question.path, 0, trial, recipe, data_dir).config

    work(folder, question.search, make_config, worker, cut_off, run)


def _find(name: str) -> Path:
    given = Path(name)
    names = (given, given.with_suffix(".py")) if given.name else ()
    found = [p for n in names for p in (n, ROOT / n, ROOT / "experiments" / n) if p.is_file()]
    if not found:
        known = [
            f"experiments/{p.name}"
            for p in sorted((ROOT / "experiments").glob("*.py"))
            if {"runs", "judge"} <= _functions_of(p)
        ]
        there = f"; there are: {', '.join(known)}" if known else ""
        raise FileNotFoundError(f"no experiment {name}{nearest(name, known)}{there}")
    return found[0].resolve()


def _functions_of(path: Path) -> set[str]:
    """The names of a file's own functions; none of it is run. None of a file that is no Python."""
    try:
        body = ast.parse(path.read_bytes()).body
    except (SyntaxError, ValueError):
        return set()
    return {node.name for node in body if isinstance(node, ast.FunctionDef)}


def _execute(path: Path) -> Any:
    sys.path.insert(0, str(ROOT))
    spec = importlib.util.spec_from_file_location(f"experiments.{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} is not Python; an experiment is a .py file with runs() and judge(results)")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise ValueError(f"{path}, line {error.lineno}: {error.msg}") from error
    except (Exception, SystemExit) as error:
        raise ValueError(f"{path} does not load: {type(error).__name__}: {first_line(error)}") from error
    return module


def read_docstring(path: Path, text: str | None) -> tuple[str, dict[str, str]]:
    """The first paragraph, and the parts "Name: text" by name, each to the next one or an empty line.

    Raises ValueError naming the parts that are missing.
    """
    text = inspect.cleandoc(text or "")
    title = " ".join(text.partition("\n\n")[0].split())
    parts, current = {}, None
    for line in text.splitlines():
        begins = re.match(rf"({'|'.join(PARTS)})\s*:\s*(.*)", line)
        if begins:
            current = begins[1]
            parts[current] = begins[2]
        elif current and line.strip():
            parts[current] += f" {line.strip()}"
        else:
            current = None
    missing = [name for name in PARTS if not parts.get(name)]
    if not title or missing:
        what = ", ".join(missing) or "a first line that asks the question"
        raise ValueError(f"{path}: its docstring lacks {what} (lines like 'Claim: ...'); see experiments/run.py")
    return title, {name: parts[name].strip() for name in PARTS}


def planned(path: Path, number: int, run: Any, default_config: str | None, data_dir: str | None) -> PlannedRun:
    """What a dict of `runs` stands for; number: its place, for an error's sake. Raises ValueError that names it."""
    where = f"{path}, run {number}"
    if not isinstance(run, dict):
        raise ValueError(f"{where} is a {type(run).__name__}; runs() yields dict(group=..., seed=...)")
    unknown = [key for key in run if key not in FIELDS_OF_RUN]
    if unknown:
        raise ValueError(
            f"{where}: unknown {unknown[0]!r}{nearest(str(unknown[0]), FIELDS_OF_RUN)}; it takes {', '.join(FIELDS_OF_RUN)}"
        )
    group, seed = run.get("group"), run.get("seed")
    if not isinstance(group, str) or not group or type(seed) is not int:
        raise ValueError(f"{where}: group={group!r}, seed={seed!r} must be a name and an integer")
    where += f" (group {group}, seed {seed})"
    recipe = run.get("config", default_config)
    if not recipe:
        raise ValueError(f"{where}: no recipe; set CONFIG = 'configs/x.py' or config= of the run")
    if not isinstance(recipe, str):
        raise ValueError(f"{where}: the recipe is {recipe!r}; it must be text, such as 'configs/x.py'")
    arg, overrides = run.get("arg"), run.get("overrides", {})
    if not isinstance(overrides, dict) or not all(isinstance(name, str) for name in overrides):
        raise ValueError(f"{where}: overrides={overrides!r} must be a dict by field, such as {{'optim.lr': 0.1}}")
    if overrides.keys() & {"seed", "config.seed"}:
        raise ValueError(f"{where}: overrides must not set the seed; seed= of the run does")
    try:
        config = load_config(f"{recipe}:{arg}" if arg else recipe, [])
        # What a run tells besides its record takes a second to import, which is long for a run of three.
        config.log.use_tensorboard = False
        set_fields(config, {**overrides, "seed": seed})
        for data in (config.data, config.data.get("of", {})):
            if data_dir is not None and "dir" in data:
                data.dir = str(Path(data_dir).absolute())
    except (ValueError, OSError, UsageError) as error:
        raise ValueError(f"{where}: {first_line(error)}") from error
    return PlannedRun(group, seed, config.lock())


def set_fields(config: ConfigDict, overrides: dict[str, Any]) -> None:
    """Sets fields by dotted name, to values of the type that they had; `data` may be given as a whole, as a dict.

    Raises ValueError for an unknown field or a value of another type.
    """
    for key, value in overrides.items():
        key = key.removeprefix("config.")
        if key.startswith(OVERRIDE_OF_MODEL):
            with config.model.overrides.unlocked():
                config.model.overrides[key.removeprefix(OVERRIDE_OF_MODEL)] = value
            continue
        if key == "data" and isinstance(value, dict | ConfigDict):
            with config.unlocked():
                config.data = ConfigDict(value)
            continue
        known = flat(config)
        if key not in known:
            raise ValueError(f"the config has no field {key}{nearest(key, known)}")
        *sections, last = key.split(".")
        section = config
        for name in sections:
            section = section[name]
        section[last] = _as_type(key, value, section[last])


def _as_type(key: str, value: Any, before: Any) -> Any:
    kind = type(before)
    if type(value) is kind or before is None:
        return value
    if kind is float and type(value) is int:
        return float(value)
    if kind is tuple and isinstance(value, list):
        return tuple(value)
    raise ValueError(f"{key}={value!r} must be of type {kind.__name__}, as its value so far, {before!r}")
