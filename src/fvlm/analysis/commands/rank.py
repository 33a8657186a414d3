"""Runs ranked against a baseline, from evaluation curves: `fvlm rank CURVES.csv --baseline RUN`."""

import math

import numpy as np
import pandas as pd

from fvlm.analysis.commands import check_out
from fvlm.analysis.commands.inputs import add_columns, read_curves
from fvlm.analysis.compare.bootstrap import NO_INTERVAL, Estimate
from fvlm.analysis.compare.ranking import paired, tied
from fvlm.analysis.files import write_table
from fvlm.analysis.fits.curves import ends
from fvlm.errors import UserError

APART = 0.01  # by which the samples seen at the end may differ; relative
MEASURES = ("best", "final")
SAME = {"lr_schedule": "learning-rate schedule", "model_size": "model size"}


def add_arguments(parser) -> None:
    parser.add_argument("curves", help="CSV: run_id, step, val_loss; optional seed, samples_seen, lr_schedule")
    parser.add_argument("--baseline", required=True, metavar="RUN", help="the run that the others are compared with")
    parser.add_argument("--by", choices=MEASURES, default="final", help="the evaluation that ranks; default: final")
    parser.add_argument("--out", metavar="FILE", help="the CSV to write")
    add_columns(parser, "run=name,val_loss=loss")


def main(args) -> None:
    curves = read_curves(args.curves, args.columns, args.keep, ("step",))
    found = ends(curves)
    if args.baseline not in set(found["run"]):
        runs = ", ".join(found["run"].drop_duplicates()[:30])
        raise UserError(f"--baseline {args.baseline}: no such run in {args.curves}; found {runs}")
    table = ranked(found, args.baseline, args.by)
    if args.out:
        check_out(args.out, args.curves)
        write_table(table, args.out)
    print("\n".join(summary(table, args.baseline, args.by)))


def ranked(found: pd.DataFrame, baseline: str, by: str) -> pd.DataFrame:
    """One row per run (seeds averaged), ascending in its loss `by`; `found` as `curves.ends` gives it."""
    members: dict[str, list[dict]] = {}
    for row in found.to_dict("records"):  # plain rows: a table per run would take minutes for ten thousands of runs
        members.setdefault(row["run"], []).append(row)
    groups = tied({run: _by_seed(own, by) for run, own in members.items()})
    base = members[baseline]
    rows = []
    for run, own in members.items():
        row = {"run": run, "group": groups[run], "n_seeds": len(own)}
        for measure in MEASURES:
            gap = Estimate(0.0) if run == baseline else paired(_by_seed(own, measure), _by_seed(base, measure))
            row |= {
                f"{measure}_loss": mean(own, measure),
                f"{measure}_difference": gap.value,
                f"{measure}_low": gap.low,
                f"{measure}_high": gap.high,
                "interval": gap.interval,
            }
        row |= {name: mean(own, name) for name in ("best_step", "final_step", "samples")}
        rows.append(row | {"warning": "; ".join(warnings(own, base))})
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
    """Why a run's difference to the baseline should not be taken as it stands; both are rows of `ends`."""
    said = []
    row = next((row for row in own if row["best_is_early"]), None)
    if row:
        worse, at = 100 * (row["final"] / row["best"] - 1), row["best_evaluation"]
        said.append(
            f"best at evaluation {at:.0f} of {row['evaluations']:.0f}, step {row['best_step']:.10g} "
            f"of {row['final_step']:.10g}; {worse:.1f} % worse at the end"
        )
    seen, other = mean(own, "samples"), mean(base, "samples")
    last, end = mean(own, "final_step"), mean(base, "final_step")
    if abs(seen - other) > APART * other:
        said.append(f"saw {seen:.10g} samples, the baseline {other:.10g}")
    elif math.isnan(seen) and abs(last - end) > APART * end:
        said.append(f"ends at step {last:.10g}, the baseline at {end:.10g}")
    for name, words in SAME.items():
        found, other = ({row[name] for row in rows} - {""} for rows in (own, base))
        if found and other and found != other:
            said.append(f"another {words}: {', '.join(sorted(found))}")
    return said


def summary(table: pd.DataFrame, baseline: str, by: str) -> list[str]:
    lines = [f"ranked by the {by} evaluation; differences to {baseline}; negative: better"]
    wide = max(map(len, table["run"]))
    lines.append(f"{'group':>5}  {'run':<{wide}}  {'final':>8} {'difference':>26}  {'best':>8} {'difference':>26}")
    for row in table.to_dict("records"):
        group = "-" if pd.isna(row["group"]) else row["group"]
        final, best = (f"{row[f'{name}_loss']:8.4f} {_difference(row, name):>26}" for name in ("final", "best"))
        lines.append(f"{group:>5}  {row['run']:<{wide}}  {final}  {best}")
    if (table["interval"] == NO_INTERVAL).all():
        lines.append("one seed per run: no intervals, so that no order is claimed and no ties are grouped")
    else:
        lines.append("95 % intervals over seeds; one group: not told apart from its best; -: one seed, no claim")
    for row in table[table["warning"] != ""].to_dict("records"):
        lines.append(f"warning: {row['run']}: {row['warning']}")
    return lines


def _difference(row: dict, name: str) -> str:
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    sure = f" ({low:+.3f} to {high:+.3f})" if np.isfinite(low) else ""
    return f"{row[f'{name}_difference']:+.4f}{sure}"
