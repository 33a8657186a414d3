"""The configuration: the study that it resolves to, and the files themselves."""

import copy
import json
import re
import subprocess
import sys

import pytest

from fvlm.config.resolve import load_study, study_from_files
from fvlm.config.schema import Run
from fvlm.config.study_file import complete, merged, read_yaml, typed
from fvlm.costs.amounts import flops_per_sample
from fvlm.costs.limits import check_data
from fvlm.errors import UserError
from fvlm.study.plan import plan_rows, plan_text
from tests.config_cases import CONFIG, edit, load

STUDIES = (
    "config.yaml", "paper.yaml", "smoke.yaml", "comprehensive.yaml", "pilot.yaml", "pilot_cpu.yaml",
    "question_first.yaml",
)  # fmt: skip
ABLATIONS = [
    *("baseline", "F1", "F2", "LR2", "LR3", "LR4", "A1", "A6", "A7", "A8a", "A8b", "B1", "B2", "D1"),
    *("A9", "B0", "B3", "B4", "Q1"),
]


# --- what the files resolve to ---


@pytest.mark.parametrize("study", ("config.yaml", "paper.yaml"))
def test_a_study_has_its_stages_19_ablations_and_24_grid_runs(study):
    runs = load(CONFIG, study).runs
    stages = [name for name, run in runs.items() if run.family == "stage"]
    assert stages == ["stage1", "stage2", "stage3", *(["dpo"] if study == "config.yaml" else [])]
    assert [name for name, run in runs.items() if run.family == "ablation" and "-s" not in name] == ABLATIONS
    sizes = ("135M", "360M", "1.7B") if study == "paper.yaml" else ("S", "M", "L")
    expected = {f"{size}-C{budget}-{letter}" for size in sizes for budget in (1, 2, 3, 4) for letter in "FB"}
    grid = {name: run for name, run in runs.items() if run.family == "grid"}
    assert {name for name in grid if "-s" not in name} == expected
    further = {name for name, run in grid.items() if run.labels["budget"] == "C4"} - expected
    assert set(grid) == expected | further and len(further) == (12 if study == "config.yaml" else 0)


@pytest.mark.parametrize("study", STUDIES)
def test_every_study_has_enough_data(study):
    resolved = load(CONFIG, study)
    check_data(resolved)
    rows = plan_rows(resolved)
    assert all(row["samples"] > 0 and row["N"] > 0 and row["flops"] > 0 for row in rows)
    assert [line.split()[0] for line in plan_text(resolved).splitlines()[1 : len(rows) + 1]] == list(resolved.runs)


@pytest.mark.parametrize("name", ["stage3", "dpo"])
def test_a_plan_counts_the_questions_in_front(name):
    def planned(share):
        study = load(CONFIG, "config.yaml", stages={name: {"data.question_first": share}})
        return flops_per_sample(study.runs[name], study)

    last, mixed, first = (planned(share) for share in (0.0, 0.5, 1.0))
    assert last < first and mixed == pytest.approx((last + first) / 2)


@pytest.mark.parametrize("study", STUDIES)
def test_every_ablation_differs_from_the_baseline_and_from_every_other(study):
    runs = [run for run in load(CONFIG, study).runs.values() if run.family == "ablation"]
    contents = {
        run.name: json.dumps(run.model_dump(mode="json", exclude={"name", "question"}), sort_keys=True) for run in runs
    }
    assert len(set(contents.values())) == len(runs)


def test_the_settled_choices_are_the_defaults():
    baseline = load(CONFIG, "paper.yaml").runs["baseline"]
    assert baseline.model.deep_query and baseline.model.fine_pass
    assert (baseline.model.query_dim, baseline.model.query_init_std) == (384, 1.0)
    assert (baseline.model.visual_scale, baseline.model.lambda_coarse) == (0.14, 0.0)
    assert baseline.data.share["text"] == 0.14 and baseline.data.static_frames == 8
    assert (baseline.train.seed, baseline.train.samples, baseline.optim.batch_size) == (42, 300_000, 32)
    assert baseline.optim.freeze == ()
    lr2 = load(CONFIG, "paper.yaml").runs["LR2"].optim.lr
    assert (lr2.connector, lr2.dino, lr2.llm) == (1e-3, 1e-5, 1e-5)


def test_a_family_or_a_run_of_the_grid_can_be_left_out(folder):
    names = ["135M-C1-F", "360M-C4-B"]
    study = load(folder, "paper.yaml", only={"stages": [], "ablations": ["baseline"], "grid": names})
    assert list(study.runs) == ["baseline", *names]
    alone = load(folder, only={"stages": [], "ablations": ["baseline"], "grid": []})  # although C4 has further seeds
    assert set(alone.runs) == {"baseline", *(f"baseline-s{seed}" for seed in alone.seeds["baseline"][1:])}
    with pytest.raises(UserError, match=r"only: grid: no run '135M-C1', .*135M-C1-F"):
        load(folder, "paper.yaml", only={"grid": ["135M-C1"]})
    with pytest.raises(UserError, match="names two runs 'S_C1'"):
        load(folder, scaling={"names": "{size}_{budget}"})


def test_the_comprehensive_study_has_16_runs_in_pairs():
    study = load(CONFIG, "comprehensive.yaml")
    names = [f"{size}_{frames}f_{end}" for size in ("S-S", "M-S", "S-B", "B-L") for frames in (8, 64)
             for end in ("fov", "bas")]  # fmt: skip
    assert list(study.runs) == names
    for name, run in study.runs.items():
        assert run.family == "pairs" and run.data.max_frames == (64 if "_64f_" in name else 8)
        assert run.model.visual_tokens == (1 if name.endswith("fov") else 16)
        assert run.train.samples == 280 * run.optim.batch_size and run.train.evaluations * 14 == 280
        assert run.model.encoder.name == f"dinov2-{'base' if name[:3] in ('S-B', 'B-L') else 'small'}"


def test_the_grid_spends_its_budgets_in_the_two_architectures():
    runs = load(CONFIG, "paper.yaml").runs
    budgets = {"C1": 1.6e16, "C2": 5.6e16, "C3": 1.6e17, "C4": 3.1e17}
    for name, run in runs.items():
        if run.family != "grid":
            continue
        size, budget, letter = name.split("-")
        assert run.labels == {"size": size, "budget": budget, "letter": letter}
        assert (run.train.flops, run.train.samples) == (budgets[budget], None)
        assert run.model.language.name == f"SmolLM2-{size}"
        assert run.model.visual_tokens == (1 if letter == "F" else 16)


def test_seeds_are_runs_of_their_own_and_its_own_seed_keeps_the_name():
    lists = {"A6": [7, 42], "grid": [42, 2, 3], "C1": [1, 2, 42], "C4": [4], "360M-C4-B": [5, 42]}
    study = load(CONFIG, "paper.yaml", seeds=lists, only={"stages": [], "ablations": ["baseline", "A6"]})
    runs = study.runs
    assert list(runs)[:3] == ["baseline", "A6-s7", "A6"] and len(runs) == 3 + 18 * 3 + 6 + 1
    assert [runs[name].train.seed for name in ("135M-C4-F-s4", "360M-C4-B", "360M-C4-B-s5")] == [4, 42, 5]
    assert [runs[name].train.seed for name in ("baseline", "A6", "A6-s7")] == [42, 42, 7]
    assert [runs[f"135M-C1-F{suffix}"].train.seed for suffix in ("", "-s1", "-s2")] == [42, 1, 2]
    assert runs["A6-s7"].question == runs["A6"].question and runs["135M-C1-F-s2"].labels == runs["135M-C1-F"].labels
    alone = load(CONFIG, "paper.yaml").runs
    assert runs["A6"].digest == alone["A6"].digest != runs["A6-s7"].digest
    assert list(load(CONFIG, "paper.yaml", seeds={"A6": None, "grid": None}).runs) == list(alone)  # taken back


def test_the_order_of_the_seeds_and_a_dropped_one_change_no_other_run():
    by_list = [load(CONFIG, seeds={"A6": seeds}).runs for seeds in ([42, 43, 44], [44, 43, 42], [43, 44])]
    for runs in by_list[1:]:
        assert all(by_list[0][name].digest == run.digest for name, run in runs.items())
    assert [len(runs) - len(by_list[0]) for runs in by_list] == [0, 0, -1]
    other = {"ablations": {"A6": {"train.seed": 43}}, "seeds": {"A6": [42, 43]}}
    assert {name: run.train.seed for name, run in load(CONFIG, **other).runs.items() if name.startswith("A6")} == {
        "A6-s42": 42,
        "A6": 43,
    }


def test_a_complete_study_needs_no_other_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    whole = complete(read_yaml(CONFIG / "smoke.yaml"), [CONFIG])
    (tmp_path / "study.json").write_text(json.dumps(whole))
    assert study_from_files(["study.json"]) == load(CONFIG, "smoke.yaml")


def test_files_are_looked_for_beside_the_study_then_here_then_in_the_workflow(tmp_path, monkeypatch, folder):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/study.yaml").write_text("study: mine\nresults: results/mine\nbased_on: config.yaml\n")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert study_from_files(["../mine/study.yaml"]).runs == load(CONFIG).runs
    edit(folder / "config.yaml", "train.samples: 1200", "train.samples: 1400")
    monkeypatch.chdir(folder.parent)
    assert study_from_files(["mine/study.yaml"]).runs["A6"].train.samples == 1400
    (tmp_path / "mine/config.yaml").write_text((CONFIG / "config.yaml").read_text().replace("1200", "1300"))
    assert study_from_files(["mine/study.yaml"]).runs["A6"].train.samples == 1300


def test_values_that_snakemake_hands_on_as_text_get_their_type():
    changes = {"seeds": {"A6": ["42", "43"]}, "baseline": {"train.samples": "12"}, "only": "null", "results": "a b"}
    config = merged({"study": "7", "seeds": {"A1": [1]}, "prepare": ["x"]}, changes)
    assert typed(config, changes) == {
        "study": "7", "seeds": {"A1": [1], "A6": [42, 43]}, "baseline": {"train.samples": 12}, "only": None,
        "prepare": ["x"], "results": "a b",
    }  # fmt: skip
    assert typed({"results": "set later"}, {"results": "12"}) == {"results": "set later"}


def test_a_later_choice_replaces_an_earlier_one_where_only_one_may_stand(folder):
    (folder / "mine.yaml").write_text("study: m\nresults: m\nbased_on: config.yaml\ntokenizer: {weights: tok}\n")
    assert load(folder, "mine.yaml").tokenizer.weights == "tok"
    demo, change = read_yaml(folder / "config.yaml"), {"tokenizer": {"weights": "tok"}}
    config = demo | {"tokenizer": demo["tokenizer"] | change["tokenizer"]}  # as Snakemake merges --config
    assert typed(config, change)["tokenizer"] == {"weights": "tok"}
    runs = load(folder, ablations={"A6": {"train.flops": 1.0e9}, "A1": {"train.samples": 48}}).runs
    assert (runs["A6"].train.samples, runs["A6"].train.flops, runs["A1"].train.samples) == (None, 1.0e9, 48)


def test_a_study_based_on_another_holds_only_the_differences(folder):
    (folder / "mine.yaml").write_text("study: mine\nresults: results/mine\nbased_on: config.yaml\n")
    mine, demo = load(folder, "mine.yaml"), load(folder)
    assert (mine.study, mine.results) == ("mine", "results/mine")
    assert mine.runs == demo.runs and mine.sources == demo.sources


def test_only_builds_the_runs_it_names(folder):
    study = load(folder, "paper.yaml", only={"stages": ["stage1"], "ablations": ["baseline", "A6"]})
    families = [run.family for run in study.runs.values()]
    assert [families.count(family) for family in ("stage", "ablation", "grid")] == [1, 2, 24]


def test_the_same_files_and_changes_give_the_same_study():
    changes = {"baseline": {"train.seed": 7}}
    study = study_from_files([str(CONFIG / "config.yaml")], changes)
    assert study == load(CONFIG, baseline={"train.seed": 7})
    grid = [run for run in study.runs.values() if run.family == "grid" and run.labels["budget"] != "C4"]
    assert grid and all(run.train.seed == 7 for run in grid)


def test_a_run_survives_being_written_and_read():
    for run in load(CONFIG, "paper.yaml").runs.values():
        again = Run.model_validate(json.loads(json.dumps(run.model_dump(mode="json"))))
        assert again == run and again.digest == run.digest


def test_loading_does_not_change_what_it_is_given():
    config = read_yaml(CONFIG / "config.yaml")
    before = copy.deepcopy(config)
    load_study(config, CONFIG)
    assert config == before


# --- the files themselves ---


def test_every_field_of_the_baseline_has_a_comment():
    section, bare = "", []
    for line in (CONFIG / "baseline.yaml").read_text().splitlines():
        if match := re.match(r"(\w+):", line):
            section = match.group(1)
        elif (match := re.match(r"  (\w+):", line)) and " # " not in line:
            bare.append(f"{section}.{match.group(1)}")
    assert bare == [], f"say in config/baseline.yaml what these are: {', '.join(bare)}"


def test_every_ablation_has_its_question_which_a_study_may_change(folder):
    ablations = [run for run in load(CONFIG, "paper.yaml").runs.values() if run.family == "ablation"]
    assert all(run.question for run in ablations)
    changed = load(folder, ablations={"A6": {"question": "Is one look enough?"}, "A.7": {"question": "Any name?"}})
    assert changed.runs["A6"].question == changed.runs["A6-s43"].question == "Is one look enough?"
    assert changed.runs["A6"].digest == load(folder).runs["A6"].digest and changed.runs["A.7"].question == "Any name?"


def test_planning_imports_no_heavy_library():
    code = (
        "import sys, fvlm.study.plan, fvlm.study.status, fvlm.analysis.catalog, fvlm.analysis.finished\n"
        "heavy = ('torch', 'pandas', 'scipy', 'transformers', 'av', 'matplotlib')\n"
        "assert not [name for name in heavy if name in sys.modules]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
