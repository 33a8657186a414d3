"""All runs with a model size, as points and as curves: the scaling grid, and of imported results also long runs of one
size and pairs of architectures at equal samples.

Runs of different groups (results from elsewhere, numbers of frames) were scored on different samples. They are never
averaged, joined or fitted together.
"""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from fvlm.analysis.columns import COUNTED, GROUP
from fvlm.analysis.finished import base_name
from fvlm.analysis.fits.curves import find_jumps
from fvlm.analysis.fits.grid import about_adopted, grid_points
from fvlm.analysis.fits.grid import curves as all_curves
from fvlm.analysis.fits.sums import Estimate, PowerLaws, block_length, bootstrap, estimates
from fvlm.analysis.scales import SIZED
from fvlm.config.architectures import ARCHITECTURES

# A study's runs have no column GROUP: they are all scored on the same samples, and all have a budget.
NONE = "this study has no scaling grid, and the results have no other runs with a model size"
FEWEST = 4  # evaluations of a curve that a law is fitted along
CONSTANT = ("", "constant")  # schedules of the learning rate along which the loss may follow a law; "": not stated


def points(runs: pd.DataFrame) -> pd.DataFrame:
    """Return `grid_points` of each group and family, with the columns group and family. `adopted` is there only beside
    other runs. Imported runs also have where their FLOPs come from."""
    runs = _grouped(runs)
    parts = [
        grid_points(own, family).assign(group=group, family=family)
        for (group, family), own in runs.groupby([GROUP, "family"], sort=False)
    ]
    if not parts:
        return pd.DataFrame(columns=["group", "family", "architecture"])
    table = pd.concat(parts, ignore_index=True)
    if not about_adopted(table):
        table = table.drop(columns="adopted")
    if COUNTED in runs:
        place = [GROUP, "family", "architecture", "size", "budget"]
        words = runs.drop_duplicates(place).set_index(place)[COUNTED]
        table = table.join(words, on=["group", *place[1:]])
    return table


def curves(runs: pd.DataFrame, validation_curves: pd.DataFrame) -> pd.DataFrame:
    """Return the validations of these runs after the first step, in the order of C: the columns of the table `curves`,
    group, budget, and `along`: whether a law may be fitted along the curve.

    At equal C, a run whose learning rate decays has a lower loss the nearer it is to its end. So a law holds along a
    constant rate, and with decaying ones only from end to end.
    """
    runs = _grouped(runs)
    table = all_curves(runs, validation_curves)
    table = table.join(runs.set_index("run")[[GROUP, "budget"]], on="run").rename(columns={GROUP: "group"})
    table = table[(table[["C", "L"]].astype(float) > 0).all(axis=1)]
    schedule = table["lr_schedule"].astype(object).where(table["lr_schedule"].notna(), "")
    several = table.groupby("run")["L"].transform("size") >= FEWEST
    along = (table["family"] != "grid") & schedule.isin(CONSTANT) & several
    order = table["run"].map({run: place for place, run in enumerate(table["run"].drop_duplicates())})
    table = table.assign(along=along, order=order).sort_values(["order", "C"], kind="stable", ignore_index=True)
    return table.drop(columns="order")


def at_shared(curves: pd.DataFrame, column: str, count: int = 1) -> pd.DataFrame:
    """Return points, as `points`, of runs of several sizes at a C or D that all of them reach: the largest one, or
    `count` of them, evenly spaced in its logarithm. Losses between evaluations are interpolated in log-log.

    curves   as `curves`; only those along which a law may be fitted are used
    """
    rows = []
    usable = curves[curves["along"] & curves["N"].notna() & (curves[column] > 0)]
    usable = usable.assign(order=usable["architecture"].map({name: k for k, name in enumerate(ARCHITECTURES)}))
    for (group, family, _, architecture), own in usable.groupby(["group", "family", "order", "architecture"]):
        runs = [run for _, run in own.groupby("run", sort=False)]
        low, high = max(run[column].min() for run in runs), min(run[column].max() for run in runs)
        if own["size"].nunique() < 2 or low >= high:
            continue
        for value in np.geomspace(low, high, count + 1)[1:]:
            words = f"{value:.2g} FLOPs" if column == "C" else f"{value / 1000:.0f} k samples"
            place = {"group": group, "family": family, "architecture": architecture, "budget": words, "nominal": value}
            for run in runs:
                at = {name: _along(run, column, name, value) for name in ("D", "C", "L")}
                at["loss"] = at.pop("L")
                rows.append(place | at | {"size": run["size"].iloc[0], "N": run["N"].iloc[0], "runs": 1})
    return pd.DataFrame(rows) if rows else pd.DataFrame(columns=["group", "family", "architecture", "budget", "loss"])


def _along(run: pd.DataFrame, column: str, wanted: str, value: float) -> float:
    x, y = (np.log(run[name].to_numpy(float)) for name in (column, wanted))
    return float(np.exp(np.interp(np.log(value), x, y)))


def jumps(curves: pd.DataFrame) -> str:
    """Return in words where the losses of several curves of a group jump together; empty if they do not."""
    curves = curves[curves["D"] > 0]
    parts = {run: (own["D"].to_numpy(float), own["L"].to_numpy(float)) for run, own in curves.groupby("run")}
    found = find_jumps(parts)[0] if len(parts) > 1 else []
    ends = [(jump["from_samples"].iloc[0] / 1000, jump["to_samples"].iloc[0] / 1000) for jump in found]
    places = " and ".join(f"{low:.0f} k to {high:.0f} k" for low, high in ends)
    return f"losses of several runs jump at {places} samples (data order): do not trust a law across" if places else ""


def _grouped(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the runs with a known size, each with its group; long runs, without a budget, keep their names."""
    named = runs[GROUP].astype(object).where(runs[GROUP].notna(), "").astype(str) if GROUP in runs else ""
    budget = runs["budget"].where(runs["family"] != "scaling", runs["run"].map(base_name))
    runs = runs.assign(**{GROUP: named, "budget": budget})
    return runs[runs["family"].isin(SIZED)]


@dataclass(frozen=True)
class Law:
    """L(C) along one curve: with a floor, or without one where no floor is identified; `note` has the refusals."""

    fit: PowerLaws | None
    exponent: Estimate | None
    draws: np.ndarray
    note: str

    def band(self, flops: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """95 % of the bootstrap draws at `flops`."""
        drawn = [replace(self.fit, theta=theta).predict(flops) for theta in self.draws]
        return tuple(np.quantile(drawn, [0.025, 0.975], axis=0))


def law_along(flops: np.ndarray, loss: np.ndarray) -> Law:
    """Return the law along a curve (n,), whose neighbouring evaluations err alike: blocks of them are resampled."""
    reasons = []
    for floor, what in ((True, "no floor identified"), (False, "no power law identified")):
        fit, judged = estimates(flops, loss, ("C",), floor, block=None)
        refused = next((one.reason for one in judged if one.reason), "")
        if not refused:
            exponent = next(one for one in judged if one.name == "exponent_C")
            draws = bootstrap(fit, flops.reshape(-1, 1), block=block_length(fit.residuals))
            return Law(fit, exponent, draws, "; ".join(reasons))
        reasons.append(f"{what} ({refused})")
    return Law(None, None, np.empty(0), reasons[-1])
