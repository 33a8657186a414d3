"""What somebody should know before training on these data, most serious first."""

import pandas as pd

from fvlm.config.schema import Study
from fvlm.data.batches.order import KINDS
from fvlm.data_report import reference_runs
from fvlm.data_report.collect import Facts
from fvlm.data_report.plots import TARGET
from fvlm.data_report.tables import ALL, video_shares

REJECTED, CUT, ALIKE = 0.10, 0.20, 0.01  # shares above which there is a warning


def warnings(
    facts: list[Facts], sources: pd.DataFrame, mixture: pd.DataFrame, held_out: pd.DataFrame, alike: pd.DataFrame
) -> list[str]:
    return [
        *_missing_kinds(mixture),
        *_empty(facts),
        *_not_held_out(held_out),
        *_alike(alike),
        *_video_share(mixture),
        *_over(sources, "rejected_share", REJECTED, "of its inputs were rejected; the reasons stand under Rejected"),
        *_over(
            sources, "texts_cut_share", CUT, "of its texts are longer than training takes; raise data.max_text_tokens"
        ),
    ]


def _missing_kinds(mixture: pd.DataFrame) -> list[str]:
    corpus = mixture[(mixture["where"] == "corpus") & (mixture["source"] == ALL)].set_index("kind")["samples"]
    lacking = [kind for kind in KINDS[:3] if not corpus[kind]]
    return [f"No {kind} samples: no source of that kind holds any to train on." for kind in lacking]


def _empty(facts: list[Facts]) -> list[str]:
    return [f"{one.source.name}: no usable sample." for one in facts if not len(one)]


def _not_held_out(held_out: pd.DataFrame) -> list[str]:
    none = held_out[held_out["held_out_samples"] == 0]
    undeclared = none[none["share"].isna() & (none["partner"] == "")]["source"].tolist()
    empty = [name for name in none["source"] if name not in undeclared]
    said = []
    if undeclared:
        said.append(f"No held-out data: {', '.join(undeclared)}; set held_out in config/sources.yaml.")
    if empty:
        said.append(f"Held out, but without a single sample: {', '.join(empty)}; raise held_out.")
    return said


def _alike(alike: pd.DataFrame) -> list[str]:
    every = alike[(alike["training_source"] == ALL) & (alike["held_out_source"] != ALL) & (alike["share"] > ALIKE)]
    if every.empty:
        return []
    total = alike[(alike["training_source"] == ALL) & (alike["held_out_source"] == ALL)].iloc[0]
    worst = ", ".join(
        f"{row.held_out_source} {100 * row.share:.1f} %"
        for row in every.sort_values("share", ascending=False).itertuples()
    )
    return [
        f"{total.affected:,} of {total.compared:,} held-out samples with images look like one that is trained on "
        f"({worst}); look at the pairs under Near-duplicates."
    ]


def _video_share(mixture: pd.DataFrame) -> list[str]:
    low, high = TARGET
    outside = {where: share for where, share in video_shares(mixture).items() if not low <= round(share, 3) <= high}
    if not outside:
        return []
    said = ", ".join(f"{where} {100 * share:.0f} %" for where, share in outside.items())
    return [f"Video's share of the samples is outside of {100 * low:.0f} to {100 * high:.0f} %: {said}."]


def _over(sources: pd.DataFrame, column: str, limit: float, text: str) -> list[str]:
    own = sources[(sources["source"] != ALL) & (sources[column].astype(float) > limit)]
    return [f"{row['source']}: {100 * row[column]:.1f} % {text}." for row in own.to_dict("records")]


def notes(facts: list[Facts], study: Study) -> list[str]:
    """Facts that are no fault: which durations are not known, what no run trains on."""
    silent = [one.source.name for one in facts if one.source.kind == "video" and len(one) and not one.timed.any()]
    trained = {name for run in study.runs.values() for name in run.data.sources}
    idle = [one.source.name for one in facts if one.source.name not in trained and not one.split.partner_of]
    runs = ", ".join(run.name for run in reference_runs(study))
    said = [f"What is drawn, and where texts are cut: as set for {runs}." if runs else "The study trains nothing."]
    if silent:
        said.append(f"Finished shards do not say how long their videos are: {', '.join(silent)}; only frames count.")
    if idle:
        said.append(f"Prepared, but no run trains on it: {', '.join(idle)}.")
    return said
