"""Figures of the scaling grid."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fvlm import style
from fvlm.analysis.columns import GROUP
from fvlm.analysis.compare.bootstrap import bars_words
from fvlm.analysis.fits import scaled
from fvlm.analysis.fits.isoflop import minima
from fvlm.analysis.fits.scaling import STARVED
from fvlm.analysis.plots.fits import notes_below
from fvlm.style import GREY, LOSS, NothingToDraw, dots, heading, panels

SHARED_NOTE = (
    "At each number of training FLOPs (two per multiply-add) the losses of all sizes, interpolated along runs whose "
    "learning rate is constant or not stated. A minimum needs three sizes."
)
SHARED = 4  # budgets at which curves are compared that were not made for a budget


def _points(runs: pd.DataFrame) -> pd.DataFrame:
    points = scaled.points(runs)
    if points.empty:
        raise NothingToDraw(scaled.NONE)
    return points


def _plain(points: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """Without the columns that are the same for all runs of a study."""
    return points if GROUP in runs else points.drop(columns=["group", "family"])


def _markers(points: pd.DataFrame) -> dict[str, str]:
    return style.markers(points.sort_values("N")["size"])


def _legend(ax: Axes, points: pd.DataFrame, fits: dict[str, str] | None = None, **options) -> None:
    style.legend_of_grid(ax, points["architecture"].drop_duplicates(), _markers(points), fits, **options)


def _scatter(ax: Axes, points: pd.DataFrame, column: str, markers: dict[str, str]) -> None:
    for (name, size), own in points.groupby(["architecture", "size"], sort=False):
        ax.plot(own[column], own["loss"], marker=markers[size], color=style.ARCHITECTURE[name], ls="", zorder=3)
    style.mark_adopted(ax, points, column, "loss")


def isoflop(runs: pd.DataFrame, isoflop: pd.DataFrame, validation_curves: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """Loss against parameters, one curve per budget and architecture; minima filled where used, hollow
    where not. Imported runs of several sizes are compared at FLOPs that all of them reach."""
    points = _points(runs)
    grid = points[points["family"] == "grid"]
    if GROUP in runs:  # of results from elsewhere, a budget with one size shows nothing
        grid = grid[grid.groupby(["group", "architecture", "budget"])["size"].transform("nunique") > 1]
    shared = scaled.at_shared(scaled.curves(runs, validation_curves), "C", SHARED)
    shown = pd.concat([grid, shared], ignore_index=True) if len(shared) else grid
    if shown.empty:
        raise NothingToDraw(f"{scaled.NONE} whose losses can be compared at equal FLOPs")
    found = [minima(own).assign(group=at[0]) for at, own in shared.groupby(["group", "architecture"], sort=False)]
    every = pd.concat([isoflop, *found], ignore_index=True) if found else isoflop
    places = list(shown[["group", "architecture"]].drop_duplicates().itertuples(index=False, name=None))
    figure, axes = style.plot_grid(len(places), height=4.0, most=len(places), sharey=len({p[0] for p in places}) == 1)
    figure.set_size_inches(style.WIDTH, 4.0)
    labelled, looks = len(shared) > 0, _looks(shown)
    reach = 0.25 * np.log(shown["N"].max() / shown["N"].min())  # of a parabola, in log N
    parts = []
    for ax, (group, name) in zip(axes, places, strict=True):
        own = shown[(shown["group"] == group) & (shown["architecture"] == name)]
        for budget, at in own.groupby("budget", sort=False):
            ax.plot(at["N"], at["loss"], color=style.ARCHITECTURE[name], **looks[budget])
            style.mark_adopted(ax, at, "N", "loss")
            if labelled:
                end = at.sort_values("N").iloc[-1]
                place = {"xytext": (5, 0), "textcoords": "offset points", "va": "center", "fontsize": 6.5}
                ax.annotate(budget.removesuffix(" FLOPs"), (end["N"], end["loss"]), **place)
        best = every[(every["architecture"] == name) & every["budget"].isin(own["budget"])]
        for row in best[best["n_opt"].notna()].to_dict("records"):
            _draw_minimum(ax, row, reach)
        ax.set_xscale("log")
        ax.margins(x=0.1)
        if labelled:  # room for the words
            ax.set_xlim(right=ax.get_xlim()[1] ** 1.5 / ax.get_xlim()[0] ** 0.5)
        style.counts(ax)
        sizes = own.groupby("budget")["size"].nunique().max()
        inside = f"{int(best['used'].sum())} of {len(best)} minima inside"
        few = f"{sizes} sizes: no minimum"
        count = few if GROUP in runs and sizes < 3 else inside
        words = (group, style.NAMES[name], count) if labelled else (f"{style.NAMES[name]}: {count}",)
        ax.set_title("\n".join(filter(None, words)))
        ax.set_xlabel("parameters N")
        parts.append(best)
    axes[0].set_ylabel(f"{'final ' * (not labelled)}validation {LOSS}")
    if not labelled:
        for budget, look in looks.items():
            nominal = shown.loc[shown["budget"] == budget, "nominal"].mean()
            axes[0].plot([], [], color=GREY, **look, label=f"{budget}: {nominal:.2g}")
        style.legend_below(figure, axes[0], "training FLOPs (two per multiply-add)", ncols=len(looks))
    else:
        notes_below(figure, [SHARED_NOTE])
    best = pd.concat(parts, ignore_index=True)
    best = best.rename(columns={"n_opt": "N", "d_opt": "D", "flops": "C"}).assign(
        what=best["used"].map({True: "minimum", False: "excluded"})
    )
    shown = _plain(shown, runs)
    columns = [*shown.columns, "what", "reason"]
    return figure, pd.concat([shown.assign(what="run"), best.reindex(columns=columns)], ignore_index=True)


def _looks(points: pd.DataFrame) -> dict[str, dict]:
    """Budget -> marker and shade, the larger the darker."""
    budgets = list(points.sort_values("C")["budget"].drop_duplicates())
    return {
        budget: {"marker": marker, "ms": 4, "lw": 0.8, "alpha": 0.35 + 0.65 * (i + 1) / len(budgets)}
        for i, (budget, marker) in enumerate(style.markers(budgets).items())
    }


def _draw_minimum(ax: Axes, row: dict, reach: float) -> None:
    """A filled star on its local parabola; a hollow one at the edge of the sizes tried, left out of fits."""
    fill = "black" if row["used"] else "white"
    ax.plot(row["n_opt"], row["loss"], "*", ms=9, color="black", mfc=fill, zorder=4)
    if row["used"]:
        away = np.linspace(-reach, reach, 41)
        loss = row["loss"] + row["curvature"] * away**2
        ax.plot(np.exp(row["log_n_centre"] + away), loss, color="black", lw=0.9)


def model_size(runs: pd.DataFrame, validation_curves: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """Loss against parameters, one panel per budget, both architectures in each. Long runs are compared at the largest
    number of samples that all of them have seen."""
    points = _points(runs)
    shared = scaled.at_shared(scaled.curves(runs, validation_curves), "D")
    shared = shared[shared["family"] == "scaling"]
    shown = points[points["family"] != "scaling"]
    shown = pd.concat([shared, shown], ignore_index=True) if len(shared) else shown
    shown = shown[np.isfinite(shown[["N", "loss"]].astype(float)).all(axis=1)]
    if GROUP in runs:
        shown = shown[shown.groupby(["group", "budget"])["size"].transform("nunique") > 1]
    if shown.empty:
        raise NothingToDraw(f"{scaled.NONE} to compare")
    places = list(shown.sort_values("C")[["group", "budget"]].drop_duplicates().itertuples(index=False, name=None))
    is_study = GROUP not in runs
    figure, axes = style.plot_grid(len(places), 4.0, most=len(places) if is_study else 2, sharey=is_study)
    if is_study:
        figure.set_size_inches(style.WIDTH, 3.2)
    markers = _markers(shown)
    for ax, (group, budget) in zip(axes, places, strict=True):
        at = shown[(shown["group"] == group) & (shown["budget"] == budget)]
        for name, own in at.groupby("architecture", sort=False):
            ax.plot(own["N"], own["loss"], color=style.ARCHITECTURE[name], lw=1.2)
        _scatter(ax, at, "N", markers)
        ax.set_xscale("log")
        ax.set_xlim(shown["N"].min() * 0.6, shown["N"].max() * 1.7)
        style.counts(ax)
        title = f"{budget}: {at['nominal'].mean():.2g} FLOPs" if (at["family"] == "grid").all() else budget
        ax.set_title(title if not group or group in title else f"{group}: {title}")
        ax.set_xlabel("parameters N")
    for ax in axes if not is_study else axes[:1]:
        ax.set_ylabel(f"{'final ' * is_study}validation {LOSS}")
    if is_study:
        _legend(axes[-1], shown, loc="upper right")
    else:
        _legend(axes[0], shown)
        unequal = (shown["family"] != "grid").any()
        note = "Where a panel names no FLOPs, its runs have seen equally many samples, or steps." if unequal else ""
        style.legend_below(figure, axes[0], note, ncols=5)
    return figure, _plain(shown, runs)


def chinchilla_ratio(runs: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """Training tokens per parameter of every run with a size, against the 20 that are optimal for text."""
    points = _points(runs).assign(
        tokens_per_parameter=lambda own: own["tokens"] / own["N"],
        samples_per_parameter=lambda own: own["D"] / own["N"],
    )
    shown = points[np.isfinite(points[["tokens_per_parameter", "C"]].astype(float)).all(axis=1)]
    if shown.empty:
        raise NothingToDraw("the runs did not record how many tokens they saw")
    figure, (ax,) = panels(1, height=3.4)
    markers = _markers(shown)
    is_grid = GROUP not in runs
    for (_, name, size), own in shown.groupby(["group", "architecture", "size"], sort=False):
        look = {"color": style.ARCHITECTURE[name], "marker": markers[size], "lw": 0.8 if is_grid else 0}
        ax.plot(own["C"], own["tokens_per_parameter"], **look)
    ax.axhline(STARVED, color="black", lw=1)
    place = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "xytext": (0, 3)}
    ax.annotate("20 tokens per parameter (Hoffmann et al. 2022)", (0.01, STARVED), **place, fontsize=7.5)
    ax.set_xscale("log")
    ax.set_yscale("log")
    if is_grid:
        budgets = points.groupby("budget")["nominal"].mean().sort_values()
        ax.set_xticks(budgets, [f"{name}\n{flops:.2g}" for name, flops in budgets.items()])
        ax.minorticks_off()
    else:
        style.powers(ax)
    ax.set_ylim(shown["tokens_per_parameter"].min() / 2, max(STARVED, shown["tokens_per_parameter"].max()) * 2)
    starved = int((shown["tokens_per_parameter"] < STARVED).sum())
    kind = "grid runs" if is_grid else "runs"
    ax.set_title(f"{starved} of {len(shown)} {kind} saw fewer than 20 tokens per parameter")
    note = "\ntext tokens: the mean of the full-size study's sources, where the results do not have them" * (
        not is_grid
    )
    ax.set_xlabel("training FLOPs (two per multiply-add)" + note)
    ax.set_ylabel("text and visual tokens seen / N")
    _legend(ax, shown, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure, _plain(points, runs)


GAPS = {
    "raw": ("raw", GREY, "o"),
    "at_foveated": ("at the foveated model's N", style.BLUE, "s"),
    "at_baseline": ("at the baseline's N", style.RED, "D"),
}


def gap(gap: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """Raw and corrected gap of every pair, by budget; hollow where the correction extrapolates."""
    measure = "evaluation" if ((gap["measure"] == "evaluation") & (gap["family"] == "grid")).any() else "validation"
    table = gap[(gap["measure"] == measure) & gap["raw_percent"].notna()].reset_index(drop=True)
    if table.empty:
        raise NothingToDraw("no foveated run has a partner among the pooled-token runs")
    figure, (ax,) = panels(1, height=1.7 + 0.32 * len(table))
    for i, (name, (text, colour, marker)) in enumerate(GAPS.items()):
        for position, row in enumerate(table.to_dict("records")):
            hollow = name != "raw" and row[f"{name}_extrapolates"]
            values = (row[f"{name}_percent"], position + 0.22 * (i - 1), row[f"{name}_low"], row[f"{name}_high"])
            dots(ax, *values, colour, marker, hollow=hollow)
        ax.plot([], [], marker=marker, ls="", color=colour, label=text)
    ax.plot([], [], marker="o", ls="", color="black", mfc="white", label="hollow: extrapolates")
    ax.axvline(0, color=GREY, lw=1)
    names = (table["size"] + " " + table["budget"]).str.strip()
    ax.set_yticks(range(len(table)), [style.seeded(*pair) for pair in zip(names, table["n_seeds"], strict=True)])
    ax.set_ylim(len(table) - 0.5, -0.5)
    between = "\n" if names.str.len().max() > 24 else " "
    ax.set_xlabel(f"{measure} loss of the foveated model{between}above that of pooled tokens (%; right: worse)")
    heading(figure, "Gap to pooled tokens, raw and at equal parameters")
    style.legend_below(figure, ax, bars_words(table["interval"]), ncols=4)
    return figure, table
