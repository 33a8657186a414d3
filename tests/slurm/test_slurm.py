"""The smoke study on a real Slurm, undisturbed and disturbed: `make test-slurm`.

The tests share one study and run in this order; they need root and Debian's packages.
"""

import os
import shutil
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest

from fvlm.analysis import catalog
from tests.conftest import copy_of_workflow
from tests.rank_cases import close
from tests.slurm.cluster import Cluster, Unavailable, run_command
from tests.slurm.study import (
    LONG,
    STUDY,
    SlurmWorkflow,
    edit_profile,
    metrics,
    steps_of,
    summary,
    wait,
    was_sent,
    write_profile,
)

RUN, OTHERS = "baseline", ("baseline-s43", "baseline-s44")
PREPARED = ("corpus", "shards", "index", "tokenizer")
BY_TWO = ("A6", "A6-s43")  # trained by two processes under torchrun in their Slurm jobs, and by one locally


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    cluster = Cluster(tmp_path_factory.mktemp("slurm"))
    try:
        cluster.__enter__()
    except Unavailable as reason:
        pytest.skip(str(reason))
    yield cluster
    cluster.__exit__()


@pytest.fixture(scope="session")
def local(tmp_path_factory, cluster, smoke_results):
    """The long trainings without Slurm and undisturbed, each in its own folder."""
    workflow = copy_of_workflow(tmp_path_factory.mktemp("local") / "checkout")
    add_long_study(workflow.folder, "long", smoke_results)
    workflow.run(*targets("long", (RUN, *OTHERS)), "--configfile", "config/long.yaml")
    return workflow.folder / "results/long/runs"


@pytest.fixture(scope="session")
def checkout(tmp_path_factory, cluster):
    folder = copy_of_workflow(tmp_path_factory.mktemp("submitted") / "checkout").folder
    (folder / "config/submitted.yaml").write_text(STUDY.format(name="submitted"))
    write_profile(folder)
    workflow = SlurmWorkflow(folder)
    yield workflow
    workflow.end()
    workflow.end_jobs()


@pytest.fixture
def disturbed(checkout, cluster, smoke_results, request):
    """Long trainings in their own results folder, to be submitted; afterwards all their jobs are removed."""
    name = request.node.name.removeprefix("test_")[:30]
    add_long_study(checkout.folder, name, smoke_results)
    yield Disturbed(checkout, cluster, name)
    checkout.end()
    write_profile(checkout.folder)
    subprocess.run(["scancel", "--me"], check=False)
    wait(lambda: not cluster.jobs(checkout.folder, "pending,running,completing"))


def add_long_study(folder: Path, name: str, prepared: Path) -> None:
    (folder / f"config/{name}.yaml").write_text(LONG.format(name=name))
    for part in PREPARED:
        target = folder / "results" / name / part
        if not target.exists():
            shutil.copytree(prepared / part, target, copy_function=shutil.copy2)


def targets(name: str, runs: tuple[str, ...]) -> list[str]:
    return [f"results/{name}/runs/{run}/run_summary.json" for run in runs]


class Disturbed:
    def __init__(self, checkout: SlurmWorkflow, cluster: Cluster, name: str):
        self.checkout, self.cluster, self.study = checkout, cluster, f"config/{name}.yaml"
        self.runs = checkout.folder / "results" / name / "runs"
        self.run = self.runs / RUN
        self.target = (*targets(name, (RUN,)), "--configfile", self.study)
        self.before = {job["id"] for job in cluster.jobs(checkout.folder)}

    def edit(self, old: str, new: str) -> None:
        """Change the study's settings."""
        self.checkout.edit(self.study, old, new)

    def start(self) -> subprocess.Popen:
        """Submit a training and wait until it has done some steps."""
        process = self.checkout.start(*self.target)
        self.reach(RUN, process)
        return process

    def reach(self, run: str, process: subprocess.Popen, steps: int = 20) -> None:
        wait(lambda: steps_of(self.runs / run / "state") >= steps or process.poll() is not None)
        assert process.poll() is None, self.checkout.said[-3000:]

    def jobs(self, run: str = RUN) -> list[dict]:
        """Slurm jobs of a training."""
        jobs = [job for job in self.cluster.jobs(self.checkout.folder) if job["id"] not in self.before]
        return [job for job in jobs if job["comment"].endswith(f"_wildcards_{run}")]

    def must_equal(self, local: Path, run: str = RUN) -> None:
        """Compare with an undisturbed run: each step once, equal metrics and weights."""
        here, whole = self.runs / run, local / run
        assert metrics(here) == metrics(whole)
        assert [int(row["step"]) for row in metrics(here)] == list(range(1, 161))
        assert (here / "model/final.safetensors").read_bytes() == (whole / "model/final.safetensors").read_bytes()


def test_the_study_runs_through_slurm(checkout, cluster):
    output = checkout.run("--configfile", "config/submitted.yaml")
    results = checkout.folder / "results/submitted"
    assert all((results / f"figures/{name}.png").stat().st_size > 5_000 for name in catalog.STANDARD)
    assert (results / "report.html").exists() and "report.html" in output
    abouts = [job["comment"] for job in cluster.jobs(checkout.folder)]
    assert {job["state"] for job in cluster.jobs(checkout.folder)} == {"COMPLETED"}
    assert len(abouts) == len(set(abouts)), "a job was submitted twice"
    # One Slurm job decodes all shards; tables and figures take three: maps need no table, benchmarks need only theirs.
    assert "rule_decode_shard" in abouts and len(list(results.glob("shards/*/*.tar"))) > 12
    assert sum(about.startswith("rule_analysis_") for about in abouts) <= 3
    of_grid = next(job["id"] for job in cluster.jobs(checkout.folder) if job["comment"].endswith("_S-C1-F"))
    requested = cluster.show(of_grid)
    assert (requested["Partition"], requested["TresPerJob"]) == ("gpu", "gres:gpu:small:1")  # the smallest that it fits
    assert checkout.planned("--configfile", "config/submitted.yaml") == {}


def test_results_equal_those_of_a_local_run(checkout, smoke_results):
    here, there = checkout.folder / "results/submitted", smoke_results
    names = sorted(path.name for path in there.glob("runs/*"))
    assert names == sorted(path.name for path in here.glob("runs/*")) and len(names) == 27
    for path in there.glob("shards/*/*.tar"):
        assert path.read_bytes() == (here / path.relative_to(there)).read_bytes()
    for name in set(names) - set(BY_TWO):
        assert metrics(here / "runs" / name) == metrics(there / "runs" / name), name
        for weights in ("best", "final"):
            one, other = (folder / f"runs/{name}/model/{weights}.safetensors" for folder in (here, there))
            assert one.read_bytes() == other.read_bytes(), name
    for path in there.glob("evaluation/*.csv"):
        if path.stem not in BY_TWO:
            assert path.read_text() == (here / path.relative_to(there)).read_text(), path.name


@pytest.mark.parametrize("run", BY_TWO)
def test_two_processes_train_as_one_does(checkout, smoke_results, run):
    here, there = (folder / "runs" / run for folder in (checkout.folder / "results/submitted", smoke_results))
    assert (summary(here)["ranks"], summary(there)["ranks"]) == (2, 1)
    close(there, here)


def test_cancelled_requeued_and_killed(disturbed, local):
    """Three trainings side by side; one is killed by a signal that no process can handle."""
    cancelled, requeued, killed = (RUN, *OTHERS)
    process = disturbed.checkout.start(*targets(disturbed.runs.parent.name, (RUN, *OTHERS)), *disturbed.target[1:])
    disturbed.reach(cancelled, process)
    run_command("scancel", disturbed.jobs(cancelled)[0]["id"])
    disturbed.reach(requeued, process)
    run_command("scontrol", "requeue", disturbed.jobs(requeued)[0]["id"])
    disturbed.reach(killed, process)
    (training,) = disturbed.checkout.trainings(killed)
    training.kill()
    disturbed.checkout.finish(process)
    states = {run: [job["state"] for job in disturbed.jobs(run)] for run in (RUN, *OTHERS)}
    again = ["CANCELLED", "COMPLETED"]
    assert states == {cancelled: again, requeued: ["COMPLETED"], killed: ["FAILED", "COMPLETED"]}
    assert disturbed.cluster.show(disturbed.jobs(requeued)[0]["id"])["Restarts"] == "1"
    for run in (RUN, *OTHERS):
        disturbed.must_equal(local, run)


def test_time_limit(disturbed, local):
    """Slurm warns, the training saves a checkpoint, and its job is requeued; snakemake sees one job."""
    edit_profile(
        disturbed.checkout.folder,
        lambda profile: profile["set-resources"]["train"].update(slurm_extra="'--signal=USR1@58'"),
    )
    process = disturbed.start()
    (job,), (training,) = disturbed.jobs(), disturbed.checkout.trainings()
    training.suspend()  # it might end before the warning, since Slurm checks limits every 30 s
    run_command("scontrol", "update", f"JobId={job['id']}", "TimeLimit=1")
    wait(lambda: was_sent(signal.SIGUSR1, training))
    with suppress(psutil.NoSuchProcess):
        training.resume()
    wait(lambda: "Restarts=1" in run_command("scontrol", "show", "job", job["id"]))
    run_command("scontrol", "update", f"JobId={job['id']}", "TimeLimit=20")
    disturbed.checkout.finish(process)
    assert [(job["id"], "COMPLETED")] == [(job["id"], job["state"]) for job in disturbed.jobs()]
    disturbed.must_equal(local)


def test_two_nodes_and_a_warning(disturbed, local):
    """One Slurm job with a process on each node: all save when they are warned, and resume together."""
    disturbed.edit("optim.batch_size: 1", "optim.batch_size: 1, operation.nodes: 2")
    edit_profile(
        disturbed.checkout.folder,
        lambda profile: profile["set-resources"]["train"].update(slurm_partition="two"),
    )
    process = disturbed.start()
    (job,) = disturbed.jobs()
    run_command("scancel", "--signal=USR1", job["id"])
    disturbed.checkout.finish(process)
    assert [(job["id"], "COMPLETED")] == [(job["id"], job["state"]) for job in disturbed.jobs()]
    details = disturbed.cluster.show(job["id"])
    assert (details["NumNodes"], details["Restarts"], summary(disturbed.run)["ranks"]) == ("2", "1", 2)
    assert [int(row["step"]) for row in metrics(disturbed.run)] == list(range(1, 161))
    losses = [[float(row["train_loss"]) for row in metrics(run)] for run in (disturbed.run, local / RUN)]
    assert np.allclose(*losses, rtol=1e-3)


def test_slurmctld_stopped_and_started(disturbed, cluster, local):
    """The training ends while slurmctld is stopped."""
    process = disturbed.start()
    cluster.stop("slurmctld")
    wait(lambda: not disturbed.checkout.trainings())
    cluster.start("slurmctld")
    disturbed.checkout.finish(process)
    assert [job["state"] for job in disturbed.jobs()] == ["COMPLETED"]
    disturbed.must_equal(local)


def test_snakemake_killed_and_restarted(disturbed, local):
    """The next snakemake follows the living job: it is neither submitted nor run again."""
    kill(disturbed.start())
    (training,) = disturbed.checkout.trainings()
    training.suspend()
    process = disturbed.checkout.start(*disturbed.target)
    try:
        wait(lambda: "it is followed" in disturbed.checkout.said or process.poll() is not None)
    finally:
        training.resume()
    disturbed.checkout.finish(process)
    assert disturbed.checkout.submitted() == []
    assert [job["state"] for job in disturbed.jobs()] == ["COMPLETED"]
    disturbed.must_equal(local)


def test_snakemake_killed_for_good(disturbed, local):
    """A job that finished alone is not repeated, but a later change of its settings is noticed."""
    kill(disturbed.start())
    wait(lambda: [job["state"] for job in disturbed.jobs()] == ["COMPLETED"])
    assert disturbed.checkout.planned(*disturbed.target) == {}
    disturbed.must_equal(local)
    disturbed.edit("train.samples: 160", "train.samples: 150")
    assert disturbed.checkout.planned(*disturbed.target) == {"train": 1}


def test_changed_settings_of_a_living_job(disturbed):
    """A living job with outdated settings is cancelled, and the new one submitted."""
    kill(disturbed.start())
    (training,) = disturbed.checkout.trainings()
    training.suspend()
    disturbed.edit("train.samples: 160", "train.samples: 40")
    output = disturbed.checkout.run(*disturbed.target)
    assert "it is cancelled" in output
    assert [job["state"] for job in disturbed.jobs()] == ["CANCELLED", "COMPLETED"]
    assert summary(disturbed.run)["samples"] == 40


class Decoding:
    """Shards of the study, to be decoded by one Slurm job into their own results folder."""

    def __init__(self, checkout: SlurmWorkflow, smoke_results: Path, name: str):
        self.checkout, self.results = checkout, checkout.folder / "results" / name
        (checkout.folder / f"config/{name}.yaml").write_text(STUDY.format(name=name))
        shutil.copytree(smoke_results / "corpus", self.results / "corpus", copy_function=shutil.copy2)
        tars = [path.relative_to(smoke_results) for path in sorted(smoke_results.glob("shards/*/*.tar"))]
        self.target = (*(f"results/{name}/{tar}" for tar in tars), "--configfile", f"config/{name}.yaml")

    def start(self) -> subprocess.Popen:
        """Submit the job and wait until it has finished some shards."""
        process = self.checkout.start(*self.target)
        wait(lambda: len(self.finished()) >= 3 or process.poll() is not None)
        return process

    def finished(self) -> dict[Path, int]:
        """Finished shards and their inodes (a group touches its outputs, so times say nothing)."""
        tars = self.results.glob("shards/*/*.tar")
        return {tar: tar.stat().st_ino for tar in tars if tar.with_name(f"{tar.name}.sha256").exists()}

    def none_was_made_again(self, before: dict[Path, int]) -> None:
        after = self.finished()
        assert 3 <= len(before) < len(after) and {path: after[path] for path in before} == before


def test_snakemake_killed_while_a_group_decodes(checkout, cluster, smoke_results):
    """The next snakemake waits for the shards and decodes none of them again."""
    decoding, jobs = Decoding(checkout, smoke_results, "decoded"), len(cluster.jobs(checkout.folder))
    kill(decoding.start())
    finished = decoding.finished()
    output = checkout.run(*decoding.target)
    assert "still decoding; waiting until they end" in output
    decoding.none_was_made_again(finished)
    assert [job["comment"] for job in cluster.jobs(checkout.folder)[jobs:]] == ["rule_decode_shard"]


def test_a_group_that_is_cancelled_keeps_what_it_has_finished(checkout, cluster, smoke_results):
    """Snakemake deletes the outputs of all jobs of the group and starts them again, but no shard is decoded twice."""
    decoding, jobs = Decoding(checkout, smoke_results, "cancelled"), len(cluster.jobs(checkout.folder))
    process = decoding.start()
    finished = decoding.finished()
    (job,) = cluster.jobs(checkout.folder)[jobs:]
    run_command("scancel", job["id"])
    checkout.finish(process)
    decoding.none_was_made_again(finished)
    assert [job["state"] for job in cluster.jobs(checkout.folder)[jobs:]] == ["CANCELLED", "COMPLETED"]


def kill(process: subprocess.Popen) -> None:
    """Kill snakemake alone; its jobs stay alive."""
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
