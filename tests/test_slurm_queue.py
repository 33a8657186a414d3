"""Jobs of an earlier snakemake in Slurm's queue, with a queue made of files; tests/slurm has a real one."""

import os
from types import SimpleNamespace

import pytest
from snakemake.iocontainers import ResourceList, Wildcards

from fvlm.snakemake import slurm


@pytest.fixture
def squeue(tmp_path, monkeypatch):
    """A `squeue` that prints the lines of a file and then forgets them."""
    queue, command = tmp_path / "queue", tmp_path / "bin/squeue"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\ncat {queue} && : > {queue}\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{command.parent}{os.pathsep}{os.environ['PATH']}")
    return queue


def test_the_queue_is_read(squeue):
    squeue.write_text("12|RUNNING|rule_train_wildcards_stage1\n13|PENDING|rule_index_wildcards_a|b\n")
    assert slurm.living_jobs() == {
        "rule_train_wildcards_stage1": ("12", "RUNNING"),
        "rule_index_wildcards_a|b": ("13", "PENDING"),
    }
    assert f"--name={slurm.job_name()} " in (squeue.parent / "asked").read_text()


def test_without_a_queue_there_are_no_jobs(squeue, monkeypatch):
    squeue.unlink(missing_ok=True)  # squeue fails
    assert slurm.living_jobs() == {}
    monkeypatch.setenv("PATH", str(squeue.parent))
    assert slurm.living_jobs() == {}


def test_a_snakemake_waits_for_the_shards_of_an_earlier_one(squeue, monkeypatch, capsys):
    monkeypatch.setattr(slurm, "SECONDS_BETWEEN_QUERIES", 0)
    squeue.write_text("7|RUNNING|rule_decode_shard\n8|RUNNING|rule_train_wildcards_a\n")
    slurm.wait_while(lambda comment, number: comment.startswith("rule_decode_"), "waiting for {}")
    assert capsys.readouterr().err == "waiting for 7\n"
    assert len((squeue.parent / "asked").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("name", "priority", "extra", "expected"),
    [
        ("train", 0, "--signal=USR1@300", "--signal=USR1@300 --nice=100"),
        ("train", 0, None, "--nice=100"),
        ("train", 0, "--nice=7", "--nice=7"),
        ("train", 50, "--signal=USR1@300", "--signal=USR1@300"),
        ("fvlm_train", 0, None, "--nice=100"),
        ("evaluate", 0, None, None),
    ],
)
def test_a_training_lets_the_stages_go_first(name, priority, extra, expected):
    job = SimpleNamespace(
        rule=SimpleNamespace(name=name),
        wildcards=Wildcards(fromdict={"run": "A6"}),
        is_group=lambda: False,
        priority=priority,
        resources=ResourceList(fromdict={"slurm_extra": extra}),
    )
    slurm.go_behind_stages(job)
    assert job.resources.get("slurm_extra") == expected


def test_jobs_of_one_working_directory_have_one_name(tmp_path, monkeypatch):
    name = slurm.job_name()
    assert slurm.job_name() == name
    monkeypatch.chdir(tmp_path)
    assert slurm.job_name() != name
