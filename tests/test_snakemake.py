"""The package that the rules call: study, resources and process of a snakemake."""

import json
import shlex
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from snakemake.exceptions import WorkflowError
from snakemake.scheduling.job_scheduler import JobScheduler

from fvlm.config.resolve import study_of
from fvlm.snakemake import memory
from fvlm.snakemake.process import answer_signals_in_a_thread, drop_stale_locks, is_alone, is_target
from fvlm.snakemake.resources import Resources
from fvlm.snakemake.study import open_study
from tests.config_cases import CONFIG, load
from tests.snakemake_cases import of

# --- study ---


def test_jobs_get_exactly_the_study_that_was_parsed(opened, tmp_path):
    results = str(tmp_path / "it's mine")
    study = opened(baseline={"train.seed": 7}, results=results)
    memory.MEMORIES[Path(results)].begin()
    *_, option, run = shlex.split(study.command("train A1"))
    file = option.removeprefix("--study=")
    assert run == "A1"
    assert study_of(SimpleNamespace(study=[file])) == study.settings
    later = open_study({"study": "smoke", "results": results}, [], {}, main=False)  # in a job, after an edit
    assert later.settings == study.settings


def test_another_study_in_the_same_results_waits_for_a_living_snakemake(tmp_path):
    first = memory.ResultsMemory(str(tmp_path), {"study": "one"}, lambda: True)
    first.begin()
    second = memory.ResultsMemory(str(tmp_path), {"study": "two"}, lambda: False)
    with pytest.raises(WorkflowError, match=r"another snakemake.*study\.json.*`results:`"):
        second.begin()
    memory.ResultsMemory(str(tmp_path), {"study": "one"}, lambda: False).begin()  # the same study may
    assert json.loads((tmp_path / "study.json").read_text()) == {"study": "one"}


def test_results_remember_what_they_were_made_from_wherever_they_are(tmp_path):
    old = memory.ResultsMemory("results/a", {}, lambda: True)
    old.folder = tmp_path / "a"
    old.folder.mkdir()
    old.store(f"{old.folder}/evaluation/A1.csv", ["40", f"'{old.folder}/corpus/grid'"])
    with open(old.folder / memory.MADE_FROM, "a") as file:
        file.write('{"file": "cut')
    new = memory.ResultsMemory(str(old.folder.rename(tmp_path / "b")), {}, lambda: True)
    assert new.params(f"{new.folder}/evaluation/A1.csv") == ["40", f"'{new.folder}/corpus/grid'"]
    assert new.params(f"{new.folder}/evaluation/A2.csv") is None is new.params("elsewhere/evaluation/A1.csv")


def test_the_summary_of_a_run_decides_what_it_was_trained_with(tmp_path):
    summary = tmp_path / "runs/A1/run_summary.json"
    summary.parent.mkdir(parents=True)
    summary.write_text('{"digest": "abc"}')
    known = memory.ResultsMemory(str(tmp_path), {}, lambda: True)
    assert known.params_of_run(f"{tmp_path}/runs/A1/model/best.safetensors") == ["'abc'"]
    assert known.params_of_run(f"{tmp_path}/runs/A2/metrics.csv") is None
    assert known.params_of_run(f"{tmp_path}/tables/runs.csv") is None
    assert known.params_of_run(f"{tmp_path}/runs/A1/captions.html") is None  # of a user's own rule
    summary.write_text('{"digest": "def"}')
    known.forget()
    assert known.params_of_run(str(summary)) == ["'def'"]


@pytest.mark.parametrize(
    ("changes", "facts"),
    [
        ({"baseline": {"train.sampels": 3}}, ["train.sampels", "train.samples"]),
        ({"baseline": {"train.samples": 300_000}}, ["baseline", "300,000", "twice"]),
        ({"results_from": "nowhere"}, ["results_from", "nowhere"]),
        ({"name": "paper", "default_resources": ["gpu_constraints='old:16'"]}, ["1.7B-", "gpu_constraints", "16 GB"]),
    ],
)
def test_a_mistake_stops_the_parsing_with_its_sentence(opened, changes, facts):
    with pytest.raises(WorkflowError) as error:
        opened(**changes)
    assert all(fact in str(error.value) for fact in facts)


def test_preflight_may_start_without_the_data_that_it_reports(opened, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["snakemake", "preflight"])
    opened(baseline={"train.samples": 300_000})


def test_a_training_waits_for_its_parent_and_for_the_held_out_samples(opened):
    study = opened()
    first, second = (study.training_inputs(of(run=run)) for run in ("stage1", "stage2"))
    assert "parent" not in first
    assert second["parent"] == "results/smoke/runs/stage1/model/best.safetensors"
    assert {"results/smoke/index/grid.npz", "results/smoke/index/grid_held_out.npz"} <= set(first["indices"])
    assert len(first["indices"]) == len(set(first["indices"]))
    assert not any("index/grid.npz" in path for path in study.evaluation_inputs(of(run="stage1"))["indices"])


def test_attention_is_mapped_for_the_last_stage_that_learns_from_frames(opened):
    assert opened().attention_maps == ["results/smoke/attention/stage3.npz"]


def test_finished_results_prepare_nothing(opened, tmp_path):
    (tmp_path / "points.csv").write_text("run_id,step,samples_seen,val_loss\nA1,1,8,2.0\n")
    study = opened(results_from=str(tmp_path / "points.csv"))
    assert study.folder == "results/smoke/imported" and study.prepared == [] and study.attention_maps == []
    assert study.tables[0] == "results/smoke/imported/tables/runs.csv"


def test_a_plan_needs_no_files_that_a_source_only_announces(opened, tmp_path):
    source = {"kind": "video", "reader": "folder", "path": str(tmp_path), "table": "t.csv", "samples": 100}
    announced = opened(sources={"mine": source}, prepare=["mine"])
    wildcards = of(source="mine", shard="00000")
    assert announced.shard_inputs(wildcards) == []
    (tmp_path / "t.csv").write_text("file,caption\na.mp4,hello\n")
    assert announced.shard_inputs(wildcards) == [f"{tmp_path}/t.csv"]
    made_first = announced.shard_inputs(of(source="grid", shard="00000"))
    assert made_first == ["results/smoke/corpus/grid/samples.jsonl"]


def test_the_last_shard_is_marked(opened):
    study = opened(shards={"samples": 16})
    count = -(-study.sources["grid"].samples // 16)
    options = [study.last_shard(of(source="grid", shard=f"{number:05d}")) for number in range(count)]
    assert count > 1 and options == [""] * (count - 1) + ["--last"]


def test_what_the_rules_import_is_light():
    code = "import sys, snakemake.api; before = set(sys.modules); import fvlm.snakemake.report; "
    code += "print(*{name.split('.')[0] for name in set(sys.modules) - before})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "fvlm" in loaded and not {"torch", "pandas", "scipy", "matplotlib", "transformers"} & set(loaded)


def test_a_finished_run_is_kept(tmp_path, capsys):
    run, files = tmp_path / "runs/A1", ("model/best.safetensors", "metrics.csv", "run_summary.json", "state/step_1.pt")
    for name in files:
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text(json.dumps({"digest": "old"}))
    known = memory.ResultsMemory(str(tmp_path), {}, lambda: True)
    job = SimpleNamespace(output=[str(run / name) for name in files[:3]], params=SimpleNamespace(digest="new"))
    known.keep_earlier(job)
    known.keep_earlier(job)  # a call that resumes
    (run / "run_summary.json").unlink()  # as Snakemake does before the training
    kept = tmp_path / "earlier/A1-old"
    assert sorted(str(path.relative_to(kept)) for path in kept.rglob("*") if path.is_file()) == sorted(files[:3])
    assert capsys.readouterr().err.count(str(kept)) == 1


# --- resources ---


def test_a_run_gets_the_smallest_gpu_that_it_fits():
    runs = load(CONFIG, "paper.yaml").runs
    resources = Resources(runs, ["mem_mb=4000", "gpu_models='h100:80 l40:48 a100:40'"])
    assert {resources.gpu_model(of(run=run)) for run in ("stage1", "135M-C1-F")} == {"a100"}
    assert resources.gpu_model(of(run="1.7B-C1-B")) == "h100" == resources.largest_gpu_model
    assert resources.gpu_constraint(of(run="stage1")) is None is resources.largest_gpu_constraint


def test_a_run_on_a_cpu_requests_no_kind_of_gpu():
    runs = load(CONFIG, "smoke.yaml").runs
    assert Resources(runs, ["gpu_models='tiny:0.001'"]).gpu_model(of(run="stage1")) is None


def test_stages_start_first():
    resources = Resources(load(CONFIG, "smoke.yaml").runs, [])
    assert [resources.priority(of(run=run)) for run in ("stage1", "dpo", "baseline", "S-C1-F")] == [50, 50, 0, 0]


def test_several_nodes_start_a_task_on_each():
    runs = load(CONFIG, "paper.yaml", baseline={"operation.gpus": 4, "operation.nodes": 2}).runs
    resources, run = Resources(runs, []), of(run="stage1")
    assert (resources.gpus(run), resources.nodes(run), resources.mpi(run)) == (8, 2, "srun")
    assert resources.threads(run) == 4 * runs["stage1"].operation.threads
    one = Resources(load(CONFIG, "paper.yaml").runs, [])
    assert one.nodes(run) is None is one.mpi(run)


# --- process ---


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--cores", "1", "preflight"], True),
        (["--target-jobs", "preflight:", "--mode", "remote"], True),
        (["fvlm_preflight"], True),
        (["preflights", "results/preflight"], False),
        ([], False),
    ],
)
def test_a_target_is_found_on_the_command_line(arguments, expected):
    assert is_target("preflight", arguments) == expected


def test_a_living_snakemake_is_noticed_and_the_locks_of_a_killed_one_are_dropped(tmp_path):
    lock = tmp_path / "locks/0.output.lock"
    lock.parent.mkdir()
    lock.touch()
    code = "import sys; from pathlib import Path; from fvlm.snakemake.process import is_alone\n"
    code += f"print(is_alone(Path({str(tmp_path / 'alive')!r})), flush=True); sys.stdin.read()"
    living = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert living.stdout.readline() == "True\n"
    assert not is_alone(tmp_path / "alive")
    living.kill()
    living.communicate()
    is_alone.cache_clear()
    assert is_alone(tmp_path / "alive")
    drop_stale_locks(tmp_path)
    assert not lock.exists()


def test_a_signal_is_answered_while_the_main_thread_holds_the_lock(monkeypatch):
    lock, answered = threading.Lock(), threading.Event()

    def exit_gracefully(scheduler, *args):
        with lock:
            answered.set()

    monkeypatch.setattr(JobScheduler, "exit_gracefully", exit_gracefully)
    answer_signals_in_a_thread()
    with lock:
        JobScheduler.exit_gracefully(None, 15, None)
    assert answered.wait(10)
