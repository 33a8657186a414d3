"""`fvlm plan` and `fvlm calibrate`: tokens, hours, costs, and where the speed comes from."""

import csv
import json

import pytest
import torch

from fvlm.costs import speed
from fvlm.costs.amounts import amounts_of
from fvlm.costs.limits import check_tokenizer
from fvlm.errors import UserError
from fvlm.study import plan
from fvlm.study.calibrate import main as calibrate
from fvlm.study.calibrate import why_not
from fvlm.study.plan import plan_rows, plan_text
from fvlm.study.trial import Trial, expected, flops_of, step_of
from tests.config_cases import CONFIG, load
from tests.conftest import parse
from tests.train_cases import study_in, trained


def only(name: str, **changes) -> dict:
    """The plan's row of one run of the full-size study."""
    return next(row for row in plan_rows(load(CONFIG, "paper.yaml", **changes)) if row["run"] == name)


# --- amounts ---


def test_planned_tokens_are_those_of_a_real_run(prepared, tmp_path):
    _, _, summary = trained(prepared, tmp_path)
    study = study_in(prepared)
    amounts = amounts_of(study.runs["baseline"], study)
    assert amounts.samples == summary["samples"] and amounts.steps == summary["steps"]
    assert amounts.visual_tokens == pytest.approx(summary["frames"], rel=0.25)  # 16 samples scatter


def test_a_pooled_model_reads_sixteen_tokens_a_frame_and_a_blind_one_none():
    baseline, pooled, blind = (only(name)["visual_tokens"] for name in ("baseline", "B1", "B0"))
    assert pooled == pytest.approx(16 * baseline, rel=1e-6) and blind == 0


# --- tokenizer ---


@pytest.mark.parametrize(
    ("model", "added", "entries"),
    [
        ({"type": "BPE", "vocab": {"a": 0, "b": 700}}, [], 701),
        ({"type": "BPE", "vocab": {"a": 0}}, [{"id": 600, "content": "<x>"}], 601),
        ({"type": "Unigram", "vocab": [["a", 0.0]] * 513}, [], 513),
        ({"type": "BPE", "vocab": {"a": 0, "b": 511}}, [], None),  # ids with holes are fine
        ({"type": "Unigram", "vocab": [["a", 0.0]] * 20}, [{"id": 20, "content": "<x>"}], None),
    ],
)
def test_a_tokenizer_with_ids_that_have_no_embedding_is_refused(tmp_path, model, added, entries):
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": model, "added_tokens": added}))
    study = load(CONFIG, "smoke.yaml", tokenizer={"weights": str(tmp_path)}, results=str(tmp_path / "results"))
    if entries is None:
        check_tokenizer(study)
    else:
        with pytest.raises(UserError, match=rf"'stage1'.*tokenizer\.json has {entries} entries.*512 embeddings"):
            check_tokenizer(study)


# --- speed, hours, cost ---


def test_hours_follow_from_peak_and_utilisation():
    row = only("baseline", gpu={"utilisation": 0.5})
    flops = row["flops"] + row["validation_flops"]
    assert row["basis"] == "assumed" and row["hours"] == pytest.approx(flops / (0.5 * 312e12) / 3600)
    assert row["cost"] == pytest.approx(row["gpu_hours"] * 1.8)
    assert only("baseline", gpu={"utilisation": 0.5, "tflops": 624})["hours"] == pytest.approx(row["hours"] / 2)


def test_more_gpus_share_the_hours_and_not_the_cost():
    one = only("baseline")
    many = only("baseline", baseline={"operation.gpus": 4, "operation.nodes": 2})
    assert many["gpus"] == 8 and many["hours"] == pytest.approx(one["hours"] / 8)
    assert many["gpu_hours"] == pytest.approx(one["gpu_hours"]) and many["cost"] == pytest.approx(one["cost"])


@pytest.mark.parametrize("gpu", [{"utilisation": None}, {"name": "unheard of"}])
def test_hours_are_left_out_if_the_speed_is_not_known(gpu):
    row = only("baseline", gpu=gpu)
    assert row["hours"] is None and row["cost"] is None and row["basis"] == ""


def calibrated(results, device="NVIDIA A100-SXM4-80GB", **changes):
    """A study with a calibration of the baseline's model."""
    study = load(CONFIG, "paper.yaml", results=str(results), **changes)
    models = {speed.model_digest(study.runs["baseline"]): {"flops_per_s": 1e13}}
    content = {"device": device, "kind": "cuda", "models": models}
    speed.calibration_path(study.results).write_text(json.dumps(content))
    return study


def test_a_measured_speed_is_used_for_its_model_on_its_gpu_only(tmp_path):
    study = calibrated(tmp_path)
    rows = {row["run"]: row for row in plan_rows(study)}
    measured = {name for name, row in rows.items() if row["basis"] == "measured"}
    assert {"baseline", "LR3", "stage1"} <= measured and not {"A6", "B1", "360M-C1-F"} & measured
    assert rows["baseline"]["tflops"] == 10
    assert f"{len(measured)} runs, on NVIDIA A100" in plan_text(study)
    assert {row["basis"] for row in plan_rows(calibrated(tmp_path, device="NVIDIA A1000"))} == {"assumed"}


@pytest.mark.parametrize("change", [
    {"optim.batch_size": 8}, {"operation.micro_frames": 64}, {"operation.recompute": True}, {"operation.gpus": 4},
    {"operation.gpus": 2, "operation.shard_weights": True}, {"optim.ema": 0.999}, {"train.precision": "float32"},
])  # fmt: skip
def test_a_run_that_changed_since_the_calibration_is_not_measured(change, tmp_path):
    calibrated(tmp_path)
    assert only("baseline", results=str(tmp_path))["basis"] == "measured"
    assert only("baseline", results=str(tmp_path), baseline=change)["basis"] == "assumed"


@pytest.mark.parametrize(("change", "times"), [
    ({"operation.threads": 8}, 0.5), ({"train.precision": "float32"}, 1.6), ({"operation.recompute": True}, 4 / 3),
    ({"operation.ranks": 2}, 0.5),
])  # fmt: skip
def test_hours_on_cpus_follow_from_threads_and_precision(change, times):
    on_cpus = {"operation.gpus": 0}
    one, other = (only("baseline", baseline=on_cpus | more, gpu=None) for more in ({}, change))
    assert one["hours"] == pytest.approx((one["flops"] + one["validation_flops"]) / (4 * 80e9) / 3600)
    assert other["hours"] == pytest.approx(times * one["hours"]) and other["cost"] is None
    text = plan_text(load(CONFIG, "config.yaml"))
    assert "50 GFLOP/s per thread in float32, 80 in bfloat16" in text and "not known" not in text


def test_layers_that_are_computed_again_take_their_time():
    again = only("baseline", baseline={"operation.recompute": True})
    assert again["hours"] == pytest.approx(only("baseline")["hours"] * 4 / 3)


@pytest.mark.parametrize("content", [
    '{"models": ', "[]", '{"device": "x", "models": {}}', '{"device": "x", "kind": "cpu", "models": {"a": {}}}',
    '{"device": "x", "kind": "cpu", "models": {"a": {"flops_per_s": 0}}}',
])  # fmt: skip
def test_a_damaged_calibration_is_named(content, tmp_path):
    study = load(CONFIG, "config.yaml", results=str(tmp_path))
    speed.calibration_path(study.results).write_text(content)
    with pytest.raises(UserError, match=r"calibration\.json: not a calibration"):
        plan_rows(study)


def test_the_totals_hold_sums_the_longest_chain_and_their_assumptions(tmp_path):
    study = load(CONFIG, "paper.yaml")
    rows = plan_rows(study)
    text = plan_text(study, rows)
    facts = (f"{sum(row['hours'] for row in rows):.1f} h", f"{sum(row['cost'] for row in rows):.2f} USD",
             "stage1 > stage2 > stage3", "25% of A100's 312 TFLOP/s", "gpu.utilisation", "1.8 per hour",
             "gpu.price_per_hour")  # fmt: skip
    assert [fact for fact in facts if fact not in text] == []
    study = calibrated(tmp_path, gpu={"utilisation": None})
    unknown = sum(row["hours"] is None for row in plan_rows(study))
    assert unknown and f"without {unknown} runs of unknown speed: " in plan_text(study)


def test_the_command_prints_and_writes_the_plan(tmp_path, capsys):
    arguments = ["--study", str(CONFIG / "smoke.yaml"), "--out", str(tmp_path)]
    assert plan.main(parse("fvlm.study.plan", arguments)) == 0
    assert capsys.readouterr().out == (tmp_path / "plan.txt").read_text()
    rows = list(csv.DictReader((tmp_path / "plan.csv").read_text().splitlines()))
    assert [row["run"] for row in rows] == list(load(CONFIG, "smoke.yaml").runs)
    assert all(float(row["hours"]) > 0 and float(row["memory_gb"]) > 0.5 and row["gpu_hours"] == "" for row in rows)


# --- calibration ---


def test_calibrated_steps_are_used_by_the_plan(tmp_path, capsys):
    study = tmp_path / "study.yaml"
    study.write_text(f"based_on: smoke.yaml\nstudy: timed\nresults: {tmp_path}\n")
    arguments = ["baseline", "B1", "--seconds", "0.1", "--study", str(study)]
    assert calibrate(parse("fvlm.study.calibrate", arguments)) == 0
    found = json.loads((tmp_path / "calibration.json").read_text())
    assert found["kind"] == "cpu" and len(found["models"]) == 2 and "s per step" in capsys.readouterr().err
    resolved = load(CONFIG, "smoke.yaml", results=str(tmp_path))
    rows = {row["run"]: row for row in plan_rows(resolved)}
    measured = found["models"][speed.model_digest(resolved.runs["baseline"])]
    assert rows["baseline"]["basis"] == "measured" and rows["A6"]["basis"] == "assumed"
    flops = rows["baseline"]["flops"] + rows["baseline"]["validation_flops"]
    assert rows["baseline"]["hours"] == pytest.approx(flops / measured["flops_per_s"] / 3600)


def test_runs_for_a_gpu_are_not_calibrated_without_one():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    arguments = parse("fvlm.study.calibrate", ["B0", "--study", str(CONFIG / "paper.yaml")])
    with pytest.raises(UserError, match="no GPU here"):
        calibrate(arguments)


def test_a_model_that_one_process_cannot_hold_is_not_timed(tmp_path, capsys):
    study = load(CONFIG, "paper.yaml", baseline={"operation.gpus": 2, "operation.shard_weights": True})
    assert "split over 2 processes" in why_not(study.runs["1.7B-C1-F"], ("card", 32.0))
    whole = load(CONFIG, "paper.yaml").runs["1.7B-C1-F"]
    assert "not timed: run '1.7B-C1-F': training needs up to 65.0 GB" in why_not(whole, ("card", 32.0))
    assert why_not(whole, ("card", 80.0)) is None
    path = tmp_path / "study.yaml"
    settings = "{operation.ranks: 2, operation.shard_weights: true}"
    path.write_text(f"based_on: smoke.yaml\nstudy: split\nresults: {tmp_path}\nbaseline: {settings}\n")
    with pytest.raises(UserError, match="no model could be timed here"):
        calibrate(parse("fvlm.study.calibrate", ["B1", "--study", str(path)]))
    assert "B1: not timed" in capsys.readouterr().err and not (tmp_path / "calibration.json").exists()


def test_random_samples_are_as_long_as_the_plan_expects():
    study = load(CONFIG, "config.yaml")
    run = study.runs["baseline"]
    samples, amounts = expected(run, study, 600), amounts_of(run, study)
    assert sum(s.shown for s in samples) / 600 == pytest.approx(amounts.visual_tokens / amounts.samples, rel=0.05)
    assert sum(s.tokens for s in samples) / 600 == pytest.approx(amounts.text_tokens / amounts.samples, rel=0.05)
    assert flops_of(samples, run) / 600 == pytest.approx(amounts.flops / amounts.samples, rel=0.1)


def test_a_trial_learns():
    study = load(CONFIG, "smoke.yaml", baseline={"optim.warmup": 0.0})
    run = study.runs["baseline"]
    trial, batches = Trial(run, torch.device("cpu")), step_of(expected(run, study, 4), run)
    losses = [trial.step(batches)[1] for _ in range(8)]
    assert losses[-1] < losses[0]
