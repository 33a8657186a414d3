"""Preference runs: the objective, and its reference, the parent's log-probabilities."""

import math
from contextlib import suppress

import pytest
import torch

from fvlm.config.schema import Run, Study
from fvlm.data.batches.loader import Steps, load_steps, validation_steps
from fvlm.model.build import build_model
from fvlm.train import reference as module
from fvlm.train.fsdp import DataParallel
from fvlm.train.objective import make_objective
from fvlm.train.ranks import Ranks
from fvlm.train.reference import Reference, prepare_reference
from tests.loader_cases import make_results, preference_run, steps_of
from tests.model_cases import joined, sample

CPU = torch.device("cpu")
EXACT = torch.autocast("cpu", enabled=False)
BETA = 0.3


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return make_results(tmp_path_factory.mktemp("results"))


def pairs_run(results) -> tuple[Run, Study]:
    return preference_run(results, **{"optim.dpo_beta": BETA})


def step_sets(run, study) -> list[Steps]:
    return [steps_of(run, study, batch_size=4), validation_steps(run, study, batch_size=4)]


def prepared(run, study, path, model=None, identity="one", context=EXACT) -> Reference:
    model = model or build_model(run.model, 0)
    parallel = DataParallel(model, CPU, Ranks())
    return prepare_reference(parallel, step_sets(run, study), path, identity, CPU, context)


def moved(model, seed=0):
    """The model after a step in a random direction."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=draw)
    return model


@pytest.mark.parametrize("context", [EXACT, torch.autocast("cpu", dtype=torch.bfloat16)], ids=["float32", "bfloat16"])
def test_before_the_first_step_the_loss_is_log_2(results, tmp_path, context):
    run, study = pairs_run(results)
    model = build_model(run.model, 0)
    reference = prepared(run, study, tmp_path / "reference.npz", model, context=context)
    objective = make_objective(run, model, reference)
    for steps, validating in zip(step_sets(run, study), (False, True), strict=True):
        for batches in load_steps(steps):
            for batch in batches:
                with context:
                    terms = objective(batch, validating)
                pairs = terms.counts["loss"]
                assert pairs == len(batch) // 2 == objective.units(batch)
                assert float(terms.sums["loss"]) == pytest.approx(pairs * math.log(2), abs=1e-4 * pairs)
                assert float(terms.sums["reward_margin"]) == pytest.approx(0, abs=1e-3 * pairs)
                assert terms.objective.requires_grad


def test_the_loss_and_rewards_are_those_of_the_paper(results, tmp_path):
    """Each answer scored alone, in plain text, by both models: eq. 7 of Rafailov et al. with numbers."""
    run, study = pairs_run(results)
    parent = build_model(run.model, 0)
    reference = prepared(run, study, tmp_path / "reference.npz", parent)
    model = moved(build_model(run.model, 0))
    objective = make_objective(run, model, reference)
    steps = steps_of(run, study, batch_size=4)
    margins = []
    for batch in steps[0]:
        terms = objective(batch)
        alone = steps_of(run, study, batch_size=1)
        expected = {"loss": 0.0, "reward_margin": 0.0, "reward_chosen": 0.0, "reward_rejected": 0.0}
        for i in range(len(batch) // 2):
            place = next(k for k in range(len(alone)) if alone[k][0].keys[0] == batch.keys[2 * i])
            (pair,) = alone[place]
            with torch.no_grad():
                now, before = (-m(pair).loss_sum_B.double() for m in (model, parent))
            chosen, rejected = (BETA * (now - before)).tolist()
            margins.append(chosen - rejected)
            expected["loss"] += math.log1p(math.exp(rejected - chosen))
            expected["reward_margin"] += chosen - rejected
            expected["reward_chosen"] += chosen
            expected["reward_rejected"] += rejected
        for name, value in expected.items():
            assert float(terms.sums[name]) == pytest.approx(value, rel=1e-3, abs=1e-3), name
        assert float(terms.objective.detach()) == float(terms.sums["objective"]) == float(terms.sums["loss"])
        assert float(terms.sums["loss:preferences"]) == float(terms.sums["loss"])
        assert set(terms.counts.values()) == {len(batch) // 2}
    accuracy = sum(float(objective(batch).sums["reward_accuracy"]) for batch in steps[0])
    assert accuracy == sum(margin > 0 for margin in margins)


# --- the cache ---


def test_a_finished_cache_replaces_the_scoring(results, tmp_path):
    run, study = pairs_run(results)
    path = tmp_path / "state/reference.npz"
    first = prepared(run, study, path)
    written = path.read_bytes()
    again = prepared(run, study, path, moved(build_model(run.model, 0)))
    assert again.values == first.values and path.read_bytes() == written
    keys = {(validating, key) for validating, _, key in first.values}
    assert len(keys) == sum(len(steps.order) for steps in step_sets(run, study))


def test_a_killed_preparation_resumes(results, tmp_path, monkeypatch):
    run, study = pairs_run(results)
    monkeypatch.setattr(module, "SAVE_SECONDS", 0.0)
    whole = prepared(run, study, tmp_path / "whole.npz")
    total = sum(map(len, step_sets(run, study)))
    training = len(step_sets(run, study)[0])
    assert 2 < training < total
    for kill_at in (1, training, training + 1):
        path = tmp_path / f"killed_{kill_at}.npz"
        assert _steps_scored(monkeypatch, kill_at, run, study, path) == kill_at
        assert _steps_scored(monkeypatch, None, run, study, path) == total - kill_at
        assert prepared(run, study, path).values == whole.values


def _steps_scored(monkeypatch, kill_at: int | None, run, study, path) -> int:
    """Prepare the reference, killed after `kill_at` steps; return the number of steps that were scored."""

    class Killed(BaseException):
        pass

    scored, load = 0, DataParallel.in_step

    def in_step(self, steps):
        nonlocal scored
        for batches in load(self, steps):
            if scored == kill_at:
                raise Killed
            yield batches
            scored += 1

    with monkeypatch.context() as patched, suppress(Killed):
        patched.setattr(DataParallel, "in_step", in_step)
        prepared(run, study, path)
    return scored


def test_a_cache_of_another_identity_or_a_truncated_file_is_not_used(results, tmp_path, capsys):
    run, study = pairs_run(results)
    path = tmp_path / "reference.npz"
    first = prepared(run, study, path)
    other = prepared(run, study, path, moved(build_model(run.model, 0)), identity="two")
    assert other.values.keys() == first.values.keys() and other.values != first.values
    path.write_bytes(path.read_bytes()[:200])
    capsys.readouterr()
    assert prepared(run, study, path, moved(build_model(run.model, 0)), identity="two").values == other.values
    assert "reference.npz: unreadable" in capsys.readouterr().err


def test_preparing_leaves_the_model_as_it_was_and_reports_progress(results, tmp_path, capsys):
    run, study = pairs_run(results)
    model = build_model(run.model, 0).train()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    prepared(run, study, tmp_path / "reference.npz", model)
    assert all(part.training for part in model.modules()) and all(p.grad is None for p in model.parameters())
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    total = sum(map(len, step_sets(run, study)))
    assert f"step {total}/{total}" in capsys.readouterr().err


def test_training_and_validation_may_have_pairs_of_the_same_name():
    reference = Reference({(False, "random", "1"): [1.0, 2.0], (True, "random", "1"): [3.0, 4.0]})
    pair = joined([sample(1, 5, seed=1), sample(1, 5, seed=1)])
    assert reference.of(pair, validating=False).tolist() == [1.0, 2.0]
    assert reference.of(pair, validating=True).tolist() == [3.0, 4.0]
