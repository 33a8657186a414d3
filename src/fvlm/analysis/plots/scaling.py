"""Figures of the scaling grid."""

import textwrap
from dataclasses import replace

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from fvlm import style
from fvlm.analysis.compare.bootstrap import bars_words
from fvlm.analysis.fits.grid import grid_points, lowest_by_budget
from fvlm.analysis.fits.scaling import STARVED
from fvlm.analysis.fits.sums import bootstrap, fit_power_laws
from fvlm.analysis.plots.fits import law
from fvlm.style import BEYOND, GREY, LOSS, NothingToDraw, dots, heading, panels

NOTE = 105  # letters in a line below an axis


def _points(runs: pd.DataFrame) -> pd.DataFrame:
    points = grid_points(runs)
    if points.empty:
        raise NothingToDraw("this study has no scaling grid")
    return points


def _markers(points: pd.DataFrame) -> dict[str, str]:
    return style.markers(points.sort_values("N")["size"])


def _legend(ax: Axes, points: pd.DataFrame, fits: dict[str, str] | None = None, **options) -> None:
    style.legend_of_grid(ax, points["architecture"].drop_duplicates(), _markers(points), fits, **options)


def loss_vs_flops(
    runs: pd.DataFrame, validation_curves: pd.DataFrame, scaling_fits: pd.DataFrame
) -> tuple[Figure, pd.DataFrame]:
    """Final loss against training FLOPs, the way there faint; the frontier of the lowest loss per budget, and its fit,
    dashed for a decade beyond."""
    points = _points(runs)
    figure, (ax,) = panels(1, height=4.2)
    colours = runs[runs["family"] == "grid"].set_index("run")["architecture"].map(style.ARCHITECTURE)
    curves = validation_curves[(validation_curves["step"] > 0) & validation_curves["run"].isin(colours.index)]
    for run, curve in curves.groupby("run", sort=False):
        ax.plot(curve["flops"], curve["val_loss"], color=colours[run], lw=0.7, alpha=0.25)
    _scatter(ax, points, "C")
    ax.set_xscale("log")
    ax.set_xlim(points["C"].min() / 2, points["C"].max() * BEYOND * 1.1)
    lowest, highest = points["loss"].min(), points["loss"].max()
    fits, notes, parts = {}, [], []
    for name, own in points.groupby("architecture", sort=False):
        best = lowest_by_budget(own)
        ax.plot(best["C"], best["loss"], ":", color=style.ARCHITECTURE[name], lw=1)
        parts.append(own.assign(what="run", frontier=own.index.isin(best.index)))
        fits[name], note, lines = _draw_fit(ax, name, best, scaling_fits)
        parts.append(lines)
        end = lines["loss"].min() if len(lines) else np.inf
        notes += [f"{style.NAMES[name]}: {note}"] if note else []
        lowest = min(lowest, end)
    room = highest - lowest or 0.1 * highest
    ax.set_ylim(lowest - 0.05 * room, highest + 0.5 * room)
    _legend(ax, points, fits, loc="upper right", ncols=2)
    ax.set_xlabel(
        "training FLOPs (two per multiply-add); dotted: efficiency frontier; dashed: extrapolated by a decade\n"
        + "\n".join(line for note in notes for line in textwrap.wrap(note, NOTE))
    )
    ax.set_ylabel(f"final validation {LOSS}")
    perplexity = ax.secondary_yaxis("right", functions=(np.exp, lambda value: np.log(np.maximum(value, 1e-9))))
    perplexity.set_ylabel("perplexity")
    perplexity.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7) if highest - lowest < 2 else (1, 3)))
    made = all(fits.values()) and not notes
    heading(figure, "Loss against training FLOPs" + ("" if made else ": not every fit is identified"))
    return figure, pd.concat(parts, ignore_index=True)


def _scatter(ax: Axes, points: pd.DataFrame, column: str) -> None:
    markers = _markers(points)
    for (name, size), own in points.groupby(["architecture", "size"], sort=False):
        ax.plot(own[column], own["loss"], marker=markers[size], color=style.ARCHITECTURE[name], ls="", zorder=3)


def _draw_fit(ax: Axes, architecture: str, best: pd.DataFrame, fits: pd.DataFrame) -> tuple[str, str, pd.DataFrame]:
    """The power law with a floor, or without where no floor is identified, with the band of its bootstrap; solid
    within the budgets, dashed beyond.

    returns  words for the legend, what is not identified and why, and what was drawn
    """
    note = ""
    for fit, what in (("compute", "no floor identified"), ("compute, no floor", "no power law identified")):
        own = fits[(fits["fit"] == fit) & (fits["architecture"] == architecture)].set_index("parameter")
        if own.empty or not own["identified"].all():
            reason = "too few runs" if own.empty else own.loc[~own["identified"], "reason"].iloc[0]
            note = f"{what} ({reason})"
            continue
        floor = own.loc["E", "value"] if "E" in own.index else 0.0
        exponent = own.loc["exponent_C"]

        def curve(flops: np.ndarray, own=own, floor=floor) -> tuple[np.ndarray, ...]:
            loss = floor + own.loc["A_C", "value"] * flops ** -own.loc["exponent_C", "value"]
            return loss, *_band(best, "E" in own.index, flops)

        drawn = law(ax, style.ARCHITECTURE[architecture], best["C"], curve)
        parts = [drawn.rename(columns={"at": "C", "value": "loss"})]
        row = {"what": "exponent", "value": exponent["value"], "low": exponent["low"], "high": exponent["high"]}
        parts.append(pd.DataFrame([row | {"runs": len(best)}]))
        word = f": C$^{{-{exponent['value']:.3f}}}$" + (f" + {floor:.2f}" if floor else "")
        return word, note, pd.concat(parts).assign(architecture=architecture, reason=note)
    refused = {"what": "exponent", "runs": len(best), "architecture": architecture, "reason": note}
    return "", note, pd.DataFrame([refused]).assign(**dict.fromkeys(("loss", "low", "high", "value"), np.nan))


def _band(best: pd.DataFrame, floor: bool, flops: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """95 % of the bootstrap draws of the fit at `flops`: where the curve lies, not where a further run would."""
    x = best[["C"]].to_numpy(float)
    fit = fit_power_laws(x, best["loss"].to_numpy(), floor)
    drawn = [replace(fit, theta=theta).predict(flops) for theta in bootstrap(fit, x)]
    return tuple(np.quantile(drawn, [0.025, 0.975], axis=0))


def isoflop(runs: pd.DataFrame, isoflop: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """Loss against parameters, one curve per budget and architecture; minima filled where used, hollow
    where not."""
    points = _points(runs)
    names = list(points["architecture"].drop_duplicates())
    figure, axes = panels(len(names), height=4.0, sharey=True)
    budgets = list(points.sort_values("C")["budget"].drop_duplicates())
    looks = {
        budget: {"marker": marker, "ms": 4, "lw": 0.8, "alpha": 0.35 + 0.65 * (i + 1) / len(budgets)}
        for i, (budget, marker) in enumerate(style.markers(budgets).items())
    }
    reach = 0.25 * np.log(points["N"].max() / points["N"].min())  # of a parabola, in log N
    for ax, name in zip(axes, names, strict=True):
        for budget, own in points[points["architecture"] == name].groupby("budget", sort=False):
            ax.plot(own["N"], own["loss"], color=style.ARCHITECTURE[name], **looks[budget])
        minima = isoflop[isoflop["architecture"] == name]
        for row in minima[minima["n_opt"].notna()].to_dict("records"):
            _draw_minimum(ax, row, reach)
        ax.set_xscale("log")
        ax.margins(x=0.1)
        style.counts(ax)
        ax.set_title(f"{style.NAMES[name]}: {int(minima['used'].sum())} of {len(minima)} minima inside")
        ax.set_xlabel("parameters N")
    axes[0].set_ylabel(f"final validation {LOSS}")
    for budget, look in looks.items():
        nominal = points.loc[points["budget"] == budget, "nominal"].mean()
        axes[0].plot([], [], color=GREY, **look, label=f"{budget}: {nominal:.2g}")
    style.legend_below(figure, axes[0], "training FLOPs (two per multiply-add)", ncols=len(budgets))
    minima = isoflop.rename(columns={"n_opt": "N", "d_opt": "D", "flops": "C"}).assign(
        what=isoflop["used"].map({True: "minimum", False: "excluded"})
    )
    columns = [*points.columns, "what", "reason"]
    return figure, pd.concat([points.assign(what="run"), minima.reindex(columns=columns)], ignore_index=True)


def _draw_minimum(ax: Axes, row: dict, reach: float) -> None:
    """A filled star on its local parabola; a hollow one at the edge of the sizes tried, left out of fits."""
    fill = "black" if row["used"] else "white"
    ax.plot(row["n_opt"], row["loss"], "*", ms=9, color="black", mfc=fill, zorder=4)
    if row["used"]:
        away = np.linspace(-reach, reach, 41)
        loss = row["loss"] + row["curvature"] * away**2
        ax.plot(np.exp(row["log_n_centre"] + away), loss, color="black", lw=0.9)


def model_size(runs: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """Final loss against parameters, one panel per budget, both architectures in each."""
    points = _points(runs)
    budgets = list(points.sort_values("C")["budget"].drop_duplicates())
    figure, axes = panels(len(budgets), height=3.2, sharey=True)
    for ax, budget in zip(axes, budgets, strict=True):
        at = points[points["budget"] == budget]
        for name, own in at.groupby("architecture", sort=False):
            ax.plot(own["N"], own["loss"], color=style.ARCHITECTURE[name], lw=1.2)
        _scatter(ax, at, "N")
        ax.set_xscale("log")
        ax.set_xlim(points["N"].min() * 0.6, points["N"].max() * 1.7)
        style.counts(ax)
        ax.set_title(f"{budget}: {at['nominal'].mean():.2g} FLOPs")
        ax.set_xlabel("parameters N")
    axes[0].set_ylabel(f"final validation {LOSS}")
    _legend(axes[-1], points, loc="upper right")
    return figure, points


def chinchilla_ratio(runs: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """Training tokens per parameter of every grid run, against the 20 that are optimal for text."""
    points = _points(runs).assign(
        tokens_per_parameter=lambda own: own["tokens"] / own["N"],
        samples_per_parameter=lambda own: own["D"] / own["N"],
    )
    shown = points[np.isfinite(points["tokens_per_parameter"])]
    if shown.empty:
        raise NothingToDraw("the grid runs did not record how many tokens they saw")
    figure, (ax,) = panels(1, height=3.4)
    markers = _markers(points)
    for (name, size), own in shown.groupby(["architecture", "size"], sort=False):
        look = {"color": style.ARCHITECTURE[name], "marker": markers[size], "lw": 0.8}
        ax.plot(own["C"], own["tokens_per_parameter"], **look)
    ax.axhline(STARVED, color="black", lw=1)
    place = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "xytext": (0, 3)}
    ax.annotate("20 tokens per parameter (Hoffmann et al. 2022)", (0.01, STARVED), **place, fontsize=7.5)
    ax.set_xscale("log")
    ax.set_yscale("log")
    budgets = points.groupby("budget")["nominal"].mean().sort_values()
    ax.set_xticks(budgets, [f"{name}\n{flops:.2g}" for name, flops in budgets.items()])
    ax.minorticks_off()
    ax.set_ylim(shown["tokens_per_parameter"].min() / 2, max(STARVED, shown["tokens_per_parameter"].max()) * 2)
    starved = int((shown["tokens_per_parameter"] < STARVED).sum())
    ax.set_title(f"{starved} of {len(shown)} grid runs saw fewer than 20 tokens per parameter")
    ax.set_xlabel("training FLOPs (two per multiply-add)")
    ax.set_ylabel("text and visual tokens seen / N")
    _legend(ax, points, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure, points


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
    ax.set_xlabel(f"{measure} loss of the foveated model above that of pooled tokens (%; right: worse)")
    heading(figure, "Gap to pooled tokens, raw and at equal parameters")
    style.legend_below(figure, ax, bars_words(table["interval"]), ncols=4)
    return figure, table
