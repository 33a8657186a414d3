"""Figures of the joint fit L(N, D) = E + A/N^alpha + B/D^beta (Hoffmann et al. 2022, approach 3)."""

from dataclasses import asdict
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fvlm import style
from fvlm.analysis.fits.grid import grid_points
from fvlm.analysis.fits.sums import DELTA, Estimate, PowerLaws, bootstrap, estimates
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
    (first, second), (alpha, beta) = fit.coefficients, fit.exponents
    return np.exp((np.log(alpha * first / (beta * second)) + beta * np.log(product)) / (alpha + beta))


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
            drawn = _parameters(np.vstack([one.fit.theta, bootstrap(one.fit, one.x)]))
            drawn.insert(0, "what", ["fit", *["draw"] * (len(drawn) - 1)])
            parts.append(drawn.assign(architecture=name, n=len(one.points), reason=one.reason))
    if not parts:
        raise NothingToDraw(" ".join(refusals(found)))
    table = pd.concat(parts, ignore_index=True)
    shown = table[table["reason"] == ""] if (table["reason"] == "").any() else table
    draws, names = shown[shown["what"] == "draw"], list(shown["architecture"].drop_duplicates())
    with mpl.rc_context({"figure.constrained_layout.use": False}):
        grid = sns.PairGrid(
            draws,
            vars=list(PARAMETERS),
            hue="architecture",
            hue_order=names,
            palette=style.ARCHITECTURE,
            corner=True,
            height=0.78 * style.WIDTH / len(PARAMETERS),
            aspect=1 / 0.78,
        )
        grid.map_lower(sns.scatterplot, s=7, alpha=0.45, linewidth=0, rasterized=True)
        grid.map_diag(sns.histplot, element="step", bins=40, alpha=0.25)
    _dress(grid, shown, names)
    reasons = refusals(found)
    reasons += ["Not drawn beside the others: draws of what is not identified."] if len(shown) < len(table) else []
    heading(grid.figure, "Bootstrap draws of the joint fit: " + ("not all identified" if reasons else "identified"))
    notes_below(grid.figure, reasons)
    return grid.figure, table


def _parameters(theta: np.ndarray) -> pd.DataFrame:
    """theta (draws, 5) of a joint fit with a floor -> E, alpha, beta, a."""
    alpha, beta = theta[:, 3], theta[:, 4]
    return pd.DataFrame({"E": theta[:, 0], "alpha": alpha, "beta": beta, "a": beta / (alpha + beta)})


def _dress(grid: sns.PairGrid, table: pd.DataFrame, names: list[str]) -> None:
    """The fit as a cross, limits that far draws do not stretch, names of the parameters, a legend."""
    fits = table[table["what"] == "fit"].set_index("architecture")
    draws = table[table["what"] == "draw"]
    limits = {}
    for name in PARAMETERS:
        low, high = draws.groupby("architecture")[name].quantile([0.005, 0.995]).agg(["min", "max"])
        room = 0.06 * (high - low) or 0.1
        limits[name] = (low - room, high + room)
    for i, row in enumerate(PARAMETERS):
        for j, column in enumerate(list(PARAMETERS)[: i + 1]):
            ax = grid.axes[i, j]
            ax.set_xlim(limits[column])
            ax.xaxis.set_major_locator(MaxNLocator(3))
            if i != j:
                ax.set_ylim(limits[row])
                ax.yaxis.set_major_locator(MaxNLocator(3))
                for name in names:
                    ax.plot(*fits.loc[name, [column, row]], "P", ms=7, color=style.ARCHITECTURE[name], mec="black")
            ax.set_xlabel(PARAMETERS[column] if i == len(PARAMETERS) - 1 else "")
            ax.set_ylabel(PARAMETERS[row] if j == 0 and i else "")
    handles = [
        mpl.lines.Line2D([], [], marker="o", ls="", color=style.ARCHITECTURE[name], label=style.NAMES[name])
        for name in names
    ]
    handles.append(mpl.lines.Line2D([], [], marker="P", ls="", color="white", mec="black", ms=7, label="the fit"))
    grid.figure.legend(handles=handles, loc="upper right", bbox_to_anchor=(0.95, 0.92))
    grid.figure.set_layout_engine("constrained")
