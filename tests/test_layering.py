"""Imports run down only, and the heavy libraries stay where they belong. Read from the source, nothing imported."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# A folder's level is its modules' level. What is not named here fails the test: a new module is given its place.
LEVELS = {
    0: "layers data task fields schedules freeze averages muon plateau optim manifest leaves checkpoint sharding records "
    "resolve interruption processes naming backend phases tuning",
    1: "models",
    2: "classification sequence detection analysis",
    3: "step evaluate drivers build assemble workdir recipe predict transfer features linear_probe weights visualize",
    4: "recording plans train population report summary architectures architecture_plot architecture_docs",
    5: "main verbs interchange",
}
LEVEL_OF = {name: level for level, names in LEVELS.items() for name in names.split()}
HOME_OF = {  # who alone may import it
    "tensorflow": (),
    "torch": (),
    "orbax": ("checkpoint", "transfer"),
    "absl": ("main", "data"),  # Grain's worker processes ask for its flags
    "tensorflow_datasets": ("data",),
    "grain": ("data",),
    "sklearn": ("data", "linear_probe"),
    "tensorboard": ("records",),
    "matplotlib": ("architecture_plot",),
    "altair": ("report",),
    "vl_convert": ("report",),
    "jinja2": ("report",),
    "safetensors": ("weights",),
    "onnx": ("weights",),
}
STEP_MAY_IMPORT = {"jax", "flax", "optax"}
PACKAGE = sorted((ROOT / "cnn_jax").rglob("*.py"))


def imports_of(path: Path) -> set[str]:
    """Every module a file imports, inside functions too, by full dotted name; of `from a import b` both a and a.b."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def place_of(path: Path) -> str:
    """The part of the package that a file is, or lies in: `train`, `models`."""
    first = path.relative_to(ROOT / "cnn_jax").parts[0]
    return first.removesuffix(".py")


@pytest.mark.parametrize("path", PACKAGE, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_down(path):
    place = place_of(path)
    if place == "__init__":
        assert imports_of(path) == set()
        return
    assert place in LEVEL_OF, f"{path.name} has no level: give it one in LEVELS"
    inside = {name.split(".")[1] for name in imports_of(path) if name.startswith("cnn_jax.")}
    higher = {name for name in inside & LEVEL_OF.keys() if LEVEL_OF[name] > LEVEL_OF[place]}
    assert not higher, f"{path.name} (level {LEVEL_OF[place]}) imports {higher}, which stand above it"


@pytest.mark.parametrize("path", PACKAGE, ids=lambda path: str(path.relative_to(ROOT)))
def test_libraries_stay_at_home(path):
    for name in imports_of(path):
        library = name.split(".")[0]
        assert library not in HOME_OF or place_of(path) in HOME_OF[library], f"{path.name} imports {library}"


def test_nobody_imports_a_model_a_data_set_or_a_task_by_name():
    shared_data = {"source", "pipeline", "augment", "views", "resample", "decode", "encoded", "resident", "prepare"}
    for path in PACKAGE:
        for name in imports_of(path):
            parts = name.split(".")
            if parts[:2] == ["cnn_jax", "models"]:
                pytest.fail(f"{path.name} imports a model: {name}")
            if parts[:2] == ["cnn_jax", "data"] and len(parts) > 2:
                assert parts[2] in shared_data or place_of(path) == "data", f"{path.name} imports a data set: {name}"


def test_step_runs_on_a_bare_machine():
    own = {
        f"cnn_jax.{name}"
        for name in ("step", "optim", "schedules", "fields", "freeze", "averages", "muon", "plateau", "tuning")
    }
    for name in set().union(*(imports_of(ROOT / f"{module.replace('.', '/')}.py") for module in own)):
        first = name.split(".")[0]
        known = first in __import__("sys").stdlib_module_names or first in STEP_MAY_IMPORT | {"numpy"}
        assert known or ".".join(name.split(".")[:2]) in own, name


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")), ids=lambda path: path.name)
def test_configs_import_only_ml_collections_and_common(path):
    assert {name.split(".")[0] for name in imports_of(path)} <= {"ml_collections", "configs"}
    assert all(name.startswith("configs.common") for name in imports_of(path) if name.startswith("configs"))


def test_modules_of_one_level_have_no_cycles():
    graph = {}
    for path in PACKAGE:
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        graph[module] = {name for name in imports_of(path) if name.startswith("cnn_jax.")}
    graph = {module: {name for name in names if name in graph and name != module} for module, names in graph.items()}
    while leaves := {module for module, names in graph.items() if not names}:
        graph = {module: names - leaves for module, names in graph.items() if module not in leaves}
    assert not graph, f"a cycle among {sorted(graph)}"


@pytest.mark.parametrize("path", PACKAGE, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_module_has_a_test_file_of_its_own(path):
    if path.name != "__init__.py":
        relative = path.relative_to(ROOT / "cnn_jax")
        assert (ROOT / "tests" / relative.parent / f"test_{path.name}").exists()
