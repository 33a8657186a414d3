"""The training loop on real shards of real videos, with small real models."""

import json

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from fvlm.config import load_study, merged, read_yaml
from fvlm.data.corpus import main as make_corpus
from fvlm.data.index import load_index, write_index
from fvlm.data.loader import Steps, load_steps, open_held_out, open_training
from fvlm.data.readers import read_rows
from fvlm.data.shards import make_shard
from fvlm.data.text import texts_of, train_tokenizer
from fvlm.errors import UserError
from fvlm.evaluate.losses import batches_by_source, held_out_samples
from fvlm.model.build import build_model
from fvlm.schema import Optim, Study
from fvlm.train.command import planned_order, sample_flops, train
from fvlm.train.optim import make_optimizer, rates_at
from fvlm.train.state import MetricsLog, load_checkpoint, save_checkpoint, write_csv
from tests.conftest import ROOT, parse

SAMPLES = {
    "grid": 24,
    "pictures": 24,
    "chat": 16,
    "grid_held_out": 6,
    "pictures_held_out": 6,
    "chat_held_out": 6,
}
CHANGES = {
    "stages": {"stage1": {"data.sources": ["grid", "pictures", "chat"], "train.samples": 24}},
    "baseline": {
        "data.sources": ["grid", "pictures", "chat"],
        "train.samples": 16,
        "operation.checkpoint_steps": 2,
    },
    "only": {"stages": ["stage1"], "ablations": ["baseline", "F1"]},
    "sources": {name: {"samples": count} for name, count in SAMPLES.items()},
    "prepare": [],
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Results folder with corpus, tokenizer, shards and indices of three small sources."""
    results = tmp_path_factory.mktemp("results")
    study = study_in(results)
    for name in SAMPLES:
        source = study.sources[name]
        arguments = [
            source.demo_family or name,
            "--out",
            str(results / "corpus" / name),
            "--samples",
            str(source.samples),
        ]
        make_corpus(parse("fvlm.data.corpus", [*arguments, "--seed", str(source.demo_seed)]))
    rows = {name: read_rows(results / "corpus" / name, "samples.jsonl") for name in SAMPLES}
    train_tokenizer(
        [text for table in rows.values() for row in table for text in texts_of(row, "")],
        512,
        results / "tokenizer",
    )
    for name, table in rows.items():
        tar = results / "shards" / name / "00000.tar"
        source = study.sources[name]
        make_shard(
            table,
            results / "corpus" / name,
            name,
            source.kind,
            source.prompt,
            tar,
            tar.with_suffix(".jsonl"),
        )
        write_index(
            [tar],
            results / "index" / f"{name}.npz",
            name,
            source.kind,
            results / "tokenizer",
            source.prompt,
            results,
        )
    return results


def study_in(results, **changes) -> Study:
    content = merged(read_yaml(ROOT / "config/smoke.yaml"), merged(CHANGES, {"results": str(results), **changes}))
    return load_study(content, ROOT / "config")


def trained(prepared, tmp_path, name="baseline", **changes):
    """Train one run into a folder of its own; returns (metrics rows without speed, final weights, summary)."""
    study = study_in(prepared, **changes)
    folder = tmp_path / name
    (folder / "state").mkdir(parents=True, exist_ok=True)
    train(study.runs[name], study, folder)
    rows = [json.loads(line) for line in (folder / "state/metrics.jsonl").read_text().splitlines()]
    for row in rows:
        row.pop("samples_per_s"), row.pop("memory_gb")
    return (
        rows,
        load_file(folder / "model/final.safetensors"),
        json.loads((folder / "summary.json").read_text()),
    )


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)


def test_same_seed_same_run_other_seed_other_run(prepared, tmp_path):
    one = trained(prepared, tmp_path / "1")
    two = trained(prepared, tmp_path / "2")
    other = trained(prepared, tmp_path / "3", baseline={"train.seed": 43})
    assert one[0] == two[0] and same(one[1], two[1])
    assert one[0] != other[0]


def test_batch_size_changes_the_step(prepared, tmp_path):
    """The old loop always used batches of one, whatever the configuration said."""
    rows, _, summary = trained(prepared, tmp_path, baseline={"optim.batch_size": 8})
    assert [row["samples"] for row in rows] == [8, 16] and summary["steps"] == 2


def test_accumulation_changes_nothing(prepared, tmp_path):
    """A step is the same in one forward pass or several: every scored token weighs the same."""
    whole = trained(prepared, tmp_path / "1", baseline={"train.precision": "float32"})
    split = trained(prepared, tmp_path / "2", baseline={"train.precision": "float32", "operation.micro_frames": 4})
    assert [r["train_loss"] for r in whole[0]] == pytest.approx([r["train_loss"] for r in split[0]], rel=2e-4)


def test_interrupted_between_any_two_checkpoints(prepared, tmp_path):
    """Stop after the second checkpoint, later metrics already logged, and go on: nothing differs, nothing is twice."""
    whole = trained(prepared, tmp_path / "whole")
    state = tmp_path / "cut" / "baseline" / "state"
    trained(prepared, tmp_path / "cut")
    study = study_in(prepared)
    _rewind(study, prepared, state)
    again = trained(prepared, tmp_path / "cut")
    assert again[0] == whole[0] and same(again[1], whole[1])


def _rewind(study, prepared, state) -> None:
    """Leave the state as a kill at step 3 would: the checkpoint of step 2, metrics up to step 3 and a torn line."""
    from fvlm.train import loop

    run = study.runs["baseline"]
    for path in state.glob("step_*.pt"):
        path.unlink()

    class Killed(BaseException):
        pass

    def killing(self, batches, context):
        if self.step == 3:
            raise Killed
        return update(self, batches, context)

    update = loop.Trainer._update
    loop.Trainer._update = killing
    try:
        train(run, study, state.parent)
    except Killed:
        pass
    finally:
        loop.Trainer._update = update
    with open(state / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "sam')
    assert sorted(path.name for path in state.glob("step_*.pt"))[-1] == "step_00000002.pt"


def test_a_truncated_checkpoint_is_passed_over(tmp_path, capsys):
    for step in (1, 2):
        save_checkpoint(tmp_path, step, {"identity": "x", "step": step, "model": {"w": torch.ones(100)}}, keep=2)
    path = tmp_path / "step_00000002.pt"
    path.write_bytes(path.read_bytes()[:300])
    assert load_checkpoint(tmp_path, "x")["step"] == 1
    assert "unreadable" in capsys.readouterr().err
    assert load_checkpoint(tmp_path, "y") is None


def test_best_weights_are_the_parents_start(prepared, tmp_path):
    study = study_in(prepared)
    trained(prepared, tmp_path, "baseline")
    child = tmp_path / "child"
    (child / "state").mkdir(parents=True)
    train(study.runs["baseline"].model_copy(update={"name": "child", "parent": "baseline"}), study, child)
    first = json.loads((child / "state/validation.jsonl").read_text().splitlines()[0])
    parent = json.loads((tmp_path / "baseline/summary.json").read_text())
    assert first["step"] == 0 and first["val_loss"] == pytest.approx(parent["best"]["val_loss"], rel=1e-6)


def test_a_run_whose_parent_is_not_trained_says_so(prepared, tmp_path):
    study = study_in(prepared)
    child = study.runs["baseline"].model_copy(update={"name": "child", "parent": "baseline"})
    with pytest.raises(
        UserError, match=r"'child' starts from .*best.safetensors, which is not there; train 'baseline'"
    ):
        train(child, study, tmp_path / "child")


def test_an_index_of_another_kind_is_refused(prepared):
    study = study_in(prepared)
    run = study.runs["baseline"]
    name = next(name for name in run.data.sources if study.sources[name].kind == "image")
    changed = study.sources | {name: study.sources[name].model_copy(update={"kind": "preference"})}
    with pytest.raises(UserError, match=rf"{name!r}: its index says image, .* says preference; .*fvlm index {name}"):
        open_training(run, study.model_copy(update={"sources": changed}))


def test_other_data_or_parent_starts_over(prepared, tmp_path):
    trained(prepared, tmp_path)
    state = tmp_path / "baseline/state"
    newest = max(state.glob("step_*.pt"))
    content = torch.load(newest, weights_only=True)
    save_checkpoint(state, content["step"], {**content, "identity": "another"}, keep=1)
    (state / "metrics.jsonl").write_text("")
    rows, _, _ = trained(prepared, tmp_path)
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))


def test_frozen_parts_do_not_move(prepared, tmp_path):
    study = study_in(prepared)
    start = {key: value.clone() for key, value in build_model(study.runs["F1"].model, 42).state_dict().items()}
    _, weights, _ = trained(prepared, tmp_path, "F1")
    moved = {key.split(".")[0] for key in weights if not np.array_equal(weights[key], start[key].numpy())}
    assert moved == {"connector"}


def test_texts_alone_train_nothing_where_only_the_connector_is_trained(prepared, tmp_path):
    rows, _, _ = trained(prepared, tmp_path, "F1", baseline={"operation.micro_tokens": 1})
    assert all(row["train_loss"] > 0 for row in rows)


def test_more_samples_than_there_are_is_refused(prepared, tmp_path):
    with pytest.raises(UserError, match="no sample is trained on twice"):
        trained(prepared, tmp_path, baseline={"train.samples": 10_000})


def test_a_loss_that_is_not_finite_stops_with_the_samples(prepared, tmp_path):
    with pytest.raises(
        UserError, match=r"loss is nan .* samples grid-|loss is nan .* samples pictures-|loss is nan .* chat-"
    ):
        trained(
            prepared,
            tmp_path,
            baseline={"optim.lr.connector": 1e30, "optim.lr.llm": 1e30, "optim.warmup": 0.0},
        )


def test_stage_one_scores_all_text_later_stages_answers(prepared):
    study = study_in(prepared)
    run = study.runs["stage1"]
    corpus = open_training(run, study)
    order, _ = planned_order(run, corpus)
    counts = {}
    for loss in ("all", "answers"):
        steps = Steps(corpus, order, run, study, loss, 8)
        counts[loss] = sum(int(batch.loss_mask.sum()) for batch in steps[0])
        tokens = sum(len(batch.token_ids) for batch in steps[0])
    assert counts["all"] == tokens - 8 and 0 < counts["answers"] < counts["all"] / 2


@pytest.mark.parametrize("workers", [1, 2, 8])
def test_steps_are_the_same_with_workers(prepared, workers):
    study = study_in(prepared)
    run = study.runs["baseline"]
    corpus = open_training(run, study)
    order, _ = planned_order(run, corpus)
    steps = Steps(corpus, order, run, study, "answers", 4)
    alone = [batch.keys for batches in load_steps(steps) for batch in batches]
    helped = [batch.keys for batches in load_steps(steps, 0, workers) for batch in batches]
    late = [batch.keys for batches in load_steps(steps, 2, workers) for batch in batches]
    assert alone == helped and sum(len(keys) for keys in alone) == len(order)
    assert late == alone[len(alone) - len(late) :]


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_steps_are_the_same_whatever_the_number_of_ranks(prepared, ranks):
    study = study_in(prepared)
    run = study.runs["baseline"]
    corpus = open_training(run, study)
    order, _ = planned_order(run, corpus)
    alone = Steps(corpus, order, run, study, "answers", 6)
    shared = [Steps(corpus, order, run, study, "answers", 6, rank, ranks) for rank in range(ranks)]
    for step in range(len(alone)):
        keys = [key for batch in alone[step] for key in batch.keys]
        parts = [[key for batch in steps[step] for key in batch.keys] for steps in shared]
        assert sorted(keys) == sorted(key for part in parts for key in part)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_every_source_is_held_against_its_own_unseen_samples(prepared):
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

    monkeypatch.setattr("fvlm.data.loader.load_index", three_questions_each)
    parts = [open_held_out(run, study, part, 100) for part in ("validation", "evaluation")]
    for place, name in enumerate(parts[0].names):
        one, other = ({*part.indices[place].group[part.rows[place]].tolist()} for part in parts)
        assert one and other and not one & other, name


def test_evaluation_batches_hold_every_sample_once_and_no_video_twice(prepared):
    study = study_in(prepared)
    steps = held_out_samples(study.runs["baseline"], study)
    for place, index in enumerate(steps.corpus.indices):  # as if three samples asked about each file
        index.group[:] = np.arange(len(index)) // 3 + 1000 * place
    batches = batches_by_source(steps)
    assert sorted(member for members, _ in batches for member in members) == list(range(len(steps.order)))
    for members, videos in batches:
        assert len(set(videos)) == len(members)
        assert len({int(steps.order.source[member]) for member in members}) == 1


def test_flops_of_samples_add_up_to_the_summary(prepared, tmp_path):
    study = study_in(prepared)
    run = study.runs["baseline"]
    corpus = open_training(run, study)
    order, flops = planned_order(run, corpus)
    assert flops.sum() == pytest.approx(sample_flops(run, corpus, order).sum())
    _, _, summary = trained(prepared, tmp_path)
    assert summary["flops"] == pytest.approx(flops.sum())
    assert 0 < summary["fill"]["rows"] <= 1 and summary["fill"]["spread"] < 0.1


def test_schedules():
    base = {"batch_size": 1, "lr": {"connector": 1e-3, "dino": 1e-5, "llm": 1e-5},
            "final_lr": None, "schedule": "cosine",
            "warmup": 0.1, "weight_decay": 0.0, "clip": 1.0, "betas": (0.9, 0.999), "freeze": ()}  # fmt: skip
    cosine = Optim(**base)
    assert rates_at(cosine, 0, 100)["connector"] == pytest.approx(1e-4)
    assert rates_at(cosine, 9, 100)["connector"] == pytest.approx(1e-3)
    assert rates_at(cosine, 99, 100)["connector"] == pytest.approx(0, abs=1e-9)
    constant = Optim(**{**base, "schedule": "constant"})
    assert rates_at(constant, 99, 100)["llm"] == 1e-5
    ends = {"connector": 3e-5, "dino": 3e-5, "llm": 3e-5}
    converging = Optim(**{**base, "schedule": "converging", "final_lr": ends})
    assert rates_at(converging, 99, 100) == pytest.approx(ends)


def test_decay_spares_norms_biases_and_embeddings(prepared):
    study = study_in(prepared)
    model = build_model(study.runs["baseline"].model, 0)
    optimizer = make_optimizer(model.parameter_groups(), study.runs["baseline"].optim)
    spared = {id(p) for group in optimizer.param_groups if group["weight_decay"] == 0 for p in group["params"]}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert (id(parameter) in spared) == (parameter.ndim < 2 or "embed" in name), name


def test_a_table_takes_fields_that_no_header_knew(tmp_path):
    """BUG-007 and BUG-011: the header is that of all records, written once with them."""
    write_csv(tmp_path / "t.csv", [{"a": 1}, {"a": 2, "returncode": 0}])
    assert (tmp_path / "t.csv").read_text() == "a,returncode\n1,\n2,0\n"


def test_metrics_after_the_checkpoint_are_dropped(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"ste')
    log = MetricsLog(path, 2)
    log.append({"step": 3})
    assert [record["step"] for record in log.records()] == [1, 2, 3]
