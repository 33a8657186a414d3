"""Digests: which changes of the configuration and of the schema train a run again."""

from pathlib import Path

import pytest
import yaml
from pydantic import create_model

from fvlm import data_report
from fvlm.config.schema import Data, LanguageSize, Model, Run, Source, Study, added
from fvlm.config.study_file import read_yaml
from fvlm.costs.speed import model_digest
from tests.config_cases import CONFIG, edit, load


def digests(folder: Path, study: str = "paper.yaml", **changes) -> dict[str, str]:
    return {name: run.digest for name, run in load(folder, study, **changes).runs.items()}


def changed(before: dict, after: dict) -> set[str]:
    return {name for name in before | after if before.get(name) != after.get(name)}


# --- changes of the configuration ---

OTHER = {
    "data.max_frames": 8,  # another valid value where the one beside it cannot be derived
    "model.architecture": "multi_token",
    "model.encoder": "dinov2-base",
    "model.language": "SmolLM2-360M",
    "model.tokens_per_frame": 9,
    "data.sources": ["webvid", "openvid", "cauldron", "smoltalk_s1"],
    "data.weights": {"cauldron": 1.0},
    "data.loss": "answers",
    "operation.wandb": "offline",
    "optim.schedule": "constant",
    "optim.betas": [0.9, 0.95],
    "optim.freeze": ["llm"],
    "train.epoch": 1,
    "train.precision": "float32",
}
TOGETHER = {  # two fields that only go together
    "data.share.video": {"data.share": {"video": 0.50, "image": 0.36, "text": 0.14}},
    "data.share.image": {"data.share": {"video": 0.60, "image": 0.20, "text": 0.20}},
    "data.share.text": {"data.share": {"video": 0.66, "image": 0.26, "text": 0.08}},
    "optim.final_lr": {
        "optim.final_lr": {"connector": 1e-6, "dino": 1e-6, "llm": 1e-6},
        "optim.schedule": "converging",
    },
    "train.flops": {"train.flops": 1.0e15, "train.samples": None},
    "operation.ranks": {"operation.gpus": 2, "operation.ranks": 2},
}


def leaves(content: dict, prefix: str = "") -> dict:
    """Every field of baseline.yaml by dotted path."""
    fields = {}
    for key, value in content.items():
        branch = isinstance(value, dict) and value
        fields |= leaves(value, f"{prefix}{key}.") if branch else {prefix + key: value}
    return fields


def another(path: str, value) -> dict:
    """Overrides that change this field."""
    if path in TOGETHER:
        return TOGETHER[path]
    if path in OTHER:
        return {path: OTHER[path]}
    if isinstance(value, bool):
        return {path: not value}
    return {path: value * 2 if value else 0.5}


@pytest.mark.parametrize("path", leaves(read_yaml(CONFIG / "baseline.yaml")))
def test_a_field_changes_the_digest_unless_it_is_about_operation(path):
    value = leaves(read_yaml(CONFIG / "baseline.yaml"))[path]
    alone = {"only": {"stages": [], "ablations": ["baseline"]}, "scaling": {"sizes": {}}}
    before = load(CONFIG, "paper.yaml", **alone).runs["baseline"]
    after = load(CONFIG, "paper.yaml", **alone, ablations={"baseline": another(path, value)}).runs["baseline"]
    assert before != after, "the override changed nothing"
    assert (before.digest == after.digest) == path.startswith("operation."), path


def test_the_size_of_a_model_is_in_the_digest(folder):
    before = digests(folder)
    edit(folder / "models.yaml", "dinov2-small: {width: 384, layers: 12", "dinov2-small: {width: 384, layers: 11")
    assert changed(before, digests(folder)) == set(before)


def test_another_split_or_prompt_changes_the_runs_that_use_it(folder):
    before = digests(folder)
    edit(folder / "sources.yaml", "held_out: 0.01, frames: 14", "held_out: 0.02, frames: 14")  # webvid
    assert {"stage1", "baseline", "135M-C1-F"} <= changed(before, digests(folder))
    assert not {"stage2", "stage3"} & changed(before, digests(folder))


def test_editing_one_ablation_changes_that_run_alone(folder):
    before = digests(folder)
    edit(folder / "ablations.yaml", "optim.lr.connector: 1.0e-3", "optim.lr.connector: 2.0e-3")
    after = digests(folder)
    assert changed(before, after) == {"LR2"}
    edit(folder / "ablations.yaml", "optim.lr.connector: 2.0e-3", "optim.lr.connector: 1.0e-3")
    assert digests(folder) == before


def test_a_new_ablation_changes_no_other_run(folder):
    before = digests(folder)
    with (folder / "ablations.yaml").open("a") as file:
        file.write("Q96: {model.query_dim: 96}  # is a narrow query enough?\n")
    assert changed(before, digests(folder)) == {"Q96"}


def test_comments_order_and_layout_change_no_digest(folder):
    before = digests(folder)
    for path in folder.glob("*.yaml"):
        content = yaml.safe_load(path.read_text())
        order = {key: content[key] for key in content if path.stem != "baseline"}
        turned = order or {key: dict(reversed(content[key].items())) for key in reversed(content)}
        path.write_text("# rewritten\n" + yaml.safe_dump(turned, sort_keys=False))
    assert digests(folder) == before


# --- a field that is added later ---


def with_field(schema, field: str, kind=int, neutral=1):
    """A subclass with one more field, as an update of the package would add it."""
    return create_model(schema.__name__, __base__=schema, **{field: (kind, added(neutral=neutral))})


NewLanguage = with_field(LanguageSize, "experts")
NewModel = create_model("NewModel", __base__=with_field(Model, "looks"), language=(NewLanguage, ...))
NewData = with_field(Data, "crops", kind=tuple[int, ...], neutral=())
NewRun = create_model("NewRun", __base__=with_field(Run, "copies"), model=(NewModel, ...), data=(NewData, ...))
PLACES = {"copies": (), "looks": ("model",), "crops": ("data",), "experts": ("model", "language")}


def saved(**changes) -> dict:
    """A run as run.json holds it from before the new fields existed, with some of them set."""
    content = load(CONFIG).runs["baseline"].model_dump(mode="json")
    for field, value in changes.items():
        place = content
        for part in PLACES[field]:
            place = place[part]
        place[field] = value
    return content


def test_a_new_field_changes_no_digest_while_it_is_neutral():
    before = load(CONFIG).runs["baseline"]
    without, neutral = NewRun(**saved()), NewRun(**saved(copies=1, looks=1, crops=[], experts=1))
    assert without.model.language.experts == without.copies == 1  # a run.json from before still loads
    assert without.digest == neutral.digest == before.digest
    assert model_digest(without) == model_digest(before)  # nor is the speed measured again


@pytest.mark.parametrize("field, value", [("copies", 2), ("looks", 2), ("crops", [1]), ("experts", 2)])
def test_a_new_field_changes_the_digest_otherwise(field, value):
    run = NewRun(**saved(**{field: value}))
    assert run.digest != NewRun(**saved()).digest
    assert NewRun(**run.model_dump(mode="json")) == run  # run.json holds it, neutral or not


def test_a_new_field_of_a_source_makes_the_data_report_again_only_when_it_is_used():
    study = load(CONFIG, only={"stages": ["stage1"], "ablations": []}, scaling={"sizes": {}}, seeds={"grid": None})
    entries = {name: source.model_dump(exclude_unset=True) for name, source in study.sources.items()}
    new = create_model("NewStudy", __base__=Study, sources=(dict[str, with_field(Source, "speed")], ...))

    def updated(**changes):
        sources = entries | {"grid": entries["grid"] | changes}
        return new(**study.model_dump(exclude={"sources"}), sources=sources)

    assert data_report.digest(updated(speed=1)) == data_report.digest(study) != data_report.digest(updated(speed=2))


@pytest.mark.parametrize("study, run, digest", [
    ("smoke.yaml", "A6", "c2578b95e3fae959"),
    ("config.yaml", "dpo", "394b9e70dc527643"),
    ("paper.yaml", "135M-C1-F", "ae79483458c38291"),
])  # fmt: skip
def test_an_update_of_the_package_trains_no_run_again(study, run, digest):
    assert load(CONFIG, study).runs[run].digest == digest, "a finished study would be trained again"
