"""What an experiment leaves behind in the repository: experiments/results/NAME.json, and the page made of them all.

A summary holds the verdict and everything it rests on: every run's scores by group and seed, with the checksum of its
parameters. It is sealed (`records.seal`), and what of it can be worked out again is: the effect and the intervals from
the differences by seed, the verdict from the decisions.
"""

import dataclasses
import json
import statistics
import subprocess
from pathlib import Path
from typing import Any

from cnn_jax.records import check_seal, provenance, seal, write_json
from experiments.lab.plan import Plan
from experiments.lab.question import ROOT, Question, read_docstring
from experiments.verdicts import Verdict, compare, verdict_of

RESULTS = ROOT / "experiments" / "results"
PAGE = ROOT / "experiments" / "README.md"
VERDICTS = ("supported", "refuted", "inconclusive")


def make_summary(plan: Plan, verdict: Verdict, failed: dict[str, str], minutes: float) -> dict[str, Any]:
    """The summary as JSON. failed: what went wrong, by run ("group, seed 0"). minutes: of the clock, all starts together."""
    question, records = plan.question, plan.records
    groups: dict[str, dict[str, Any]] = {}
    for run in question.runs:
        group = groups.setdefault(
            run.group, {"params": plan.costs[run.key].params, "macs": plan.costs[run.key].macs, "runs": {}}
        )
        if run.key in records:
            group["runs"][str(run.seed)] = _told(records[run.key])
    first = next(iter(records.values()))
    now = provenance()
    commits = sorted({record["git"]["commit"] for record in records.values() if record["git"]})
    return seal({
        "name": question.name,
        "file": question.shown_path,
        "title": question.title,
        **{name.lower().replace(" ", "_"): text for name, text in question.parts.items()},
        **dataclasses.asdict(verdict),
        "groups": groups,
        "failed": {label: why.replace(f"{ROOT}/", "") for label, why in failed.items()},
        **({"search": question.found} if question.found else {}),
        "num_runs": len(plan.runs),
        "config_sha256": question.config_sha256,
        "git": now["git"],  # of the judgement
        "git_of_runs": {"commits": commits, "dirty": any(not r["git"] or r["git"]["dirty"] for r in records.values())},
        "expected_before": _expected_before(question, commits),
        "versions": first["versions"],
        "device": first["device"],
        "workers": {"count": plan.num_workers, "threads": plan.threads},
        "minutes": round(minutes, 2),
    })  # fmt: skip


def _told(record: dict[str, Any]) -> dict[str, Any]:
    """Of a run what a summary keeps."""
    workdir = Path(record["workdir"])
    shown = workdir.relative_to(ROOT) if workdir.is_relative_to(ROOT) else workdir
    told = {"workdir": str(shown), "status": record["status"], "steps": record["step"]}
    if record["status"] == "finished":
        scores = {name: value for name, value in record["metrics"].items() if isinstance(value, int | float)}
        told |= {"test": scores, "best_validation": record["best"], "params_sha256": record["params_sha256"]}
    return told


def _expected_before(question: Question, commits: list[str]) -> bool:
    """Whether the docstring stood, word for word, in every commit that a run was made from: claim, margin and all."""
    if not commits or not question.path.is_relative_to(ROOT):
        return False
    for commit in commits:
        try:
            text = _git("show", f"{commit}:{question.shown_path}")
            then = read_docstring(question.path, _docstring(text))
        except (OSError, subprocess.SubprocessError, ValueError, SyntaxError):
            return False
        if then != (question.title, question.parts):
            return False
    return True


def _docstring(text: str) -> str | None:
    import ast

    return ast.get_docstring(ast.parse(text))


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout


def write_summary(summary: dict[str, Any]) -> Path:
    """Into experiments/results. Raises ValueError where another experiment's file of that name has one there."""
    path = RESULTS / f"{summary['name']}.json"
    if path.exists():
        before = json.loads(path.read_text())
        if before["file"] != summary["file"]:
            raise ValueError(f"{path} is of {before['file']}: two experiments of one name; rename one")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, summary)
    return path


def read_summaries() -> list[dict[str, Any]]:
    """All summaries by name, each checked: its seal, its commits, its numbers. Raises ValueError with one line."""
    summaries = []
    for path in sorted(RESULTS.glob("*.json")):
        try:
            summary = json.loads(path.read_text())
        except ValueError as error:
            raise ValueError(f"{path} is damaged ({error}); judge the experiment again") from None
        check_summary(path, summary)
        summaries.append(summary)
    return summaries


def check_summary(path: Path, summary: dict[str, Any]) -> None:
    """Raises ValueError for a summary changed by hand, of a commit that is not there, or that contradicts itself."""
    check_seal(path, summary)
    if summary["verdict"] not in VERDICTS or path.stem != summary["name"]:
        raise ValueError(f"{path}: verdict {summary['verdict']!r} of {summary['name']!r} is none; judge it again")
    if summary["git"] is None:
        raise ValueError(f"{path} was judged outside a clone, so that nobody can tell by what code; judge it in one")
    for commit in {summary["git"]["commit"], *summary["git_of_runs"]["commits"]}:
        if not _has_commit(commit):
            raise ValueError(f"{path}: its commit {commit[:12]} is not in this repository; do the experiment again")
    for told in summary["comparisons"]:
        differences = {int(seed): value for seed, value in told["differences"].items()}
        thresholds = {name: told[name] for name in ("supported_above", "refuted_below")}
        again = compare(differences, name=told["name"], metric=told["metric"], **thresholds)
        if (again.effect, list(again.interval), again.n) != (told["effect"], told["interval"], told["n"]):
            raise ValueError(f"{path}: {told['name']} does not follow from its differences by seed; judge it again")
    decisions = [told["decision"] for told in summary["comparisons"]]
    if verdict_of(decisions, [check["holds"] for check in summary["checks"]]) != summary["verdict"]:
        raise ValueError(f"{path}: its verdict does not follow from its comparisons; judge it again")


def _has_commit(commit: str) -> bool:
    """Whether the repository has it; True where it cannot tell: outside a clone, and in one cut short."""
    try:
        if _git("rev-parse", "--is-shallow-repository").strip() == "true":
            return True
    except (OSError, subprocess.SubprocessError):
        return True
    try:
        return bool(_git("cat-file", "-t", commit))
    except (OSError, subprocess.SubprocessError):
        return False


def render_page(summaries: list[dict[str, Any]]) -> str:
    """experiments/README.md."""
    lines = [
        "# Experiments",
        "",
        "Questions asked with several runs, and their answers. Each file states its claim, source, expectation, margin",
        "and what would refute it; `./launch.sh experiment FILE` runs, resumes and judges it. This page is made from the",
        "records by `./launch.sh experiment --write_docs`, and held to them by a test. Effects are of the first",
        "comparison, with 95% intervals over paired seeds.",
        "",
        "| question | claim | verdict | effect | n | minutes | record |",
        "|---|---|---|---|---|---|---|",
    ]
    for summary in summaries:
        effect = "none: its runs allow no comparison"
        if summary["comparisons"]:
            (low, high), first = summary["interval"], summary["comparisons"][0]
            effect = f"{first['name']}, {first['metric']}: {summary['effect']:.3g} [{low:.3g}, {high:.3g}]"
        cells = [
            f"[{summary['title']}]({_link(summary['file'])})",
            summary["claim"],
            f"**{summary['verdict']}**",
            effect,
            str(summary["n"]),
            f"{summary['minutes']:.1f}",
            f"[{summary['record_sha256'][:8]}](results/{summary['name']}.json)",
        ]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join([*lines, ""])


def _link(file: str) -> str:
    return str(Path(file).relative_to("experiments")) if Path(file).is_relative_to("experiments") else f"../{file}"


def write_page() -> Path:
    """Makes the page anew, from all summaries."""
    PAGE.write_text(render_page(read_summaries()))
    return PAGE


def render(summary: dict[str, Any]) -> str:
    """The answer in a few lines."""
    lines = [f"\n{summary['title']}", f"claim: {summary['claim']}", f"{summary['verdict'].upper()}"]
    for kind in ("comparisons", "secondary"):
        for told in summary[kind]:
            (low, high), detectable = told["interval"], told["detectable_effect"]
            lines.append(
                f"  {told['name']}, {told['metric']}: {told['effect']:.4g}, 95% interval {low:.4g} to {high:.4g}, "
                f"n={told['n']}, {told['decision']}{' (beside it)' if kind == 'secondary' else ''}; "
                f"detectable {detectable:.3g}" + (f", needed n {told['needed_n']}" if told["needed_n"] else "")
            )
    lines += [
        f"  {check['name']}: {'holds' if check['holds'] else 'does not hold'}, {check['told']}"
        for check in summary["checks"]
    ]
    lines += [f"  note: {note}" for note in summary["notes"]]
    for group, told in summary["groups"].items():
        scores = [run["test"].get("accuracy") for run in told["runs"].values() if "test" in run]
        scores = [score for score in scores if score is not None]
        if scores:
            spread = f" +- {statistics.stdev(scores):.2%}" if len(scores) > 1 else ""
            lines.append(f"  {group}: test accuracy {statistics.mean(scores):.2%}{spread} over {len(scores)} seeds")
    return "\n".join(lines)
