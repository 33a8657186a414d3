"""Warnings about the data, most serious first, and notes for the reader."""

from collections.abc import Iterator

import pandas as pd

from fvlm.config.schema import Study
from fvlm.data.batches.order import KINDS
from fvlm.data_report import reference_runs
from fvlm.data_report.collect import Facts
from fvlm.data_report.plots import TARGET
from fvlm.data_report.tables import ALL, video_shares

REJECTED, CUT, ALIKE = 0.10, 0.20, 0.01  # shares above which there is a warning


def warnings(facts: list[Facts], tables: dict[str, pd.DataFrame]) -> list[str]:
    """tables: by the names in `TABLES`"""
    sources = tables["sources"]
    return [
        *_missing_kinds(tables["mixture"]),
        *(f"{one.source.name}: no usable sample." for one in facts if not len(one)),
        *_not_held_out(tables["held_out"]),
        *_alike(tables["near_duplicates"]),
        *_video_share(tables["mixture"]),
        *_over(sources, "rejected_share", REJECTED, "of its inputs were rejected; see the reasons under Rejected"),
        *_over(
            sources, "texts_cut_share", CUT, "of its texts are longer than training takes; raise data.max_text_tokens"
        ),
    ]


def _missing_kinds(mixture: pd.DataFrame) -> Iterator[str]:
    corpus = mixture[(mixture["where"] == "corpus") & (mixture["source"] == ALL)].set_index("kind")["samples"]
    for kind in KINDS[:3]:
        if not corpus[kind]:
            yield f"No {kind} samples: no source of that kind has any to train on."


def _not_held_out(held_out: pd.DataFrame) -> Iterator[str]:
    none = held_out[held_out["held_out_samples"] == 0]
    undeclared = none["share"].isna() & (none["partner"] == "")
    if undeclared.any():
        yield f"No held-out data: {', '.join(none[undeclared]['source'])}; set held_out in config/sources.yaml."
    if not undeclared.all():
        yield f"No held-out sample in spite of held_out: {', '.join(none[~undeclared]['source'])}; raise held_out."


def _alike(alike: pd.DataFrame) -> Iterator[str]:
    alike = alike[alike["training_source"] == ALL].set_index("held_out_source")
    affected = alike[(alike.index != ALL) & (alike["share"] > ALIKE)]["share"].sort_values(ascending=False)
    if len(affected):
        total = alike.loc[ALL]
        worst = ", ".join(f"{name} {100 * share:.1f} %" for name, share in affected.items())
        yield (
            f"{total['affected']:,} of {total['compared']:,} held-out samples with images look like a training sample "
            f"({worst}); compare the pairs under Near-duplicates."
        )


def _video_share(mixture: pd.DataFrame) -> Iterator[str]:
    low, high = TARGET
    outside = {where: share for where, share in video_shares(mixture).items() if not low <= round(share, 3) <= high}
    if outside:
        shares = ", ".join(f"{where} {100 * share:.0f} %" for where, share in outside.items())
        yield f"The share of video samples is not between {100 * low:.0f} and {100 * high:.0f} %: {shares}."


def _over(sources: pd.DataFrame, column: str, limit: float, text: str) -> list[str]:
    own = sources[(sources["source"] != ALL) & (sources[column].astype(float) > limit)]
    return [f"{row['source']}: {100 * row[column]:.1f} % {text}." for row in own.to_dict("records")]


def notes(facts: list[Facts], study: Study) -> list[str]:
    """Return facts that are no fault: unknown durations, and sources without training."""
    silent = [one.source.name for one in facts if one.source.kind == "video" and len(one) and not one.timed.any()]
    trained = {name for run in study.runs.values() for name in run.data.sources}
    idle = [one.source.name for one in facts if one.source.name not in trained and not one.split.partner_of]
    runs = ", ".join(run.name for run in reference_runs(study))
    result = [f"Mixture and cut of the texts are those of {runs}." if runs else "The study trains nothing."]
    if silent:
        result.append(f"The shards of {', '.join(silent)} hold no durations of their videos; only frames are counted.")
    if idle:
        result.append(f"Prepared, but used by no run: {', '.join(idle)}.")
    return result
