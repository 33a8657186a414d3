"""A mistake in the configuration is one sentence that names the file, the field and the remedy."""

import pytest

from fvlm.costs.limits import check_data
from fvlm.errors import UserError
from tests.config_cases import edit, load

MISTAKES = {  # mistake: (file, old text, new text, *facts that the message holds)
    "unknown key of the study": ("config.yaml", "shards: {", "shard: {", "'demo'", "'shard'", "'shards'"),
    "unknown field of the study": ("config.yaml", "  train.evaluations:", "  train.evaluatons:", "'demo'", "baseline",
        "'train.evaluatons'", "'train.evaluations'"),
    "unknown field of an ablation": ("ablations.yaml", "model.fine_pass:", "model.fine_pas:", "config/ablations.yaml",
        "A6", "'model.fine_pas'", "'model.fine_pass'"),
    "a run called like a seed of another": ("ablations.yaml", "A7: {", "A6-s43: {", "config/ablations.yaml: A6-s43",
        "called like a further seed", "`seeds:`"),
    "a share of questions above 1": ("ablations.yaml", "data.question_first: 0.5}", "data.question_first: 1.5}",
        "config/ablations.yaml: Q1", "'data.question_first'", "less than or equal to 1", "found 1.5"),
    "nothing to train": ("ablations.yaml", "optim.freeze: [llm, dino]}", "optim.freeze: [llm, dino, connector]}",
        "F1", "optim.freeze", "nothing to train", "foveated"),
    "nothing to train in a blind model": ("ablations.yaml", "model.architecture: blind}",
        "model.architecture: blind, optim.freeze: [llm]}", "B0", "optim.freeze", "nothing to train", "blind"),
    "preferences with a coarse loss": ("stages.yaml", "  data.loss: preference",
        "  data.loss: preference\n  model.lambda_coarse: 0.5", "dpo", "model.lambda_coarse is 0.5", "set it to 0"),
    "preferences among other data": ("stages.yaml", "  data.share: {preference: 1.0}",
        "  data.share: {preference: 0.9, text: 0.1}", "dpo", "data.loss is 'preference'", "text",
        "data.share: {preference: 1.0}"),
    "preferences from scratch": ("stages.yaml", "  parent: stage3\n", "", "dpo", "data.loss is 'preference'",
        "`parent:`"),
    "more processes than GPUs": ("ablations.yaml", "data.question_first: 0.5}",
        "operation.gpus: 2, operation.ranks: 4}", "Q1", "operation.ranks is 4", "operation.gpus 2",
        "operation.ranks: null"),
    "unknown field of a stage": ("stages.yaml", "  parent: stage1", "  parents: stage1", "config/stages.yaml",
        "stage2", "'parents'", "'parent'"),
    "unknown key of the baseline": ("baseline.yaml", "  clip:", "  clips:", "config/baseline.yaml", "'optim.clips'",
        "'clip'"),
    "field of the baseline that is missing": ("baseline.yaml", "  clip: 1.0 ", "  # ", "config/baseline.yaml",
        "'optim.clip'", "missing"),
    "value of the baseline": ("baseline.yaml", "  clip: 1.0 ", "  clip: -1.0 ", "config/baseline.yaml",
        "'optim.clip'", "greater than 0", "-1.0"),
    "unknown key of the grid": ("config.yaml", "  budgets: {C1", "  budget: {C1", "scaling", "'budget'", "'budgets'"),
    "unknown part of a grid run's name": ("config.yaml", "scaling:\n", "scaling:\n  names: '{size}_{frames}f'\n",
        "names", "{size}_{frames}f", "{letter}"),
    "part of a part of a grid run's name": ("config.yaml", "scaling:\n", "scaling:\n  names: '{size.frames}'\n",
        "names", "{size.frames}", "{letter}"),
    "unknown source": ("config.yaml", "data.sources: [grid, moves, questions,",
        "data.sources: [grid, moves, question,", "'baseline'", "data.sources", "'question'", "config/sources.yaml",
        "'questions'"),
    "unknown key of a source": ("sources.yaml", "held_out: grid_held_out", "heldout: grid_held_out",
        "config/sources.yaml", "'grid'", "'heldout'", "'held_out'"),
    "unknown kind of a source": ("sources.yaml", "grid: {kind: video", "grid: {kind: film", "config/sources.yaml",
        "'grid'", "kind", "'video'", "'film'"),
    "a source twice": ("config.yaml", "data.sources: [grid, moves, questions,",
        "data.sources: [grid, moves, grid, questions,", "'baseline'", "data.sources", "'grid' twice", "remove one"),
    "two names of the same files": ("sources.yaml", "grid: {kind: video, reader: demo, samples: 305, demo_seed: 1",
        "grid: {kind: video, reader: demo, samples: 305, demo_family: moves, demo_seed: 2", "'grid' and 'moves'",
        "the very same files", "remove one"),
    "held out: the same files": ("sources.yaml", "demo_family: grid, samples: 64, demo_seed: 1001",
        "demo_family: grid, samples: 64, demo_seed: 1", "'grid'", "held_out", "'grid_held_out'",
        "the very same files", "0.1"),
    "results that Snakemake could not take": ("config.yaml", "results: results", "results: my{results}", "'demo'",
        "'my{results}'", "'{'"),
    "results in two ways": ("config.yaml", "results: results", "results: ./results/", "'demo'", "'./results/'",
        "'results'"),
    "seed below 0": ("baseline.yaml", "  seed: 42 ", "  seed: -1 ", "train.seed", "-1", "0 or more"),
    "held out: no such source": ("sources.yaml", "held_out: grid_held_out", "held_out: grid_heldout",
        "config/sources.yaml", "'grid'", "held_out", "'grid_heldout'", "0.1"),
    "unknown model size": ("config.yaml", "model.encoder: demo-dino", "model.encoder: demo-dinos", "model.encoder",
        "'demo-dinos'", "config/models.yaml", "'demo-dino'"),
    "shares do not add up": ("ablations.yaml", "data.share: {video: 0.55,", "data.share: {video: 0.65,",
        "config/ablations.yaml", "D1", "data.share", "1.1", "add up to 1"),
    "weight of a source that the run has not": ("ablations.yaml", "model.fine_pass: false}",
        "data.weights: {gird: 1.0}}", "'A6'", "data.weights", "'gird'", "'grid'"),
    "weights for a part of a kind": ("ablations.yaml", "model.fine_pass: false}", "data.weights: {grid: 1.0}}",
        "'A6'", "data.weights", "video", "'moves'", "add a weight"),
    "no parent": ("stages.yaml", "parent: stage2", "parent: stage_2", "'stage3'", "parent", "'stage_2'", "'stage2'"),
    "no source of a kind": ("config.yaml", "data.sources: [questions, pictures, chat]",
        "data.sources: [questions, pictures]", "'stage2'", "data.share", "text", "questions, pictures"),
    "two lengths": ("ablations.yaml", "model.fine_pass: false}", "train.flops: 1.0e+9, train.samples: 12}",
        "config/ablations.yaml", "A6", "train.samples", "train.flops", "null"),
    "no number": ("config.yaml", "train.samples: 1200", "train.samples: many", "train.samples", "'many'", "integer"),
    "a rate that ends nowhere": ("ablations.yaml", "model.fine_pass: false}", "optim.schedule: converging}",
        "config/ablations.yaml", "A6", "optim.final_lr", "'converging'"),
    "tokens that are no square": ("ablations.yaml", "model.architecture: multi_token}",
        "model.architecture: multi_token, model.tokens_per_frame: 12}", "config/ablations.yaml", "B1",
        "model.tokens_per_frame", "12", "square"),
    "tokens that are not 49": ("ablations.yaml", "model.tokens_per_frame: 49", "model.tokens_per_frame: 16",
        "config/ablations.yaml", "B2", "model.tokens_per_frame", "16", "49"),
    "prepared source": ("config.yaml", "prepare: []", "prepare: [preference]", "prepare", "'preferences'"),
    "held out: trained on": ("sources.yaml", "held_out: grid_held_out", "held_out: moves", "'grid'", "held_out",
        "'moves'", "trains on"),
    "held out: another kind": ("sources.yaml", "held_out: grid_held_out", "held_out: chat_held_out", "'grid'",
        "held_out", "'chat_held_out'", "kind text", "video"),
    "another model than the parent's": ("stages.yaml", "  parent: stage1\n",
        "  parent: stage1\n  model.architecture: multi_token\n", "'stage2'", "model.architecture", "'stage1'"),
    "a stage and an ablation of one name": ("ablations.yaml", "D1: {", "stage1: {", "'stage1'", "two runs", "rename"),
    "a list for a mapping": ("config.yaml", "ablations:\n", "only: [A1]\nablations:\n", "'demo'", "only", "mapping"),
    "only what is not there": ("config.yaml", "ablations:\n", "only: {ablations: [basline]}\nablations:\n", "only",
        "'basline'", "'baseline'"),
    "two tokenizers": ("config.yaml", "tokenizer: {vocabulary: 512}", "tokenizer: {vocabulary: 512, weights: x}",
        "tokenizer", "either `weights` or `vocabulary`"),
    "more words than the model has": ("config.yaml", "tokenizer: {vocabulary: 512}", "tokenizer: {vocabulary: 1024}",
        "'stage1'", "1024", "512", "tokenizer.vocabulary"),
    "a comparison of no run": ("comparisons.yaml", "runs: {A9: a third look}", "runs: {A99: a third look}",
        "config/comparisons.yaml", "sweeps: third look", "'A99'", "did you mean 'A9'?"),
    "an unknown key of a sweep": ("comparisons.yaml", "against: two looks", "againts: two looks",
        "config/comparisons.yaml", "sweeps: third look", "'againts'", "did you mean 'against'?"),
    "an unknown cell of the factorial": ("comparisons.yaml", "{deep_fine: baseline", "{deep_fin: baseline",
        "config/comparisons.yaml", "'factorial.cells.deep_fin'", "did you mean 'deep_fine'?"),
    "a question that is no sentence": ("ablations.yaml", 'question: "What does looking twice buy?"', "question: 2",
        "config/ablations.yaml: A6", "question is 2", "in quotes"),
    "broken YAML": ("ablations.yaml", "baseline: {", "baseline: {[", "ablations.yaml", "not valid YAML"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_sentence_with_its_place_and_remedy(folder, mistake):
    file, old, new, *expected = MISTAKES[mistake]
    edit(folder / file, old, new)
    with pytest.raises(UserError) as caught:
        load(folder)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 600
    assert [fact for fact in expected if fact not in message] == [], message


@pytest.mark.parametrize("key, nearest", [
    ("ablation", "ablations"), ("baselin", "baseline"), ("stage", "stages"), ("scalin", "scaling"), ("seed", "seeds"),
    ("onyl", "only"), ("base_on", "based_on"), ("result", "results"), ("comparison", "comparisons"),
])  # fmt: skip
def test_a_hint_knows_every_key_of_a_study(folder, key, nearest):
    with pytest.raises(UserError, match=f"unknown key '{key}', did you mean '{nearest}'"):
        load(folder, **{key: {}})


def test_a_study_does_not_set_its_runs(folder):
    with pytest.raises(UserError, match="'demo': unknown key 'runs'") as error:
        load(folder, runs=1)
    assert "'runs'?" not in str(error.value)


def test_a_missing_file_is_named(folder):
    (folder / "smoke.yaml").write_text("study: mine\nresults: r\nbased_on: nowhere.yaml\n")
    with pytest.raises(UserError, match=r"config/nowhere\.yaml: no such file"):
        load(folder, "smoke.yaml")


def test_more_than_one_epoch_is_refused_before_the_first_job(folder):
    edit(folder / "config.yaml", "train.samples: 1400", "train.samples: 200000")
    with pytest.raises(UserError) as caught:
        check_data(load(folder))
    facts = ("'stage3'", "train.samples 200,000", "grid", "twice", "lower it")
    assert [fact for fact in facts if fact not in str(caught.value)] == []


def test_a_budget_that_buys_more_than_one_epoch_is_refused(folder):
    edit(folder / "config.yaml", "C4: 1.6e+11", "C4: 3.2e+15")
    with pytest.raises(UserError, match=r"'S-C4-F': train\.flops 3\.2e\+15 = about .* twice"):
        check_data(load(folder))


@pytest.mark.parametrize("seeds, expected", [
    ({"A66": [1, 2]}, ("'A66'", "did you mean 'A6'?")),
    ({"stage1": [1, 2]}, ("'stage1'", "no ablation or grid run")),
    ({"A6": [1, 1]}, ("A6", "[1, 1]", "different whole numbers")),
    ({"A6": 3}, ("A6", "found 3", "list")),
    ({"A6": [42, -1]}, ("A6", "found [42, -1]", "from 0")),
    ({"A6": []}, ("A6", "found []", "list")),
    ({"A6": None, "A7": {}}, ("A7", "found {}", "list")),
])  # fmt: skip
def test_seeds_that_cannot_be(folder, seeds, expected):
    with pytest.raises(UserError) as error:
        load(folder, "paper.yaml", seeds=seeds)
    assert all(word in str(error.value) for word in expected), error.value
