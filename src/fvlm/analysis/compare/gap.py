"""The gap between two architectures, raw and at equal parameters. The table `gap` of a study, foveated against 16
tokens, and `fvlm gap POINTS.csv`.

The baseline of a pair has more parameters. Each architecture's own curve of loss against log N, at equal
FLOPs, is read off at the other's parameter count: once at the foveated model's, once at the baseline's.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from fvlm.analysis.columns import COLUMNS
from fvlm.analysis.compare.bootstrap import pooled
from fvlm.analysis.compare.pairs import Group, Pair, architectures, read_samples
from fvlm.analysis.compare.runs import ComparedRuns
from fvlm.analysis.files import check_out
from fvlm.analysis.fits.grid import PAIRED, grid_points
from fvlm.analysis.inputs import add_files, finish, natural, read, resamples
from fvlm.config.comparisons import Comparisons
from fvlm.errors import UserError

ARCHITECTURES = ("foveated", "multi_token")  # of a study: the model in question, and its baseline
RISES = "rises with N from one size to the next"
OTHER_SAMPLES = "some runs were validated on other samples or scored tokens, so this is no gap of two models"
TWO = (
    "two points per curve: each curve is one straight line, so that the two directions agree almost by construction "
    "and do not check each other"
)
DIRECTIONS = {
    "raw": "raw",
    "at_foveated": "at the foveated model's N",
    "at_baseline": "at the baseline's N",
}


def read_off(
    n: np.ndarray, loss: np.ndarray, at: float, scale: Callable[[np.ndarray], np.ndarray] = np.log
) -> tuple[np.ndarray, int]:
    """Return the loss at `at` parameters, piecewise linear in scale(N); the end segments are prolonged.

    n (k,) ascending, k >= 2; loss (k,) or (k, R) -> loss () or (R,), and the side on which that extrapolates: -1 below
    the smallest N, 1 above the largest, 0 not
    """
    x, here = scale(n), scale(at)
    right = int(np.clip(np.searchsorted(x, here), 1, len(x) - 1))
    share = (here - x[right - 1]) / (x[right] - x[right - 1])
    return loss[right - 1] + share * (loss[right] - loss[right - 1]), int(here > x[-1]) - int(here < x[0])


def linear(n):
    """The scale of a curve that is read off linearly in N."""
    return n


def percent(loss, reference):
    """Return how far a loss is above `reference`, in percent of it; positive: worse."""
    return 100 * (loss / reference - 1)


def corrected(
    n_foveated: np.ndarray,
    loss_foveated: np.ndarray,
    n_baseline: np.ndarray,
    loss_baseline: np.ndarray,
    pair: int | tuple[int, int],
    scale: Callable[[np.ndarray], np.ndarray] = np.log,
) -> dict:
    """Return the gaps of one pair, in percent. Curves ascend in N; losses are (k,), or (k, R) of seeds or replicates.
    A gap is NaN where a prolonged curve has fallen to zero.

    pair   its place in both curves, or its place in each
    scale  of N, in which the curves are read off: np.log, or `linear`
    """
    left, right = (pair, pair) if isinstance(pair, int) else pair
    own, other = n_foveated[left], n_baseline[right]
    at_foveated, beyond_one = read_off(n_baseline, loss_baseline, own, scale)
    at_baseline, beyond_two = read_off(n_foveated, loss_foveated, other, scale)
    at_foveated, at_baseline = (np.where(loss > 0, loss, np.nan) for loss in (at_foveated, at_baseline))
    return {
        "raw": percent(loss_foveated[left], loss_baseline[right]),
        "at_foveated": percent(loss_foveated[left], at_foveated),
        "at_foveated_extrapolates": beyond_one,
        "at_baseline": percent(at_baseline, loss_baseline[right]),
        "at_baseline_extrapolates": beyond_two,
    }


@dataclass(frozen=True)
class Budget:
    """The sizes that both architectures have at one budget: their names, parameters (k,) and base names, ascending in
    N, first those of the foveated model."""

    family: str
    name: str
    sizes: list[str]
    n: tuple[np.ndarray, np.ndarray]
    bases: tuple[list[str], list[str]]


def budgets_of(study: ComparedRuns, family: str = "grid") -> list[Budget]:
    """Return the budgets of the grid, or of another family, at which both architectures have a size in common."""
    found, grid = [], study.of_family(family)
    named = grid.drop_duplicates(["architecture", "size", "budget"]).set_index(["architecture", "size", "budget"])
    points = grid_points(study.runs.reset_index(drop=True), family).sort_values("C", kind="stable")
    for name, own in points.groupby("budget", sort=False):
        sides = [own[own["architecture"] == side].set_index("size").sort_values("N") for side in ARCHITECTURES]
        sizes = [size for size in sides[0].index if size in sides[1].index]
        if sizes:
            n = tuple(side.loc[sizes, "N"].to_numpy(float) for side in sides)
            bases = tuple([named.loc[(side, size, name), "base"] for size in sizes] for side in ARCHITECTURES)
            found.append(Budget(family, name, sizes, n, bases))
    return found


def gap(
    runs: pd.DataFrame, evaluation: pd.DataFrame, bootstrap: pd.DataFrame, comparisons: Comparisons
) -> pd.DataFrame:
    """Return one row per pair and measure: each size of the grid at each budget, imported pairs, two ablations.

    measure "validation" is the final validation loss, "evaluation" the held-out loss. The interval is over
    the seeds that all runs of a budget have; with one seed the evaluation has a paired bootstrap over
    evaluation videos, and the validation none.
    """
    study = ComparedRuns(runs, evaluation, bootstrap)
    budgets = [budget for family in PAIRED for budget in budgets_of(study, family)]
    ablations = (comparisons.gap.foveated, comparisons.gap.pooled) if comparisons.gap else ()
    if ablations and all(study.seeds(base) for base in ablations):
        n = tuple(np.array([study.runs.loc[study.runs["base"] == base, "params_total"].mean()]) for base in ablations)
        budgets.append(Budget("ablation", "", [", ".join(ablations)], n, tuple([base] for base in ablations)))
    return pd.DataFrame([row for one in budgets for row in _rows(study, one)], columns=COLUMNS["gap"])


def _rows(study: ComparedRuns, budget: Budget) -> list[dict]:
    matched = study.matched([*budget.bases[0], *budget.bases[1]])  # per seed
    validation = np.array([study.runs.loc[runs, "final.val_loss"] for runs in matched], float).T
    evaluation = np.array([[study.loss(run) for run in runs] for runs in matched]).T
    draws = [study.draws(run) for run in matched[0]]
    sampled = None if any(draw is None for draw in draws) else np.array(draws)
    pairs = [(size, (place, place)) for place, size in enumerate(budget.sizes)]
    unlike = {} if study.all_same_validation(matched[0]) else {"validation": OTHER_SAMPLES}
    rows = []
    for measure, losses, replicates in (("validation", validation, None), ("evaluation", evaluation, sampled)):
        if np.isfinite(losses).all():
            place = {"family": budget.family, "budget": budget.name, "measure": measure}
            found = pair_rows(budget.n, losses, replicates, pairs)
            rows += [place | row | {"note": _joined(row["note"], unlike.get(measure, ""))} for row in found]
    return rows


def _joined(*notes: str) -> str:
    return "; ".join(filter(None, notes))


def pair_rows(
    n: list[np.ndarray],
    losses: np.ndarray,
    draws: np.ndarray | None,
    pairs: list[Pair],
    scale: Callable[[np.ndarray], np.ndarray] = np.log,
) -> list[dict]:
    """Return one row per pair: N and loss of both models, their gaps as in `corrected`, each with its interval, and a
    note. Losses (k, seeds) and their replicates (k, R) are those of all runs: the foveated ones, by n[0], first."""
    cut, rows = len(n[0]), []
    for name, (left, right) in pairs:
        row = {
            "size": name, "n_foveated": n[0][left], "n_baseline": n[1][right],
            "loss_foveated": losses[left].mean(), "loss_baseline": losses[cut + right].mean(),
        }  # fmt: skip
        known = all(np.isfinite(one).all() for one in n)  # imported runs may have no N
        if min(map(len, n)) < 2 or not known:
            chosen = [left, cut + right]
            raw = pooled(percent(*losses[chosen]), None if draws is None else percent(*draws[chosen]))
            why = "one size" if known else "N is not known"
            rows.append(row | raw.columns("raw_percent", "raw_") | {"note": f"{why}: no curve to correct with"})
            continue
        gaps, spread = (
            {} if values is None else corrected(n[0], values[:cut], n[1], values[cut:], (left, right), scale)
            for values in (losses, draws)
        )
        for direction in DIRECTIONS:
            row |= pooled(gaps[direction], spread.get(direction)).columns(f"{direction}_percent", f"{direction}_")
        row["directions_differ"] = abs(row["at_foveated_percent"] - row["at_baseline_percent"])
        beyond = []
        for direction, curve in (("at_foveated", "baseline's"), ("at_baseline", "foveated")):
            side = gaps[f"{direction}_extrapolates"]
            row[f"{direction}_extrapolates"] = bool(side)
            if side:
                beyond.append(f"the {curve} curve {'below its smallest' if side < 0 else 'above its largest'} size")
        note = f"extrapolates {' and '.join(beyond)}" if beyond else ""
        if np.isnan(row["directions_differ"]):
            note += "; so far that no loss is left, and no gap"
        rising = rises(losses[:cut], losses[cut:], ("foveated", "baseline's"))
        notes = [note, *(f"the {curve} curve {RISES}" for curve in rising)]
        rows.append(row | {"note": _joined(*notes)})
    return rows


def rises(foveated: np.ndarray, baseline: np.ndarray, names: tuple[str, str]) -> list[str]:
    """Return the names of the curves (k, seeds) that rise with N from one size to the next: beyond the best size for
    its compute, a curve does not show what parameters are worth."""
    curves = zip(names, (foveated, baseline), strict=True)
    return [name for name, losses in curves if (np.diff(losses.mean(axis=1)) > 0).any()]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_files(
        parser,
        "points",
        "architecture, N, L; optional group, pair, seed, run",
        "architecture=arch,N=params_M,L=loss,group=frames",
    )
    parser.add_argument("--linear", action="store_true", help="read the curves off linearly in N, not in log N")
    parser.add_argument("--foveated", metavar="NAME", help="the architecture in question, as the file calls it")
    parser.add_argument("--baseline", metavar="NAME", help="the one it is compared with, as the file calls it")
    parser.add_argument(
        "--samples",
        metavar="SAMPLES.csv",
        help="losses by sample: run, or architecture and N (and group); key, loss_sum, tokens; optional video",
    )
    parser.add_argument("--bootstrap", type=resamples, default=2000, help="resamples of the samples")
    parser.add_argument("--seed", type=natural, default=0, help="of the resampling")


def main(args: argparse.Namespace) -> None:
    if not args.bootstrap:
        raise UserError("--bootstrap 0: an interval takes resamples; expected some thousand, or no --samples")
    points = read(args.points, args, ("architecture", "N", "L"), ("group", "pair", "seed", "run"))
    names = architectures(args.points, points, args.foveated, args.baseline)
    points = points[points["architecture"].isin(names)]
    samples = read_samples(args.samples, points) if args.samples else None
    groups, warnings, scale = [], [], linear if args.linear else np.log
    for name, own in points.groupby("group", sort=False) if "group" in points else [("", points)]:
        group = Group(args.points, name, own, names)
        cut, draws = len(group.n[0]), None
        warnings += group.warnings
        warnings += [
            f"{group.where}: the loss of {curve} {RISES}; beyond the best size for its compute a curve does not show "
            "what parameters are worth"
            for curve in rises(group.losses[:cut], group.losses[cut:], names)
        ]
        if samples is not None:
            draws, differing = group.resample(args.samples, samples, args.bootstrap, args.seed)
            warnings += differing
        sizes = dict(zip(("foveated", "baseline"), map(len, group.sides), strict=True))
        note = TWO if set(sizes.values()) == {2} else ""
        rows = pair_rows(group.n, group.losses, draws, group.pairs, scale)
        groups.append({"group": name, "sizes": sizes, "note": note, "pairs": [_fields(row) for row in rows]})
    content = {
        "n": len(points),
        "method": "each architecture's own curve of loss against parameters, piecewise linear in "
        f"{'N' if args.linear else 'log N'} and prolonged beyond its ends, read off at the other's N; percent of the "
        "baseline's loss, positive: the foveated model is worse",
        "foveated": names[0],
        "baseline": names[1],
        "scale": "N" if args.linear else "log N",
        "groups": groups,
        "warnings": warnings,
    }
    if args.out is not None:
        check_out(args.out, args.samples or args.points)
    finish(args.points, args.out, content, summary)


def _fields(row: dict) -> dict:
    """A row of `pair_rows` as the command writes it."""
    fields = {"pair": row["size"]}
    for name, column in (("N", "n"), ("L", "loss")):
        fields[name] = {"foveated": row[f"{column}_foveated"], "baseline": row[f"{column}_baseline"]}
    for direction in DIRECTIONS:
        names = ("percent", "low", "high") if direction == "raw" else ("percent", "low", "high", "extrapolates")
        fields[direction] = {name: row.get(f"{direction}_{name}") for name in names}
    return fields | {name: row.get(name) for name in ("directions_differ", "interval", "n_seeds", "note")}


def summary(content: dict) -> list[str]:
    lines = [f"{content['foveated']} above {content['baseline']}, percent; curves read off in {content['scale']}"]
    for group in content["groups"]:
        lines += [f"group {group['group']}"] if group["group"] else []
        for pair in group["pairs"]:
            known = {name: text for name, text in DIRECTIONS.items() if pair[name]["percent"] is not None}
            parts = [f"{text} {_percent(pair[name])}" for name, text in known.items()]
            lines.append(f"  pair {pair['pair']}: {'; '.join(parts)}")
            lines += [f"    {pair['note']}"] if pair["note"] else []
        lines += [f"  {group['note']}"] if group["note"] else []
    kinds = {pair["interval"] for group in content["groups"] for pair in group["pairs"]}
    lines.append(f"intervals: {', '.join(sorted(kinds))}")
    return lines + [f"warning: {text}" for text in content["warnings"]]


def _percent(gap: dict) -> str:
    ci = f" ({gap['low']:.2f} to {gap['high']:.2f})" if gap["low"] is not None else ""
    return f"{gap['percent']:+.2f}{ci}{' (extrapolated)' * bool(gap.get('extrapolates'))}"
