"""What the report says under each figure, made of the figure's own numbers: its CSV, and nothing else.

What does not depend on the numbers, such as how FLOPs are counted, stands in workflow/report/NAME.rst above it.
"""

import re
from collections.abc import Callable

import numpy as np
import pandas as pd

from fvlm import style
from fvlm.analysis.compare.bootstrap import NO_INTERVAL
from fvlm.analysis.finished import base_name
from fvlm.analysis.plots.captions_fits import FITS
from fvlm.analysis.plots.sentences import counted, number, span, spread, within

REASON = ["reason"]  # the columns of a figure that says why there is nothing to draw
SPECIAL = re.compile(r"([\\*`_|])")


def caption(name: str, numbers: pd.DataFrame) -> str:
    """Sentences about figure `name`: n, its numbers, what intervals are over, the unit of D. `numbers` is its CSV, as
    pandas reads it."""
    if list(numbers.columns) == REASON:
        return f"Nothing to draw: {numbers['reason'].iloc[0].rstrip('.')}."
    parts = [_counted(name, numbers), *SAYS[name](numbers)] if name in SAYS else [_counted(name, numbers)]
    return " ".join(part for part in [*parts, *_intervals(numbers), *_units(numbers)] if part)


def as_rst(text: str) -> str:
    """Plain text with the characters escaped that reStructuredText gives a meaning."""
    return SPECIAL.sub(r"\\\1", text) + "\n"


def _counted(name: str, numbers: pd.DataFrame) -> str:
    """n, and of what."""
    if name in FITS:
        return ""  # of each fit, in its own sentence
    if name in ROWS:
        return f"{counted(len(numbers), ROWS[name])}{_seeds(numbers)}."
    runs = numbers["run"].map(base_name).nunique()
    several = numbers["run"].nunique()
    return f"{counted(runs, 'run')}{f' ({several} with their seeds)' if several > runs else _seeds(numbers)}."


ROWS = {
    "ablation_ranking": "difference",
    "factorial": "effect",
    "model_size_scaling": "grid run",
    "chinchilla_ratio": "grid run",
}


def _seeds(numbers: pd.DataFrame) -> str:
    if "n_seeds" not in numbers:
        return ""
    low, high = int(numbers["n_seeds"].min()), int(numbers["n_seeds"].max())
    return ", one seed each" if high <= 1 else f", {low} to {high} seeds each" if low < high else f", {low} seeds each"


def _intervals(numbers: pd.DataFrame) -> list[str]:
    """Over what the 95 % intervals are, and how many are over each."""
    column = next((name for name in ("interval", "gap_interval") if name in numbers), None)
    if column is None:
        return []
    kinds = numbers[column].value_counts(sort=False)
    kinds = kinds.drop(NO_INTERVAL, errors="ignore")
    if kinds.empty:
        return ["No intervals."]
    return ["95 % intervals: " + ", ".join(f"{kind} ({count})" for kind, count in kinds.items()) + "."]


def _units(numbers: pd.DataFrame) -> list[str]:
    return ["D counts training samples."] if {"D", "samples"} & set(numbers.columns) or "quantity" in numbers else []


def _ranking(table: pd.DataFrame) -> list[str]:
    known = table["low"].notna()
    better, worse = table[known & (table["high"] < 0)], table[known & (table["low"] > 0)]
    parts = [
        f"{len(better)} better than what they are compared with and {len(worse)} worse, with an interval that excludes "
        f"zero; {int(known.sum()) - len(better) - len(worse)} with one that includes it"
        + (f"; {int((~known).sum())} without an interval." if not known.all() else ".")
    ]
    for word, row in (("lowest", table["difference"].idxmin()), ("highest", table["difference"].idxmax())):
        parts.append(f"The {word}: {table.loc[row, 'run']}, {within(table.loc[row], 'difference', True)} nats.")
    return parts


def _factorial(table: pd.DataFrame) -> list[str]:
    measure = "evaluation" if (table["measure"] == "evaluation").any() else table["measure"].iloc[0]
    own = table[table["measure"] == measure]
    effects = "; ".join(f"{row['effect'].split(' (')[0]} {within(row, 'estimate', True)}" for _, row in own.iterrows())
    return [f"{measure.capitalize()} loss: {effects} nats."]


def _last(table: pd.DataFrame, column: str) -> pd.Series:
    """By run, the last value along training."""
    return table.dropna(subset=[column]).sort_values("step").groupby("run", sort=False)[column].last()


def _ends(column: str, what: str, comparable: bool = True) -> Callable[[pd.DataFrame], list[str]]:
    """A sentence on where the runs of a figure of curves end."""

    def say(table: pd.DataFrame) -> list[str]:
        last = _last(table, column)
        return (
            [f"At the end {what} is {span(last)}{f'; lowest: {last.idxmin()}' if comparable else ''}."]
            if len(last)
            else []
        )

    return say


def _token_efficiency(table: pd.DataFrame) -> list[str]:
    rows = [f"{row['label']} {within(row, 'difference', True)}" for _, row in table.iterrows() if _finite(row)]
    return [f"{table['measure'].iloc[0].capitalize()} above the foveated model's, nats: " + "; ".join(rows) + "."]


def _finite(row: pd.Series, column: str = "difference") -> bool:
    return bool(np.isfinite(row[column]))


def _alternatives(table: pd.DataFrame) -> list[str]:
    whole = table[(table["source"] == "all") & table["difference"].notna()]
    whole = whole.rename(columns={"low": "_", "high": "__", "difference_low": "low", "difference_high": "high"})
    rows = [f"{row['run']} {within(row, 'difference', True)}" for _, row in whole.iterrows()]
    return ["Over all sources, above the baseline, nats: " + "; ".join(rows) + "."] if rows else []


def _seeing(table: pd.DataFrame) -> list[str]:
    parts = []
    for run, own in table[(table["shown"] == "other") & (table["source"] != "all")].groupby("run", sort=False):
        clear = int((own["above_low"] > 0).sum())
        parts.append(f"{run}: another sample's frames are clearly worse than its own in {clear} of {len(own)} sources.")
    return parts


def _question_order(table: pd.DataFrame) -> list[str]:
    return [f"{row['run']}, {row['mode']}: {within(row, 'difference', True)} nats." for _, row in table.iterrows()]


def _three_modes(table: pd.DataFrame) -> list[str]:
    parts = []
    others = table["mode"] != table["trained_mode"]
    for mode, chosen in {
        "autoregressive": others & (table["mode"] == "autoregressive"),
        "coarse_only": others & (table["mode"] == "coarse_only") & (table["frames"] == "own"),
        "other": table["frames"] == "other",
        "blind": others & (table["frames"] == "none"),
    }.items():
        gaps = table.loc[chosen, "gap_percent"]
        if gaps.notna().any():
            parts.append(f"{style.MODE_NAMES[mode]}: {spread(gaps, ' %')}")
    return ["Above the mode a run was trained in: " + "; ".join(parts) + "."] if parts else []


def _heatmaps(table: pd.DataFrame) -> list[str]:
    entropy, fine, coarse = (span(table[x]) for x in ("entropy_fine", "peak_over_uniform", "coarse_peak_over_uniform"))
    peaks = f"{fine} times uniform, the coarse query's {coarse}"
    samples = table["key"].nunique()
    return [f"{samples} samples; attention entropy of the last pass {entropy} nats, its peak {peaks} times."]


def _preference(table: pd.DataFrame) -> list[str]:
    last = 100 * _last(table, "reward_accuracy")
    return (
        [f"At the end the better answer is preferred in this share of pairs, in %: {span(last)}."] if len(last) else []
    )


def _ratio(table: pd.DataFrame) -> list[str]:
    last = _last(table, "ratio")
    return [f"At the end the ratio is {span(last)}, below 1 in {int((last < 1).sum())} of {len(last)} runs."]


def _model_size(table: pd.DataFrame) -> list[str]:
    parts = []
    for name, own in table.groupby("architecture", sort=False):
        best = own.loc[own.groupby("budget", sort=False)["loss"].idxmin()].sort_values("C")
        sizes = ", ".join(f"{row['size']} at {row['budget']} ({number(row['loss'])})" for _, row in best.iterrows())
        parts.append(f"Lowest loss, {style.NAMES[name]}: {sizes}.")
    return parts


def _chinchilla(table: pd.DataFrame) -> list[str]:
    return [f"Tokens per parameter: {span(table['tokens_per_parameter'])}."]


SAYS: dict[str, Callable[[pd.DataFrame], list[str]]] = FITS | {
    "ablation_ranking": _ranking,
    "factorial": _factorial,
    "freezing": _ends("val_loss", "the validation loss"),
    "foveated_vs_alternatives": _alternatives,
    "token_efficiency": _token_efficiency,
    "seeing": _seeing,
    "question_order": _question_order,
    "three_modes": _three_modes,
    "attention_heatmaps": _heatmaps,
    "attention_entropy": _ends("attention_entropy", "the entropy"),
    "training_curves": _ends("val_loss", "the validation loss", comparable=False),
    "fine_coarse_ratio": _ratio,
    "preference": _preference,
    "model_size_scaling": _model_size,
    "chinchilla_ratio": _chinchilla,
}
