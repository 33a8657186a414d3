"""The training loop on real shards of real videos, with small real models."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_model

from fvlm.config.resolve import study_from_files
from fvlm.data.batches.loader import Steps, open_held_out, open_training
from fvlm.data.shards.index import load_index
from fvlm.errors import UserError
from fvlm.model.build import build_model
from fvlm.train.order import lengths_of, planned_order, sample_flops
from fvlm.train.progress import Progress, TimeSpent
from fvlm.train.training import train
from tests.conftest import ROOT
from tests.train_cases import records, study_in, trained


def test_batch_size_changes_the_step(prepared, tmp_path):
    """An earlier loop always used batches of one sample."""
    rows, _, summary = trained(prepared, tmp_path, baseline={"optim.batch_size": 8})
    assert [row["samples"] for row in rows] == [8, 16] and summary["steps"] == 2


def test_a_run_starts_from_its_parents_best_weights(prepared, tmp_path):
    study = study_in(prepared)
    trained(prepared, tmp_path, "baseline")
    child = tmp_path / "child"
    (child / "state").mkdir(parents=True)
    train(study.runs["baseline"].model_copy(update={"name": "child", "parent": "baseline"}), study, child)
    first = json.loads((child / "state/validation.jsonl").read_text().splitlines()[0])
    parent = json.loads((tmp_path / "baseline/run_summary.json").read_text())
    assert first["step"] == 0 and first["val_loss"] == pytest.approx(parent["best"]["val_loss"], rel=1e-6)


def test_a_run_needs_a_trained_parent(prepared, tmp_path):
    study = study_in(prepared)
    child = study.runs["baseline"].model_copy(update={"name": "child", "parent": "baseline"})
    with pytest.raises(UserError, match=r"'child' .*best.safetensors.* train 'baseline'"):
        train(child, study, tmp_path / "child")


def test_an_index_of_another_kind_is_refused(prepared):
    study = study_in(prepared)
    run = study.runs["baseline"]
    name = next(name for name in run.data.sources if study.sources[name].kind == "image")
    changed = study.sources | {name: study.sources[name].model_copy(update={"kind": "preference"})}
    with pytest.raises(UserError, match=rf"{name!r}: its index .* image, .* preference; .*fvlm index {name}"):
        open_training(run, study.model_copy(update={"sources": changed}))


def test_frozen_parts_do_not_move(prepared, tmp_path):
    study = study_in(prepared)
    start = {key: value.clone() for key, value in build_model(study.runs["F1"].model, 42).state_dict().items()}
    _, weights, _ = trained(prepared, tmp_path, "F1")
    moved = {key.split(".")[0] for key in weights if not np.array_equal(weights[key], start[key].numpy())}
    assert moved == {"connector"}


def test_a_micro_batch_of_texts_has_no_gradient_if_only_the_connector_is_trained(prepared, tmp_path):
    rows, _, _ = trained(prepared, tmp_path, "F1", baseline={"operation.micro_tokens": 1})
    assert all(row["train_loss"] > 0 for row in rows)


def planned(prepared, name: str, settings: dict):
    """Return a run with settings, the lengths that its FLOPs are counted from, and its steps."""
    study = study_in(prepared, **{"ablations" if name == "baseline" else "stages": {name: settings}})
    run = study.runs[name]
    corpus = open_training(run, study)
    order, flops = planned_order(run, corpus)
    assert (flops > 0).all()
    return lengths_of(run, corpus, order), Steps(corpus, order, run, study, run.data.loss, 4)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("stage1", {}),
        ("baseline", {"data.question_first": 0.5}),
        ("baseline", {"model.architecture": "blind"}),
        ("dpo", {"data.question_first": 0.5}),
    ],
)
def test_flops_are_counted_from_the_lengths_of_the_batches(prepared, name, settings):
    (positions, frames, question, texts), steps = planned(prepared, name, settings)
    for i in range(len(steps.order)):
        batch = steps.batch([i])
        assert len(batch.frames) == frames[i]
        assert batch.frame_counts.tolist() == [positions[i]] * len(texts)
        assert batch.question_counts.tolist() == [question[i]] * len(texts)
        assert batch.token_counts.tolist() == [text[i] for text, _ in texts]
        masks = batch.loss_mask.split(batch.token_counts.tolist())
        assert [int(mask.sum()) for mask in masks] == [scored[i] for _, scored in texts]
    assert ("data.question_first" in settings) == bool(question.any())


@pytest.mark.parametrize("name", ["baseline", "dpo"])
def test_the_counted_length_of_a_cut_question_is_off_by_a_header_at_most(prepared, name):
    lengths, steps = planned(prepared, name, {"data.question_first": 1.0, "data.max_text_tokens": 40})
    header = 1 + len(steps.tokenizer.encode("assistant\n").ids)
    real = np.array([steps.batch([i]).question_counts.tolist() for i in range(len(steps.order))])
    assert real.shape == (len(steps.order), len(lengths.texts)) and real.any()
    assert (np.abs(lengths.question[:, None] - real) <= header).all()


TOO_FAST = {"optim.lr": {"connector": 1e30, "dino": 1e30, "llm": 1e30}, "optim.warmup": 0.0}


def test_a_gradient_that_is_not_finite_stops_the_run(prepared, tmp_path):
    """The scales of two layers cancel: the loss is finite, but the gradient of the first layer overflows."""
    run = study_in(prepared).runs["baseline"]
    start = build_model(run.model, 42)
    with torch.no_grad():
        start.connector.output_proj.weight.mul_(1e-30)
        start.connector.dino_to_llm.weight.mul_(1e30)
    (tmp_path / "parent/model").mkdir(parents=True)
    save_model(start, str(tmp_path / "parent/model/best.safetensors"))
    child = run.model_copy(update={"name": "child", "parent": "parent"})
    (tmp_path / "child/state").mkdir(parents=True)
    with pytest.raises(UserError, match=r"gradient norm is (nan|inf) at step 1, samples"):
        train(child, study_in(prepared), tmp_path / "child")


def test_a_validation_that_is_not_finite_stops_before_it_is_logged(prepared, tmp_path):
    with pytest.raises(UserError, match="validation loss is nan after step 1"):
        trained(prepared, tmp_path, baseline={**TOO_FAST, "train.evaluations": 4})
    assert [row["step"] for row in records(tmp_path / "baseline/state/validation.jsonl")] == [0]


@pytest.mark.parametrize("name", ["config.yaml", "paper.yaml"])
def test_stage_one_is_scored_on_all_text_later_stages_on_answers(name):
    runs = study_from_files([str(ROOT / "config" / name)], {}).runs
    assert [runs[stage].data.loss for stage in ("stage1", "stage2", "stage3")] == ["all", "answers", "answers"]


def test_every_source_is_validated_on_its_own_held_out_samples(prepared):
    """Validation data unlike the training data once reversed a conclusion."""
    study = study_in(prepared)
    run = study.runs["baseline"]
    seen = open_training(run, study)
    parts = [open_held_out(run, study, part, 100) for part in ("validation", "evaluation")]
    assert parts[0].names == parts[1].names == seen.names
    keys = [
        {str(index.keys[row]) for index, rows in zip(corpus.indices, corpus.rows, strict=True) for row in rows}
        for corpus in (seen, *parts)
    ]
    assert all(keys) and not keys[0] & keys[1] and not keys[0] & keys[2] and not keys[1] & keys[2]


def test_no_video_is_validated_and_evaluated_on(prepared, monkeypatch):
    study = study_in(prepared)
    run = study.runs["baseline"]

    def three_questions_each(path):
        index = load_index(path)
        index.group[:] = np.arange(len(index)) // 3
        return index

    monkeypatch.setattr("fvlm.data.batches.loader.load_index", three_questions_each)
    parts = [open_held_out(run, study, part, 100) for part in ("validation", "evaluation")]
    for place, name in enumerate(parts[0].names):
        one, other = ({*part.indices[place].group[part.rows[place]].tolist()} for part in parts)
        assert one and other and not one & other, name


def test_a_blind_model_trains(prepared, tmp_path):
    """Its parameter groups dino and connector are empty."""
    rows, _, summary = trained(prepared, tmp_path, ablations={"baseline": {"model.architecture": "blind"}})
    assert rows[-1]["train_loss"] < rows[0]["train_loss"] and rows[0]["grad_norm"] > 0
    assert summary["params_dino"] == summary["params_connector"] == summary["frames"] == 0


def test_without_held_out_samples_the_training_loss_selects_the_best_weights(prepared, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("fvlm.data.batches.order.FEW", 0)  # as in a large source, whose share is not counted
    share = {name: {"held_out": 1e-4} for name in ("grid", "pictures", "chat")}  # of so few samples: none
    _, _, summary = trained(prepared, tmp_path, sources=share, baseline={"train.evaluations": 2})
    assert "no held-out sample of grid, pictures, chat; the training has no validation loss" in capsys.readouterr().err
    points = records(tmp_path / "baseline/state/validation.jsonl")[1:]
    lowest = min(points, key=lambda point: point["train_loss"])  # the mean of two steps
    assert summary["best_by"] == "training loss" and summary["best"]["val_loss"] is None
    assert summary["best"] == {key: lowest[key] for key in summary["best"]}
    table = (tmp_path / "baseline/validation.csv").read_text().splitlines()
    assert len(table) == 1 + 1 + 2 and table[0].startswith("step,samples,flops,val_loss,train_loss")


def test_the_summary_of_a_run(prepared, tmp_path):
    study = study_in(prepared)
    run = study.runs["baseline"]
    corpus = open_training(run, study)
    order, flops = planned_order(run, corpus)
    assert flops.sum() == pytest.approx(sample_flops(run, corpus, order).sum())
    _, _, summary = trained(prepared, tmp_path)
    assert summary["flops"] == pytest.approx(flops.sum())
    assert 0 < summary["fill"]["rows"] <= 1 and summary["fill"]["spread"] < 0.1
    assert summary["best_by"] == "validation loss" and summary["config"]["name"] == "baseline"
    assert set(summary["versions"]) >= {"python", "torch", "transformers", "numpy", "safetensors", "fvlm"}
    assert set(summary["last_loss"]) == {"grid", "pictures", "chat"}
    checkpoints = summary["checkpoints"]
    newest = max((tmp_path / "baseline/state").glob("step_*.pt"))
    assert checkpoints["count"] == 3 and checkpoints["bytes"] > newest.stat().st_size  # that of the end has no moments
    assert 0 < checkpoints["seconds"] < summary["wall_s"] and 0 < checkpoints["share_of_time"] < 1
    assert summary["train_s"] + summary["validation_s"] + checkpoints["seconds"] < summary["wall_s"]
    assert summary["samples_per_s"] == pytest.approx(summary["samples"] / summary["train_s"], rel=1e-2)


def test_the_time_left_counts_evaluations_and_checkpoints_and_this_process_alone(prepared):
    run = study_in(prepared, baseline={"operation.checkpoint_steps": 20, "operation.checkpoint_minutes": None})
    run = run.runs["baseline"]
    spent = TimeSpent(steps=1000.0, validations=30.0, validation_count=3, checkpoints=8.0, checkpoint_count=4)
    trainer = SimpleNamespace(
        run=run, step=50, total=100, evaluate_after={50, 75, 100}, spent=spent, samples_seen=0, work=None
    )
    progress = Progress(trainer)
    spent.steps += 20.0  # ten steps on this machine: 2 s each
    assert progress.seconds_left(60) == pytest.approx(40 * 2 + 2 * 10 + 2 * 2)
    trainer.run = run.model_copy(update={"operation": run.operation.model_copy(update={"checkpoint_minutes": 0.25})})
    assert progress.seconds_left(60) == pytest.approx(40 * 2 + 2 * 10 + 6 * 2)
