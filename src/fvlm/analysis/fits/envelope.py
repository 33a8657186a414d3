"""The lower envelope of training curves (Hoffmann et al. 2022, approach 1): which run is best at which compute."""

import numpy as np
import pandas as pd

APART = 2.0  # C of one point of a curve / C of the last: beyond, a straight line between them misses the curve


def envelope(curves: pd.DataFrame, budgets: np.ndarray, smooth: int = 1) -> pd.DataFrame:
    """One row per budget: C, run, N_opt, D_opt, L_opt, sizes (that have a loss there), edge, used, reason."""
    runs = [own for _, own in curves.groupby("run", sort=False)]
    sizes = np.array([own["N"].iloc[0] for own in runs])
    losses = np.array([_at(own, "L", budgets, smooth) for own in runs])  # (runs, budgets)
    samples = np.array([_at(own, "D", budgets) if "D" in own else np.full(len(budgets), np.nan) for own in runs])
    rows = []
    for i, budget in enumerate(budgets):
        here = np.isfinite(losses[:, i])
        if not here.any():
            rows.append({"C": budget, "sizes": 0, "edge": False, "used": False, "reason": "no run has a loss here"})
            continue
        best = int(np.nanargmin(losses[:, i]))
        present, reason = np.unique(sizes[here]), ""
        edge = sizes[best] in (present[0], present[-1])
        if len(present) == 1:
            reason = "one size alone has a loss here"
        elif edge:
            reason = f"the {'smallest' if sizes[best] == present[0] else 'largest'} size is best"
        row = {"C": budget, "run": runs[best]["run"].iloc[0], "N_opt": sizes[best], "D_opt": samples[best, i]}
        row |= {"L_opt": losses[best, i], "sizes": len(present), "edge": bool(edge), "used": not edge, "reason": reason}
        rows.append(row)
    return pd.DataFrame(rows)


def _at(curve: pd.DataFrame, column: str, budgets: np.ndarray, smooth: int = 1) -> np.ndarray:
    """A column of one run at the budgets, in log-log; NaN before its first and after its last point."""
    values = np.log(curve[column].to_numpy())
    smooth = min(smooth, len(values))
    count = np.convolve(np.ones_like(values), np.ones(smooth), "same")
    values = np.convolve(values, np.ones(smooth), "same") / count
    flops = curve["C"].to_numpy()
    inside = (budgets >= flops[0] * (1 - 1e-12)) & (budgets <= flops[-1] * (1 + 1e-12))
    return np.where(inside, np.exp(np.interp(np.log(budgets), np.log(flops), values)), np.nan)


def changes(table: pd.DataFrame) -> pd.DataFrame:
    """Where the best size changes: C, N_opt and D_opt, geometric means of both sides; one row per pair of sizes, since
    noise lets curves cross more than once. Budgets where all sizes but one have ended are left out."""
    rows = []
    for (_, one), (_, two) in zip(table.iloc[:-1].iterrows(), table.iloc[1:].iterrows(), strict=True):
        if min(one["sizes"], two["sizes"]) > 1 and one["N_opt"] != two["N_opt"] and (one["used"] or two["used"]):
            pair = tuple(sorted((one["N_opt"], two["N_opt"])))
            rows.append(
                {"pair": pair} | {name: np.log([one[name], two[name]]).mean() for name in ("C", "N_opt", "D_opt")}
            )
    if not rows:
        return pd.DataFrame(columns=["C", "N_opt", "D_opt"], dtype=float)
    return np.exp(pd.DataFrame(rows).groupby("pair").mean()).sort_values("C", ignore_index=True)


def warnings_of(curves: pd.DataFrame) -> list[str]:
    """What the numbers cannot show."""
    steps = {run: own["C"].to_numpy() for run, own in curves.groupby("run", sort=False)}
    sparse = [run for run, c in steps.items() if len(c) < 2 or (c[1:] / c[:-1]).max() > APART]
    if not sparse:
        return []
    return [
        f"{len(sparse)} of {len(steps)} curves ({sparse[0]}, ...) have neighbouring points more than {APART:g} times "
        "apart in C: what lies between is interpolated, and a may be off by more than its interval"
    ]
