"""The decision page and the first words of the report: `fvlm decisions --tables DIR --study NAME ...`.

Both are made from the table `decisions` alone.
"""

import argparse
import re
from pathlib import Path

import numpy as np
import pandas as pd

from fvlm import pages
from fvlm.analysis.compare.bootstrap import LEVEL, OVER_SEEDS, Estimate
from fvlm.analysis.compare.noise import DOUBT
from fvlm.analysis.decisions.verdicts import DECIDED, LIKELY, NOT_RUN, OPEN
from fvlm.analysis.decisions.wording import EXPONENT, NATS, PERCENT, SHORT, number
from fvlm.analysis.files import check_out, read_table, replacing
from fvlm.errors import UserError

WORDS = (DECIDED, LIKELY, OPEN, NOT_RUN)
MARKS = {DECIDED: "●", LIKELY: "◐", OPEN: "○", NOT_RUN: "–"}  # in black and white as well
UNITS = {
    NATS: ("Differences in loss", "nats per token; left of zero: the alternative is better"),
    PERCENT: ("Foveated model against pooled tokens", "% of the loss; left of zero: the foveated model is better"),
    EXPONENT: ("Best model size", "exponent of training compute"),
}
WIDTH, HEIGHT, MARGIN = 230, 26, 12  # of a drawing, in pixels
FARTHEST = 3.0  # an axis ends at this many times the median row's far end: a huge difference must not hide the others


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tables", required=True, help="folder with the table decisions.csv")
    parser.add_argument("--study", required=True, help="name of the study, for the title")
    parser.add_argument("--out", required=True, help="the page to write (HTML)")
    parser.add_argument("--text", required=True, help="the text for the report's first page (reStructuredText)")


def main(args: argparse.Namespace) -> None:
    for option in ("out", "text"):
        check_out(getattr(args, option), Path(args.tables) / "decisions.csv", option=f"--{option}")
    if Path(args.out).resolve() == Path(args.text).resolve():
        raise UserError(f"--out {args.out} and --text are one file; expected two names")
    table = read_table(args.tables, "decisions")
    unknown = table.loc[~table["verdict"].isin(WORDS), "verdict"]
    if len(unknown):
        raise UserError(
            f"{args.tables}/decisions.csv: verdict {unknown.iloc[0]!r}; expected {', '.join(WORDS)}: make it again"
        )
    page, text = render(args.study, table), opening(table)
    with replacing(args.out) as one, replacing(args.text) as other:
        one.write_text(page, encoding="utf-8")
        other.write_text(text, encoding="utf-8")


def render(study: str, table: pd.DataFrame) -> str:
    """Return the self-contained page as HTML."""
    run = table[table["verdict"] != NOT_RUN]
    return pages.render(
        Path(__file__).with_name("page.html"),
        study=study,
        counts=counts(table),
        words=dict(zip(WORDS, ("decided", "likely", "open", "none"), strict=True)),
        groups=[_group(unit, run[run["unit"] == unit]) for unit in UNITS if (run["unit"] == unit).any()],
        missing=in_words(table[table["verdict"] == NOT_RUN]),
        size=(WIDTH, HEIGHT),
        headline=headline(table),
        doubt=f"{DOUBT:g}",
    )


def counts(table: pd.DataFrame) -> dict[str, int]:
    return {word: int((table["verdict"] == word).sum()) for word in WORDS}


def headline(table: pd.DataFrame) -> str:
    """One sentence: how many questions there are, and how many have an answer."""
    number = counts(table)
    compared = len(table) - number[NOT_RUN]
    if not compared:
        return "The study has the runs of none of its comparisons."
    text = f"The study has runs for {compared} of {len(table)} questions: {number[DECIDED]} decided at 95 %, "
    return text + f"{number[LIKELY]} likely, {number[OPEN]} not decided."


def opening(table: pd.DataFrame) -> str:
    """reStructuredText: the headline, then one line per question with runs."""
    parts = [f"**Decisions.** {headline(table)}"]
    for row in in_words(table[table["verdict"] != NOT_RUN]):
        text = f"- {MARKS[row['verdict']]} **{row['verdict']}**: *{_escaped(row['question'])}* {_escaped(row['first'])}"
        text += f" {row['effect']}: ``{row['setting']}``." if row["setting"] else ""
        parts.append(f"{text} {_escaped(row['needs'])}".rstrip())
    return "\n\n".join(parts) + "\n"


def _effect(row: dict) -> str:
    """What the answer means for the setting."""
    if row["unit"] == EXPONENT:
        return "Best of the sizes tried"
    if row["verdict"] != DECIDED:
        return "The default stays"
    return "New default" if row["changes_default"] else "The default is confirmed"


def _escaped(text: str) -> str:
    return re.sub(r"([\\*`_|])", r"\\\1", text)


def in_words(table: pd.DataFrame) -> list[dict]:
    """Return rows of decisions; `first` is the first sentence of the answer, `rest` the others."""
    rows = []
    for row in table.to_dict("records"):
        first, _, rest = row["answer"].removeprefix("Likely: ").partition(". ")
        first = first[:1].upper() + first[1:].removesuffix(".") + "."
        rows.append(row | {"first": first, "rest": rest, "effect": _effect(row)})
    return rows


def _group(unit: str, table: pd.DataFrame) -> dict:
    """The rows of one unit, drawn on one axis."""
    limits = axis(table)
    rows = [row | {"drawing": drawing(row, limits), "shown": _shown(row)} for row in in_words(table)]
    title, about = UNITS[unit]
    ticks = [(_place(value, limits), f"{value:+.2g}" if value else "0") for value in (limits[0], 0.0, limits[1])]
    return {"title": title, "about": about, "rows": rows, "ticks": ticks, "short": SHORT[unit]}


def _shown(row: dict) -> str:
    """The estimate, and the level of its bar and band if that is not 95 %."""
    estimate = Estimate(row["estimate"], row["low"], row["high"], row["interval"], int(row["n_seeds"]))
    drawn = " and ".join(
        name for name, column in (("bar", "low"), ("band", "likely_above")) if np.isfinite(row[column])
    )
    level = "" if np.isclose(row["confidence"], LEVEL) or not drawn else f" ({drawn}: {100 * row['confidence']:.3g} %)"
    return number(estimate) + level


def axis(table: pd.DataFrame) -> tuple[float, float]:
    """Where the axis of some rows starts and ends; zero is in its middle."""
    ends = table[["estimate", "low", "high"]].abs().max(axis=1).dropna()
    far = float(min(ends.max(), FARTHEST * ends.median())) if len(ends) else 1.0
    far = far if far > 0 else 1.0
    return (-far, far)


def _place(value: float, limits: tuple[float, float]) -> float:
    share = (value - limits[0]) / (limits[1] - limits[0])
    return round(MARGIN + float(np.clip(share, 0, 1)) * (WIDTH - 2 * MARGIN), 1)


def drawing(row: dict, limits: tuple[float, float]) -> dict | None:
    """Return the places of an interval in pixels; None without an estimate.

    `left` and `right` are None without an interval. `noise`: start and width of the band of differences that one seed
    does not make likely; None without one. `beyond` is -1, 0 or 1: on which side the estimate lies outside the axis.
    `seeds`: whether the interval is over seeds.
    """
    value = row["estimate"]
    if not np.isfinite(value):
        return None
    known = np.isfinite(row["low"])
    left, right = (_place(row[name], limits) if known else None for name in ("low", "high"))
    start, end = (_place(side * row["likely_above"], limits) for side in (-1, 1))
    noise = (start, round(end - start, 1)) if np.isfinite(row["likely_above"]) else None
    beyond = int(value > limits[1]) - int(value < limits[0])
    places = {"zero": _place(0.0, limits), "left": left, "right": right, "noise": noise, "at": _place(value, limits)}
    return places | {"beyond": beyond, "seeds": row["interval"] == OVER_SEEDS}
