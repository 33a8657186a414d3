"""The page of the decisions, and the words with which the report opens."""

import re

import docutils.core
import pytest

from fvlm.__main__ import main
from fvlm.analysis.catalog import FIRST, TABLES
from fvlm.analysis.compare.bootstrap import OVER_SEEDS
from fvlm.analysis.decisions.page import FARTHEST, WIDTH, axis, drawing, opening, render
from fvlm.analysis.decisions.verdicts import DECIDED, LIKELY, NOT_RUN, OPEN
from fvlm.analysis.files import read_table, write_table
from tests.analysis_cases import OFFSETS
from tests.test_decisions import REPORT, table_of


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """The table of a study with every verdict, as the page reads it."""
    tmp_path = tmp_path_factory.mktemp("mixed")
    levels = {name: [1.36 + offset] for name, offset in OFFSETS.items() if name not in ("A7", "B2", "Q1")}
    levels |= {"baseline": [1.30, 1.32, 1.29], "A6": [1.40, 1.425, 1.39], "A9": [1.35, 1.29, 1.31]}
    table = table_of(tmp_path, **levels)[0].reset_index()
    table.loc[table["sweep"] == "fine pass", "question"] = "Is <b>it</b> *so*?"
    write_table(table, tmp_path / "tables" / "decisions.csv")
    return tmp_path, read_table(tmp_path / "tables", "decisions")


def test_the_page_shows_every_row_with_mark_drawing_and_setting(mixed):
    table = mixed[1]
    assert set(table["verdict"]) == {DECIDED, LIKELY, OPEN, NOT_RUN}
    page = render("mixed", table)
    assert not re.search(r'(src|href)="', page) and "http" not in page
    run = table[table["verdict"] != NOT_RUN]
    assert page.count('role="img"') == run["estimate"].notna().sum()
    assert page.count('class="row" id=') == len(run)
    for row in run.to_dict("records"):
        assert f"<code>{row['setting']}</code>" in page or "{" in row["setting"]
    assert "Is &lt;b&gt;it&lt;/b&gt; *so*?" in page and "<b>it</b>" not in page
    zeros = set(re.findall(r'class="zero" x1="([\d.]+)"', page))
    assert zeros == {f"{WIDTH / 2:.1f}"}  # one zero line down the page
    for words in table.loc[table["verdict"] == NOT_RUN, "answer"]:
        assert words in page


def test_a_drawing_lies_on_its_axis(mixed):
    table = mixed[1]
    limits = axis(table[table["verdict"] != NOT_RUN])
    ends = table[["estimate", "low", "high"]].abs().max(axis=1).dropna()
    assert limits[1] == pytest.approx(min(ends.max(), FARTHEST * ends.median())) and limits[0] == -limits[1]
    for row in table[table["estimate"].notna()].to_dict("records"):
        drawn = drawing(row, limits)
        assert 0 <= drawn["left"] <= drawn["right"] <= WIDTH and drawn["left"] <= drawn["at"] <= drawn["right"]
        assert (drawn["beyond"] != 0) == (abs(row["estimate"]) > limits[1])
        if not drawn["beyond"]:
            assert (drawn["at"] > drawn["zero"]) == (row["estimate"] > 0)
        if row["verdict"] == DECIDED:
            assert not drawn["left"] < drawn["zero"] < drawn["right"]
        assert drawn["seeds"] == (row["interval"] == OVER_SEEDS)
    assert any(drawing(row, limits)["beyond"] for row in table[table["estimate"].notna()].to_dict("records"))


def test_the_report_opens_with_the_same_words(mixed):
    table = mixed[1]
    text = opening(table)
    html = docutils.core.publish_parts(text, writer="html", settings_overrides={"report_level": 1})["html_body"]
    assert "system-message" not in html and html.count("<li>") == (table["verdict"] != NOT_RUN).sum()
    for word, number in table["verdict"].value_counts().items():
        if word != NOT_RUN:
            assert len(re.findall(f"<strong>{word}</strong>", html)) == number
    assert "*so*" in html  # a question is text, not markup
    first = (REPORT / "workflow.rst").read_text()
    assert first.index("file.job.output.text") < first.index("raw videos")


def test_the_first_category_of_the_report_is_that_of_the_decisions():
    assert TABLES["decisions"].category == FIRST
    assert all(FIRST.lower() < entry.category.lower() for name, entry in TABLES.items() if name != "decisions")


def test_the_command_writes_both_or_says_what_is_missing(mixed, tmp_path, capsys):
    page, text = tmp_path / "decisions.html", tmp_path / "decisions.rst"
    args = ["--study", "my study", "--out", str(page), "--text", str(text)]
    assert main(["decisions", "--tables", str(tmp_path / "nowhere"), *args]) == 2
    assert "decisions.csv" in capsys.readouterr().err and not page.exists() and not text.exists()
    assert main(["decisions", "--tables", str(mixed[0] / "tables"), *args]) == 0
    assert "<h1>Decisions: my study</h1>" in page.read_text() and text.read_text() == opening(mixed[1])
