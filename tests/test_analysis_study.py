"""Everything that is made of a study: all tables, all figures."""

import json
import re
import shlex
from pathlib import Path

import docutils.core
import pandas as pd
import pytest
import yaml
from matplotlib.text import Text

from fvlm import style
from fvlm.__main__ import main
from fvlm.analysis import figures
from fvlm.analysis.catalog import COLLECTED, FIGURES, HEADLINE, STANDARD, TABLES
from fvlm.analysis.columns import COLUMNS
from fvlm.analysis.files import read_tables
from fvlm.analysis.tables import load
from tests.analysis_cases import BUDGETS, COMPARISONS, LAW, SIZES, collect, derive, study_summaries, write_study

REPORT = Path(__file__).parents[1] / "workflow" / "report"
DOCS = Path(__file__).parents[1] / "docs"
CONVENTION = "two FLOPs per multiply-add; matrix products and attention, forward and backward"


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    root = tmp_path_factory.mktemp("study")
    found = study_summaries(seeds=(42, 43, 44), seeded=("baseline", "A6", "B1"))  # as the demo
    write_study(root, found)
    collect(root, found)
    derive(root)
    return root


def draw(root: Path, name: str, attention: list[str] | None = None) -> int:
    maps = ["--attention", *attention] if attention else []
    return main(["figure", name, "--tables", f"{root}/tables", "--out-dir", f"{root}/figures", *maps])


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
    numbers = pd.read_csv(study / "figures" / f"{name}.csv")
    assert "reason" not in numbers.columns[:1]
    sentences = (study / "figures" / f"{name}.rst").read_text()
    assert "n = " in sentences and "nan" not in sentences


LINES = [
    line
    for page in ("fits", "compare")
    for block in re.findall(r"^```sh\n(.*?)^```", (DOCS / f"{page}.md").read_text(), re.MULTILINE | re.DOTALL)
    for line in block.splitlines()
    if line.startswith("fvlm")
]


@pytest.mark.parametrize("line", LINES)
def test_the_commands_of_the_pages_read_the_tables_of_a_study(study, tmp_path, line, capsys):
    words = [word.replace("results/", f"{study}/") for word in shlex.split(line)[1:]]
    words = words if "--out" in words else [*words, "--out", "out.json"]
    words[-1] = str(tmp_path / "out.json")
    status = main(words)
    if "lr_schedule=constant" in words:  # no run of this study has a constant rate
        assert status == 2 and "no row is left whose lr_schedule is constant" in capsys.readouterr().err
        return
    result = json.loads((tmp_path / "out.json").read_text())
    assert status == 0 and result["n"] > 0
    if words[0] == "fit":
        low, high = result["ci"]["beta"]
        assert result["identified"] and low < LAW["b"] < high and result["n"] == len(SIZES) * len(BUDGETS)


def test_a_figure_is_the_same_bytes_twice(study):
    draw(study, "factorial")
    first = [(study / "figures" / f"factorial{suffix}").read_bytes() for suffix in (".png", ".pdf", ".csv")]
    draw(study, "factorial")
    assert first == [(study / "figures" / f"factorial{suffix}").read_bytes() for suffix in (".png", ".pdf", ".csv")]


def test_the_grid_is_compared_by_its_evaluation(study):
    table = pd.read_csv(study / "tables" / "gap.csv")
    own = table[(table["family"] == "grid") & (table["measure"] == "evaluation")]
    assert len(own) == len(SIZES) * len(BUDGETS)
    losses = pd.read_csv(study / "tables" / "evaluation.csv").set_index(["run", "mode", "frames", "source", "kind"])
    for row in own.to_dict("records"):
        for letter, mode, side in (("F", "coarse_fine", "foveated"), ("B", "direct", "baseline")):
            cell = losses.loc[(f"{row['size']}-{row['budget']}-{letter}", mode, "own", "all", "all")]
            assert row[f"loss_{side}"] == pytest.approx(cell["loss"], rel=1e-6)
        for gap in ("raw", "at_foveated", "at_baseline"):
            assert row[f"{gap}_low"] < row[f"{gap}_percent"] < row[f"{gap}_high"]
            # the videos' difficulty is common to both runs and cancels
            assert row[f"{gap}_high"] - row[f"{gap}_low"] < 100 * (cell["high"] - cell["low"]) / cell["loss"]
    assert draw(study, "gap") == 0
    shown = pd.read_csv(study / "figures" / "gap.csv")
    assert (shown["measure"] == "evaluation").all() and (shown["family"] == "grid").sum() == len(own)


def test_no_list_of_runs_is_flooded_by_the_grid(study):
    runs = pd.read_csv(study / "tables" / "runs.csv")
    grid = set(runs[runs["family"] == "grid"]["run"])
    assert grid <= set(pd.read_csv(study / "tables" / "evaluation.csv")["run"])
    for name in ("modes", "ablations", "token_efficiency"):
        assert not grid & set(pd.read_csv(study / "tables" / f"{name}.csv")["run"]), name
    for name in ("three_modes", "foveated_vs_alternatives", "ablation_ranking", "token_efficiency"):
        draw(study, name)
        shown = pd.read_csv(study / "figures" / f"{name}.csv")
        assert len(shown) and not grid & set(shown["run"]), name
    families = pd.read_csv(study / "figures" / "three_modes.csv")["family"]
    assert set(families) == {"stage", "ablation"}


ADOPTED = ("A1", "A6", "135M-C1-F", "135M-C2-F", "135M-C1-B")
MARKED = {  # figure -> words that get a mark, and the number of marks at points
    "training_curves": (2, 3), "ablation_ranking": (2, 0), "foveated_vs_alternatives": (2, 0),
    "loss_vs_flops": (0, 3), "isoflop": (0, 3), "model_size_scaling": (0, 3), "gap": (0, 0),
}  # fmt: skip


def marks_in(root: Path, name: str, monkeypatch) -> list[str]:
    """The words with a mark in a figure as it is saved."""
    saved = []
    monkeypatch.setattr(figures, "save", lambda figure, *_: saved.append(figure))
    assert draw(root, name) == 0
    saved[0].canvas.draw()
    monkeypatch.undo()
    return [word for text in saved[0].findobj(Text) if style.MARK in (word := text.get_text())]


def test_adopted_runs_beside_others_are_marked_and_named(tmp_path, monkeypatch):
    found = [one | ({"origin": "adopted"} if one["run"] in ADOPTED else {}) for one in study_summaries()]
    write_study(tmp_path, found)
    collect(tmp_path, found)
    derive(tmp_path)
    fits = pd.read_csv(tmp_path / "tables/scaling_fits.csv").set_index(["fit", "architecture"])["note"]
    joint = fits["parameters and samples"]
    assert joint["foveated"].str.startswith("2 of 12 runs are adopted").all()
    assert joint["multi_token"].str.startswith("1 of 12 runs are adopted").all()
    points = pd.read_csv(tmp_path / "tables/points.csv")
    assert points["adopted"].sum() == 3 == pd.read_csv(tmp_path / "tables/points_by_run.csv")["adopted"].sum()
    for name, (words, at_points) in MARKED.items():
        marked = marks_in(tmp_path, name, monkeypatch)
        assert (len(set(marked) - {style.MARK}), marked.count(style.MARK)) == (words, at_points), name
        assert draw(tmp_path, name) == 0
        sentences = (tmp_path / "figures" / f"{name}.rst").read_text()
        named = re.search(f"{style.MARK}: adopted, trained by another program: (.*?)[.] ", sentences)[1].split(", ")
        of_figure = {"training_curves": ADOPTED}.get(name, ADOPTED[:2] if words else ADOPTED[2:])
        assert sorted(named) == sorted(of_figure), name
    assert "of the runs 2 adopted" in (tmp_path / "figures/loss_vs_flops.rst").read_text()


def test_a_study_of_adopted_runs_alone_has_no_marks(tmp_path, monkeypatch):
    found = [one | {"origin": "adopted"} for one in study_summaries() if one["family"] != "stage"]
    write_study(tmp_path, found)
    collect(tmp_path, found)
    derive(tmp_path)
    assert pd.read_csv(tmp_path / "tables/scaling_fits.csv")["note"].isna().all()
    for name in ("training_curves", "loss_vs_flops", "ablation_ranking"):
        assert draw(tmp_path, name) == 0
        sentences = (tmp_path / "figures" / f"{name}.rst").read_text()
        assert style.MARK not in sentences and "may score other tokens" in sentences
        assert marks_in(tmp_path, name, monkeypatch) == []


def test_the_caption_of_the_ranking_counts_what_its_colours_show(study):
    assert draw(study, "ablation_ranking") == 0
    shown = pd.read_csv(study / "figures/ablation_ranking.csv")
    outside, clear = (shown["high"] < 0) | (shown["low"] > 0), shown["clear"]
    assert (outside & ~clear).any() and clear.any()
    better, worse = (clear & (shown["difference"] < 0)).sum(), (clear & (shown["difference"] > 0)).sum()
    text = (study / "figures/ablation_ranking.rst").read_text()
    assert f"better: {better}, worse: {worse}, within the noise of one seed: {(outside & ~clear).sum()}" in text


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
    assert set(HEADLINE) <= set(STANDARD) < set(FIGURES)
    assert all(set(entry.needs) <= made for entry in FIGURES.values())
    before = set(COLLECTED)
    for name, entry in TABLES.items():
        assert set(entry.needs) <= before, name
        before.add(name)
    assert set(COLUMNS) == made


@pytest.fixture(scope="module")
def written(study):
    """Figure -> everything that is written in it."""
    style.apply()
    words = {}
    for name, entry in FIGURES.items():
        if not entry.attention:
            compared = {"comparisons": COMPARISONS} if entry.comparisons else {}
            figure, _ = load(entry.function)(**read_tables(study / "tables", entry.needs), **compared)
            figure.draw_without_rendering()
            words[name] = [text.get_text() for text in figure.findobj(Text)]
            style.plt.close(figure)
    return words


def test_seeds_are_no_runs_of_their_own(study, written):
    assert "A6-s43" in set(pd.read_csv(study / "tables" / "runs.csv")["run"])
    for name, words in written.items():
        assert not [word for word in words if "-s43" in word or "-s44" in word], name
    assert "baseline, 3 seeds" in written["three_modes"]
    for name in ("training_curves", "attention_entropy", "fine_coarse_ratio"):
        assert written[name].count("baseline, 3 seeds") == 1, name
    for name in ("modes", "ablations", "token_efficiency"):
        table = pd.read_csv(study / "tables" / f"{name}.csv").drop_duplicates("run").set_index("run")
        assert table.loc[["A6", "B1"], "n_seeds"].tolist() == [3, 3] and "A6-s43" not in table.index


def test_a_loss_per_pair_stands_beside_no_loss_per_token(study):
    assert "dpo" in set(pd.read_csv(study / "tables" / "evaluation.csv")["run"])
    assert "dpo" not in set(pd.read_csv(study / "tables" / "modes.csv")["run"])
    draw(study, "training_curves"), draw(study, "preference"), draw(study, "seeing")
    shown = {
        name: pd.read_csv(study / "figures" / f"{name}.csv") for name in ("training_curves", "preference", "seeing")
    }
    assert "dpo" not in set(shown["training_curves"]["run"]) and "stage3" in set(shown["training_curves"]["run"])
    assert set(shown["preference"]["run"]) == {"dpo"}
    assert list(shown["seeing"]["run"].drop_duplicates()) == ["stage3", "baseline"]  # the last stage scored in tokens


def test_seeing_compares_frames_by_source(study):
    draw(study, "seeing")
    shown = pd.read_csv(study / "figures" / "seeing.csv").set_index(["run", "source", "shown"])
    losses = pd.read_csv(study / "tables" / "evaluation.csv").set_index(["run", "mode", "frames", "source", "kind"])
    own, other = (
        losses.loc[("stage3", "coarse_fine", frames, "webvid", "video"), "loss"] for frames in ("own", "other")
    )
    row = shown.loc[("stage3", "webvid", "other")]
    assert row["above_own"] == pytest.approx(other - own, rel=1e-4)
    assert 0 < row["above_low"] < row["above_own"] < row["above_high"]
    assert "smoltalk" not in shown.index.get_level_values("source")  # a text has no frames to see
    assert set(shown.loc["baseline"].index.get_level_values("shown")) == {"own", "other", "none", "B0"}
    assert (shown.loc["baseline"].query("shown != 'own'")["above_own"] > 0.1).all()


def test_flops_are_shown_with_their_convention(written):
    """In the figure or in its caption; in full on the report's first page."""
    captions = yaml.safe_load((REPORT / "captions.yaml").read_text())["figures"]
    shows = {name: " ".join(words) for name, words in written.items() if "FLOPs" in " ".join(words)}
    assert {"loss_vs_flops", "isoflop", "token_efficiency"} <= set(shows)
    unnamed = [name for name in shows if "two per multiply-add" not in shows[name] + captions.get(name, "")]
    assert unnamed == []
    assert CONVENTION in " ".join((REPORT / "workflow.rst").read_text().split())


def test_captions_are_of_figures_and_tables_that_exist():
    captions = yaml.safe_load((REPORT / "captions.yaml").read_text())
    assert set(captions["figures"]) <= set(FIGURES) and set(captions["tables"]) <= set(TABLES)
    for text in [text for part in captions.values() for text in part.values()]:
        html = docutils.core.publish_parts(text, writer="html", settings_overrides={"report_level": 1})["html_body"]
        assert "system-message" not in html, text
