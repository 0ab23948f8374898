"""What is on the disk is whole after a kill, a full disk and a resume; what is shown fits where it is shown."""

import contextlib
import errno
import io
import itertools
import json
import math
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cnn_jax import records
from cnn_jax.records import MetricsLog, Progress, Window, kept_lines, provenance, read_run, write_json

ROOT = Path(records.__file__).parent.parent

# ---------------------------------------------------------------------------------------------------- run.json

TEXT = st.text(alphabet='ab [],{}"\\\n\t:0é\u2028', max_size=12)
LEAF = (
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False) | TEXT
)
JSON = st.recursive(LEAF, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4))


@settings(deadline=None, derandomize=True, max_examples=100)
@given(record=st.dictionaries(TEXT, JSON, max_size=5), key=TEXT, value=LEAF)
def test_a_seal_tells_of_any_change(tmp_path_factory, record, key, value):
    path = tmp_path_factory.mktemp("record") / "run.json"
    sealed = records.seal(record)
    assert records.seal(sealed) == sealed
    write_json(path, sealed)
    records.check_seal(path, json.loads(path.read_text()))
    if key not in record or json.dumps(record[key]) != json.dumps(value):
        with pytest.raises(ValueError, match="was changed after it was written"):
            records.check_seal(path, sealed | {key: value})
    with pytest.raises(ValueError, match="has no record_sha256"):
        records.check_seal(path, {name: item for name, item in sealed.items() if name != "record_sha256"})


@settings(deadline=None, derandomize=True, max_examples=100)
@given(record=st.dictionaries(TEXT, JSON, max_size=5))
def test_write_json_loses_nothing(tmp_path_factory, record):
    path = tmp_path_factory.getbasetemp() / "run.json"
    write_json(path, record)
    assert json.loads(path.read_text()) == record


def test_write_json_puts_a_row_of_numbers_on_a_line(tmp_path):
    path = tmp_path / "run.json"
    write_json(path, {"confusion": [list(range(10))] * 10, "note": "two  spaces [ kept  so ]"})
    assert json.loads(path.read_text())["note"] == "two  spaces [ kept  so ]"
    rows = [line for line in path.read_text().splitlines() if "0, 1, 2, 3, 4, 5, 6, 7, 8, 9" in line]
    assert len(rows) == 10


def unserialisable(path):
    write_json(path, {"status": "finished", "model": object()})


def not_a_number(path):
    write_json(path, {"status": "finished", "loss": math.nan})


@pytest.mark.parametrize(("write", "error"), [(unserialisable, TypeError), (not_a_number, ValueError)])
def test_a_record_that_cannot_be_written_leaves_the_old_one(tmp_path, write, error):
    path = tmp_path / "run.json"
    write_json(path, {"status": "running"})
    with pytest.raises(error):
        write(path)
    assert json.loads((tmp_path / "run.json").read_text()) == {"status": "running"}
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


@pytest.mark.parametrize("size", [0, 1, 5000])
def test_a_full_disk_leaves_the_old_record(tmp_path, size):
    write_json(tmp_path / "run.json", {"status": "running"})
    with limited_file_size(size), pytest.raises(OSError):
        write_json(tmp_path / "run.json", {"status": "finished", "text": "x" * 100_000})
    assert json.loads((tmp_path / "run.json").read_text()) == {"status": "running"}
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_a_kill_leaves_the_old_record(tmp_path):
    """Killed when all is written but not yet moved; the next write passes over what was left."""
    code = """if True:
        import os, pathlib, signal, sys
        from cnn_jax import records
        path = pathlib.Path(sys.argv[1]) / "run.json"
        records.write_json(path, {"status": "running"})
        records.os.fsync = lambda fd: os.kill(os.getpid(), signal.SIGKILL)
        records.write_json(path, {"status": "finished"})"""
    done = subprocess.run([sys.executable, "-c", code, tmp_path], cwd=ROOT, timeout=120)
    assert done.returncode == -9
    assert json.loads((tmp_path / "run.json").read_text()) == {"status": "running"}
    write_json(tmp_path / "run.json", {"status": "interrupted"})
    assert json.loads((tmp_path / "run.json").read_text()) == {"status": "interrupted"}


def test_read_run_says_what_is_amiss_with_a_workdir(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"/none is no directory; name the workdir of a run$"):
        read_run(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=rf"^{tmp_path} holds no run\.json; name the workdir of a run$"):
        read_run(tmp_path)
    (tmp_path / "file").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"/file is no directory"):
        read_run(tmp_path / "file")


@pytest.mark.parametrize("record", [b"{}", b'{"status": "running", "config": {}}'])
def test_read_run_names_what_a_record_lacks(tmp_path, record):
    (tmp_path / "run.json").write_bytes(record)
    with pytest.raises(ValueError, match=r"run\.json lacks .*num_steps, dataset; restore it"):
        read_run(tmp_path)


@pytest.mark.parametrize("damage", [b"null", b"", b'{"status": "runn', b'{"status": "run\xff\xfe"}', b"\x00" * 40])
def test_read_run_refuses_a_damaged_record(tmp_path, damage):
    (tmp_path / "run.json").write_bytes(damage)
    with pytest.raises(ValueError, match=r"^[^\n]*/run\.json is damaged \(.*\); restore it, [^\n]*--workdir$"):
        read_run(tmp_path)


RECORD = {"config": {}, "status": "finished", "step": 5, "num_steps": 5, "dataset": {}}


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("step", "5", "step is a str, not a int"),
        ("step", True, "step is a bool"),
        ("status", None, "status is a NoneType"),
        ("config", [], "config is a list"),
        ("metrics", 0.5, "metrics is a float, not a dict"),
        ("classes", {}, "classes is a dict"),
        ("classes", ["a", 1], "classes are not all names"),
    ],
)
def test_read_run_refuses_a_part_of_another_type(tmp_path, name, value, says):
    write_json(tmp_path / "run.json", RECORD)
    assert read_run(tmp_path) == RECORD
    write_json(tmp_path / "run.json", RECORD | {name: value})
    with pytest.raises(ValueError, match=rf"run\.json is damaged \({says}.*restore it"):
        read_run(tmp_path)


def test_read_run_refuses_a_directory(tmp_path):
    (tmp_path / "run.json").mkdir()
    with pytest.raises(ValueError, match=r"run\.json is no file; restore it"):
        read_run(tmp_path)


def test_a_broken_seal_is_warned_of_and_none_is_not():
    sealed = records.seal(RECORD)
    assert records.seal_warnings(RECORD) == records.seal_warnings(sealed) == ()
    assert records.seal_warnings(sealed | {"step": 4}) == (records.CHANGED,)


# -------------------------------------------------------------------------------------------------- provenance


@pytest.fixture
def git(tmp_path, monkeypatch):
    """`git(...)` in a folder that stands for a clone, with records.py thought to lie in its cnn_jax/."""
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    (tmp_path / "cnn_jax").mkdir()
    (tmp_path / "cnn_jax" / "records.py").write_text("")
    monkeypatch.setattr(records, "__file__", str(tmp_path / "cnn_jax" / "records.py"))

    def git(*arguments):
        who = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
        done = subprocess.run(["git", *who, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    return git


def test_provenance_names_the_commit_and_whether_it_was_changed(git, tmp_path):
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "one")
    commit = git("rev-parse", "HEAD")
    assert len(commit) == 40
    assert provenance()["git"] == {"commit": commit, "dirty": False}
    (tmp_path / "run.json").write_text("{}")
    assert provenance()["git"] == {"commit": commit, "dirty": False}, "a file that git does not track is no change"
    (tmp_path / "cnn_jax" / "records.py").write_text("changed")
    assert provenance()["git"] == {"commit": commit, "dirty": True}


def test_provenance_without_a_clone(git, monkeypatch):
    assert provenance()["git"] is None
    git("init", "-q")
    assert provenance()["git"] is None, "a clone without a commit"
    git("commit", "-q", "--allow-empty", "-m", "of another project, around an environment that holds cnn_jax")
    assert provenance()["git"] is None
    git("add", ".")
    git("commit", "-q", "-m", "ours")
    assert provenance()["git"] is not None
    monkeypatch.setenv("PATH", "")
    assert provenance()["git"] is None, "no git"


def test_provenance_tells_versions_and_devices():
    got = provenance()
    cpus = len(os.sched_getaffinity(0))
    assert got["device"] == {"platform": "cpu", "kind": "cpu", "count": 8, "processes": 1, "cpus": cpus}
    assert got["versions"]["jax"] == jax.__version__
    assert got["versions"]["numpy"] == np.__version__
    assert got["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert json.loads(json.dumps(got)) == got


# ----------------------------------------------------------------------------------------------- metrics.jsonl


@contextlib.contextmanager
def limited_file_size(size: int):
    """No file grows beyond so many bytes in here: a write is cut short there, and the next refused, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def record_of(step: int, split: str = "train") -> dict:
    timing = {"examples_per_s": 1000.0 / (step + 1), "wall_time_s": 1.75e9 + step}
    return {"step": step, "split": split, "loss": 1 / (step + 3), "accuracy": step / 7, "timing": timing}


def lines_in(workdir: Path) -> list[dict]:
    text = (workdir / "metrics.jsonl").read_text()
    assert text == "" or text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def write_log(workdir: Path, steps, keep_lines: int = 0, use_tensorboard: bool = False) -> None:
    log = MetricsLog(workdir, kept_lines(workdir, keep_lines), use_tensorboard)
    for step in steps:
        log.write(record_of(step))
    log.sync()
    assert log.num_lines == keep_lines + len(steps)
    log.close()


def test_lines_are_the_records(tmp_path):
    write_log(tmp_path, range(4))
    assert lines_in(tmp_path) == [record_of(step) for step in range(4)]


@pytest.mark.parametrize("tail", [b"", b'{"step": 99, "spl', b"\x00" * 30, b"\xff\xfe\n\xff", b"{"])
@pytest.mark.parametrize("keep_lines", [0, 1, 3, 4])
def test_a_resumed_log_goes_on_from_the_lines_kept(tmp_path, keep_lines, tail):
    write_log(tmp_path, range(4))
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(tail)
    write_log(tmp_path, [50, 51], keep_lines)
    assert lines_in(tmp_path) == [record_of(step) for step in [*range(keep_lines), 50, 51]]


@pytest.mark.parametrize("tail", ["", '{"step": 4, "split": "train", "lo'])
def test_a_log_shorter_than_its_checkpoint_knows_is_refused_and_left_alone(tmp_path, tail):
    write_log(tmp_path, range(4))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(tail)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    message = r"/metrics\.jsonl has 4 lines where its checkpoint knows 5; restore it$"
    with pytest.raises(ValueError, match=message):
        MetricsLog(tmp_path, kept_lines(tmp_path, 5), use_tensorboard=False)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_a_log_that_is_gone_is_refused(tmp_path):
    with pytest.raises(ValueError, match="has 0 lines where its checkpoint knows 2"):
        MetricsLog(tmp_path, kept_lines(tmp_path, 2), use_tensorboard=False)


@pytest.mark.parametrize("bad", [{"loss": math.nan}, {"loss": math.inf}])
def test_a_record_that_is_no_json_leaves_no_trace(tmp_path, bad):
    log = MetricsLog(tmp_path, kept_lines(tmp_path, 0), use_tensorboard=False)
    log.write(record_of(0))
    with pytest.raises(ValueError):
        log.write(record_of(1) | bad)
    log.write(record_of(2))
    assert log.num_lines == 2
    log.close()
    assert lines_in(tmp_path) == [record_of(0), record_of(2)]


def test_a_full_disk_leaves_whole_lines_and_the_log_goes_on_when_there_is_room(tmp_path):
    line = len(json.dumps(record_of(0))) + 1
    for size in (0, 1, line - 1, line, line + 1, 2 * line + line // 2):
        workdir = tmp_path / str(size)
        workdir.mkdir()
        log, written = MetricsLog(workdir, kept_lines(workdir, 0), use_tensorboard=False), []
        with limited_file_size(size), pytest.raises(OSError) as caught:
            for step in range(10):
                log.write(record_of(step))
                written.append(record_of(step))
        assert caught.value.errno == errno.EFBIG
        assert lines_in(workdir) == written
        assert log.num_lines == len(written) <= size / line
        log.write(record_of(77))
        log.close()
        assert lines_in(workdir) == [*written, record_of(77)]


def test_a_disk_that_takes_a_few_bytes_at_a_time_gets_the_line_whole(tmp_path):
    log = MetricsLog(tmp_path, kept_lines(tmp_path, 0), use_tensorboard=False)
    file = log._file
    log._file = SimpleNamespace(fileno=file.fileno, close=file.close, write=lambda data: file.write(data[:7]))
    for step in range(3):
        log.write(record_of(step))
    log.close()
    assert lines_in(tmp_path) == [record_of(step) for step in range(3)]


# ------------------------------------------------------------------------------------------------- TensorBoard


def events_in(workdir: Path) -> dict[tuple[str, int], float]:
    """Every scalar of every event file, read back by TensorBoard's own loader."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
    from tensorboard.util import tensor_util

    found = {}
    for path in sorted((workdir / "tensorboard").iterdir()):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                key = (value.tag, event.step)
                assert key not in found, f"{key} was written twice"
                found[key] = tensor_util.make_ndarray(value.tensor).item()
    return found


def events_of(lines: list[dict]) -> dict[tuple[str, int], float]:
    return {
        (f"{line['split']}/{name}", line["step"]): float(np.float32(value))
        for line in lines
        for name, value in (line | line["timing"]).items()
        if isinstance(value, float)
    }


def test_events_equal_the_lines_also_after_a_resume(tmp_path):
    log = MetricsLog(tmp_path, kept_lines(tmp_path, 0))
    for step in range(5):
        log.write(record_of(step))
    log.write(record_of(4, "validation") | {"count": 450})
    log.sync()
    assert events_in(tmp_path) == events_of(lines_in(tmp_path))  # after sync, before close: a kill may come any time
    log.write(record_of(5))
    log.close()

    log = MetricsLog(tmp_path, kept_lines(tmp_path, 3))
    log.write(record_of(3, "validation"))
    log.write(record_of(9) | {"loss": 0.125})
    log.close()
    events = events_in(tmp_path)
    assert events == events_of(lines_in(tmp_path))
    assert sorted({step for _, step in events}) == [0, 1, 2, 3, 9]
    assert events["train/loss", 9] == 0.125
    assert events["validation/accuracy", 3] == float(np.float32(3 / 7))


def test_sync_waits_for_the_events(tmp_path, monkeypatch):
    from tensorboard.summary.writer.record_writer import RecordWriter

    write = RecordWriter.write
    monkeypatch.setattr(RecordWriter, "write", lambda self, data: (time.sleep(0.02), write(self, data)))  # a slow disk
    log = MetricsLog(tmp_path, kept_lines(tmp_path, 0))
    for step in range(3):
        log.write(record_of(step))
    log.sync()
    found = events_in(tmp_path)
    log.close()
    assert found == events_of(lines_in(tmp_path))


def test_tensorboard_itself_reads_the_run(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    write_log(tmp_path, range(3), use_tensorboard=True)
    accumulator = EventAccumulator(str(tmp_path / "tensorboard"))
    accumulator.Reload()
    tags = accumulator.Tags()
    assert set(tags["tensors"] + tags["scalars"]) == {
        "train/loss", "train/accuracy", "train/examples_per_s", "train/wall_time_s",
    }  # fmt: skip
    assert [event.step for event in accumulator.Tensors("train/loss")] == [0, 1, 2]


def test_without_tensorboard_nothing_is_written_for_it(tmp_path):
    write_log(tmp_path, range(2), use_tensorboard=False)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


# ------------------------------------------------------------------------------------------------------ Window

STEPS = 12
VALUES = np.random.default_rng(0).lognormal(0, 6, (3, STEPS)).astype(np.float32)
NAMES = ("loss", "accuracy", "grad_norm")


def metrics_of(steps: slice | int, diverged: dict[int, tuple[str, ...]] | None = None) -> dict:
    """Metrics of one dispatch: arrays for a slice of steps, scalars for one step."""
    flags = {name: np.zeros(STEPS, bool) for name in ("conv", "dense", "loss")}
    for step, names in (diverged or {}).items():
        for name in names:
            flags[name][step] = True
    metrics = {name: jnp.asarray(values[steps]) for name, values in zip(NAMES, VALUES, strict=True)}
    return metrics | {"nonfinite": {name: jnp.asarray(flag[steps]) for name, flag in flags.items()}}


def sums_by_hand(num_steps: int) -> dict[str, float]:
    sums = dict.fromkeys(NAMES, 0.0)
    for step in range(num_steps):
        for name, values in zip(NAMES, VALUES, strict=True):
            sums[name] += float(values[step])
    return sums


def through_json(window: Window) -> Window:
    return Window(json.loads(json.dumps(window.to_json())))


@settings(deadline=None, derandomize=True, max_examples=40)
@given(
    cuts=st.sets(st.integers(1, STEPS - 1)),
    fetches=st.sets(st.integers(1, STEPS)),
    saves=st.sets(st.integers(1, STEPS)),
)
def test_sums_are_the_same_bits_for_any_dispatches_and_saves(cuts, fetches, saves):
    window = Window()
    edges = [0, *sorted(cuts), STEPS]
    for start, stop in itertools.pairwise(edges):
        window.add(metrics_of(slice(start, stop)))
        if stop in fetches | saves:
            assert window.fetch() is None
        if stop in saves:
            window = through_json(window)
    assert window.fetch() is None
    assert window.to_json() == {"count": STEPS, "sums": sums_by_hand(STEPS)}
    assert window.means() == {name: total / STEPS for name, total in sums_by_hand(STEPS).items()}


def test_scalar_dispatches_add_up_to_the_same_bits():
    window = Window()
    for step in range(STEPS):
        window.add(metrics_of(step))
    assert window.fetch() is None
    assert window.to_json() == {"count": STEPS, "sums": sums_by_hand(STEPS)}


def test_sums_are_float64():
    window = Window()
    ones = jnp.ones(1000, jnp.float32).at[0].set(2.0**24)  # in float32, each of the ones would be lost
    window.add({"loss": ones, "nonfinite": {"loss": jnp.zeros(1000, bool)}})
    window.fetch()
    assert window.means() == {"loss": (2**24 + 999) / 1000}


def test_means_start_a_new_window():
    window = Window()
    assert window.means() == {}
    window.add(metrics_of(slice(0, 3)))
    window.fetch()
    saved = window.to_json()
    window.means()
    assert window.means() == {}
    assert saved["count"] == 3, "what was saved does not change with the window"
    window.add(metrics_of(slice(0, 1)))
    window.fetch()
    assert window.means() == {name: float(values[0]) for name, values in zip(NAMES, VALUES, strict=True)}


@pytest.mark.parametrize("edges", [[0, 12], [0, 5, 12], [0, 4, 5, 8, 12], list(range(13))])
def test_fetch_stops_before_the_step_that_diverged(edges):
    # The state latches, so every later step is flagged as well, but the first is the one to tell of.
    diverged = {5: ("conv", "loss")} | dict.fromkeys(range(6, STEPS), ("conv", "dense", "loss"))
    window = Window()
    for start, stop in itertools.pairwise(edges):
        window.add(metrics_of(slice(start, stop), diverged))
    assert window.fetch() == {"conv": True, "dense": False, "loss": True}
    assert window.to_json() == {"count": 5, "sums": sums_by_hand(5)}


def test_fetch_tells_of_a_scalar_step_that_diverged():
    window = Window()
    window.add(metrics_of(0))
    window.add(metrics_of(1, {1: ("dense",)}))
    assert window.fetch() == {"conv": False, "dense": True, "loss": False}
    assert window.to_json() == {"count": 1, "sums": sums_by_hand(1)}


# ---------------------------------------------------------------------------------------------------- Progress


@pytest.fixture
def clock(monkeypatch):
    """The seconds that Progress sees."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(records, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    return clock


class Terminal(io.StringIO):
    """A screen: what stands on each line, knowing carriage return, newline and "erase to the end of the line"."""

    def isatty(self) -> bool:
        return True

    def screen(self) -> list[str]:
        lines, column = [""], 0
        text = self.getvalue().replace("\x1b[K", "\x00")
        for character in text:
            if character == "\r":
                column = 0
            elif character == "\n":
                lines.append("")
                column = 0
            elif character == "\x00":
                lines[-1] = lines[-1][:column]
            else:
                lines[-1] = lines[-1][:column] + character + lines[-1][column + 1 :]
                column += 1
        assert "\x1b" not in text
        return lines


def terminal(monkeypatch, columns: int) -> Terminal:
    """A terminal so wide, in place of standard output from now on."""
    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setenv("COLUMNS", str(columns))
    return sys.stdout


def test_rate_counts_from_the_first_dispatch(clock):
    progress = Progress(100, 10, 32)
    assert progress.rate(5) == 0.0
    clock.now += 60  # compiling
    progress.start(1)
    assert progress.rate(1) == 0.0
    clock.now += 4
    assert progress.rate(11) == 2.5


def test_elsewhere_plain_lines_at_most_one_in_five_seconds(capsys, clock):
    progress = Progress(100, 10, 32)
    progress.start(0)
    for step in range(1, 100):
        clock.now += 0.5
        progress.show(step, {"loss": 1 / step, "accuracy": 0.5})
    progress.say("step 99  validation accuracy 0.9")
    progress.show(100, {"loss": 0.25})
    progress.end()
    out = capsys.readouterr().out
    assert "\r" not in out
    assert "\x1b" not in out
    lines = out.splitlines()
    assert lines[0] == "step 1/100  epoch 0.1  loss 1.0000  accuracy 0.5000  64 examples/s  0:50 left"
    assert lines[1].startswith("step 11/100  epoch 1.1  loss 0.0909")
    assert len(lines) == 10 + 2, "one line each 5 s, what was said, and the last step"
    assert lines[-2] == "step 99  validation accuracy 0.9"
    assert lines[-1].startswith("step 100/100  epoch 10.0  loss 0.2500")


def test_no_rate_is_shown_before_there_is_one(capsys, clock):
    Progress(100, 10, 32).show(3, {"loss": 2.0})
    assert capsys.readouterr().out == "step 3/100  epoch 0.3  loss 2.0000\n"


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0.4, "0:00"), (59.6, "1:00"), (65, "1:05"), (3599, "59:59"), (3600, "1:00:00"), (90061, "25:01:01")],
)
def test_time_left(capsys, clock, seconds, told):
    progress = Progress(2, 1, 1000)
    progress.start(0)
    clock.now += seconds  # one of two steps done in as long
    progress.show(1, {})
    assert capsys.readouterr().out.rstrip("\n").endswith(f"examples/s  {told} left")


def test_on_a_terminal_one_live_line_and_what_was_said_above_it(monkeypatch, clock):
    shown = terminal(monkeypatch, columns=200)
    progress = Progress(100, 10, 32)
    progress.start(0)
    for step in range(1, 100):
        clock.now += 0.5
        progress.show(step, {"loss": 100.0 / step})
        assert len(shown.screen()) == 1, "each line takes the place of the one before"
        assert shown.screen()[0].startswith(f"step {step}/100  ")
        assert shown.screen()[0].endswith(" left"), "nothing of a longer line is left over"
    progress.say("validation")
    assert shown.screen() == ["validation", ""]
    progress.show(100, {"loss": 0.5})
    progress.end()
    first, live, empty = shown.screen()
    assert (first, empty) == ("validation", "")
    assert live.startswith("step 100/100  epoch 10.0  loss 0.5000  ")


@pytest.mark.parametrize("columns", [1, 10, 40, 80])
def test_the_live_line_is_no_wider_than_the_terminal(monkeypatch, clock, columns):
    def shown(columns: int) -> str:
        screen = terminal(monkeypatch, columns)
        progress = Progress(100_000, 10, 32)
        progress.start(0)
        clock.now += 5
        progress.show(99, {f"metric_{k}": 1.0 for k in range(10)})
        (line,) = screen.screen()
        return line

    whole = shown(1000)
    assert len(whole) > 80
    assert shown(columns) == whole[: columns - 1]  # some terminals wrap as soon as the last column is written
