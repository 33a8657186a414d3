"""The figure of loss against training FLOPs, with fits, frontier, extrapolation and perplexity."""

import textwrap
from dataclasses import replace

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from fvlm import style
from fvlm.analysis.fits import scaled
from fvlm.analysis.fits.grid import lowest_by_budget
from fvlm.analysis.fits.sums import bootstrap, fit_power_laws
from fvlm.analysis.plots.fits import law, notes_below
from fvlm.style import BEYOND, LOSS, NothingToDraw, heading

NOTE = 105  # letters in a line below an axis
EXPLAINED = "training FLOPs (two per multiply-add); dotted: efficiency frontier; dashed: extrapolated by a decade"
SMOLVLM2 = 3.3e6  # samples that SmolVLM2 was trained on, by its model card
ROOM = {1: 0.5, 2: 0.75}  # above the highest loss, for the legend: of a wide panel, and of several


def loss_vs_flops(
    runs: pd.DataFrame, validation_curves: pd.DataFrame, scaling_fits: pd.DataFrame
) -> tuple[Figure, pd.DataFrame]:
    """Final loss against training FLOPs, the way there faint; the frontier of the lowest loss per budget, and its fit,
    dashed for a decade beyond. Imported runs: a panel for each group, with a fit along each run that allows one."""
    points = scaled.points(runs)
    if points.empty:
        raise NothingToDraw(scaled.NONE)
    points = points[np.isfinite(points[["C", "loss"]].astype(float)).all(axis=1)]
    if points.empty:
        raise NothingToDraw("no run with a model size has both its training FLOPs and its final loss")
    curves = scaled.curves(runs, validation_curves)
    groups = list(points["group"].drop_duplicates())
    figure, axes = style.plot_grid(len(groups), height=4.2)
    parts, notes, complete = [], [], True
    for ax, group in zip(axes, groups, strict=True):
        own, along = points[points["group"] == group], curves[curves["group"] == group]
        drawn, refused, fitted = _panel(ax, own, along, scaling_fits, len(groups))
        from_where = "; ".join(scaled.where_flops_come_from(runs, group))
        ax.set_title(group)
        before = f"{group}: " if len(groups) > 1 else ""
        notes += [before + ". ".join(refused)] if refused else []
        notes += [f"{before}FLOPs {from_where}"] if from_where else []
        complete = complete and fitted and not refused
        parts.append(drawn if group == "" and len(groups) == 1 else drawn.assign(group=group))
    heading(figure, "Loss against training FLOPs" + ("" if complete else ": not every fit is identified"))
    if len(groups) == 1:
        lines = [line for note in notes for line in textwrap.wrap(note, NOTE)]
        axes[0].set_xlabel(EXPLAINED + "\n" + "\n".join(lines))
    else:
        notes_below(figure, [f"{EXPLAINED}; faint: along the training; hollow: not finished.", *notes])
    return figure, pd.concat(parts, ignore_index=True)


def _panel(
    ax: Axes, points: pd.DataFrame, curves: pd.DataFrame, fits: pd.DataFrame, panels: int
) -> tuple[pd.DataFrame, list[str], bool]:
    """Draw one group; return what was drawn, what is refused and why, and whether every architecture has a fit."""
    for _, curve in curves.groupby("run", sort=False):
        colour = style.ARCHITECTURE[curve["architecture"].iloc[0]]
        ax.plot(curve["C"], curve["L"], color=colour, lw=0.7, alpha=0.25)
    _scatter(ax, points, curves)
    ax.set_xscale("log")
    ax.set_xlim(points["C"].min() / 2, points["C"].max() * BEYOND * 1.1)
    lowest, highest = points["loss"].min(), points["loss"].max()
    words, refused, parts = {}, [], []
    for name, own in points.groupby("architecture", sort=False):
        grid = own[own["family"] == "grid"]
        best = lowest_by_budget(grid)
        parts.append(_of_points(own, best))
        found = []
        if len(grid):
            ax.plot(best["C"], best["loss"], ":", color=style.ARCHITECTURE[name], lw=1)
            word, note, lines = _draw_fit(ax, name, best, fits)
            found.append((word, f"{style.NAMES[name]}: {note}" if note else "", lines))
        for run, curve in curves[curves["along"] & (curves["architecture"] == name)].groupby("run", sort=False):
            word, note, lines = _draw_along(ax, name, curve)
            found.append((f"; {run}{word}" if word else "", f"{run}: {note}" if note else "", lines))
        if not found:
            sizes = own["size"].nunique()
            refused.append(
                f"{style.NAMES[name]}: no fit, {sizes} size{'s' * (sizes != 1)} and one loss of each: "
                "a law needs several budgets"
            )
        words[name] = "".join(word for word, _, _ in found)
        refused += [note for _, note, _ in found if note]
        parts += [lines for _, _, lines in found]
        lowest = min([lowest, *(lines["loss"].min() for _, _, lines in found if lines["loss"].notna().any())])
    room = highest - lowest or 0.1 * highest
    ax.set_ylim(lowest - 0.05 * room, highest + ROOM[min(panels, 2)] * room)
    markers = style.markers(points.sort_values("N")["size"])
    small = {} if panels == 1 else {"fontsize": 6.5}
    architectures = points["architecture"].drop_duplicates()
    style.legend_of_grid(ax, architectures, markers, words, loc="upper right", ncols=2 if panels == 1 else 1, **small)
    ax.set_ylabel(f"final validation {LOSS}")
    perplexity = ax.secondary_yaxis("right", functions=(np.exp, lambda value: np.log(np.maximum(value, 1e-9))))
    perplexity.set_ylabel("perplexity")
    perplexity.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7) if highest - lowest < 2 else (1, 3)))
    return pd.concat(parts, ignore_index=True), refused, all(words.values())


def _of_points(own: pd.DataFrame, best: pd.DataFrame) -> pd.DataFrame:
    table = own.assign(what="run", frontier=own.index.isin(best.index))
    return table.drop(columns=["group", *(["family"] if (own["family"] == "grid").all() else [])])


def _scatter(ax: Axes, points: pd.DataFrame, curves: pd.DataFrame) -> None:
    """The final losses; hollow where the rate had not come down, so that the loss is not a final one."""
    markers = style.markers(points.sort_values("N")["size"])
    steady = set(curves.loc[curves["along"], "budget"])
    unfinished = (points["family"] == "scaling") & ~points["budget"].isin(steady)
    for (name, size, hollow), own in points.groupby(["architecture", "size", unfinished], sort=False):
        colour = style.ARCHITECTURE[name]
        look = {"marker": markers[size], "color": colour, "mfc": "white" if hollow else colour}
        ax.plot(own["C"], own["loss"], ls="", zorder=3, **look)


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


def _draw_along(ax: Axes, architecture: str, curve: pd.DataFrame) -> tuple[str, str, pd.DataFrame]:
    """The law along the curve of one run; the star is where it would be after SmolVLM2's number of samples.

    returns  as `_draw_fit`
    """
    run, found = curve["run"].iloc[0], scaled.law_along(curve["C"].to_numpy(float), curve["L"].to_numpy(float))
    about = {"architecture": architecture, "run": run, "reason": found.note}
    if found.fit is None:
        refused = pd.DataFrame([about | {"what": "exponent", "runs": len(curve)}])
        return "", found.note, refused.assign(**dict.fromkeys(("loss", "low", "high", "value"), np.nan))

    def at(flops: np.ndarray) -> tuple[np.ndarray, ...]:
        return found.fit.predict(flops), *found.band(flops)

    parts = [law(ax, style.ARCHITECTURE[architecture], curve["C"], at).rename(columns={"at": "C", "value": "loss"})]
    one = found.exponent
    parts.append(pd.DataFrame([
        {"what": "exponent", "value": one.value, "low": one.low, "high": one.high, "runs": len(curve)}
    ]))  # fmt: skip
    last = curve.iloc[-1]
    if last["D"] > 0:
        budget = np.array([SMOLVLM2 * last["C"] / last["D"]])
        loss, low, high = (float(value[0]) for value in at(budget))
        if budget[0] <= last["C"] * BEYOND:
            ax.plot(budget, loss, "*", ms=10, color=style.ARCHITECTURE[architecture], mec="black", mew=0.5, zorder=5)
            star = {"what": "SmolVLM2's samples", "C": budget[0], "D": SMOLVLM2, "loss": loss, "low": low, "high": high}
            parts.append(pd.DataFrame([star]))
    floor = f" + {found.fit.limit:.2f}" if found.fit.floor else ""
    return f": C$^{{-{one.value:.3f}}}${floor}", found.note, pd.concat(parts).assign(**about)
