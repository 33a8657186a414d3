"""Figures of the joint fit L(N, D) = E + A/N^alpha + B/D^beta (Hoffmann et al. 2022, approach 3)."""

from dataclasses import asdict
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fvlm import style
from fvlm.analysis.fits.grid import grid_points
from fvlm.analysis.fits.sums import DELTA, Estimate, PowerLaws, bootstrap, estimates, parameters
from fvlm.analysis.plots.fits import LINE, notes_below
from fvlm.style import BEYOND, GREY, NothingToDraw, counts, heading, panels

NAMES = ("N", "D")
PARAMETERS = {"E": "E (nats)", "alpha": "α", "beta": "β", "a": "a, of N* ∝ $C^a$"}
ESTIMATED = {"E": "E", "alpha": "exponent_N", "beta": "exponent_D", "a": "N_opt_exponent"}


class Joint(NamedTuple):
    """One architecture's fit, as in the table of scaling fits."""

    points: pd.DataFrame
    fit: PowerLaws | None
    estimates: dict[str, Estimate]

    @property
    def reason(self) -> str:
        """Why the fit does not identify N and D; empty if it does."""
        return self.estimates["N_opt_exponent"].reason

    @property
    def x(self) -> np.ndarray:
        return self.points[list(NAMES)].to_numpy(float)


def joint_fits(runs: pd.DataFrame) -> dict[str, Joint]:
    """By architecture.

    raises  NothingToDraw without a grid
    """
    points = grid_points(runs)
    if points.empty:
        raise NothingToDraw("this study has no scaling grid")
    found = {}
    for name, own in points.groupby("architecture", sort=False):
        fit, judged = estimates(own[list(NAMES)].to_numpy(), own["loss"].to_numpy(), NAMES)
        found[name] = Joint(own, fit, {one.name: one for one in judged})
    return found


def refusals(found: dict[str, Joint]) -> list[str]:
    return [f"{style.NAMES[name]}: not identified, {one.reason}." for name, one in found.items() if one.reason]


def frontier(fit: PowerLaws, product: np.ndarray) -> np.ndarray:
    """N that gives the lowest loss where N D = product (Hoffmann et al. 2022, eq. 4)."""
    return parameters(fit.theta[None], fit.centre, NAMES, product)["N_opt"]


def contours(runs: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """Lines of equal fitted loss over N and D, the runs, and the efficient frontier; the runs alone where the fit is
    not identified."""
    found = joint_fits(runs)
    figure, axes = panels(len(found), height=3.9, sharex=True, sharey=True)
    parts = []
    for ax, (name, one) in zip(axes, found.items(), strict=True):
        points = one.points
        ax.set(xscale="log", yscale="log")
        ax.plot(points["N"], points["D"], "o", color=style.ARCHITECTURE[name], ms=4.5, mec="white", mew=0.5, zorder=4)
        if not one.reason:
            parts.append(_frontier(ax, name, one))
        table = points[["architecture", "size", "budget", "N", "D", "C", "loss"]].assign(what="run")
        parts.append(table.assign(predicted=np.nan if one.fit is None else one.fit.predict(one.x)))
        rows = [{"parameter": key, **asdict(one.estimates[known])} for key, known in ESTIMATED.items()]
        parts.append(pd.DataFrame(rows).drop(columns="name").assign(architecture=name, what="parameter", n=len(points)))
        ax.set_title(style.NAMES[name] + (": not identified" if one.reason else ""))
        ax.set_xlabel("parameters N")
    axes[0].set_ylabel("training samples D")
    for ax, one in zip(axes, found.values(), strict=True):
        if not one.reason:
            _contour_lines(ax, one)
        counts(ax), counts(ax, "y")
    if any(not one.reason for one in found.values()):
        axes[0].plot([], [], color=GREY, lw=1, label="equal fitted loss, in nats per token (dashed: beyond the runs)")
        axes[0].plot([], [], color="black", lw=1.8, label="efficient frontier (dashed: beyond the budgets)")
    heading(figure, "Fitted loss over parameters and samples")
    notes_below(figure, refusals(found), axes[0].get_legend_handles_labels()[0], ncols=2)
    order = ["architecture", "what", "size", "budget", "N", "D", "C", "loss", "predicted"]
    order += ["parameter", "value", "low", "high", "n", "reason"]
    return figure, pd.concat(parts, ignore_index=True).reindex(columns=order)


def _frontier(ax: Axes, name: str, one: Joint) -> pd.DataFrame:
    """N and D of the lowest loss at each C = k N D, k the runs' mean; dashed up to a decade beyond the budgets."""
    points = one.points
    per_product = np.exp(np.log(points["C"] / (points["N"] * points["D"])).mean())
    lowest, highest = points["C"].min(), points["C"].max()
    parts = []
    for what, line, ends in (("frontier", "-", (lowest, highest)), ("extrapolated", "--", (highest, highest * BEYOND))):
        flops = np.geomspace(*ends, LINE)
        n = frontier(one.fit, flops / per_product)
        d = flops / per_product / n
        ax.plot(n, d, line, color="black", lw=1.8, zorder=3)
        loss = one.fit.predict(np.column_stack([n, d]))
        parts.append(pd.DataFrame({"C": flops, "N": n, "D": d, "predicted": loss}).assign(what=what, architecture=name))
    return pd.concat(parts)


def _contour_lines(ax: Axes, one: Joint) -> None:
    """Solid within the rectangle of the runs, dashed outside; not beyond a decade from it."""
    (n_low, n_high), (d_low, d_high) = ((one.points[x].min(), one.points[x].max()) for x in NAMES)
    left, right, bottom, top = (*ax.get_xlim(), *ax.get_ylim())
    n = np.geomspace(max(left, n_low / BEYOND), min(right, n_high * BEYOND), 160)
    d = np.geomspace(max(bottom, d_low / BEYOND), min(top, d_high * BEYOND), 160)
    grid = np.stack(np.meshgrid(n, d), axis=-1)
    loss = one.fit.predict(grid.reshape(-1, 2)).reshape(grid.shape[:2])
    inside = (grid[..., 0] >= n_low) & (grid[..., 0] <= n_high) & (grid[..., 1] >= d_low) & (grid[..., 1] <= d_high)
    levels = MaxNLocator(14).tick_values(*np.quantile(loss[inside] if inside.any() else loss, [0.0, 1.0]))
    ax.contour(n, d, loss, levels, colors=GREY, linewidths=0.6, linestyles="--", alpha=0.6)
    drawn = ax.contour(n, d, np.where(inside, loss, np.nan), levels, colors=GREY, linewidths=0.9)
    ax.clabel(drawn, fontsize=7, fmt="%g")


def residuals(runs: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """Log predicted minus log observed loss of the joint fit against N, D and C."""
    found = joint_fits(runs)
    table = pd.concat(
        [
            one.points[["architecture", "size", "budget", "N", "D", "C", "loss"]].assign(
                predicted=one.fit.predict(one.x), residual=one.fit.residuals, reason=one.reason
            )
            for one in found.values()
            if one.fit is not None
        ]
        or [pd.DataFrame()]
    )
    if table.empty:
        raise NothingToDraw(" ".join(refusals(found)))
    figure, axes = panels(3, height=3.3, sharey=True)
    sizes = style.markers(table.sort_values("N")["size"])
    labels = {"N": "parameters N", "D": "training samples D", "C": "training FLOPs C"}
    for ax, (column, label) in zip(axes, labels.items(), strict=True):
        ax.axhspan(-DELTA, DELTA, color="#dddddd", lw=0, zorder=0)
        ax.axhline(0, color=GREY, lw=0.8)
        for (name, size), own in table.groupby(["architecture", "size"], sort=False):
            colour = style.ARCHITECTURE[name]
            fill = "white" if own["reason"].iloc[0] else colour
            ax.plot(own[column], own["residual"], sizes[size], color=colour, mfc=fill, ms=4.5)
        ax.set(xscale="log", xlabel=label)
        ax.margins(x=0.1)
        style.powers(ax) if column == "C" else counts(ax)
    axes[0].set_ylabel("log predicted / observed")
    style.legend_of_grid(axes[0], found, sizes)
    axes[0].fill_between([], [], [], color="#dddddd", label=f"±{DELTA:g}: Huber's loss is quadratic")
    heading(figure, "Residuals of the joint fit")
    hollow = ["Hollow: parameters not identified."] if table["reason"].any() else []
    notes_below(figure, hollow + refusals(found), axes[0].get_legend_handles_labels()[0], ncols=5)
    return figure, table.reset_index(drop=True)


def bootstrap_pairs(runs: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """E, alpha, beta and a of every bootstrap draw of the joint fit, against each other; of the identified fits, or if
    there are none of all."""
    found = joint_fits(runs)
    parts = []
    for name, one in found.items():
        if one.fit is not None:
            found_in = parameters(np.vstack([one.fit.theta, bootstrap(one.fit, one.x)]), one.fit.centre, NAMES)
            drawn = pd.DataFrame({name: found_in[known] for name, known in ESTIMATED.items()})
            drawn.insert(0, "what", ["fit", *["draw"] * (len(drawn) - 1)])
            parts.append(drawn.assign(architecture=name, n=len(one.points), reason=one.reason))
    if not parts:
        raise NothingToDraw(" ".join(refusals(found)))
    table = pd.concat(parts, ignore_index=True)
    shown = table[table["reason"] == ""] if (table["reason"] == "").any() else table
    figure = style.plt.figure(figsize=(style.WIDTH, 0.8 * style.WIDTH))
    axes = figure.subplots(len(PARAMETERS), len(PARAMETERS), sharex="col")
    for i, row in enumerate(PARAMETERS):
        for j, column in enumerate(PARAMETERS):
            if i >= j:
                _draws(axes[i, j], shown, column, row)
                axes[i, j].set_xlabel(PARAMETERS[column] if i == len(PARAMETERS) - 1 else "")
                axes[i, j].set_ylabel(PARAMETERS[row] if j == 0 and i else "")
            else:
                axes[i, j].axis("off")
    for name in shown["architecture"].drop_duplicates():
        axes[0, 0].plot([], [], "o", color=style.ARCHITECTURE[name], label=style.NAMES[name])
    axes[0, 0].plot([], [], "P", color="white", mec="black", ms=7, label="the fit")
    axes[0, -1].legend(*axes[0, 0].get_legend_handles_labels())
    reasons = refusals(found)
    reasons += ["Not drawn beside the others: draws of what is not identified."] if len(shown) < len(table) else []
    heading(figure, "Bootstrap draws of the joint fit: " + ("not all identified" if reasons else "identified"))
    notes_below(figure, reasons)
    return figure, table


def _draws(ax: Axes, table: pd.DataFrame, column: str, row: str) -> None:
    """One parameter against another, the fit as a cross, or the histogram of one; far draws do not stretch the axes."""
    draws = table[table["what"] == "draw"]
    limits = {}
    for name in (column, row):
        low, high = draws.groupby("architecture")[name].quantile([0.005, 0.995]).agg(["min", "max"])
        limits[name] = low - 0.06 * (high - low), high + 0.06 * (high - low)
    for architecture, own in table.groupby("architecture", sort=False):
        colour, drawn = style.ARCHITECTURE[architecture], own[own["what"] == "draw"]
        if column == row:
            ax.hist(drawn[column], bins=40, range=limits[column], histtype="stepfilled", color=colour, alpha=0.4)
        else:
            ax.plot(drawn[column], drawn[row], ".", ms=2.5, color=colour, alpha=0.45, rasterized=True)
            ax.plot(*own.loc[own["what"] == "fit", [column, row]].to_numpy().T, "P", ms=7, color=colour, mec="black")
            ax.set_ylim(limits[row])
    ax.set_xlim(limits[column])
    ax.xaxis.set_major_locator(MaxNLocator(3))
    ax.yaxis.set_major_locator(MaxNLocator(3))
