"""The workflow on a real Slurm of one node, undisturbed and disturbed: `make test-slurm`.

The tests are about one study in the order they stand here, and need root and Debian's packages.
"""

import os
import shutil
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from fvlm.analysis import catalog
from tests.conftest import copy_of_workflow
from tests.slurm.cluster import Cluster, Unavailable, say
from tests.slurm.study import (
    LONG,
    STUDY,
    SlurmWorkflow,
    edit_profile,
    metrics,
    steps_of,
    summary,
    wait,
    write_profile,
)

TARGET = "results/{name}/runs/stage1/run_summary.json"
LONG_RUN = "results/long/runs/stage1"
PREPARED = ("corpus", "shards", "index", "tokenizer")


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
def local(tmp_path_factory):
    """All runs of the study as they are without Slurm, each by one process, and the long training undisturbed."""
    workflow = copy_of_workflow(tmp_path_factory.mktemp("local") / "checkout")
    (workflow.folder / "config/small.yaml").write_text(STUDY.format(name="small", ranks="null"))
    workflow.run(
        *(f"results/small/tables/{name}.csv" for name in ("runs", "evaluation")), "--configfile", "config/small.yaml"
    )
    add_long_study(workflow.folder, "long")
    workflow.run(TARGET.format(name="long"), "--configfile", "config/long.yaml")
    return workflow.folder


@pytest.fixture(scope="session")
def checkout(tmp_path_factory, cluster):
    folder = copy_of_workflow(tmp_path_factory.mktemp("submitted") / "checkout").folder
    (folder / "config/small.yaml").write_text(STUDY.format(name="small", ranks=2))
    write_profile(folder)
    return SlurmWorkflow(folder)


@pytest.fixture
def disturbed(checkout, cluster, request):
    """The long training in a results folder of its own, submitted and on its way; all its jobs are gone afterwards."""
    name = request.node.name.removeprefix("test_")[:30]
    add_long_study(checkout.folder, name)
    yield Disturbed(checkout, cluster, name)
    write_profile(checkout.folder)
    subprocess.run(["scancel", "--me"], check=False)
    wait(lambda: not cluster.jobs(checkout.folder, "pending,running,completing"))


def add_long_study(folder: Path, name: str, evaluations: int = 3) -> None:
    (folder / f"config/{name}.yaml").write_text(LONG.format(name=name, evaluations=evaluations))
    results = folder / "results" / name
    if not results.exists():
        results.mkdir()
        for part in PREPARED:
            shutil.copytree(folder / "results/small" / part, results / part, copy_function=shutil.copy2)


class Disturbed:
    def __init__(self, checkout: SlurmWorkflow, cluster: Cluster, name: str):
        self.checkout, self.cluster = checkout, cluster
        self.run = checkout.folder / "results" / name / "runs/stage1"
        self.target = (TARGET.format(name=name), "--configfile", f"config/{name}.yaml")
        self.before = {job["id"] for job in cluster.jobs(checkout.folder)}

    def start(self, steps: int = 20) -> subprocess.Popen:
        """Submit the training and wait until it has made some steps."""
        process = self.checkout.start(*self.target)
        self.reach(steps, process)
        return process

    def reach(self, steps: int, process: subprocess.Popen) -> None:
        wait(lambda: steps_of(self.run / "state") >= steps or process.poll() is not None)
        assert process.poll() is None, self.checkout.said[-3000:]

    def jobs(self) -> list[dict]:
        """Slurm's jobs of this training."""
        return [job for job in self.cluster.jobs(self.checkout.folder) if job["id"] not in self.before]

    def must_equal(self, local: Path) -> None:
        """Each step once, and the weights, of a run that nobody disturbed."""
        whole = local / LONG_RUN
        assert metrics(self.run) == metrics(whole)
        assert [int(row["step"]) for row in metrics(self.run)] == list(range(1, 161))
        assert (self.run / "model/final.safetensors").read_bytes() == (whole / "model/final.safetensors").read_bytes()


def test_the_study_runs_through_slurm(checkout, cluster, local):
    said = checkout.run("--configfile", "config/small.yaml")
    results = checkout.folder / "results/small"
    assert all((results / f"figures/{name}.png").stat().st_size > 5_000 for name in catalog.FIGURES)
    assert (results / "report.html").exists() and "report.html" in said
    abouts = [job["comment"] for job in cluster.jobs(checkout.folder)]
    assert {job["state"] for job in cluster.jobs(checkout.folder)} == {"COMPLETED"}
    assert len(abouts) == len(set(abouts)), "a job was submitted twice"
    # One Slurm job decodes all shards; what is drawn takes two, as some of it needs no table.
    assert "rule_decode_shard" in abouts and len(list(results.glob("shards/*/*.tar"))) > 12
    assert sum(about.startswith("rule_analysis_") for about in abouts) <= 2
    of_grid = next(job["id"] for job in cluster.jobs(checkout.folder) if job["comment"].endswith("_S-C1-F"))
    asked = cluster.show(of_grid)
    assert (asked["Partition"], asked["TresPerJob"]) == ("gpu", "gres:gpu:small:1")  # the smallest that it fits
    assert checkout.planned("--configfile", "config/small.yaml") == {}


def test_its_end_result_is_that_of_a_local_run(checkout, local):
    here, there = (folder / "results/small" for folder in (checkout.folder, local))
    names = sorted(path.name for path in there.glob("runs/*"))
    assert names == sorted(path.name for path in here.glob("runs/*")) and len(names) > 6
    for path in there.glob("shards/*/*.tar"):
        assert path.read_bytes() == (here / path.relative_to(there)).read_bytes()
    for name in set(names) - {"A6"}:
        assert metrics(here / "runs" / name) == metrics(there / "runs" / name), name
        for weights in ("best", "final"):
            one, other = (folder / f"runs/{name}/model/{weights}.safetensors" for folder in (here, there))
            assert one.read_bytes() == other.read_bytes(), name
    for path in there.glob("evaluation/*.csv"):
        if path.stem != "A6":
            assert path.read_text() == (here / path.relative_to(there)).read_text(), path.name


def test_two_processes_train_as_one_does(checkout, local):
    """A6 was trained by two processes under torchrun in its Slurm job, and by one locally."""
    here, there = (folder / "results/small/runs/A6" for folder in (checkout.folder, local))
    assert (summary(here)["ranks"], summary(there)["ranks"]) == (2, 1)
    losses = [[float(row["train_loss"]) for row in metrics(run)] for run in (here, there)]
    assert np.allclose(*losses, rtol=1e-4)
    one, other = (load_file(run / "model/final.safetensors") for run in (here, there))
    assert one.keys() == other.keys() and all(np.allclose(one[k], other[k], rtol=1e-3, atol=1e-4) for k in one)


def test_scancel(disturbed, local):
    process = disturbed.start()
    (job,) = disturbed.jobs()
    say("scancel", job["id"])
    disturbed.checkout.finish(process)
    assert [job["state"] for job in disturbed.jobs()] == ["CANCELLED", "COMPLETED"]
    disturbed.must_equal(local)


def test_time_limit(disturbed, local):
    """Slurm warns, the training saves itself and its job comes back; snakemake sees one job."""
    add_long_study(disturbed.checkout.folder, "time_limit", evaluations=80)
    edit_profile(
        disturbed.checkout.folder,
        lambda profile: profile["set-resources"]["train_stage"].update(slurm_extra="'--signal=USR1@58'"),
    )
    process = disturbed.start()
    (job,) = disturbed.jobs()
    say("scontrol", "update", f"JobId={job['id']}", "TimeLimit=1")
    wait(lambda: "Restarts=1" in say("scontrol", "show", "job", job["id"]))
    say("scontrol", "update", f"JobId={job['id']}", "TimeLimit=20")
    disturbed.checkout.finish(process)
    assert [(job["id"], "COMPLETED")] == [(job["id"], job["state"]) for job in disturbed.jobs()]
    disturbed.must_equal(local)


def test_kill(disturbed, local):
    """The training is killed by a signal that it cannot see."""
    process = disturbed.start()
    for training in disturbed.checkout.trainings():
        training.kill()
    disturbed.checkout.finish(process)
    assert [job["state"] for job in disturbed.jobs()] == ["FAILED", "COMPLETED"]
    disturbed.must_equal(local)


def test_requeue(disturbed, local):
    process = disturbed.start()
    (job,) = disturbed.jobs()
    say("scontrol", "requeue", job["id"])
    disturbed.checkout.finish(process)
    assert [(job["id"], "COMPLETED")] == [(job["id"], job["state"]) for job in disturbed.jobs()]
    assert disturbed.cluster.show(job["id"])["Restarts"] == "1"
    disturbed.must_equal(local)


def test_two_nodes_and_a_warning(disturbed, local):
    """One Slurm job of a process on each node; all save when they are warned, and come back together."""
    study = disturbed.checkout.folder / disturbed.target[2]
    study.write_text(study.read_text().replace("optim.batch_size: 1", "optim.batch_size: 1, operation.nodes: 2"))
    edit_profile(
        disturbed.checkout.folder,
        lambda profile: profile["set-resources"]["train_stage"].update(slurm_partition="two"),
    )
    process = disturbed.start()
    (job,) = disturbed.jobs()
    say("scancel", "--signal=USR1", job["id"])
    disturbed.checkout.finish(process)
    assert [(job["id"], "COMPLETED")] == [(job["id"], job["state"]) for job in disturbed.jobs()]
    told = disturbed.cluster.show(job["id"])
    assert (told["NumNodes"], told["Restarts"], summary(disturbed.run)["ranks"]) == ("2", "1", 2)
    assert [int(row["step"]) for row in metrics(disturbed.run)] == list(range(1, 161))
    losses = [[float(row["train_loss"]) for row in metrics(run)] for run in (disturbed.run, local / LONG_RUN)]
    assert np.allclose(*losses, rtol=1e-3)


def test_slurmctld_stopped_and_started(disturbed, cluster, local):
    """The training ends while nobody controls the cluster."""
    process = disturbed.start()
    cluster.stop("slurmctld")
    wait(lambda: not disturbed.checkout.trainings())
    cluster.start("slurmctld")
    disturbed.checkout.finish(process)
    assert [job["state"] for job in disturbed.jobs()] == ["COMPLETED"]
    disturbed.must_equal(local)


def test_snakemake_killed_and_restarted(disturbed, local):
    """The next snakemake follows the job that lives: it is neither submitted again nor done again."""
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
    """What a job finished alone stays; that its settings are changed afterwards is noticed all the same."""
    kill(disturbed.start())
    wait(lambda: [job["state"] for job in disturbed.jobs()] == ["COMPLETED"])
    assert disturbed.checkout.planned(*disturbed.target) == {}
    disturbed.must_equal(local)
    changed = disturbed.checkout.folder / disturbed.target[2]
    changed.write_text(changed.read_text().replace("train.samples: 160", "train.samples: 150"))
    assert disturbed.checkout.planned(*disturbed.target) == {"train_stage": 1}


def test_changed_settings_of_a_living_job(disturbed):
    """A job that trains what nobody wants any more is cancelled, and the new one submitted."""
    kill(disturbed.start())
    (training,) = disturbed.checkout.trainings()
    training.suspend()
    changed = disturbed.checkout.folder / disturbed.target[2]
    changed.write_text(changed.read_text().replace("train.samples: 160", "train.samples: 40"))
    said = disturbed.checkout.run(*disturbed.target)
    assert "it is cancelled" in said
    assert [job["state"] for job in disturbed.jobs()] == ["CANCELLED", "COMPLETED"]
    assert summary(disturbed.run)["samples"] == 40


def test_snakemake_killed_while_a_group_decodes(checkout, cluster):
    """The next one waits for the shards, and decodes none of them again."""
    (checkout.folder / "config/decoded.yaml").write_text(STUDY.format(name="decoded", ranks="null"))
    results = checkout.folder / "results/decoded"
    results.mkdir()
    shutil.copytree(checkout.folder / "results/small/corpus", results / "corpus", copy_function=shutil.copy2)
    before = len(cluster.jobs(checkout.folder))
    made = sorted((checkout.folder / "results/small").glob("shards/*/*.tar"))
    wanted = [str(path.relative_to(checkout.folder)).replace("/small/", "/decoded/") for path in made]
    target = (*wanted, "--configfile", "config/decoded.yaml")
    process = checkout.start(*target)
    wait(lambda: len(list(results.glob("shards/*/*.tar"))) >= 3 or process.poll() is not None)
    kill(process)
    shards = {path: path.stat().st_ino for path in results.glob("shards/*/*.tar")}  # a group touches what it made
    said = checkout.run(*target)
    assert "still decoding; waiting until they end" in said
    assert all(path.stat().st_ino == node for path, node in shards.items())
    abouts = [job["comment"] for job in cluster.jobs(checkout.folder)[before:]]
    assert abouts == ["rule_tokenizer", "rule_decode_shard"] or abouts == ["rule_decode_shard"]


def kill(process: subprocess.Popen) -> None:
    """SIGKILL for snakemake alone; its jobs live on."""
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
