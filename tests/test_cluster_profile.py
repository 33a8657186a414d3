"""What the Slurm profile requests, as a dry run shows it; `make test-slurm` submits real jobs."""

import re

import pytest
import yaml

PROFILE = "workflow/profiles/slurm/config.yaml"
DRY = ("-n", "--workflow-profile", "workflow/profiles/slurm", "--configfile", "config/paper.yaml")


def requests_of(output: str, rule: str) -> list[dict[str, str]]:
    """Return the resources of all jobs of a rule in the output of a dry run."""
    blocks = re.findall(rf"^rule {rule}:\n((?:    .*\n)+)", output, re.MULTILINE)
    lines = [re.search(r"^    resources: (.*)$", block, re.MULTILINE).group(1) for block in blocks]
    return [dict(re.findall(r"(\w+)=(.*?)(?:, (?=\w+=)|$)", line)) for line in lines]


@pytest.mark.workflow
def test_a_run_gets_the_smallest_gpu_that_it_fits(workflow):
    workflow.edit(PROFILE, "  # - gpu_models='a100:40 h100:80'", "  - gpu_models='l40:48 h100:80 a100:40'")
    output = workflow.run("all", "preflight", "calibrate", *DRY)
    trainings = requests_of(output, "train")
    assert {job["gpu_model"] for job in trainings} == {"a100", "h100"} and {job["gpu"] for job in trainings} == {"1"}
    assert all("--signal=USR1@" in job["slurm_extra"] for job in trainings)
    assert "gpu" not in requests_of(output, "ledger")[0]
    for rule in ("preflight", "calibrate"):  # they go where the largest run will go
        (job,) = requests_of(output, rule)
        assert (job["gpu"], job["gpu_model"], job["mem_mb"]) == ("1", "h100", "32000")


@pytest.mark.workflow
def test_a_plan_is_made_again_when_its_content_changes(workflow):
    workflow.run("plan", "--configfile", "config/paper.yaml")
    assert "plan_files" not in workflow.run("-n", "plan", "--configfile", "config/paper.yaml")
    workflow.edit("config/sources.yaml", "frames: 8, text_tokens: 120", "frames: 8, text_tokens: 121")
    assert "plan_files" in workflow.run("-n", "plan", "--configfile", "config/paper.yaml")
    (workflow.folder / "results/paper/calibration.json").write_text("[]")
    output = workflow.run("-n", "plan", "--configfile", "config/paper.yaml", ok=False)
    assert "calibration.json: not a calibration" in output and "Traceback" not in output


@pytest.mark.workflow
def test_a_training_on_several_nodes_is_one_job_of_several_tasks(workflow):
    workflow.edit(
        "config/paper.yaml", "study: paper", "study: paper\nbaseline: {operation.gpus: 4, operation.nodes: 2}"
    )
    job = requests_of(workflow.run(*DRY), "train")[0]
    assert {name: job[name] for name in ("gpu", "nodes", "tasks", "mpi")} == {
        "gpu": "8", "nodes": "2", "tasks": "2", "mpi": "srun"
    }  # fmt: skip


def test_settings_of_a_site_are_in_its_block(workflow):
    text = (workflow.folder / PROFILE).read_text()
    outside = re.sub(r"# --- SITE.*# --- end of SITE ---", "", text, flags=re.DOTALL)
    assert outside != text
    assert not {"default-resources", "set-resources"} & set(yaml.safe_load(outside))
