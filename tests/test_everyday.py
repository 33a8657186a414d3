"""Everyday use of the workflow on a tiny study of two runs, one of which fails at first."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT, Workflow, copy_of_workflow

DATA = {"data.sources": ["pictures"], "data.share": {"image": 1.0}}
STUDY = {
    "study": "tiny", "based_on": "smoke.yaml", "results": "results",
    "only": {"stages": ["stage1"], "ablations": ["baseline"]},
    "seeds": {"baseline": None, "A6": None, "B1": None}, "scaling": {"budgets": {"C1": None, "C2": None}},
    "sources": {"pictures": {"samples": 28, "broken": 0}, "pictures_held_out": {"samples": 4}},
    "baseline": {**DATA, "train.samples": 8, "train.evaluations": 1},
    "stages": {"stage1": {**DATA, "train.samples": 12, "operation.checkpoint_steps": 1}},
}  # fmt: skip
RATES = {"optim.lr": dict.fromkeys(("connector", "dino", "llm"), 1e20)}  # the loss becomes nan after a step
RUNS = [f"results/runs/{name}/run_summary.json" for name in ("stage1", "baseline")]
TINY = ("--configfile", "config/tiny.yaml")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Workflow:
    """The finished study. `failed` is the output of its first call, whose stage fails, and `resumed` of the second."""
    tiny = copy_of_workflow(tmp_path_factory.mktemp("tiny") / "checkout")
    stages = {"stage1": STUDY["stages"]["stage1"] | RATES}
    for name, content in (("tiny", STUDY), ("failing", STUDY | {"stages": stages})):
        (tiny.folder / f"config/{name}.yaml").write_text(yaml.safe_dump(content))
    tiny.failed = tiny.run(*RUNS, "--configfile", "config/failing.yaml", ok=False)
    tiny.status = tiny.fvlm("status", "--study", "config/failing.yaml").stdout
    tiny.resumed = tiny.run("--quiet", "all", *TINY, "--", *RUNS)
    return tiny


@pytest.mark.workflow
def test_a_failed_call_ends_with_the_failed_jobs_and_their_last_lines(tiny):
    block = re.search(r"\nFailed jobs \(1\), .*?\n(.*\n)*?The same command goes on.*\n", tiny.failed)[0]
    assert re.search(r"^  train stage1: fvlm train: run 'stage1': the loss is nan at step 2", block, re.MULTILINE)
    assert "    results/logs/train/stage1.log; newest checkpoint: step 1" in block and "baseline" not in block
    assert tiny.failed.index(block) > tiny.failed.index("Last lines of results/logs/train/stage1.log:")
    assert "Finished jobid" in tiny.failed and (tiny.folder / RUNS[1]).exists()
    (line,) = (line for line in tiny.status.splitlines() if line.startswith("stage1"))
    assert " failed " in line and "the loss is nan at step 2" in line


@pytest.mark.workflow
def test_a_log_holds_all_parts_of_a_training(tiny):
    lines = (tiny.folder / "results/logs/train/stage1.log").read_text().splitlines()
    heads = [line for line in lines if line.startswith("--- ")]
    assert all(re.match(r"--- \d{4}-\d\d-\d\d \d\d:\d\d:\d\d  training of stage1: ", head) for head in heads)
    assert [head.split(": ")[1] for head in heads] == [
        "it begins, there is no checkpoint", "its newest checkpoint is of step 1"
    ]  # fmt: skip
    assert heads[0] == lines[0]
    assert "the loss is nan at step 2" in lines[lines.index(heads[1]) - 1]


@pytest.mark.workflow
def test_quiet_all_prints_nothing_but_the_progress_of_trainings(tiny):
    lines = [line for line in tiny.resumed.splitlines() if not re.match(r"stage1|--- |results/runs/stage1/state", line)]
    assert [line for line in lines if not line.startswith("Using workflow specific profile")] == []


@pytest.mark.workflow
def test_the_rule_train_means_all_trainings(tiny):
    assert tiny.planned(*RUNS, *TINY) == {}
    assert tiny.planned(*TINY, "--until", "train", "--forcerun", "train")["train"] == 2
    left = tiny.planned(*TINY, "--omit-from", "train", "--forcerun", "train")
    assert left.keys() == {"plan_files", "ledger", "data_report", "corpus"}  # that of the benchmark


@pytest.mark.workflow
def test_the_graph_of_the_readme_is_that_of_the_workflow(tiny):
    drawn = re.search(r"```mermaid\nflowchart TB\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]
    shown = set(re.findall(r"^    (\w+) --> (\w+)$", drawn, re.MULTILINE))
    assert len(shown) == len(drawn.splitlines())
    output = tiny.run("--rulegraph", "mermaid-js")
    names = dict(re.findall(r"^\t(id\d+)\[(\w+)\]$", output, re.MULTILINE))
    edges = {(names[a], names[b]) for a, b in re.findall(r"^\t(id\d+) --> (id\d+)$", output, re.MULTILINE)}
    assert shown <= edges and {name for edge in shown for name in edge} == set(names.values())
    assert reachable(shown) == reachable(edges)


def reachable(edges: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """Return all pairs of different nodes with a path from the first to the second."""
    while further := {(a, d) for a, b in edges for c, d in edges if b == c} - edges:
        edges = edges | further
    return {(a, b) for a, b in edges if a != b}


def test_the_badge_of_the_readme_names_the_oldest_version():
    (oldest,) = re.findall(r'^min_version\("(.+)"\)$', (ROOT / "Snakefile").read_text(), re.MULTILINE)
    assert f"badge/snakemake-%E2%89%A5{oldest}-" in (ROOT / "README.md").read_text()


@pytest.mark.workflow
def test_a_study_is_deleted_as_the_guide_says(tiny):
    """The last test of this file, since it deletes the study."""
    results = tiny.folder / "results"
    (results / "README.md").touch()
    (results / "other/runs").mkdir(parents=True)
    (results / "other/runs/kept.csv").touch()
    tiny.run(*TINY, "--delete-all-output")
    places = {left.split("/")[0] for left in files_in(results)} - {"README.md", "other"}
    assert places == {"corpus", "index", "logs", "runs", "study.json", "made_from.jsonl"}
    assert {Path(left).parts[2] for left in files_in(results) if left.startswith("runs/")} == {"state"}
    guide = (ROOT / "docs/results-and-resume.md").read_text()
    commands = re.search(r"\*\*Delete a study\.\*\*.*?```bash\n(.*?)```", guide, re.DOTALL)[1]
    subprocess.run(["bash", "-e", "-c", commands], cwd=tiny.folder, check=True)
    assert files_in(results) == ["README.md", "other/runs/kept.csv"]
    assert sorted(path.name for path in results.iterdir()) == ["README.md", "other"]


def files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
