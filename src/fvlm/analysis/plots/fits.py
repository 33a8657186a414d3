"""Figures of the best model size: iso-FLOP optima, the envelope of training curves, exponents under each choice."""

import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter

from fvlm import style
from fvlm.analysis.columns import GROUP
from fvlm.analysis.fits import scaled
from fvlm.analysis.fits.envelope import warnings_of
from fvlm.analysis.fits.exponents import N_OPT, OF_LOSS, crossings, frontier, grid_curves
from fvlm.analysis.fits.exponents import exponents as exponents_table
from fvlm.analysis.fits.slopes import log_band
from fvlm.style import BEYOND, GREY, LOSS, NothingToDraw, counts, dots, heading, panels

FLOPS = "training FLOPs C (two per multiply-add)"
OPTIMA = {"n_opt": ("N*", "parameters N*", "N_opt_exponent"), "d_opt": ("D*", "samples D*", "D_opt_exponent")}
LINE = 60  # points of a drawn line
NOTE = 118  # letters in a line of explanation below the axes


def notes_below(figure: Figure, notes: Iterable[str], handles: Sequence | None = None, ncols: int = 3) -> None:
    """Sentences below all panels, and below those a legend if there are handles."""
    lines = [line for note in notes if note for line in textwrap.wrap(note, NOTE)]
    text = "\n".join(lines)
    figure.set_figheight(figure.get_figheight() + 0.15 * len(lines))
    if handles:
        look = {"ncols": ncols, "title": text or None, "title_fontsize": 8, "alignment": "left"}
        figure.legend(handles=handles, loc="outside lower center", **look)
    elif text:
        figure.supxlabel(text, fontsize=8, x=0.01, ha="left")


def isoflop_optimum(isoflop: pd.DataFrame, scaling_fits: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """N* and D* of every budget against C; the fitted power law with its band, dashed beyond the budgets."""
    shown = isoflop[isoflop["n_opt"].notna()]
    if shown.empty:
        raise NothingToDraw("no budget of the scaling grid has three model sizes, so none has a best one")
    figure, axes = panels(2, height=3.3)
    parts, notes = [], {}
    for ax, (column, (symbol, label, parameter)) in zip(axes, OPTIMA.items(), strict=True):
        for name, every in isoflop.groupby("architecture", sort=False):
            own = every[every["n_opt"].notna()]
            for used, points in own.groupby("used"):
                fill = style.ARCHITECTURE[name] if used else "white"
                ax.plot(points["flops"], points[column], "o", color=style.ARCHITECTURE[name], mfc=fill, zorder=3)
                what = "minimum" if used else "excluded"
                table = points[["architecture", "budget", "flops", "reason"]].rename(columns={"flops": "C"})
                parts.append(table.assign(quantity=symbol, what=what, value=points[column]))
            chosen = (scaling_fits["fit"] == "iso-FLOP minima") & (scaling_fits["parameter"] == parameter)
            estimate = scaling_fits[chosen & (scaling_fits["architecture"] == name)].iloc[0]
            word, line = "no exponent", "o"
            if estimate["identified"]:
                parts.append(_power_law(ax, name, own[own["used"]], column, symbol))
                word, line = f"{symbol} ∝ $C^{{{estimate['value']:.2f}}}$", "o-"
            else:
                key = name, estimate["reason"]  # often the same for N* and D*
                missing = "no exponent" if key in notes else f"no exponent of {symbol}"
                notes[key] = f"{style.NAMES[name]}: {missing}, {estimate['reason']}."
            ax.plot([], [], line, color=style.ARCHITECTURE[name], label=f"{style.NAMES[name]}: {word}")
            row = estimate[["architecture", "value", "low", "high", "reason"]].to_frame().T
            parts.append(row.assign(quantity=symbol, what="exponent", n=int(own["used"].sum())))
        ax.set(xscale="log", yscale="log", xlabel=FLOPS, ylabel=label)
        ax.margins(y=0.12)
        counts(ax, "y")
        ax.legend(loc="upper left", bbox_to_anchor=(0, 1.16), borderaxespad=0)
    if not shown["used"].all():
        notes["hollow"] = "Hollow: the best size is the smallest or largest tried; left out of the fit."
    heading(figure, "Best model size and number of samples at each training budget")
    notes_below(figure, notes.values())
    order = ["architecture", "quantity", "what", "budget", "C", "value", "low", "high", "n", "reason"]
    return figure, pd.concat(parts, ignore_index=True).reindex(columns=order)


def _power_law(ax: Axes, name: str, used: pd.DataFrame, column: str, symbol: str) -> pd.DataFrame:
    """The least-squares line through minima, and its band."""
    x, y = np.log(used["flops"].to_numpy(float)), np.log(used[column].to_numpy(float))

    def line(flops: np.ndarray) -> tuple[np.ndarray, ...]:
        value, half = log_band(x, y, np.log(flops))
        return np.exp(value), np.exp(value - half), np.exp(value + half)

    table = law(ax, style.ARCHITECTURE[name], used["flops"], line).rename(columns={"at": "C"})
    return table.assign(architecture=name, quantity=symbol)


def law(ax: Axes, colour: str, x: pd.Series, curve: Callable[[np.ndarray], tuple[np.ndarray, ...]]) -> pd.DataFrame:
    """Draw a fitted law with its band, dashed from the largest x to a decade beyond; return what was drawn.

    curve   x -> value, low, high
    """
    parts = []
    for what, line, ends in (
        ("fitted", "-", (x.min(), x.max())),
        ("extrapolated", "--", (x.max(), x.max() * BEYOND)),
    ):
        at = np.geomspace(*ends, LINE)
        value, low, high = curve(at)
        ax.plot(at, value, line, color=colour)
        ax.fill_between(at, low, high, color=colour, alpha=0.15, lw=0, zorder=1)
        parts.append(pd.DataFrame({"what": what, "at": at, "value": value, "low": low, "high": high}))
    return pd.concat(parts)


def envelope(runs: pd.DataFrame, validation_curves: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """Above, the validation curves of the grid and their lower envelope; below, whose curve is the lowest."""
    if GROUP in runs:  # results from elsewhere: along a decaying rate no loss is comparable
        curves = scaled.curves(runs, validation_curves)
        curves = curves[curves["along"] & curves["N"].notna()]
    else:
        curves = grid_curves(runs, validation_curves).assign(group="")
    if curves.empty:
        raise NothingToDraw("this study has no scaling grid with training curves")
    found = curves[["group", "architecture"]].drop_duplicates().itertuples(index=False, name=None)
    names = sorted(found, key=lambda place: (place[0], list(style.ARCHITECTURE).index(place[1])))
    figure, axes = style.plt.subplots(
        2,
        len(names),
        figsize=(style.WIDTH, 4.6),
        squeeze=False,
        sharex=True,
        sharey="row" if len({group for group, _ in names}) == 1 else "none",
        gridspec_kw={"height_ratios": [1.6, 1]},
    )
    parts, notes = [], []
    for (above, below), (group, name) in zip(axes.T, names, strict=True):
        own = curves[(curves["architecture"] == name) & (curves["group"] == group)]
        known = f"{group}, {style.NAMES[name]}" if group else style.NAMES[name]
        table = frontier(own)
        if GROUP in runs and table["sizes"].max() > 1:  # where one size has ended, the other alone is no frontier
            table = table[table["sizes"] > 1].reset_index(drop=True)
        found, fit = crossings(table)
        _curves(above, own, name)
        _envelope(above, below, table, name)
        above.set_title(known.replace(", ", "\n"))
        if len(names) < 3 or (group, name) == names[len(names) // 2]:
            below.set_xlabel(FLOPS)
        below.plot(found["C"], found["N_opt"], "*", ms=9, color="black", zorder=4)
        if not fit.reason:
            x, y = (np.log(found[column].to_numpy(float)) for column in ("C", "N_opt"))
            ends = x.min(), x.max()
            below.plot(np.exp(ends), np.exp(log_band(x, y, np.array(ends))[0]), color="black", lw=1)
        else:
            notes.append(f"{known}: no exponent, {fit.reason}.")
        parts.append(table.rename(columns={"N_opt": "N", "L_opt": "loss"}).assign(architecture=name, what="envelope"))
        parts.append(found.rename(columns={"N_opt": "N"}).assign(architecture=name, what="change"))
        exponent = pd.DataFrame([asdict(fit)]).drop(columns="name")
        warning = "" if GROUP in runs and fit.reason else "; ".join(warnings_of(own))
        notes += [f"{known}: {warning}."] if warning else []
        parts.append(exponent.assign(architecture=name, what="exponent", n=len(found), note=warning))
        _sizes_axis(below, own if GROUP in runs else curves)
        if GROUP in runs:  # also the sizes that are best nowhere
            below.set_ylim(own["N"].min() / 1.3, own["N"].max() * 1.3)
    axes[1, 0].set_ylabel("best size")
    axes[0, 0].set_ylabel("validation " + LOSS.replace(" (", "\n("))
    heading(figure, "Lowest loss along any training curve, and the size that has it")
    handles = [Line2D([], [], label=label, **look) for label, look in ENVELOPE_LOOKS.items()]
    notes_below(figure, notes, handles)
    order = ["architecture", "what", "C", "N", "loss", "run", "used", "value", "low", "high", "n", "reason", "note"]
    return figure, pd.concat(parts, ignore_index=True).reindex(columns=order)


def _curves(ax: Axes, curves: pd.DataFrame, name: str) -> None:
    """The larger the model, the darker its curves."""
    sizes = sorted(curves["N"].unique())
    for _, own in curves.groupby("run", sort=False):
        shade = 0.25 + 0.6 * sizes.index(own["N"].iloc[0]) / max(1, len(sizes) - 1)
        ax.plot(own["C"], own["L"], color=style.ARCHITECTURE[name], lw=0.8, alpha=shade)
    ax.set(xscale="log", yscale="log")
    style.losses(ax)


def _envelope(above: Axes, below: Axes, table: pd.DataFrame, name: str) -> None:
    known = table["L_opt"].notna()
    above.plot(table["C"], table["L_opt"], color="black", lw=1.4, zorder=3)
    for used, fill in ((False, "white"), (True, style.ARCHITECTURE[name])):
        chosen = table[known & (table["used"] == used)]
        below.plot(
            chosen["C"], chosen["N_opt"], "o", ms=3, color=style.ARCHITECTURE[name], mfc=fill, mew=0.6, zorder=2 + used
        )
    below.set(xscale="log", yscale="log")


def _sizes_axis(ax: Axes, curves: pd.DataFrame) -> None:
    """Sizes by name; where two architectures' N differ, at their geometric mean."""
    sizes = np.exp(np.log(curves.groupby("size")["N"].unique().map(np.mean))).sort_values()
    ax.set_yticks(sizes, sizes.index)
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.minorticks_off()
    ax.margins(y=0.15)


ENVELOPE_LOOKS = {
    "curves, darker: larger model": {"color": GREY, "lw": 0.8},
    "lowest of all curves": {"color": "black", "lw": 1.4},
    "best size inside those tried": {"color": GREY, "marker": "o", "ls": "", "ms": 4},
    "smallest, largest or only size: excluded": {"color": GREY, "marker": "o", "ls": "", "ms": 4, "mfc": "white"},
    "the best size changes": {"color": "black", "marker": "*", "ls": "", "ms": 8},
}


TITLES = {N_OPT: "a, of N* ∝ $C^a$", OF_LOSS: "exponent of the loss L(C)"}


def exponents(runs: pd.DataFrame, validation_curves: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """Forest plots: one line per choice of the analysis, one colour per architecture."""
    table = exponents_table(runs, validation_curves)
    if table.empty:
        raise NothingToDraw("this study has no scaling grid")
    table["choice"] = table["method"] + ", " + table["budgets"] + ", " + table["loss"] + " loss"
    labels = {name: list(table.loc[table["exponent"] == name, "choice"].drop_duplicates()) for name in TITLES}
    order = list(table["method"].drop_duplicates())
    labels = {
        name: sorted(own, key=lambda label: order.index(label.rsplit(", ", 2)[0])) for name, own in labels.items()
    }
    rows = [len(own) for own in labels.values()]
    figure, axes = style.plt.subplots(
        2, 1, figsize=(style.WIDTH, 1.4 + 0.27 * sum(rows)), gridspec_kw={"height_ratios": rows}
    )
    for ax, (name, title) in zip(axes, TITLES.items(), strict=True):
        _forest(ax, table[table["exponent"] == name], labels[name])
        ax.set_title(title)
    for name in table["architecture"].drop_duplicates():
        axes[0].plot([], [], "o", color=style.ARCHITECTURE[name], label=style.NAMES[name])
    axes[0].plot([], [], "x", color=GREY, ms=5, label="not identified")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    heading(figure, "Scaling exponents under each choice of the analysis")
    return figure, table.drop(columns="choice")


def _forest(ax: Axes, table: pd.DataFrame, labels: list[str]) -> None:
    names = list(table["architecture"].drop_duplicates())
    style.bands([ax], labels)
    found = table[["value", "low", "high"]].to_numpy(float)
    if np.isfinite(found).any():
        low, high = np.nanmin(found), np.nanmax(found)
        ax.set_xlim(low - 0.12 * (high - low or 1), high + 0.06 * (high - low or 1))
    else:
        ax.set_xlim(0, 1)
        ax.set_xticks([])
    for row in table.to_dict("records"):
        shift = 0.5 * ((names.index(row["architecture"]) + 0.5) / len(names) - 0.5)
        y, colour = labels.index(row["choice"]) + shift, style.ARCHITECTURE[row["architecture"]]
        if row["identified"]:
            dots(ax, row["value"], y, row["low"], row["high"], colour)
        else:
            ax.plot(0.015, y, "x", ms=4, color=colour, transform=ax.get_yaxis_transform(), clip_on=False)
