"""Digests: which changes of the configuration and of the schema train a run again."""

import pytest
from pydantic import create_model

from fvlm import data_report
from fvlm.config.schema import Data, LanguageSize, Model, Run, Source, Study, added
from fvlm.costs.speed import model_digest
from tests.config_cases import CONFIG, load

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
