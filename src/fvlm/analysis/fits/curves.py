"""Evaluation curves: their best and last losses, and the jumps that several share (`fvlm check-curves CURVES.csv`).

A loss that falls or rises at the same number of samples in several runs, and stays there, comes from the data: their
order, a change of the mixture, a new shard. Across such a jump no power law in D holds.
"""

import argparse
from functools import partial

import numpy as np
import pandas as pd

from fvlm.analysis.inputs import add_files, finish, read_curves
from fvlm.errors import UserError

SIDE = 4  # evaluations on each side of a possible jump; a curve with fewer than twice as many is not judged
STRONG = 3.5  # jump over its standard error, in one run ...
CONFIRM = 3.0  # ... and in another
SMALLEST = 0.005  # of log loss: a smaller step is no jump
STEP = ("run", "from_samples", "to_samples", "percent", "score")  # columns of possible jumps
EARLY = 0.1  # a best loss within this share of the evaluations ...
EARLY_EVALUATIONS = 3  # ... or within so many is early
METHOD = (
    f"line and step over {SIDE} evaluations on each side, log loss; a jump is a step of {STRONG:g} standard errors in "
    f"one run and of {CONFIRM:g} in another, in the same direction at the same number of samples"
)


def ends(curves: pd.DataFrame) -> pd.DataFrame:
    """Return one row per run and seed: its best and its last evaluation, and when the best was.

    curves  run, seed, step, val_loss, ascending in step; optional samples, lr_schedule, model_size
    """
    curves = curves.reset_index(drop=True)
    groups = curves.groupby(["run", "seed"], sort=False)
    count = groups.size().to_numpy()
    best = curves.loc[groups["val_loss"].idxmin()]
    last = curves.loc[curves.assign(row=curves.index).groupby(["run", "seed"], sort=False)["row"].last()]
    place = groups.cumcount().loc[best.index].to_numpy() + 1
    early = (place <= np.maximum(EARLY_EVALUATIONS, EARLY * count)) & (place < count / 2)
    columns = {
        "run": best["run"], "seed": best["seed"], "evaluations": count,
        "best": best["val_loss"], "best_step": best["step"], "best_evaluation": place, "best_is_early": early,
        "final": last["val_loss"], "final_step": last["step"],
        "samples": last.get("samples", np.full(len(count), np.nan)),
        **{name: last.get(name, np.full(len(count), "")) for name in ("lr_schedule", "model_size")},
    }  # fmt: skip
    return pd.DataFrame({name: np.asarray(values) for name, values in columns.items()})


def steps_of(run: str, samples: np.ndarray, loss: np.ndarray) -> pd.DataFrame:
    """Return a row for every place of a curve that has SIDE evaluations on each side: run, samples at the evaluation
    before and after it, the percent by which the loss jumps there, and that jump of log loss over its standard error.

    samples, loss (n,), samples ascending. Over the 2 SIDE evaluations around a place, log loss is fitted by a line with
    a step at the place, by least squares: a single stray evaluation makes no step, and neither does the curvature of a
    smooth curve, which is even about the place. The noise is the larger of two: that of the residuals there, and that
    of the entire curve, from its second differences, as median absolute deviation / sqrt 6, which jumps do not move.
    """
    log_loss, n = np.log(np.asarray(loss, float)), len(loss)
    if n < 2 * SIDE:
        return pd.DataFrame(columns=list(STEP))
    place = np.arange(2 * SIDE)
    design = np.column_stack([np.ones(2 * SIDE), place - place.mean(), place >= SIDE])
    windows = np.lib.stride_tricks.sliding_window_view(log_loss, 2 * SIDE)
    fitted = windows @ np.linalg.pinv(design).T
    near = np.sqrt(((windows - fitted @ design.T) ** 2).sum(axis=1) / (2 * SIDE - 3))
    bends = np.diff(log_loss, 2)
    entire = 1.4826 * np.median(np.abs(bends - np.median(bends))) / np.sqrt(6)
    noise = np.maximum(np.maximum(near, entire), 1e-12)
    score = fitted[:, 2] / (noise * np.sqrt(np.linalg.inv(design.T @ design)[2, 2]))
    low, high = samples[SIDE - 1 : n - SIDE], samples[SIDE : n - SIDE + 1]
    columns = (run, low, high, 100 * np.expm1(fitted[:, 2]), score)
    return pd.DataFrame(dict(zip(STEP, columns, strict=True)))


def find_jumps(
    curves: dict[str, tuple[np.ndarray, np.ndarray]], tolerance: float | None = None
) -> tuple[list[pd.DataFrame], pd.DataFrame]:
    """Return the jumps that at least two curves share, by samples, and the clear steps of one curve alone.

    A jump is the steps of its runs, rows as of `steps_of`; the first is the clearest and gives the place.

    curves     run -> samples (n,), loss (n,)
    tolerance  how far apart, in samples, the steps of two runs may lie; None: half the distance between evaluations
               of the run that has the jump most clearly

    A step of STRONG standard errors is clear; further runs need CONFIRM, at the same place and in the same direction.
    On smooth curves with independent noise that is rarely so by chance, since the place is given.
    """
    left = pd.concat([steps_of(run, *curve) for run, curve in curves.items()], ignore_index=True)
    left = left.astype(dict.fromkeys(STEP[1:], float))  # one without rows has no types
    left = left[(left["score"].abs() >= CONFIRM) & (np.log1p(left["percent"] / 100).abs() >= SMALLEST)]
    left = left.sort_values("score", key=lambda score: -score.abs(), kind="stable")
    jumps, alone = [], [left.iloc[:0]]
    while len(left) and abs(left["score"].iloc[0]) >= STRONG:
        first = left.iloc[0]
        within = np.median(np.diff(curves[first["run"]][0])) / 2 if tolerance is None else tolerance
        near = left[
            (left["percent"] * first["percent"] > 0)
            & (left["from_samples"] <= first["to_samples"] + within)
            & (left["to_samples"] >= first["from_samples"] - within)
        ]
        left = left.drop(near.index)
        clearest = near.drop_duplicates("run")
        (jumps if len(clearest) > 1 else alone).append(clearest)
    jumps = sorted(jumps, key=lambda jump: jump["from_samples"].iloc[0])
    return jumps, pd.concat(alone).sort_values(["run", "from_samples"], kind="stable")


def between(jumps: list[tuple[float, float]], first: float, last: float) -> list[tuple[float, float]]:
    """Return the intervals of samples, from `first` to `last`, that contain no jump; jumps ascend."""
    intervals, start = [], first
    for low, high in jumps:
        intervals.append((start, min(low, last)))
        start = max(start, high)
    return [(low, high) for low, high in [*intervals, (start, last)] if low < high]


def check_curves(table: pd.DataFrame, tolerance: float | None = None) -> tuple[dict, dict]:
    """Return the jumps and the other findings about curves, as fields, and the curves: run -> samples, loss.

    table  run, seed, samples (above zero), val_loss; optional lr_schedule
    """
    several = table.groupby("run")["seed"].transform("nunique") > 1
    seeds = table["seed"].map(lambda seed: "" if seed < 0 else f"-s{seed:g}")
    names = table["run"].where(~several, table["run"] + seeds)  # with the seed where a run has several
    parts = dict(list(table.groupby(names, sort=False)))
    curves = {run: (own["samples"].to_numpy(), own["val_loss"].to_numpy()) for run, own in parts.items()}
    found, alone = find_jumps(curves, tolerance)
    jumps, intervals = [], []
    for steps in found:
        low, high = steps.iloc[0][["from_samples", "to_samples"]]
        across = [run for run, (at, _) in curves.items() if at[0] <= low and at[-1] >= high]
        unseen = [run for run in across if run not in set(steps["run"])]
        place = {"from_samples": low, "to_samples": high}
        jumps.append({**place, "runs": steps.to_dict("records"), "not_seen_in": unseen})
    places = [(jump["from_samples"], jump["to_samples"]) for jump in jumps]
    for low, high in between(places, table["samples"].min(), table["samples"].max()):
        inside = {run: int(((low <= at) & (at <= high)).sum()) for run, (at, _) in curves.items()}
        intervals.append({"from_samples": low, "to_samples": high, "evaluations": inside})
    fields = {
        "n": len(table),
        "method": METHOD,
        "jumps": jumps,
        "in_one_run_only": alone.to_dict("records"),
        "intervals": intervals,
        "not_judged": [run for run, (samples, _) in curves.items() if len(samples) < 2 * SIDE],
        "decaying_rate": [
            run
            for run, own in parts.items()
            if "lr_schedule" in own and not own["lr_schedule"].isin(("", "constant")).all()
        ],
        "never_falls": [run for run, (_, loss) in curves.items() if len(loss) > 1 and loss[1:].min() > loss[0]],
    }
    return fields, curves


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_files(
        parser,
        "curves",
        "run, samples, val_loss; optional lr_schedule, seed",
        "run=name,samples=images_seen,val_loss=loss",
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        metavar="SAMPLES",
        help="how far apart the jumps of two runs may be; default: half the distance between evaluations",
    )


def main(args: argparse.Namespace) -> None:
    table = read_curves(args.curves, args, "samples")
    table = table[table["samples"] > 0]  # before the first step nothing is learnt
    if args.tolerance is not None and not args.tolerance >= 0:
        raise UserError(f"--tolerance {args.tolerance:g}: expected a number of samples, zero or more")
    if table.empty:
        raise UserError(f"{args.curves}: no evaluation after the first sample; expected curves")
    content, curves = check_curves(table, args.tolerance)
    finish(args.curves, args.out, content, partial(summary, runs=len(curves)))


def summary(content: dict, runs: int) -> list[str]:
    lines = [f"{content['n']} evaluations of {runs} run{'s' * (runs != 1)}"]
    for jump in content["jumps"]:
        steps = ", ".join(f"{step['run']} {step['percent']:+.1f} %" for step in jump["runs"])
        lines.append(f"jump between {_place(jump, 'and')} samples in {len(jump['runs'])} runs: {steps}")
        if jump["not_seen_in"]:
            lines.append(f"  not clear in {len(jump['not_seen_in'])} that go past it: other data, or lost in the noise")
    if not content["jumps"]:
        lines.append("no jump that two runs share")
    for step in content["in_one_run_only"]:
        lines.append(f"in {step['run']} alone, between {_place(step, 'and')}: {step['percent']:+.1f} %")
    if content["intervals"]:
        intervals = "; ".join(_place(part, "to") for part in content["intervals"])
        lines.append(f"a power law in D may be fitted within: {intervals} samples")
    else:
        lines.append("all evaluations are at one number of samples: no power law in D can be fitted")
    if content["decaying_rate"]:
        lines.append(
            f"but not along {len(content['decaying_rate'])} of the runs, whose learning rate decays (only their last "
            f"evaluation is comparable): {', '.join(content['decaying_rate'])}"
        )
    if content["never_falls"]:
        lines.append(
            "no power law in D can be fitted to runs whose loss is never again as low as at the first evaluation: "
            f"{', '.join(content['never_falls'])}"
        )
    if content["not_judged"]:
        lines.append(f"fewer than {2 * SIDE} evaluations, not judged: {', '.join(content['not_judged'])}")
    return lines


def _place(part: dict, word: str) -> str:
    return f"{_count(part['from_samples'])} {word} {_count(part['to_samples'])}"


def _count(samples: float) -> str:
    return f"{samples / 1000:.4g} K" if samples >= 10_000 else f"{samples:.10g}"
