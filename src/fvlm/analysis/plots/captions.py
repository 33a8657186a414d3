"""The sentences with numbers that the report prints under a figure, made of the figure's CSV and nothing else.

How to read a figure does not depend on its numbers: that is in workflow/report/captions.yaml. Figures on request are
not in the report: n and the kind of their intervals are enough.
"""

import re
from collections.abc import Callable

import numpy as np
import pandas as pd

from fvlm import style
from fvlm.analysis.columns import COUNTED
from fvlm.analysis.compare.bootstrap import NO_INTERVAL
from fvlm.analysis.compare.gap import RISES
from fvlm.analysis.finished import base_name

STAR = "SmolVLM2's 3.3 M samples"
REASON = ["reason"]  # the columns of a figure that states why there is nothing to draw
SPECIAL = re.compile(r"([\\*`_|])")


def caption(name: str, numbers: pd.DataFrame) -> str:
    """Return sentences about figure `name`: n, its numbers, what intervals are over. `numbers` is its CSV."""
    if list(numbers.columns) == REASON:
        return f"Nothing to draw: {numbers['reason'].iloc[0].rstrip('.')}."
    sentences = SENTENCES[name](numbers) if name in SENTENCES else []
    if name not in FITS:  # whose sentences have an n and an interval for each fit
        runs = numbers[numbers["frames"].notna()] if name == "benchmarks" else numbers  # published models are no runs
        sentences = [_counted(runs), *sentences, *_intervals(numbers)]
    return " ".join([*sentences, *_flops_from(numbers)])


def _flops_from(numbers: pd.DataFrame) -> list[str]:
    """Of imported runs: where their training FLOPs come from, by group."""
    if COUNTED not in numbers:
        return []
    known = numbers[numbers[COUNTED].notna()].drop_duplicates(["group", COUNTED])
    parts = known.groupby(COUNTED, sort=False)["group"].agg(lambda names: " and ".join(filter(None, names.fillna(""))))
    return [f"FLOPs{f' of {names}' * bool(names)}: {words}." for words, names in parts.items()]


def as_rst(text: str) -> str:
    """Return plain text with the characters escaped that reStructuredText gives a meaning."""
    return SPECIAL.sub(r"\\\1", text) + "\n"


def number(value: float, sign: bool = False) -> str:
    """Three significant digits: 0.0281 -> '0.0281' or '+0.0281'; a true minus sign."""
    text = f"{float(f'{value:.3g}'):{'+' if sign else ''}g}"
    return re.sub(r"e([+-])0*", lambda match: "e" + match[1].strip("+"), text).replace("-", "−")


def within(row: pd.Series | dict, column: str, sign: bool = False) -> str:
    """A value, and in brackets its interval in columns low and high if there is one."""
    low, high = row["low"], row["high"]
    interval = f" ({number(low, sign)} to {number(high, sign)})" if np.isfinite([low, high]).all() else ""
    return number(row[column], sign) + interval


def spread(values, unit: str = "") -> str:
    """'low to high, mean m', with signs."""
    values = np.asarray(values, float)
    values = values[np.isfinite(values)]
    low, high, mean = (number(one(values), True) for one in (np.min, np.max, np.mean))
    return f"{low}{unit}" if len(values) == 1 else f"{low} to {high}{unit}, mean {mean}{unit}"


def _n(count: int, noun: str) -> str:
    return f"n = {count} {noun}{'s' * (count != 1)}"


def _counted(numbers: pd.DataFrame) -> str:
    if "run" not in numbers or numbers["run"].isna().any():
        return f"{_n(len(numbers), 'row')}."
    runs, several = numbers["run"].map(base_name).nunique(), numbers["run"].nunique()
    return f"{_n(runs, 'run')}{f' ({several} with their seeds)' * (several > runs)}."


def _intervals(numbers: pd.DataFrame) -> list[str]:
    """What the 95 % intervals are over, and how many are over each."""
    column = next((name for name in ("interval", "gap_interval") if name in numbers), None)
    if column is None:
        return []
    kinds = numbers[column].value_counts(sort=False).drop(NO_INTERVAL, errors="ignore")
    listed = ", ".join(f"{kind} ({count})" for kind, count in kinds.items())
    return [f"95 % intervals: {listed}." if listed else "No intervals."]


def _listed(rows: pd.DataFrame, label: str, value: str, before: str = "") -> str:
    """'label value (low to high)' of each row; `before`: of the columns low and high."""
    rows = rows.assign(low=rows[f"{before}low"], high=rows[f"{before}high"])
    return "; ".join(f"{row[label]} {within(row, value, True)}" for _, row in rows.iterrows())


def _ranking(table: pd.DataFrame) -> list[str]:
    known, clear = table["low"].notna(), table["clear"].astype(str) == "True"
    better, worse = (int((clear & side).sum()) for side in (table["difference"] < 0, table["difference"] > 0))
    within = int((((table["high"] < 0) | (table["low"] > 0)) & ~clear).sum())  # grey in the figure, as the rest
    rest = known.sum() - (clear & known).sum() - within
    counts = {
        "better": better,
        "worse": worse,
        "within the noise of one seed": within,
        "no significant difference": rest,
    }
    counts |= {"no interval": int((~known & ~clear).sum())}
    listed = ", ".join(f"{what}: {n}" for what, n in counts.items() if n or what in ("better", "worse"))
    return [f"Significantly {listed}."]


def _factorial(table: pd.DataFrame) -> list[str]:
    measure = "evaluation" if (table["measure"] == "evaluation").any() else table["measure"].iloc[0]
    own = table[table["measure"] == measure]
    own = own.assign(effect=own["effect"].str.split(" (", regex=False).str[0])
    return [f"{measure.capitalize()} loss: {_listed(own, 'effect', 'estimate')} nats."]


def _token_efficiency(table: pd.DataFrame) -> list[str]:
    parts = [
        f"{measure.capitalize()} above the foveated model's, nats: {_listed(own, 'label', 'difference')}."
        for measure, own in table[table["difference"].notna()].groupby("measure", sort=False)
    ]
    return parts or ["No alternative to the foveated model."]


def _alternatives(table: pd.DataFrame) -> list[str]:
    own = table[(table["source"] == "all") & table["difference"].notna()]
    rows = _listed(own, "run", "difference", "difference_")
    return [f"Differences over all sources, nats: {rows}."] if rows else []


def _seeing(table: pd.DataFrame) -> list[str]:
    other = table[(table["shown"] == "other") & (table["source"] != "all")]
    return [
        f"{run}: another sample's frames are significantly worse in {(own['above_low'] > 0).sum()} of {len(own)} "
        "sources."
        for run, own in other.groupby("run", sort=False)
    ]


def _three_modes(table: pd.DataFrame) -> list[str]:
    others = table[(table["mode"] != table["trained_mode"]) | (table["frames"] != "own")]
    shown = others["mode"].where(others["frames"] != "other", "other")
    gaps = {name: others.loc[shown == name, "gap_percent"].dropna() for name in style.MODE_NAMES}
    parts = [f"{style.MODE_NAMES[name]} {spread(own, ' %')}" for name, own in gaps.items() if len(own)]
    return [f"Above the mode trained in: {'; '.join(parts)}."] if parts else []


def _gap(table: pd.DataFrame) -> list[str]:
    grid = table[table["family"] == "grid"] if (table["family"] == "grid").any() else table
    measure = grid["measure"].iloc[0].capitalize()
    parts = [f"{_n(len(table), 'pair')} of runs.", f"{measure} loss, raw gap: {spread(grid['raw_percent'], ' %')}."]
    for name, words in {"at_foveated": "At the foveated model's N", "at_baseline": "At the baseline's N"}.items():
        known = grid[grid[f"{name}_percent"].notna()]
        if len(known):
            beyond = int((known[f"{name}_extrapolates"].astype(str) == "True").sum())
            parts.append(f"{words}: {spread(known[f'{name}_percent'], ' %')} ({beyond} of {len(known)} extrapolate).")
    if rising := int(grid["note"].astype(str).str.contains(RISES).sum()):
        parts.append(f"In {rising} of {len(grid)} a curve that is read off {RISES}: it does not show what N is worth.")
    return parts + _intervals(table)


def _each(about: Callable[[str, pd.DataFrame], str], last: str = "") -> Callable[[pd.DataFrame], list[str]]:
    """Return a function of a table: a sentence about each architecture, by its name in figures and its rows."""

    def sentences(table: pd.DataFrame) -> list[str]:
        groups = table["group"].fillna("") if "group" in table else pd.Series("", index=table.index)
        parts = [
            about(f"{group}, {style.NAMES[name]}" if group else style.NAMES[name], own)
            for (group, name), own in table.groupby([groups, "architecture"], sort=False)
        ]
        return [*parts, last] if last else parts

    return sentences


def _reason(row: pd.Series) -> str:
    return f"not identified ({row['reason']})" if isinstance(row["reason"], str) and row["reason"] else "not identified"


def _exponent(row: pd.Series, symbol: str, n: str) -> str:
    """'N* ∝ C^0.52 (0.5 to 0.55), n = 4 minima', or why not."""
    if not np.isfinite(row["value"]):
        return f"exponent of {symbol} {_reason(row)}, {n}"
    return f"{symbol} ∝ C^{within(row, 'value')}, {n}"


def _model_size(name: str, own: pd.DataFrame) -> str:
    best = own.loc[own.groupby("budget", sort=False)["loss"].idxmin()].sort_values("C")
    best = best.assign(at=" at " + best["budget"].mask(best["budget"] == best.get("group", "")))  # not the group again
    sizes = [f"{row['size']}{row['at']} ({number(row['loss'])})" for _, row in best.fillna({"at": ""}).iterrows()]
    return f"Lowest loss, {name}: {', '.join(sizes)}."


def _loss_vs_flops(name: str, own: pd.DataFrame) -> str:
    runs = own["run"].fillna("") if "run" in own else pd.Series("", index=own.index)  # of a law along one run
    count = int((own["what"] == "run").sum())
    adopted = int((own["adopted"] > 0).sum()) if "adopted" in own else 0
    fits = [_of_loss(row, own[runs == runs[at]], count) for at, row in own[own["what"] == "exponent"].iterrows()]
    fits = fits or [f"no fit, {_n(count, 'run')}"]
    return f"{name}: {'; '.join(fits)}{f'; of the runs {adopted} adopted' * (adopted > 0)}."


def _of_loss(row: pd.Series, own: pd.DataFrame, count: int) -> str:
    """A fit of loss against C, and its prolongation; or why there is none."""
    run = row["run"] if isinstance(row.get("run"), str) else ""
    n = f"n = {int(row['runs'])} evaluations" if run else f"n = {int(row['runs'])} lowest of {count} runs"
    name = f"along {run} " * bool(run)
    if not np.isfinite(row["value"]):
        return f"{name}{row['reason']}, {n}"
    form = "no floor" if isinstance(row["reason"], str) and row["reason"] else "and a floor"
    falls = {"value": -row["value"], "low": -row["high"], "high": -row["low"]}
    text = f"{name}loss ∝ C^{within(falls, 'value')}, {form}, {n}"
    ends = own[own["what"].isin(("extrapolated", STAR))].groupby("what", sort=False).tail(1)
    for _, far in ends.iterrows():
        where = f"prolonged to {number(far['C'])} FLOPs" if far["what"] == "extrapolated" else f"at {far['what']}"
        text += f"; {where}: {within(far, 'loss')} nats, perplexity {number(np.exp(far['loss']))}"
    return text


def _isoflop(name: str, own: pd.DataFrame) -> str:
    inside, runs = own[own["what"] == "minimum"], own[own["what"] == "run"]
    minima = ", ".join(f"{row['budget']} N* = {number(row['N'])}" for _, row in inside.iterrows())
    what = "point" if "group" in own else "run"  # of imported runs, losses at FLOPs that all of them reach
    count = f"{len(inside)} of {runs['budget'].nunique()} minima inside ({_n(len(runs), what)})"
    return f"{name}: {count}{': ' * bool(minima)}{minima}."


def _isoflop_optimum(name: str, own: pd.DataFrame) -> str:
    left_out = int(((own["what"] == "excluded") & (own["quantity"] == "N*")).sum())
    rows = own[own["what"] == "exponent"]
    exponents = [_exponent(row, row["quantity"], f"n = {int(row['n'])} minima") for _, row in rows.iterrows()]
    return f"{name}: {'; '.join(exponents)}; {left_out} left out."


def _benchmarks(numbers: pd.DataFrame) -> list[str]:
    """Of each benchmark the level of guessing, and how many of its questions are scored."""
    sentences = []
    for title, own in numbers[numbers["frames"].notna()].groupby("title", sort=False):
        first, low, high = own.iloc[0], own["missing"].min(), own["missing"].max()
        missing = f"{low:.0f}" if low == high else f"{low:.0f} to {high:.0f}"
        chance = f"guessing gives {number(first['chance'])} %; " if np.isfinite(first["chance"]) else ""
        sentences.append(
            f"{title}, {first['way'].replace('_', ' ')}, {first['metric']}: {chance}{first['questions']:.0f} of "
            f"{first['total']:.0f} questions on {first['videos']:.0f} videos, {missing} lack their video."
        )
    published = numbers.loc[numbers["frames"].isna(), "source"].dropna().drop_duplicates()
    return [*sentences, *(f"Hollow: published ({source})." for source in published)]


FITS = {
    "loss_vs_flops": _each(
        _loss_vs_flops, "95 % intervals and bands: bootstrap of the points; of few, of the residuals."
    ),
    "isoflop": _each(_isoflop),
    "isoflop_optimum": _each(_isoflop_optimum, "95 % intervals and bands: t of the least-squares line in log-log."),
    "gap": _gap,
}
SENTENCES = FITS | {
    "ablation_ranking": _ranking,
    "factorial": _factorial,
    "foveated_vs_alternatives": _alternatives,
    "token_efficiency": _token_efficiency,
    "seeing": _seeing,
    "three_modes": _three_modes,
    "benchmarks": _benchmarks,
    "model_size_scaling": _each(_model_size),
}
