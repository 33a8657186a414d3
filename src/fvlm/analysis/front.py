"""`fvlm front-page --results DIR --study NAME`: DIR/index.html, the page of a study that a reader opens first.

It shows what the results folder has: the decisions, the main figures, benchmarks, pages of single videos, the data
report, what the runs took, and for each figure the command that makes it again.
"""

import argparse
import re
from html import unescape
from pathlib import Path

import numpy as np
import pandas as pd

from fvlm import pages
from fvlm.analysis.catalog import FIGURES, HEADLINE
from fvlm.analysis.decisions.page import WORDS, counts, headline, in_words
from fvlm.analysis.decisions.verdicts import NOT_RUN
from fvlm.analysis.files import read_table, replacing

CLAIMS = ("sight", "equal compute", "equal parameters")  # the rows of the decisions that the study exists for
TITLE = re.compile(r"<title>(.*?)</title>", re.DOTALL)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--results", required=True, type=Path, help="folder of the results; index.html is written there"
    )
    parser.add_argument("--study", required=True, help="name of the study, for the title")


def main(args: argparse.Namespace) -> None:
    page = render(args.results, args.study)
    with replacing(args.results / "index.html") as beside:
        beside.write_text(page, encoding="utf-8")


def render(results: Path, study: str) -> str:
    """Return the page as HTML. Its pictures are inside it; its links lead to files beside it."""
    tables = results / "tables"
    decisions, runs = read_table(tables, "decisions"), read_table(tables, "runs")
    answered = in_words(decisions[decisions["verdict"] != NOT_RUN])
    drawn = [name for name in FIGURES if (results / "figures" / f"{name}.png").is_file()]
    main_ones = [name for name in HEADLINE if name in drawn]
    return pages.render(
        Path(__file__).with_name("front.html"),
        study=study,
        results=results.as_posix(),
        words=dict(zip(WORDS, ("decided", "likely", "open", "none"), strict=True)),
        headline=headline(decisions),
        counts=counts(decisions),
        claims=[row for name in CLAIMS for row in answered if row["sweep"] == name],
        answers=answered,
        figures=[figure(results, name) for name in main_ones],
        benchmarks=benchmarks(read_table(tables, "benchmarks")),
        others=[{"name": name, "title": FIGURES[name].title} for name in drawn if name not in main_ones],
        videos=[titled(path, results) for path in sorted((results / "look").glob("*.html"))],
        has={name: (results / name).is_file() for name in ("data/report.html", "plan.csv")},
        costs=costs(runs),
        runs=[listed(row, results) for row in runs.to_dict("records")],
    )


def figure(results: Path, name: str) -> dict:
    """A figure: its title, picture, and the sentences about its numbers."""
    stem = results / "figures" / name
    caption = stem.with_suffix(".rst")
    text = caption.read_text(encoding="utf-8") if caption.is_file() else ""
    return {
        "name": name,
        "title": FIGURES[name].title,
        "picture": pages.data_uri(stem.with_suffix(".png").read_bytes(), "png"),
        "caption": " ".join(re.sub(r"[`*\\]", "", text).split()),
    }


def benchmarks(scores: pd.DataFrame) -> list[dict]:
    """Return for each benchmark its name, what is scored, and the main score of each run, then the published ones."""
    found = []
    for title, own in scores[scores["main"]].groupby("title", sort=False):
        first = own.iloc[0]
        rows = [
            {
                "model": row["run"],
                "score": percent(row["score"]),
                "interval": f"{percent(row['low'])} to {percent(row['high'])}" if np.isfinite(row["low"]) else "–",
                "guessing": percent(row["chance"]),
                "about": row["source"] or f"{row['questions']:,.0f} of {row['total']:,.0f} questions",
            }
            for row in own.to_dict("records")
        ]
        found.append({"title": f"{title}: {first['metric']} by {first['way'].replace('_', ' ')}", "rows": rows})
    return found


def percent(value: float) -> str:
    return f"{value:.1f}" if np.isfinite(value) else "–"


def titled(path: Path, results: Path) -> dict:
    """A page of a single video: where it is, and its title."""
    found = TITLE.search(path.read_text(encoding="utf-8"))
    title = unescape(found.group(1).strip()) if found else path.stem
    return {"href": path.relative_to(results).as_posix(), "title": title}


def costs(runs: pd.DataFrame) -> list[tuple[str, str]]:
    """What all runs took together: (number, words)."""
    minutes = runs["wall_s"].sum() / 60 if "wall_s" in runs else 0.0
    spent = f"{minutes:,.0f} min" if minutes < 120 else f"{minutes / 60:,.0f} h"
    tiles = [(f"{len(runs):,}", "runs"), (f"{runs['samples'].sum():,.0f}", "samples")]
    tiles += [(f"{runs['flops'].sum():.2e}", "training FLOPs (two per multiply-add)")]
    return tiles + ([(spent, "of training, added over runs")] if minutes else [])


def listed(row: dict, results: Path) -> dict:
    """A run as the list shows it: its numbers, and its files that exist."""
    files = {
        "curve": "metrics.csv",
        "validation": "validation.csv",
        "configuration": "model/run.json",
        "summary": "run_summary.json",
    }
    folder = results / "runs" / row["run"]
    there = {name: f"runs/{row['run']}/{file}" for name, file in files.items() if (folder / file).is_file()}
    loss = row["best.val_loss"]
    return {
        "name": row["run"],
        "family": row["family"],
        "loss": f"{loss:.3f}" if np.isfinite(loss) else "–",
        "samples": f"{row['samples']:,.0f}" if np.isfinite(row["samples"]) else "–",
        "flops": f"{row['flops']:.2e}" if np.isfinite(row["flops"]) else "–",
        "files": there,
    }
