"""The page of a study that a reader opens first."""

import io
import re

import numpy as np
import pytest
from PIL import Image

from fvlm.__main__ import main
from fvlm.analysis.catalog import FIGURES, HEADLINE
from fvlm.analysis.collect import collect_benchmarks
from fvlm.analysis.decisions.verdicts import NOT_RUN
from fvlm.analysis.files import write_table
from tests.analysis_cases import COMPARISONS, OFFSETS, ablation, answered
from tests.browser_cases import brightness, in_a_browser, in_a_frame
from tests.test_analysis_compare import runs_of
from tests.test_decisions import table_of

LEVELS = {name: [1.36 + offset] for name, offset in OFFSETS.items()}


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    decisions = table_of(tmp_path_factory.mktemp("evaluated"), **LEVELS)[0].reset_index()
    decisions.loc[decisions["verdict"] != NOT_RUN, "question"] = "Is <b>it</b> so?"
    runs = runs_of([ablation(name, level[0], 42) for name, level in LEVELS.items()])
    scores = tmp_path_factory.mktemp("scores") / "mvbench.csv"
    write_table(answered("baseline", np.random.default_rng(0)), scores)
    benchmarks = collect_benchmarks([scores], COMPARISONS.benchmarks.published)
    return {"decisions": decisions, "runs": runs, "benchmarks": benchmarks}


@pytest.fixture
def results(tables, tmp_path):
    """A results folder with two figures, one run's files and the page of one video."""
    for name, table in tables.items():
        write_table(table, tmp_path / "tables" / f"{name}.csv")
    picture = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(picture, "png")
    (tmp_path / "figures").mkdir()
    for name in ("seeing", "freezing"):
        for form in ("pdf", "csv"):
            (tmp_path / "figures" / f"{name}.{form}").write_text("x")
        (tmp_path / "figures" / f"{name}.png").write_bytes(picture.getvalue())
    (tmp_path / "figures" / "seeing.rst").write_text("The loss is *higher* & so on.\n")
    for file in ("runs/A1/metrics.csv", "runs/A1/model/run.json", "look/clip.html", "decisions.html", "report.html"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("<title>A clip &amp; more</title>")
    return tmp_path


def page_of(results):
    assert main(["front-page", "--results", str(results), "--study", "my study"]) == 0
    return (results / "index.html").read_text()


def test_every_link_leads_to_a_file_of_the_results_or_a_part_of_the_page(results):
    page = page_of(results)
    links = re.findall(r'href="([^"]+)"', page)
    parts = set(re.findall(r'id="([^"]+)"', page))
    assert len(links) > 8 and not re.search(r"https?:", page)
    for link in links:
        assert link[1:] in parts if link.startswith("#") else (results / link).is_file(), link
    assert {"runs/A1/metrics.csv", "runs/A1/model/run.json", "look/clip.html"} <= set(links)
    assert ">A clip &amp; more</a>" in page


def test_main_figures_are_in_the_page_and_each_names_its_target(results):
    page = page_of(results)
    assert "seeing" in HEADLINE and "freezing" not in HEADLINE
    assert page.count("data:image/png;base64,") == 1
    assert "The loss is higher &amp; so on." in page
    for name in ("seeing", "freezing"):
        assert f"snakemake --cores 1 {results.as_posix()}/figures/{name}.png" in page
        assert FIGURES[name].title in page


def test_it_shows_the_decisions_and_escapes_their_words(results):
    page = page_of(results)
    assert "Is &lt;b&gt;it&lt;/b&gt; so?" in page and "<b>it</b>" not in page


def test_the_scores_of_the_study_stand_beside_guessing_and_published_ones(results, tables):
    page = page_of(results)
    own = tables["benchmarks"].iloc[0]
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", page)]
    scored = {row[0]: row[1:] for row in rows if len(row) == 5}
    interval = f"{own['low']:.1f} to {own['high']:.1f}"
    assert scored["baseline"] == [f"{own['score']:.1f}", interval, "27.3", "3,800 of 4,000 questions"]
    assert scored["SmolVLM2-2.2B"][:3] == ["46.3", "–", "–"] and "arXiv" in scored["SmolVLM2-2.2B"][3]
    assert "MVBench: accuracy by letter" in page and 'href="#benchmark-scores"' in page
    write_table(tables["benchmarks"].iloc[:0], results / "tables/benchmarks.csv")
    assert "benchmark-scores" not in page_of(results)


def test_without_figures_and_decisions_it_is_still_a_page(results, capsys):
    for path in (results / "figures").iterdir():
        path.unlink()
    (results / "look/clip.html").unlink()
    page = page_of(results)
    assert "No figure was drawn" in page and 'id="videos"' not in page
    (results / "tables/runs.csv").unlink()
    assert main(["front-page", "--results", str(results), "--study", "x"]) == 2
    assert "runs.csv" in capsys.readouterr().err


@in_a_browser
@pytest.mark.parametrize("width", [360, 1200])
def test_the_page_fits_the_window(results, width):
    page = page_of(results)
    inner = results / "inner.html"
    report = "parent.postMessage([document.documentElement.scrollWidth, innerWidth, document.images[0].width], '*')"
    inner.write_text(f"{page}<script>onload = () => {report}</script>")
    content, inside, picture = in_a_frame(inner, width)
    assert content <= inside == width and picture > 0


@in_a_browser
def test_the_page_follows_the_colours_of_the_system(results):
    page_of(results)
    light, dark = (brightness(results / "index.html", scheme) for scheme in ("light", "dark"))
    assert light > 180 and dark < 90
