"""The page of the report: formats the tables and fills page.html. Jinja2 escapes every text of a data set."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from fvlm import pages
from fvlm.data.batches.order import KINDS
from fvlm.data_report import FIGURES
from fvlm.data_report.collect import MEASURED
from fvlm.data_report.contact import FRAMES, Shown, shortened
from fvlm.data_report.duplicates import DISTANCE
from fvlm.data_report.plots import TARGET
from fvlm.data_report.tables import ALL, video_shares

UNKNOWN = "unknown"
MESSAGE = 240  # characters of a file's name or of a message that are shown


@dataclass(frozen=True)
class Table:
    """The text of each cell, and the numbers of the columns that hold words and long texts."""

    head: list[str]
    rows: list[list[str]]
    words: list[int]
    long: list[int]


@dataclass(frozen=True)
class Pair:
    about: str
    sides: list[tuple[str, Shown]]


@dataclass(frozen=True)
class Sheet:
    source: str
    about: str
    shown: list[Shown]


def render(
    study: str,
    tables: dict[str, pd.DataFrame],
    figures: dict[str, str],
    notes: list[str],
    pairs: list[Pair],
    sheets: list[Sheet],
) -> str:
    """Return the page as HTML that refers to no other file.

    tables, figures     by their names in `TABLES` and `FIGURES`; a figure as the `src` of an <img>
    """
    sources, mixture = _records(tables["sources"]), tables["mixture"]
    alike = tables["near_duplicates"][tables["near_duplicates"]["compared"] > 0]
    rows = {
        "sources": [row | {"video": video(row)} for row in sources],
        "mixture_sources": _records(mixture[mixture["source"] != ALL]),
        "rejected": _records(tables["rejected"]),
        "examples": _records(tables["rejected_examples"]),
        "videos": [row for row in sources if row["kind"] in ("video", "")],
        "texts": sources,
        "storage": _with_largest_shard(sources, tables["shards"]),
        "held_out": [row | {"choice": held_out(row)} for row in _records(tables["held_out"])],
        "alike": _records(alike.replace({"training_source": {ALL: "any source"}})),
    }
    return pages.render(
        Path(__file__).with_name("page.html"),
        **{name: _table(rows[name], columns) for name, columns in COLUMNS.items()},
        study=study,
        warnings=tables["warnings"]["warning"].tolist(),
        notes=notes,
        tiles=_tiles(sources[-1], mixture, len(sources) - 1),
        figures=figures,
        titles=FIGURES,
        mixture=_mixture(mixture),
        target=f"{100 * TARGET[0]:.0f} to {100 * TARGET[1]:.0f} %",
        measured=MEASURED,
        distance=DISTANCE,
        pairs=pairs,
        sheets=sheets,
        frames=FRAMES,
    )


def count(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"


def percent(value: float | None) -> str:
    return "–" if value is None else "0 %" if value == 0 else f"{100 * value:.1f} %"


def seconds(value: float | None) -> str:
    return "–" if value is None else f"{value:,.1f} s"


def size(value: float | None) -> str:
    if value is None:
        return "–"
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:,.0f} B" if unit == "B" else f"{value:,.1f} {unit}"
        value /= 1024
    return f"{value:,.1f} GiB"


def words(value: str) -> str:
    return value


def message(value: str) -> str:
    return shortened(value, MESSAGE)


def held_out(row: dict) -> str:
    return row["partner"] or ("nothing" if row["share"] is None else f"{100 * row['share']:g} % of the files")


def video(row: dict) -> str:
    """Return the total duration of a source's videos, and for how many samples it is unknown."""
    if row["kind"] not in ("video", ""):
        return "–"
    unknown = row["without_duration"]
    if row["hours"] is None:
        return f"{UNKNOWN} (frames only)" if unknown else "–"
    known = f"{row['hours']:,.1f} h" if row["hours"] >= 1 else f"{60 * row['hours']:.1f} min"
    return known + (f" + {unknown:,} samples {UNKNOWN}" if unknown else "")


def _tiles(total: dict, mixture: pd.DataFrame, sources: int) -> list[tuple[str, str]]:
    share = video_shares(mixture)["corpus"]
    unknown = total["without_duration"]
    known, missing = video(total | {"without_duration": 0}), count(unknown)
    return [
        (count(total["samples"]), f"samples of {sources} sources"),
        (percent(share), "of the training samples are video"),
        (known, f"of video; {missing} samples unknown" if unknown else "of video"),
        (count(total["frames"]), "frames"),
        (count(total["text_tokens"]), "text tokens"),
        (count(total["rejected"]), "inputs rejected"),
        (size(total["bytes"]), f"in {total['shards']:,} shards"),
    ]


def _quantiles(heading: str, key: str, form: Callable, largest: str) -> list[tuple[str, str, Callable]]:
    parts = (("median", "median"), ("95 %", "p95"), (largest, "max"))
    return [(f"{heading}: {part}", f"{key}_{suffix}", form) for part, suffix in parts]


SOURCE, KIND, WHERE = (("source", "source", words), ("kind", "kind", words), ("where", "where", words))
# table of page.html -> its columns: heading, key in a row, format
COLUMNS = {
    "sources": [
        SOURCE, KIND, ("reader", "reader", words), ("samples", "samples", count), ("files", "files", count),
        ("video", "video", str), ("frames", "frames", count), ("text tokens", "text_tokens", count),
        ("rejected", "rejected", count), ("of inputs", "rejected_share", percent),
    ],
    "mixture_sources": [WHERE, KIND, SOURCE, ("samples", "samples", count), ("share", "share", percent)],
    "rejected": [
        SOURCE, ("reason", "reason", words), ("inputs", "count", count), ("share", "share_of_inputs", percent),
        ("meaning", "meaning", message),
    ],
    "examples": [SOURCE, ("reason", "reason", words), ("file", "file", message), ("message", "message", message)],
    "videos": [
        SOURCE, *_quantiles("duration", "duration_s", seconds, "longest"),
        *_quantiles("frames", "frames", count, "most"), ("durations unknown", "without_duration", count),
    ],
    "texts": [
        SOURCE, *_quantiles("text", "text_tokens", count, "longest"),
        *_quantiles("answer", "answer_tokens", count, "longest"), ("cut at", "max_text_tokens", count),
        ("texts cut", "texts_cut", count), ("share", "texts_cut_share", percent),
    ],
    "storage": [
        SOURCE, ("shards", "shards", count), ("size", "bytes", size), ("largest shard", "largest_bytes", size),
        ("most samples in one", "largest_samples", count), ("frame: median", "jpeg_bytes_median", size),
        ("95 %", "jpeg_bytes_p95", size), ("frames measured", "jpegs_measured", count),
    ],
    "held_out": [
        SOURCE, KIND, ("held out", "choice", words), ("to train on", "training_samples", count),
        ("in files", "training_files", count), ("held-out samples", "held_out_samples", count),
        ("in files", "held_out_files", count),
    ],
    "alike": [
        ("held out", "held_out_source", words), ("trained on", "training_source", words),
        ("compared", "compared", count), ("look alike", "affected", count), ("share", "share", percent),
    ],
}  # fmt: skip


def _records(table: pd.DataFrame) -> list[dict]:
    """Return the rows of a table, with None in empty cells."""
    return table.astype(object).where(table.notna(), None).to_dict("records")


def _table(rows: list[dict], columns: list[tuple[str, str, Callable]]) -> Table:
    """Return a table from columns (heading, key in `rows`, format)."""
    return Table(
        [heading for heading, _, _ in columns],
        [[form(row[key]) for _, key, form in columns] for row in rows],
        [i for i, (_, _, form) in enumerate(columns) if form in (words, message)],
        [i for i, (_, _, form) in enumerate(columns) if form is message],
    )


def _with_largest_shard(rows: list[dict], shards: pd.DataFrame) -> list[dict]:
    largest = shards.groupby("source")[["bytes", "samples"]].max().to_dict("index")
    if len(shards):
        largest[ALL] = shards[["bytes", "samples"]].max().to_dict()
    unknown = {"bytes": None, "samples": None}
    return [row | {f"largest_{key}": v for key, v in largest.get(row["source"], unknown).items()} for row in rows]


def _mixture(table: pd.DataFrame) -> Table:
    """Return one row per place and one column per kind."""
    rows = []
    for where, own in table[table["source"] == ALL].groupby("where", sort=False):
        cells = [
            f"{count(row['samples'])} ({percent(row['share'])})" if row["samples"] else "–"
            for row in own.to_dict("records")
        ]
        rows.append([where, *cells, count(own["samples"].sum())])
    return Table(["where", *KINDS, "samples"], rows, [0], [])
