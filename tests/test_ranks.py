"""Any number of ranks trains to the same results as one, and no rank waits for another forever."""

import json
import os
import resource
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors.numpy import load_file

from fvlm.batch import Batch
from fvlm.data.batches.loader import Steps
from fvlm.errors import Stopped, UserError
from fvlm.model.build import build_model
from fvlm.train.fsdp import FullySharded, empty_batch, local_part, use_all_weights
from fvlm.train.loop import Trainer
from fvlm.train.objective import TextObjective
from fvlm.train.ranks import Ranks
from tests.rank_cases import CONTEXT, TIMEOUT, Team, close, free_port, torchrun_environment, train, with_parent
from tests.train_cases import records, study_file, study_in

SHORT = {"train.precision": "float32", "train.evaluations": 2, "operation.micro_frames": 6, "optim.ema": 0.7}
SPLIT = {"operation.shard_weights": True}
CASES = {  # run, its settings, what several ranks add to them, and how many ranks
    "mixed lengths, fewer samples than ranks": ("baseline", {"train.samples": 15, "optim.batch_size": 3}, {}, (2, 4)),
    "frozen but for the connector": ("F1", {"train.samples": 12, "optim.batch_size": 1}, {}, (2,)),
    "preferences": ("dpo", {"train.samples": 9, "optim.batch_size": 3}, {}, (2,)),
    "weights split": ("baseline", {"train.samples": 9, "optim.batch_size": 3}, SPLIT, (2,)),
    "weights split, layers computed again": (
        "baseline",
        {"train.samples": 9, "optim.batch_size": 3},
        {**SPLIT, "operation.recompute": True},
        (2,),
    ),
    "split, frozen, texts alone": ("F1", {"train.samples": 6, "optim.batch_size": 1}, SPLIT, (2,)),
    "split, preferences": ("dpo", {"train.samples": 5, "optim.batch_size": 3}, SPLIT, (2,)),
}


@pytest.fixture(scope="module")
def results(prepared, tmp_path_factory) -> Path:
    return with_parent(prepared, tmp_path_factory.mktemp("parent"))


@pytest.mark.parametrize("case", CASES)
def test_several_ranks_train_to_the_results_of_one(results, tmp_path, case):
    """Metrics, validations and weights differ by rounding only, and the summary names the ranks."""
    run, settings, changes, counts = CASES[case]
    one = train(1, study_file(results, tmp_path / "one", run, {**SHORT, **settings}), run)
    for ranks in counts:
        study = study_file(results, tmp_path / str(ranks), run, {**SHORT, **settings, **changes})
        several = train(ranks, study, run)
        close(one, several)
        assert json.loads((several / "run_summary.json").read_text())["ranks"] == ranks
        if run == "dpo":
            values = [np.load(folder / "state/reference.npz") for folder in (one, several)]
            assert sorted(values[0]["keys"]) == sorted(values[1]["keys"])


@pytest.mark.parametrize("ends", [None, Stopped(75, "saved"), UserError("a mistake")], ids=["well", "stop", "mistake"])
def test_a_training_leaves_its_process_group(monkeypatch, ends):
    """Otherwise threads of gloo may abort the process, with a wrong exit status."""
    for name, value in torchrun_environment(rank=0, ranks=1, port=0).items():
        monkeypatch.setenv(name, value)
    with suppress(Stopped, UserError), Ranks(count=2).joined(torch.device("cpu")):
        assert dist.is_initialized()
        if ends is not None:
            raise ends
    assert not dist.is_initialized()


@pytest.mark.parametrize("texts", [0, 2])
def test_a_batch_without_frames_uses_all_weights_and_keeps_its_loss(prepared, texts):
    """The gradients of encoder and connector are zero instead of None."""
    run = study_in(prepared).runs["baseline"]
    model = build_model(run.model, 0).double()
    batch = empty_batch()
    if texts:
        ids = torch.arange(10)
        batch = Batch(batch.frames, batch.frame_index, torch.zeros(2, dtype=torch.int64), ids,
                      torch.tensor([4, 6]), ids % 4 > 0, ["a", "b"], ["x", "y"])  # fmt: skip
    objective = TextObjective(run, model)
    plain = objective(batch).objective if texts else torch.zeros(())
    use_all_weights(model)
    terms = objective(batch)
    assert terms.objective.item() == pytest.approx(plain.item(), abs=1e-12) and set(terms.counts) == (
        {"loss", "objective", "loss_fine", "loss:x", "loss:y"} if texts else set()
    )
    terms.objective.backward()
    for name, parameter in model.named_parameters():
        if name.startswith(("dino.dino.encoder", "connector")) and parameter.grad is not None:
            assert not parameter.grad.any(), name
    assert model.connector.dino_to_llm.weight.grad is not None


# --- ends ---


def unreadable_in_rank_1(rank: int) -> None:
    if rank == 1:

        def fail(self, places):
            raise UserError("the third tar is damaged")

        Steps.batch = fail


def before_each_step(rank: int, action: Callable[[Trainer], None]) -> None:
    if rank == 0:
        update = Trainer._update

        def patched(self, *arguments):
            action(self)
            return update(self, *arguments)

        Trainer._update = patched


def full_disk_for_checkpoints(rank: int) -> None:
    """In rank 0, from the second checkpoint on: no file may be larger than 100 kB."""
    limits = (100_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1])
    before_each_step(rank, lambda trainer: resource.setrlimit(resource.RLIMIT_FSIZE, limits))


def full_disk_for_metrics(rank: int) -> None:
    """In rank 0, from the first step on."""
    full = open("/dev/full", "a")  # noqa: SIM115 - until the process ends
    before_each_step(rank, lambda trainer: setattr(trainer.metrics, "file", full))


ENDS = {
    "a sample that cannot be read": (unreadable_in_rank_1, "fvlm train: the third tar is damaged\n", 0),
    "a full disk": (full_disk_for_checkpoints, "step_00000002.pt cannot be written", 2),
    "a full disk after a step": (full_disk_for_metrics, "metrics.jsonl cannot be written", 0),
}


@pytest.mark.parametrize("case", ENDS)
def test_an_error_in_one_rank_stops_all_with_one_message(prepared, tmp_path, case):
    """The step is not logged, and the run resumes from the checkpoint before."""
    before, facts, steps = ENDS[case]
    settings = {**SHORT, "train.samples": 12, "optim.batch_size": 3, "operation.checkpoint_steps": 2}
    study = study_file(prepared, tmp_path, "baseline", {**settings, "train.evaluations": 1})
    team = Team(2, study, "baseline", before)
    assert team.wait() == [2, 2], team.output
    assert team.output.count(facts) == 1 and team.output.count("fvlm train: ") == 1, team.output
    state = tmp_path / "results/runs/baseline/state"
    assert len(records(state / "metrics.jsonl")) == steps
    assert not list(state.glob(".*.part"))
    for file in state.glob("step_*.pt"):
        assert torch.load(file, weights_only=True)["step"] == 0
    assert records(train(2, study) / "state/metrics.jsonl")[-1]["step"] == 4
    assert load_file(tmp_path / "results/runs/baseline/model/final.safetensors")


def test_a_file_that_all_ranks_miss_is_reported_once(prepared, tmp_path):
    study = study_file(prepared, tmp_path, "baseline", SHORT)
    (tmp_path / "results/index").unlink()
    team = Team(2, study, "baseline")
    assert team.wait() == [2, 2], team.output
    assert "index/grid.npz: no index" in team.output and team.output.count("fvlm train: ") == 1, team.output
    assert "Traceback" not in team.output, team.output


def never_joins(rank: int) -> None:
    """Rank 1 is killed before it joins; rank 0 prints a line before it joins."""
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    plain = dist.init_process_group

    def join(*arguments, **options):
        print("joins", flush=True)
        plain(*arguments, **options)

    dist.init_process_group = join


def test_a_signal_ends_a_rank_that_waits_for_a_dead_one(prepared, tmp_path):
    """C++ would wait there for half an hour, and Python would call no handler."""
    team = Team(2, study_file(prepared, tmp_path, "baseline", SHORT), "baseline", never_joins)
    while "joins" not in team.output and team.processes[0].is_alive():
        time.sleep(0.05)
    time.sleep(0.3)
    os.kill(team.processes[0].pid, signal.SIGTERM)
    team.processes[0].join(20)
    assert team.wait() == [-signal.SIGTERM, -signal.SIGKILL], team.output


def changed_between_two_passes(rank: int, port: int, folder: Path, run) -> None:
    """Write the losses of a split model before and after a change of its weights, without a backward pass."""
    os.environ.update(torchrun_environment(rank, 2, port))
    dist.init_process_group("gloo")
    model = build_model(run.model, 0)
    FullySharded(model, torch.device("cpu"), Ranks(rank, 2))
    losses = two_losses(model, run)
    dist.destroy_process_group()
    (folder / f"{rank}.json").write_text(json.dumps(losses))


def two_losses(model, run) -> list[float]:
    ids = torch.arange(6)
    batch = empty_batch()
    batch = Batch(batch.frames, batch.frame_index, torch.zeros(1, dtype=torch.int64), ids, torch.tensor([6]),
                  ids > 0, ["a"], ["x"])  # fmt: skip
    losses, parameters = [], list(model.parameters())
    with torch.no_grad():
        for _ in range(2):
            losses.append(model(batch, run.model.training_mode).loss_sum_B.sum().item())
            for parameter in parameters:
                local_part(parameter.detach()).mul_(0.9)
    return losses


def test_split_weights_are_gathered_again_after_a_change(prepared, tmp_path):
    """An average changes the weights for a validation only; the gathered ones must not be trained on."""
    run = study_in(prepared).runs["baseline"]
    team = [
        CONTEXT.Process(target=changed_between_two_passes, args=(rank, port, tmp_path, run))
        for port in [free_port()]
        for rank in range(2)
    ]
    for process in team:
        process.start()
    for process in team:
        process.join(TIMEOUT)
    expected = two_losses(build_model(run.model, 0), run)
    assert abs(expected[0] - expected[1]) > 1e-3
    for rank in range(2):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == pytest.approx(expected, rel=1e-4)
