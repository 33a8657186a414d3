"""Everything that is made of a study: all tables, all figures."""

from pathlib import Path

import pandas as pd
import pytest

from fvlm.__main__ import main
from fvlm.analysis.catalog import COLLECTED, COLUMNS, FIGURES, HEADLINE, TABLES
from tests.analysis_cases import collect, derive, study_summaries, write_study


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    root = tmp_path_factory.mktemp("study")
    found = study_summaries()
    write_study(root, found)
    collect(root, found)
    derive(root)
    return root


def draw(root: Path, name: str, attention: list[str] | None = None) -> int:
    return main(
        [
            "figure",
            name,
            "--tables",
            str(root / "tables"),
            "--out-dir",
            str(root / "figures"),
            *(["--attention", *attention] if attention else []),
        ]
    )


@pytest.mark.parametrize("name", [*COLLECTED, *TABLES])
def test_every_table_has_its_columns_and_rows(study, name):
    table = pd.read_csv(study / "tables" / f"{name}.csv")
    assert set(COLUMNS[name]) <= set(table.columns)
    assert len(table)


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_is_drawn_in_three_forms(study, name):
    maps = [str(study / "attention" / "stage3.npz")] if FIGURES[name].attention else None
    assert draw(study, name, maps) == 0
    for suffix in (".png", ".pdf", ".csv"):
        assert (study / "figures" / f"{name}{suffix}").stat().st_size > 50
    assert "reason" not in pd.read_csv(study / "figures" / f"{name}.csv").columns[:1]


def test_a_figure_is_the_same_bytes_twice(study):
    draw(study, "factorial")
    first = [(study / "figures" / f"factorial{suffix}").read_bytes() for suffix in (".png", ".pdf", ".csv")]
    draw(study, "factorial")
    assert first == [(study / "figures" / f"factorial{suffix}").read_bytes() for suffix in (".png", ".pdf", ".csv")]


def test_a_study_of_one_run_makes_everything_too(tmp_path):
    """Nothing to compare, no grid, no evaluation: tables have no rows, figures say so in words."""
    found = study_summaries()[:1]
    write_study(tmp_path, found)
    (tmp_path / "evaluation" / "stage1.csv").write_text("run,mode,frames,source,kind,key,loss_sum,tokens,entropy\n")
    collect(tmp_path, found)
    derive(tmp_path)
    for name in FIGURES:
        assert draw(tmp_path, name) == 0
    assert "scaling grid" in pd.read_csv(tmp_path / "figures" / "isoflop.csv")["reason"][0]


def test_a_table_without_its_columns_is_refused(study, tmp_path, capsys):
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "factorial.csv").write_text("measure,effect\nbest,depth\n")
    assert draw(tmp_path, "factorial") == 2
    assert "no column 'estimate'" in capsys.readouterr().err
    assert not (tmp_path / "figures").exists()


def test_the_catalog_names_what_exists():
    made = {*COLLECTED, *TABLES}
    assert set(HEADLINE) <= set(FIGURES) and len(HEADLINE) == 5
    assert all(set(entry.needs) <= made for entry in FIGURES.values())
    assert all(set(entry.needs) <= set(COLLECTED) for entry in TABLES.values())
    assert set(COLUMNS) == made


def test_every_result_has_its_caption():
    captions = {path.stem for path in (Path(__file__).parents[1] / "workflow" / "report").glob("*.rst")}
    expected = {"runs", "evaluation", *FIGURES, *(f"{name}_table" for name in TABLES)}
    assert expected <= captions
    assert captions - expected <= {"workflow", "data", "caption"}
