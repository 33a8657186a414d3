"""The tables of the report, one CSV each, with every number of the page. The names of the columns have the units."""

from collections.abc import Callable

import numpy as np
import pandas as pd

from fvlm.config.schema import Run, Study
from fvlm.costs.amounts import planned_samples, streams
from fvlm.data.batches.order import KINDS
from fvlm.data.decode.media import REASONS
from fvlm.data_report import reference_runs
from fvlm.data_report.collect import Facts

ALL = "all"
# Quarters of each doubling: 16, 20, 24, 28, 32, 40, ...
TOKENS = [
    *range(0, 16, 2),
    *(power * quarter // 4 for power in (2**k for k in range(4, 13)) for quarter in range(4, 8)),
]
# Lower ends of the bars; the last bar is open to the right.
EDGES: dict[str, list[int]] = {
    "duration_s": [0, 1, 2, 3, 5, 7, 10, 15, 20, 30, 45, 64, 90, 120, 180, 300, 600, 1200, 1800, 3600],
    "frames": list(range(1, 65)),
    "text_tokens": TOKENS,
    "answer_tokens": TOKENS,
}
QUANTITIES: dict[str, Callable[[Facts], np.ndarray]] = {
    "duration_s": lambda facts: facts.duration_s[facts.timed & (facts.frames > 0)],
    "frames": lambda facts: facts.frames if facts.source.kind == "video" else facts.frames[:0],
    "text_tokens": lambda facts: facts.text_tokens,
    "answer_tokens": lambda facts: facts.answer_tokens,
}


def sources(facts: list[Facts]) -> pd.DataFrame:
    """Return one row per source, and one for all; a cell is empty if the number is unknown."""
    rows = [_source_row(one) for one in facts]
    added = ("samples", "rejected", "files", "frames", "hours", "without_duration", "text_tokens", "texts_cut", "bytes")
    total: dict = {"source": ALL, "kind": "", "reader": "", "shards": sum(row["shards"] for row in rows)}
    total |= {name: sum(row[name] or 0 for row in rows) for name in added}
    if all(row["hours"] is None for row in rows):
        total["hours"] = None
    total |= _shares(total)
    total |= {"jpegs_measured": sum(row["jpegs_measured"] for row in rows)}
    for name, values in QUANTITIES.items():
        total |= _quantiles(name, np.concatenate([values(one) for one in facts]))
    return pd.DataFrame([*rows, total], columns=list(rows[0]))


def _source_row(facts: Facts) -> dict:
    video = facts.source.kind == "video"
    unknown = int(np.count_nonzero(~facts.timed)) if video else 0
    row = {
        "source": facts.source.name,
        "kind": facts.source.kind,
        "reader": facts.source.reader,
        "samples": len(facts),
        "rejected": facts.inputs.rejected.total(),
        "files": facts.files,
        "frames": int(facts.frames.sum(dtype=np.int64)),
        "hours": facts.hours if video and facts.timed.any() else None,
        "without_duration": unknown,
        "text_tokens": int(facts.text_tokens.sum(dtype=np.int64)),
        "max_text_tokens": facts.max_text_tokens,
        "texts_cut": facts.cut,
        "shards": len(facts.shards),
        "bytes": int(facts.shard_bytes.sum()),
    }
    row |= _shares(row)
    for name, values in QUANTITIES.items():
        row |= _quantiles(name, values(facts))
    return row | {"jpegs_measured": len(facts.jpeg_bytes)} | _quantiles("jpeg_bytes", facts.jpeg_bytes)


def _shares(row: dict) -> dict:
    inputs = row["samples"] + row["rejected"]
    return {
        "rejected_share": row["rejected"] / inputs if inputs else None,
        "texts_cut_share": row["texts_cut"] / row["samples"] if row["samples"] else None,
    }


def _quantiles(name: str, values: np.ndarray) -> dict:
    names = [f"{name}_{part}" for part in ("median", "p95", "max")]
    found = np.quantile(values, (0.5, 0.95, 1)).tolist() if len(values) else [None] * 3
    return dict(zip(names, found, strict=True))


def rejected(facts: list[Facts]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the number of rejected inputs by source and reason, and a few of them by name."""
    counts = [
        {
            "source": one.source.name, "reason": reason, "count": count,
            "share_of_inputs": count / (len(one) + one.inputs.rejected.total()), "meaning": REASONS.get(reason, ""),
        }
        for one in facts for reason, count in one.inputs.rejected.most_common()
    ]  # fmt: skip
    examples = [
        {"source": one.source.name, "reason": reason, "file": file, "message": message}
        for one in facts
        for reason, found in one.inputs.examples.items()
        for file, message in found
    ]
    return (
        pd.DataFrame(counts, columns=["source", "reason", "count", "share_of_inputs", "meaning"]),
        pd.DataFrame(examples, columns=["source", "reason", "file", "message"]),
    )


def histograms(facts: list[Facts]) -> pd.DataFrame:
    """Return counts by source, quantity and bar [low, high) without empty bars; `high` of the last bar is empty."""
    rows = []
    for quantity, values in QUANTITIES.items():
        edges = EDGES[quantity]
        total = np.zeros(len(edges), np.int64)
        for one in facts:
            bars = np.searchsorted(edges, values(one), side="right") - 1
            counts = np.bincount(bars, minlength=len(edges))
            total += counts
            rows += _bars(one.source.name, quantity, counts)
        rows += _bars(ALL, quantity, total)
    return pd.DataFrame(rows, columns=["source", "quantity", "low", "high", "count"])


def _bars(source: str, quantity: str, counts: np.ndarray) -> list[dict]:
    edges = [*EDGES[quantity], None]
    return [
        {"source": source, "quantity": quantity, "low": edges[i], "high": edges[i + 1], "count": int(counts[i])}
        for i in np.flatnonzero(counts)
    ]


def shards(facts: list[Facts]) -> pd.DataFrame:
    rows = [
        {"source": one.source.name, "shard": str(name), "samples": int(samples), "bytes": int(size)}
        for one in facts
        for name, samples, size in zip(one.shards, one.shard_samples, one.shard_bytes, strict=True)
    ]
    return pd.DataFrame(rows, columns=["source", "shard", "samples", "bytes"])


def held_out(facts: list[Facts]) -> pd.DataFrame:
    """Return the held-out data of each training source: some of its own files, or another source, its partner."""
    by_name = {one.source.name: one for one in facts}
    rows = []
    for one in facts:
        if one.split.partner_of:
            continue
        choice = one.source.held_out
        partner = by_name.get(choice) if isinstance(choice, str) else None
        held, place = (partner.split.held_out, partner) if partner else (one.split.held_out, one)
        rows.append({
            "source": one.source.name, "kind": one.source.kind, "partner": choice if isinstance(choice, str) else "",
            "share": choice if isinstance(choice, float) else None, "training_samples": len(one.split.train),
            "training_files": len(np.unique(one.group[one.split.train])),
            "held_out_samples": len(held), "held_out_files": len(np.unique(place.group[held])),
        })  # fmt: skip
    columns = ["source", "kind", "partner", "share", "training_samples", "training_files", "held_out_samples"]
    return pd.DataFrame(rows, columns=[*columns, "held_out_files"])


def mixture(facts: list[Facts], study: Study) -> pd.DataFrame:
    """Return the samples by kind and source: of all training samples (`corpus`), of each stage, and of all stages.

    A stage draws a kind's samples from its sources by their weights, or by their sizes if they have none; the numbers
    are expectations. Rows with source `all` are the sums of a kind.
    """
    trainable = {one.source.name: len(one.split.train) for one in facts if not one.split.partner_of}
    kinds = {one.source.name: one.source.kind for one in facts}
    drawn = {"corpus": trainable}
    for run in reference_runs(study):
        drawn[run.name] = _drawn(run, study, trainable)
    if len(drawn) > 2:
        stages = list(drawn.values())[1:]
        drawn["all stages"] = {name: sum(one.get(name, 0) for one in stages) for name in trainable}
    rows = []
    for where, by_source in drawn.items():
        total = sum(by_source.values())
        for kind in KINDS:
            own = {name: count for name, count in by_source.items() if kinds[name] == kind and count > 0}
            for name, count in {**own, ALL: sum(own.values())}.items():
                share = count / total if total else 0.0
                rows.append({"where": where, "kind": kind, "source": name, "samples": round(count), "share": share})
    return pd.DataFrame(rows, columns=["where", "kind", "source", "samples", "share"])


def _drawn(run: Run, study: Study, trainable: dict[str, int]) -> dict[str, float]:
    samples, result = planned_samples(run, study), {}
    for stream in streams(run, study):
        total = sum(trainable[source.name] for source in stream.sources)
        for source in stream.sources:
            result[source.name] = samples * stream.share * trainable[source.name] / total if total else 0.0
    return result


def video_shares(table: pd.DataFrame) -> dict[str, float]:
    """Return the share of video samples for each `where` of the table of mixtures."""
    chosen = table[(table["kind"] == "video") & (table["source"] == ALL)]
    return dict(zip(chosen["where"], chosen["share"].astype(float), strict=True))
