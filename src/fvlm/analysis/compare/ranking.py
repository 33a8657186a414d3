"""Runs ranked: the table `ablations` of a study, each run against the run that it is to be compared with, and
`fvlm rank CURVES.csv --baseline RUN`."""

import argparse
import math
from typing import NamedTuple

import numpy as np
import pandas as pd

from fvlm.analysis.columns import COLUMNS
from fvlm.analysis.compare.bootstrap import LEVEL, NO_INTERVAL, Cell, Estimate, pooled
from fvlm.analysis.compare.noise import Noise, SeedsOfCurves, is_clear, rounded
from fvlm.analysis.compare.runs import ComparedRuns, difference, question_of
from fvlm.analysis.files import check_out, write_table
from fvlm.analysis.fits.curves import ends
from fvlm.analysis.inputs import add_files, read_curves
from fvlm.config.comparisons import Comparisons
from fvlm.errors import UserError

APART = 0.01  # by which the samples seen at the end may differ; relative
MEASURES = ("best", "final")
SAME = {"lr_schedule": "learning-rate schedule", "model_size": "model size"}


class Place(NamedTuple):
    """Where an ablation stands in the ranking, and what it is compared with."""

    group: str
    reference: str
    kind: str  # of the held-out samples
    note: str = ""


def place_of(base: str, comparisons: Comparisons) -> Place:
    name, sweep = comparisons.sweep_of(base) or ("", None)
    if sweep and sweep.reference != comparisons.reference:
        group = f"{name}, compared with {sweep.reference}"
        return Place(group, sweep.reference, sweep.samples, f"compared with {sweep.reference} only")
    if sweep and sweep.samples != "all":
        kind = sweep.samples
        group = f"{kind}s only, compared with {sweep.reference}"
        return Place(group, sweep.reference, kind, f"compared on held-out {kind}s only")
    return Place(f"compared with {comparisons.reference}", comparisons.reference, "all")


def ablations(
    runs: pd.DataFrame,
    evaluation: pd.DataFrame,
    bootstrap: pd.DataFrame,
    comparisons: Comparisons,
    validation_curves: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Return one row per ablation (seeds pooled), ranked within its group by the mean best validation loss."""
    study = ComparedRuns(runs, evaluation, bootstrap, validation_curves)
    places = {base: place_of(base, comparisons) for base in study.of_family("ablation")["base"].drop_duplicates()}
    groups = [place_of(base, comparisons).group for base in (comparisons.reference, *comparisons.named)]
    rows = [_row(study, base, place, comparisons) for base, place in places.items()]
    table = pd.DataFrame(rows, columns=COLUMNS["ablations"])
    table = table.assign(order=table["group"].map(groups.index))
    table = table.assign(clear=table["clear"].eq(True))
    return table.sort_values(["order", "best_val_loss", "run"], ignore_index=True).drop(columns="order")


def _row(study: ComparedRuns, base: str, place: Place, comparisons: Comparisons) -> dict:
    reference, kind = place.reference, place.kind
    members = list(study.seeds(base).values())
    own = study.runs.loc[members]
    others = list(study.seeds(reference).values())
    row = {
        "group": place.group,
        "run": base,
        "question": question_of(own.iloc[0], comparisons),
        "compared_with": reference,
        "note": place.note,
        "n_seeds": len(members),
        "samples": own["samples"].mean(),
        "best_val_loss": own["best.val_loss"].mean(),
        "final_val_loss": own["final.val_loss"].mean(),
        "evaluation_loss": study.level(base, Cell(kind=kind)).value,
    }
    if not others:
        return row | {"note": f"{reference} is not in this study", "interval": NO_INTERVAL}
    row["data_differs"] = study.data_differs(members[0], others[0])
    if base == reference:
        return row | {"interval": NO_INTERVAL, "measure": "reference"}
    row |= differences(study, base, reference, kind)
    if np.isnan(row["difference"]) and not row["note"]:
        row["note"] = f"other held-out samples or scored tokens than {reference}: not compared"
    return row


def differences(study: ComparedRuns, base: str, reference: str, kind: str) -> dict:
    """Return the differences to `reference` (negative: better), and the one to quote with its interval: of the
    evaluation, or of the best validation where there is none; over the seeds common to both."""
    evaluated = study.difference(base, reference, Cell(kind=kind))
    best, final = (study.validation_difference(base, reference, which) for which in ("best", "final"))
    quoted, measure, noise = study.quoted([base, reference], difference, Cell(kind=kind))
    all_three = {"best": best, "final": final, "evaluation": evaluated}
    values = {f"{name}_difference": one.value for name, one in all_three.items()}
    judged = {**noise.columns(LEVEL), "clear": is_clear(quoted, noise)}
    return {**values, **quoted.columns("difference"), **judged, "measure": measure}


def paired(losses: dict[float, float], others: dict[float, float]) -> Estimate:
    """Return how far `losses` lie above `others`, over the seeds that both have; both are seed -> loss.

    Without a common seed the difference of the means, and no interval.
    """
    common = [seed for seed in losses if seed in others]
    if common:
        return pooled(np.array([losses[seed] - others[seed] for seed in common]))
    return Estimate(_mean(losses) - _mean(others))


def _mean(losses: dict[float, float]) -> float:
    return sum(losses.values()) / len(losses)


def tied(losses: dict[str, dict[float, float]]) -> dict[str, int | None]:
    """Return run -> its group, 1 the best.

    In the order of their mean loss, a run belongs to the group before it if the interval of its difference to the best
    of that group includes zero, else it begins the next. A run whose difference has no interval is in no group (None).

    losses  run -> seed -> loss
    """
    groups: dict[str, int | None] = dict.fromkeys(losses)
    leader, group = None, 0
    for run in sorted(losses, key=lambda name: _mean(losses[name])):
        gap = None if leader is None else paired(losses[run], losses[leader])
        if len(losses[run]) < 2 or (gap and np.isnan(gap.low)):
            continue
        if gap is None or gap.low > 0 or gap.high < 0:
            leader, group = run, group + 1
        groups[run] = group
    return groups


def ranked(curves: pd.DataFrame, baseline: str, by: str) -> pd.DataFrame:
    """Return one row per run (seeds averaged), ascending in its loss `by`; `curves` as `read_curves` gives them."""
    last = ends(curves)
    seeds = SeedsOfCurves(last, curves)
    members: dict[str, list[dict]] = {}
    for row in last.to_dict("records"):  # a table per run would take minutes for ten thousand runs
        members.setdefault(row["run"], []).append(row)
    groups = tied({run: _by_seed(own, by) for run, own in members.items()})
    base = members[baseline]
    rows = []
    for run, own in members.items():
        row = {"run": run, "group": groups[run], "n_seeds": len(own)}
        for measure in MEASURES:
            gap = Estimate(0.0) if run == baseline else paired(_by_seed(own, measure), _by_seed(base, measure))
            alone = run != baseline and gap.interval == NO_INTERVAL
            noise = seeds.noise([run, baseline], (1.0, -1.0), measure) if alone else Noise()
            row |= {f"{measure}_loss": mean(own, measure)} | gap.columns(f"{measure}_difference", f"{measure}_")
            found = noise.columns(LEVEL)
            row |= {"noise_from": found.pop("noise_from")} | {f"{measure}_{name}": cell for name, cell in found.items()}
        row |= {name: mean(own, name) for name in ("best_step", "final_step", "samples")}
        rows.append(row | {"n_seeds": len(own), "warning": "; ".join(warnings(own, base))})
    table = pd.DataFrame(rows)
    for measure in MEASURES:
        table[f"{measure}_rank"] = table[f"{measure}_loss"].rank(method="min").astype(int)
    first = ["run", "group", "best_rank", "final_rank"]
    table = table[[*first, *(name for name in table if name not in first)]].astype({"group": "Int64"})
    return table.sort_values([f"{by}_loss", "run"], ignore_index=True)


def _by_seed(own: list[dict], measure: str) -> dict[float, float]:
    return {row["seed"]: row[measure] for row in own}


def mean(own: list[dict], name: str) -> float:
    """Over the seeds of a run."""
    return sum(row[name] for row in own) / len(own)


def warnings(own: list[dict], base: list[dict]) -> list[str]:
    """Return what limits a run's difference to the baseline; both are rows of `ends`."""
    texts = []
    row = next((row for row in own if row["best_is_early"]), None)
    if row:
        worse, at = 100 * (row["final"] / row["best"] - 1), row["best_evaluation"]
        texts.append(
            f"best at evaluation {at:.0f} of {row['evaluations']:.0f}, step {row['best_step']:.10g} "
            f"of {row['final_step']:.10g}; {worse:.1f} % worse at the end"
        )
    seen, other = mean(own, "samples"), mean(base, "samples")
    last, end = mean(own, "final_step"), mean(base, "final_step")
    if abs(seen - other) > APART * other:
        texts.append(f"saw {seen:.10g} samples, the baseline {other:.10g}")
    elif math.isnan(seen) and abs(last - end) > APART * end:
        texts.append(f"ends at step {last:.10g}, the baseline at {end:.10g}")
    for name, words in SAME.items():
        used, reference = ({row[name] for row in rows} - {""} for rows in (own, base))
        if used and reference and used != reference:
            texts.append(f"another {words}: {', '.join(sorted(used))}")
    return texts


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_files(
        parser, "curves", "run, step, val_loss; optional seed, samples, lr_schedule", "run=name,val_loss=loss", "CSV"
    )
    parser.add_argument("--baseline", required=True, metavar="RUN", help="the run that the others are compared with")
    parser.add_argument("--by", choices=MEASURES, default="final", help="the evaluation that ranks; default: final")


def main(args: argparse.Namespace) -> None:
    curves = read_curves(args.curves, args, "step")
    if args.baseline not in set(curves["run"]):
        runs = ", ".join(curves["run"].drop_duplicates()[:30])
        raise UserError(f"--baseline {args.baseline}: no such run in {args.curves}; found {runs}")
    table = ranked(curves, args.baseline, args.by)
    if args.out:
        check_out(args.out, args.curves)
        write_table(table, args.out)
    print("\n".join(summary(table, args.baseline, args.by)))


def summary(table: pd.DataFrame, baseline: str, by: str) -> list[str]:
    lines = [f"ranked by the {by} evaluation; differences to {baseline}; negative: better"]
    wide = max(map(len, table["run"]))
    lines.append(f"{'group':>5}  {'run':<{wide}}  {'final':>8} {'difference':>26}  {'best':>8} {'difference':>26}")
    for row in table.to_dict("records"):
        group = "-" if pd.isna(row["group"]) else row["group"]
        final, best = (f"{row[f'{name}_loss']:8.4f} {_difference(row, name):>26}" for name in ("final", "best"))
        lines.append(f"{group:>5}  {row['run']:<{wide}}  {final}  {best}")
    if (table["interval"] == NO_INTERVAL).all():
        lines.append("one seed per run: no intervals, so no order is claimed and no ties are grouped")
    else:
        lines.append(
            "95 % intervals over seeds; one group: no significant difference to its best; -: one seed, no claim"
        )
    for source, own in table[table["noise_from"] != ""].groupby("noise_from"):
        least = (own[f"{by}_likely_above"] / own[f"{by}_noise"]).dropna()
        ends_of = " to ".join(dict.fromkeys(map(rounded, (least.min(), least.max()))))
        lines.append(f"x: times the spread {source}, for runs without an interval; likely from {ends_of} x")
    for row in table[table["warning"] != ""].to_dict("records"):
        lines.append(f"warning: {row['run']}: {row['warning']}")
    return lines


def _difference(row: dict, name: str) -> str:
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    times = abs(row[f"{name}_difference"]) / row[f"{name}_noise"]
    about = f" ({rounded(times)} x)" if np.isfinite(times) else ""
    ci = f" ({low:+.3f} to {high:+.3f})" if np.isfinite(low) else about
    return f"{row[f'{name}_difference']:+.4f}{ci}"
