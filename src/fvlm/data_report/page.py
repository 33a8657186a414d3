"""The page: numbers become words here, and page.html puts them in place. Jinja2 escapes whatever a data set says."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jinja2
import pandas as pd

from fvlm.data.batches.order import KINDS
from fvlm.data_report import FIGURES
from fvlm.data_report.collect import MEASURED
from fvlm.data_report.contact import FRAMES, Shown, shortened
from fvlm.data_report.duplicates import DISTANCE
from fvlm.data_report.plots import TARGET
from fvlm.data_report.tables import ALL

UNKNOWN = "unknown"
MESSAGE = 240  # characters of a file's name or of a message


@dataclass(frozen=True)
class Table:
    """Words for each cell. `words`, `long`: columns that hold words, and long ones; `totals`: rows that add up."""

    head: list[str]
    rows: list[list[str]]
    words: tuple[int, ...] = (0,)
    long: tuple[int, ...] = ()
    totals: tuple[str, ...] = (ALL,)


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
    """The whole page, without a reference to anything outside of it.

    tables, figures     by the names of the package; a figure as the source of an <img>
    """
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(Path(__file__).with_name("page.html").read_text(encoding="utf-8"))
    sources = tables["sources"].astype(object).where(tables["sources"].notna(), None).to_dict("records")
    return template.render(
        study=study,
        warnings=tables["warnings"]["warning"].tolist(),
        notes=notes,
        tiles=_tiles(sources[-1], tables["mixture"], len(sources) - 1),
        figures=figures,
        titles=FIGURES,
        sources=_sources(sources),
        mixture=_mixture(tables["mixture"]),
        mixture_sources=_mixture_sources(tables["mixture"]),
        target=f"{100 * TARGET[0]:.0f} to {100 * TARGET[1]:.0f} %",
        rejected=_rejected(tables["rejected"]),
        examples=_examples(tables["rejected_examples"]),
        videos=_videos(sources),
        texts=_texts(sources),
        storage=_storage(sources, tables["shards"]),
        measured=MEASURED,
        held_out=_held_out(tables["held_out"]),
        distance=DISTANCE,
        alike=_alike(tables["near_duplicates"]),
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


def length(row: dict) -> str:
    """Of videos; in words where the shards do not say."""
    if row["kind"] not in ("video", ""):
        return "–"
    unknown = row["without_duration"]
    if row["hours"] is None:
        return f"{UNKNOWN} (frames only)" if unknown else "–"
    known = f"{row['hours']:,.1f} h" if row["hours"] >= 1 else f"{60 * row['hours']:.1f} min"
    return known + (f" + {unknown:,} samples {UNKNOWN}" if unknown else "")


def _tiles(total: dict, mixture: pd.DataFrame, sources: int) -> list[tuple[str, str]]:
    video = mixture[(mixture["where"] == "corpus") & (mixture["kind"] == "video") & (mixture["source"] == ALL)]
    unknown = total["without_duration"]
    known, missing = length(total | {"without_duration": 0}), count(unknown)
    return [
        (count(total["samples"]), f"samples of {sources} sources"),
        (percent(float(video["share"].iloc[0])), "of those to train on are video"),
        (known, f"of video; {missing} samples unknown" if unknown else "of video"),
        (count(total["frames"]), "frames"),
        (count(total["text_tokens"]), "text tokens"),
        (count(total["rejected"]), "inputs rejected"),
        (size(total["bytes"]), f"in {total['shards']:,} shards"),
    ]


def _select(rows: list[dict], columns: list[tuple[str, Callable[[dict], str]]], words: tuple[int, ...] = (0,)) -> Table:
    """A table of some columns: (heading, what its cell says of a row)."""
    return Table([name for name, _ in columns], [[say(row) for _, say in columns] for row in rows], words)


def _cell(column: str, form: Callable[[float | None], str]) -> Callable[[dict], str]:
    return lambda row: form(row[column])


def _name(row: dict) -> str:
    return row["source"]


def _sources(rows: list[dict]) -> Table:
    columns = [
        ("source", _name),
        ("kind", lambda row: row["kind"]),
        ("reader", lambda row: row["reader"]),
        ("samples", _cell("samples", count)),
        ("files", _cell("files", count)),
        ("video", length),
        ("frames", _cell("frames", count)),
        ("text tokens", _cell("text_tokens", count)),
        ("rejected", _cell("rejected", count)),
        ("of inputs", _cell("rejected_share", percent)),
    ]
    return _select(rows, columns, (0, 1, 2))


def _videos(rows: list[dict]) -> Table:
    columns = [("source", _name)]
    for heading, name, form in (("duration", "duration_s", seconds), ("frames", "frames", count)):
        for part, words in (("median", "median"), ("p95", "95 %"), ("max", "longest" if form is seconds else "most")):
            columns.append((f"{heading}: {words}", _cell(f"{name}_{part}", form)))
    columns.append(("durations unknown", _cell("without_duration", count)))
    return _select([row for row in rows if row["kind"] in ("video", "")], columns)


def _texts(rows: list[dict]) -> Table:
    columns = [("source", _name)]
    for heading, name in (("text", "text_tokens"), ("answer", "answer_tokens")):
        for part, words in (("median", "median"), ("p95", "95 %"), ("max", "longest")):
            columns.append((f"{heading}: {words}", _cell(f"{name}_{part}", count)))
    columns += [
        ("cut at", _cell("max_text_tokens", count)),
        ("texts cut", _cell("texts_cut", count)),
        ("share", _cell("texts_cut_share", percent)),
    ]
    return _select(rows, columns)


def _storage(rows: list[dict], shards: pd.DataFrame) -> Table:
    largest = {**shards.groupby("source")[["bytes", "samples"]].max().to_dict("index")}
    if len(shards):
        largest[ALL] = shards[["bytes", "samples"]].max().to_dict()
    empty = {"bytes": None, "samples": None}
    columns = [
        ("source", _name),
        ("shards", _cell("shards", count)),
        ("size", _cell("bytes", size)),
        ("largest shard", lambda row: size(largest.get(row["source"], empty)["bytes"])),
        ("most samples in one", lambda row: count(largest.get(row["source"], empty)["samples"])),
        ("frame: median", _cell("jpeg_bytes_median", size)),
        ("95 %", _cell("jpeg_bytes_p95", size)),
        ("frames measured", _cell("jpegs_measured", count)),
    ]
    return _select(rows, columns)


def _mixture(table: pd.DataFrame) -> Table:
    """One row for each place, one column for each kind."""
    rows = []
    for where, own in table[table["source"] == ALL].groupby("where", sort=False):
        cells = [
            f"{count(row['samples'])} ({percent(row['share'])})" if row["samples"] else "–"
            for row in own.to_dict("records")
        ]
        rows.append([where, *cells, count(own["samples"].sum())])
    return Table(["where", *KINDS, "samples"], rows, totals=())


def _mixture_sources(table: pd.DataFrame) -> Table:
    rows = [
        [row["where"], row["kind"], row["source"], count(row["samples"]), percent(row["share"])]
        for row in table[table["source"] != ALL].to_dict("records")
    ]
    return Table(["where", "kind", "source", "samples", "share"], rows, (0, 1, 2), totals=())


def _rejected(table: pd.DataFrame) -> Table:
    rows = [
        [row["source"], row["reason"], count(row["count"]), percent(row["share_of_inputs"]), row["meaning"]]
        for row in table.to_dict("records")
    ]
    return Table(["source", "reason", "inputs", "share", "which means that"], rows, (0, 1, 4), (4,))


def _examples(table: pd.DataFrame) -> Table:
    """A decoder may say the same several times; the CSV has all of it."""
    rows = [[shortened(cell, MESSAGE) for cell in row] for row in table.astype(str).to_numpy().tolist()]
    return Table(list(table.columns), rows, tuple(range(len(table.columns))), (2, 3))


def _held_out(table: pd.DataFrame) -> Table:
    head = ["source", "kind", "held out", "to train on", "in files", "held-out samples", "in files"]
    rows = []
    for row in table.to_dict("records"):
        share = f"{100 * row['share']:g} % of the files" if pd.notna(row["share"]) else "nothing"
        numbers = [row[name] for name in ("training_samples", "training_files", "held_out_samples", "held_out_files")]
        rows.append([row["source"], row["kind"], row["partner"] or share, *map(count, numbers)])
    return Table(head, rows, (0, 1, 2))


def _alike(table: pd.DataFrame) -> Table:
    rows = [
        [
            row["held_out_source"],
            "any source" if row["training_source"] == ALL else row["training_source"],
            count(row["compared"]),
            count(row["affected"]),
            percent(row["share"]),
        ]
        for row in table.to_dict("records")
        if row["compared"]
    ]
    return Table(["held out", "trained on", "compared", "look alike", "share"], rows, (0, 1))
