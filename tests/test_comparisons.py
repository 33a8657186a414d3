"""A comparison is data: no run has its name in the code, and a new ablation is one entry of the configuration."""

import re

import pandas as pd
import pytest

from fvlm.__main__ import main
from fvlm.analysis.catalog import TABLES
from fvlm.analysis.columns import COLUMNS
from fvlm.analysis.files import write_table
from fvlm.analysis.tables import load as function_of
from tests.analysis_cases import COMPARISONS, collect, derive, study_summaries, summary, write_study
from tests.config_cases import edit, load
from tests.layout import MODULES
from tests.test_analysis_compare import NOTHING, runs_of

NO_GRID = {name: pd.DataFrame(columns=COLUMNS[name]) for name in ("scaling_fits", "isoflop")}
COMPARED = ("ablations", "factorial", "token_efficiency", "gap", "decisions")


def test_no_code_names_a_run():
    names = {*COMPARISONS.ablations, *COMPARISONS.named} - {COMPARISONS.reference}  # `baseline` is an English word
    pattern = re.compile(rf"\b({'|'.join(map(re.escape, sorted(names)))})\b")
    found = {module: pattern.findall(path.read_text()) for module, path in MODULES.items()}
    assert {module: set(named) for module, named in found.items() if named} == {}


def test_runs_of_other_names_are_compared_in_the_same_way(folder):
    """The reference and all ablations are renamed in the two files that name them."""
    new = {name: f"W{i}" for i, name in enumerate(COMPARISONS.ablations)}
    for file in ("ablations.yaml", "comparisons.yaml"):
        text = (folder / file).read_text()
        (folder / file).write_text(re.sub(rf"\b({'|'.join(new)})\b", lambda match: new[match[0]], text))
    renamed = load(folder, "paper.yaml").comparisons
    runs = runs_of(study_summaries(seeds=(42, 43), seeded=("baseline", "A6")))
    tables = {"runs": runs, "evaluation": NOTHING[0], "bootstrap": NOTHING[1]}
    names = {old + seed: name + seed for old, name in new.items() for seed in ("", "-s43")}
    other = tables | {"runs": runs.assign(run=runs["run"].replace(names))}
    back = {name: old for old, name in new.items()}
    for table in COMPARED:
        grid = NO_GRID if table == "decisions" else {}
        make = function_of(TABLES[table].function)
        expected = make(**tables, **grid, comparisons=COMPARISONS)
        found = make(**other, **grid, comparisons=renamed)
        text = re.sub(r"\bW\d+\b", lambda match: back[match[0]], found.to_csv(index=False))
        assert sorted(text.splitlines()) == sorted(expected.to_csv(index=False).splitlines()), table


@pytest.fixture
def added(folder, tmp_path, monkeypatch):
    """Tables of runs that the configuration did not have before, and the folder that they are in."""
    monkeypatch.chdir(tmp_path)
    (folder / "ablations.yaml").open("a").write('Q96: {question: "Is a narrow query enough?", model.query_dim: 96}\n')
    found = [summary("baseline", "ablation", 1.3), *(summary(f"Q{n}", "ablation", 1.3 - n / 960) for n in (96, 192))]
    for one, width in zip(found, (384, 96, 192), strict=True):
        one["config"]["model"]["query_dim"] = width
    write_study(tmp_path, found)
    collect(tmp_path, found)
    return tmp_path


def test_a_new_ablation_is_one_entry(added):
    derive(added)
    where = ["--tables", str(added / "tables")]
    assert main(["figure", "ablation_ranking", *where, "--out-dir", str(added / "figures")]) == 0
    shown = pd.read_csv(added / "figures/ablation_ranking.csv").set_index("run")
    assert shown.loc["Q96", "question"] == "Is a narrow query enough?" and shown.loc["Q96", "difference"] < 0
    page, text = added / "decisions.html", added / "decisions.rst"
    assert main(["decisions", *where, "--study", "x", "--out", str(page), "--text", str(text)]) == 0
    assert "Is a narrow query enough?" in page.read_text() and "model.query_dim: 96" in page.read_text()


def test_a_sweep_of_several_runs_is_one_entry(added, folder):
    edit(folder / "ablations.yaml", "Q96: {", "Q192: {model.query_dim: 192}\nQ96: {")
    study = folder / "widths.yaml"
    study.write_text(
        "based_on: config.yaml\ncomparisons:\n  sweeps:\n    width:\n      question: How wide must the query be?\n"
        '      runs: {Q96: &width "a width of {setting}", Q192: *width}\n      settings: [model.query_dim]\n'
    )
    out = added / "tables/decisions.csv"
    for name, table in NO_GRID.items():
        write_table(table, added / "tables" / f"{name}.csv")
    args = ["table", "decisions", "--tables", str(added / "tables"), "--out", str(out), "--study", str(study)]
    assert main(args) == 0
    row = pd.read_csv(out).set_index("sweep").loc["width"]
    assert row["runs"] == "baseline, Q96, Q192" and row["comparisons"] == 2 and row["question"].startswith("How wide")
    assert "a width of 192 (Q192) gives a loss" in row["answer"]


def test_the_configuration_decides_what_the_digest_is_of(folder):
    before = load(folder)
    edit(folder / "ablations.yaml", "What does looking twice buy?", "Is the second look worth it?")
    asked = load(folder)
    edit(folder / "comparisons.yaml", "A1: shallow query", "A1: one query")
    named = load(folder)
    digests = [study.comparisons.digest for study in (before, asked, named)]
    assert len(set(digests)) == 3
    assert len({tuple(run.digest for run in study.runs.values()) for study in (before, asked, named)}) == 1
