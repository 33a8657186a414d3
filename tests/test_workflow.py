"""The workflow as a user meets it: it finishes, it resumes, and it never does finished work again."""

import csv
import json
import os
import re
import shutil
import signal
import time
from collections import defaultdict
from pathlib import Path

import psutil
import pytest
from safetensors.numpy import load_file

from fvlm.analysis import catalog
from tests.conftest import jobs

TIMING = ("samples_per_s", "mfu", "tflops", "memory_gb", "data_wait_s")
SMOKE = ("--configfile", "config/smoke.yaml")
COLLECTING = {"collect_runs", "collect_curves", "collect_evaluation", "collect_benchmarks", "table", "decisions",
              "figure", "plan_files", "ledger", "front_page"}  # fmt: skip


def times(folder: Path, pattern: str) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in sorted(folder.glob(pattern))}


@pytest.mark.workflow
def test_smoke_makes_everything(smoke):
    results = smoke.folder / "results/smoke"
    for name in (*catalog.COLLECTED, *catalog.TABLES):
        assert (results / f"tables/{name}.csv").stat().st_size > 0
    for name in catalog.STANDARD:
        assert (results / f"figures/{name}.png").stat().st_size > 5_000
        assert (results / f"figures/{name}.pdf").read_bytes().startswith(b"%PDF")
    assert "<svg" in (results / "decisions.html").read_text()
    page = (results / "report.html").read_text()
    assert "The study has runs for" in page and "1. Decisions" in page
    assert len(page) > 500_000 and not re.search(r'<(script|link|img)[^>]+(src|href)="https?://', page)
    assert "report   results/smoke/report.html\nopen     results/smoke/index.html\n" in smoke.said
    first = (results / "index.html").read_text()
    assert all(f'<figure id="{name}">' in first for name in catalog.HEADLINE)
    links = re.findall(r'href="([^"#]+)"', first)
    assert len(links) > 100 and all((results / link).is_file() for link in links)
    assert smoke.planned(*SMOKE) == {}


@pytest.mark.workflow
def test_every_run_reports_itself(smoke):
    runs = smoke.folder / "results/smoke/runs"
    names = sorted(path.name for path in runs.iterdir())
    assert len(names) == 4 + 11 + 3 * 2 * 2
    for name in names:
        summary = json.loads((runs / name / "run_summary.json").read_text())
        metrics = list(csv.DictReader((runs / name / "metrics.csv").read_text().splitlines()))
        assert [int(row["step"]) for row in metrics] == list(range(1, summary["steps"] + 1)), name
        assert summary["samples"] == int(metrics[-1]["samples"])
        if summary["flops_budget"]:
            assert 0.6 * summary["flops_budget"] < summary["flops"] <= summary["flops_budget"], name


@pytest.mark.workflow
def test_every_input_is_in_a_shard_or_in_the_ledger(smoke):
    results = smoke.folder / "results/smoke"
    entries = [json.loads(line) for line in (results / "ledger.jsonl").read_text().splitlines()]
    tables = [path for path in results.glob("corpus/*/samples.jsonl") if path.parent.name != "demo"]  # the benchmark
    inputs = sum(len(path.read_text().splitlines()) for path in tables)
    assert len(entries) == inputs
    rejected = [entry for entry in entries if entry["status"] == "rejected"]
    assert rejected and all(entry["reason"] and entry["message"] for entry in rejected)


@pytest.mark.workflow
def test_every_look_scores_the_same_samples(smoke):
    for name, modes in (("stage3", 3), ("B1", 1)):
        path = smoke.folder / f"results/smoke/evaluation/{name}.csv"
        rows = list(csv.DictReader(path.read_text().splitlines()))
        assert {row["order"] for row in rows} == {"video_first"}
        keys = defaultdict(set)
        for row in rows:
            keys[row["mode"], row["frames"]].add((row["key"], row["tokens"]))
        assert len(keys) == modes + 2
        assert len({frozenset(found) for found in keys.values()}) == 1
        assert {row["source"] for row in rows} >= {"questions", "pictures", "chat"}


@pytest.mark.workflow
def test_frames_change_the_losses_of_video_and_of_no_text(smoke):
    rows = list(csv.DictReader((smoke.folder / "results/smoke/evaluation/stage3.csv").read_text().splitlines()))
    loss = {(row["key"], row["mode"], row["frames"]): float(row["loss_sum"]) for row in rows}
    for row in rows:
        own = loss[row["key"], "coarse_fine", "own"]
        other, blind = loss[row["key"], "coarse_fine", "other"], loss[row["key"], "blind", "none"]
        if row["kind"] == "text":
            assert own == pytest.approx(other, rel=1e-2) and own == pytest.approx(blind, rel=1e-2)
        else:
            assert own != blind


@pytest.mark.workflow
def test_a_finished_run_answers_about_a_video(smoke):
    video = next((smoke.folder / "results/smoke/corpus/moves_held_out/media").iterdir())
    caption = smoke.fvlm("caption", str(video), "--run", "results/smoke/runs/stage3")
    assert caption.returncode == 0 and caption.stdout.startswith(str(video))
    missing = smoke.fvlm("caption", "nowhere.mp4", "--run", "results/smoke/runs/stage3")
    assert missing.returncode == 2 and "nowhere.mp4" in missing.stderr and "Traceback" not in missing.stderr


@pytest.mark.workflow
def test_finished_results_are_drawn_without_training(smoke):
    options = (*SMOKE, "--config", "results_from=results/smoke/runs")
    assert not set(smoke.planned("figures", *options)) & {"train", "evaluate", "shard", "corpus"}
    smoke.run("results/smoke/imported/figures/factorial.png", *options)
    own, imported = (smoke.folder / "results/smoke" / folder for folder in ("tables", "imported/tables"))
    for name in ("runs", "validation_curves", "training_curves"):
        rows = [list(csv.DictReader((folder / f"{name}.csv").read_text().splitlines())) for folder in (own, imported)]
        one, other = (sorted(sorted(row.items()) for row in table) for table in rows)
        assert one == other, name


@pytest.mark.workflow
def test_one_lost_figure_is_one_job(smoke):
    figure = smoke.folder / "results/smoke/figures/three_modes.png"
    figure.unlink()
    assert smoke.planned(*SMOKE) == {"figure": 1, "front_page": 1}
    assert smoke.planned(str(figure.relative_to(smoke.folder)), *SMOKE) == {"figure": 1}
    smoke.run(*SMOKE)
    assert figure.exists()
    assert smoke.planned("results/smoke/figures/contours.png", *SMOKE) == {"figure": 1}  # on request, by its name


@pytest.mark.workflow
def test_touched_sources_and_edited_comments_rerun_nothing(smoke):
    for path in (smoke.folder / "src").rglob("*.py"):
        os.utime(path)
    smoke.edit("rules/train.smk", "# Every training", "# Each training")
    smoke.edit("src/fvlm/train/loop.py", '"""The training loop', '"""A training loop')
    smoke.edit("config/ablations.yaml", "# One entry per ablation", "# An entry for each ablation")
    assert smoke.planned(*SMOKE) == {}


@pytest.mark.workflow
def test_an_edited_question_redraws_and_trains_nothing(smoke):
    smoke.edit("config/ablations.yaml", "What does looking twice buy?", "Is the second look worth it?")
    planned = smoke.planned(*SMOKE)
    assert planned["table"] and planned["figure"]
    assert set(planned) <= {"collect_runs", "table", "figure", "decisions", "front_page"}
    smoke.edit("config/ablations.yaml", "Is the second look worth it?", "What does looking twice buy?")
    assert smoke.planned(*SMOKE) == {}


@pytest.mark.workflow
def test_an_edited_ablation_reruns_itself_and_what_follows(smoke):
    line = "LR3: {optim.lr.connector: 3.0e-3}"
    smoke.edit("config/config.yaml", line, "LR3: {optim.lr.connector: 3.1e-3}")
    planned = smoke.planned(*SMOKE)
    assert planned.pop("train") == 1 and planned.pop("evaluate") == 1
    assert set(planned) <= COLLECTING
    smoke.edit("config/config.yaml", "LR3: {optim.lr.connector: 3.1e-3}", line)
    assert smoke.planned(*SMOKE) == {}


@pytest.mark.workflow
def test_results_know_their_configuration_without_snakemakes_memory(smoke):
    """As after `cp -a results`, or where .snakemake was removed."""
    memory, removed = smoke.folder / ".snakemake", smoke.folder / "removed"
    memory.rename(removed)
    try:
        assert smoke.planned(*SMOKE) == {}
        output = smoke.run("-n", *SMOKE, "--config", "only={ablations: [A1, B0]}", "baseline={train.samples: 52}")
        assert jobs(output)["train"] == 2 and "A1, B0 train again: train.samples 48 -> 52\n" in output
        planned = smoke.planned(*SMOKE, "--config", "evaluation={samples: 6}")
        assert planned.pop("evaluate") == 15 and set(planned) <= COLLECTING | {"attention", "data_report"}
    finally:
        shutil.rmtree(memory)
        removed.rename(memory)


@pytest.mark.workflow
def test_a_crash_while_collecting_costs_no_finished_run(smoke):
    """A table of results that cannot be written must not stop a whole grid (BUG-011)."""
    results = smoke.folder / "results/smoke"
    before = times(results, "runs/*/run_summary.json") | times(results, "evaluation/*.csv")
    (results / "tables/runs.csv").unlink()
    smoke.edit(
        "src/fvlm/analysis/collect.py",
        "def main(args)",
        "def main(args):\n    raise ValueError('returncode')\n\n\ndef unused(args)",
    )
    assert "collect_runs" in smoke.run(*SMOKE, ok=False)
    assert before == times(results, "runs/*/run_summary.json") | times(results, "evaluation/*.csv")
    smoke.edit(
        "src/fvlm/analysis/collect.py",
        "def main(args):\n    raise ValueError('returncode')\n\n\ndef unused(args)",
        "def main(args)",
    )
    planned = smoke.planned(*SMOKE)
    assert "collect_runs" in planned and set(planned) <= COLLECTING
    smoke.run(*SMOKE)
    assert before == times(results, "runs/*/run_summary.json") | times(results, "evaluation/*.csv")


@pytest.mark.workflow
@pytest.mark.parametrize("orphan", [True, False], ids=["training survives", "all are killed"])
def test_a_killed_training_resumes_and_ends_with_the_same_weights(smoke, orphan):
    """SIGKILL in the middle of a training; the next call ends with the undisturbed run's metrics and weights."""
    results = smoke.folder / "results"
    if not (results / "whole/runs/stage1/run_summary.json").exists():
        _slow_study(smoke, "whole")
        smoke.run("results/whole/runs/stage1/run_summary.json", "--configfile", "config/whole.yaml")
    name = f"killed_{orphan}"
    _slow_study(smoke, name)
    target = (f"results/{name}/runs/stage1/run_summary.json", "--configfile", f"config/{name}.yaml")
    first = smoke.start(*target, start_new_session=True)
    state = results / name / "runs/stage1/state"
    _wait(lambda: len(list(state.glob("step_*.pt"))) >= 2 and max(state.glob("step_*.pt")) > state / "step_00000030.pt")
    if orphan:
        output = _run_beside_an_orphan(smoke, first, target)
    else:
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
        output = smoke.run(*target)
    assert "waiting until it ends" in output if orphan else "continuing at step" in output
    one, two = results / "whole/runs/stage1", results / name / "runs/stage1"
    assert _without_speed(one / "metrics.csv") == _without_speed(two / "metrics.csv")
    assert (one / "validation.csv").read_text() == (two / "validation.csv").read_text()
    for weights in ("best", "final"):
        a, b = (load_file(folder / f"model/{weights}.safetensors") for folder in (one, two))
        assert a.keys() == b.keys() and all((a[key] == b[key]).all() for key in a)


def _run_beside_an_orphan(smoke, first, target: tuple[str, ...]) -> str:
    """Kill snakemake alone, hold its training still until the next snakemake has met it, and then let it go on."""
    family = psutil.Process(first.pid).children(recursive=True)
    (training,) = (process for process in family if process.cmdline()[1:4] == ["-m", "fvlm", "train"])
    os.kill(first.pid, signal.SIGKILL)
    training.suspend()
    second, output = smoke.start(*target), ""
    try:
        while "waiting until it ends" not in output and (line := second.stdout.readline()):
            output += line
    finally:
        training.resume()
    rest, _ = second.communicate()
    first.wait()
    assert second.returncode == 0, output + rest
    return output + rest


def _slow_study(smoke, name: str) -> None:
    """A study like smoke, on the same shards, whose first stage takes long enough to be killed in its middle."""
    text = (
        f"study: {name}\nresults: results/{name}\nbased_on: smoke.yaml\n"
        "stages:\n  stage1: {optim.batch_size: 1, train.samples: 160}\n"
    )
    (smoke.folder / f"config/{name}.yaml").write_text(text)
    folder = smoke.folder / "results" / name
    folder.mkdir(parents=True)
    for part in ("corpus", "shards", "index", "tokenizer"):
        os.system(f"cp -a {smoke.folder}/results/smoke/{part} {folder}/")


def _wait(condition, seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def _without_speed(path: Path) -> list[dict]:
    rows = list(csv.DictReader(path.read_text().splitlines()))
    return [{key: value for key, value in row.items() if key not in TIMING} for row in rows]


@pytest.mark.workflow
def test_the_paper_study_expands_without_its_data(workflow):
    output = workflow.run("-n", "--configfile", "config/paper.yaml")
    planned = output.split("Job stats:")[1]
    counts = {name: int(count) for name, count in re.findall(r"^(\w+) +(\d+)\s*$", planned, re.MULTILINE)}
    assert counts["train"] == 46
    assert "1.7B-C4-B" in output and "training FLOPs" in output


@pytest.mark.workflow
@pytest.mark.parametrize(
    ("file", "old", "new", "facts"),
    [
        ("ablations", "model.fine_pass: false}", "model.fine_pas: false}", ["ablations.yaml", "A6", "model.fine_pass"]),
        ("config", "prepare: []", "sources: {mine: {kind: video, reader: folder, path: nowhere}}\nprepare: [mine]",
         ["mine", "nowhere", "path"]),
    ],
    ids=["ablation field", "missing folder"],
)  # fmt: skip
def test_a_mistake_stops_the_dry_run_with_one_sentence(workflow, file, old, new, facts):
    workflow.edit(f"config/{file}.yaml", old, new)
    output = workflow.run("-n", ok=False)
    assert "Traceback" not in output
    assert all(fact in output for fact in facts), output
