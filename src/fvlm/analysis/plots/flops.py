"""The figure of loss against training FLOPs, with fits, frontier, extrapolation and perplexity."""

import textwrap
from dataclasses import replace

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator

from fvlm import style
from fvlm.analysis.columns import COUNTED, GROUP
from fvlm.analysis.fits import scaled
from fvlm.analysis.fits.grid import lowest_by_budget
from fvlm.analysis.fits.sums import bootstrap, fit_power_laws
from fvlm.analysis.plots.captions import STAR
from fvlm.analysis.plots.fits import law, notes_below
from fvlm.style import BEYOND, LOSS, NothingToDraw, heading

NOTE = 105  # letters in a line below an axis
EXPLAINED = "training FLOPs (two per multiply-add); dotted: efficiency frontier; dashed: extrapolated by a decade"
FURTHER = (
    "; faint: the way there; hollow: its learning rate had not come down; star: after the 3.3 M samples of SmolVLM2"
)
SMOLVLM2 = 3.3e6  # samples that SmolVLM2 was trained on, by its model card
FEW = 10  # evaluations of a curve whose points are marked
SMALL = {"fontsize": 6.5}  # words in one of several panels
LINE = 0.115  # inches of a line of them
BELOW = 60  # letters in a line below one of them


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
    is_study = GROUP not in runs
    figure, axes = style.plot_grid(len(groups), height=4.2)
    parts, heights, complete = [], [], True
    for ax, group in zip(axes, groups, strict=True):
        own, along = points[points["group"] == group], curves[curves["group"] == group]
        drawn, notes, fitted = _panel(ax, own, along, scaling_fits, is_study)
        complete = complete and fitted and not notes
        parts.append(drawn if is_study else drawn.assign(group=group))
        if is_study:
            lines = [line for note in notes for line in textwrap.wrap(note, NOTE)]
            ax.set_xlabel(EXPLAINED + "\n" + "\n".join(lines))
        else:
            notes += [f"FLOPs: {words}" for words in own.get(COUNTED, pd.Series()).dropna().drop_duplicates() if words]
            width = BELOW if len(groups) > 1 else 2 * BELOW
            lines = [line for note in notes for line in textwrap.wrap(note, width)]
            ax.set_title(group)
            ax.set_xlabel("\n".join(lines), loc="left", **SMALL)
            heights.append(LINE * len(lines))
    heading(figure, "Loss against training FLOPs" + ("" if complete else ": not every fit is identified"))
    if not is_study:
        room = sum(max(heights[row : row + 2]) for row in range(0, len(heights), 2))
        figure.set_figheight(figure.get_figheight() + room)
        notes_below(figure, [EXPLAINED + FURTHER])
    return figure, pd.concat(parts, ignore_index=True)


def _panel(
    ax: Axes, points: pd.DataFrame, curves: pd.DataFrame, fits: pd.DataFrame, is_study: bool
) -> tuple[pd.DataFrame, list[str], bool]:
    """Draw one group; return what was drawn, what is refused and why, and whether every architecture has a fit."""
    for _, curve in curves.groupby("run", sort=False):
        colour, few = style.ARCHITECTURE[curve["architecture"].iloc[0]], len(curve) <= FEW and not is_study
        ax.plot(curve["C"], curve["L"], ".-" if few else "-", color=colour, lw=0.7, ms=3, alpha=0.6 if few else 0.25)
    _scatter(ax, points, curves)
    ax.set_xscale("log")
    lowest, highest, least = points["loss"].min(), points["loss"].max(), points["C"].min() / 2
    if not is_study and len(curves):
        highest, least = max(highest, curves["L"].max()), min(least, curves["C"].min() / 1.3)
    ax.set_xlim(least, points["C"].max() * (BEYOND * 1.1 if is_study or len(curves) else 2))
    markers, architectures = style.markers(points.sort_values("N")["size"]), points["architecture"].drop_duplicates()
    words, notes, parts = {}, [], []
    for name, own in points.groupby("architecture", sort=False):
        grid, found = own[own["family"] == "grid"], []
        best = lowest_by_budget(grid)
        parts.append(_of_points(own, best))
        if len(grid):
            ax.plot(best["C"], best["loss"], ":", color=style.ARCHITECTURE[name], lw=1)
            words[name], note, lines = _draw_fit(ax, name, best, fits)
            of = style.NAMES[name] if is_study else f"{style.NAMES[name]}, ends of {len(grid)} runs"
            found.append((f"{of}: {note}" if note else "", lines))
        for _, curve in curves[curves["along"] & (curves["architecture"] == name)].groupby("run", sort=False):
            found.append(_draw_along(ax, curve, markers[curve["size"].iloc[0]]))
        if not found:
            sizes = f"{own['size'].nunique()} size{'s' * (own['size'].nunique() != 1)}"
            notes.append(f"no fit: {sizes} with one final loss each; a law needs several budgets")
        notes += [note for note, _ in found if note]
        if jumps := scaled.jumps(curves) if curves["along"].any() else "":
            notes.append(jumps)
        parts += [lines for _, lines in found]
        lowest = min([lowest, *(lines["loss"].min() for _, lines in found if lines["loss"].notna().any())])
    room = highest - lowest or 0.1 * highest
    ax.set_ylim(
        lowest - (0.05 if is_study else 0.1) * room, highest + (0.5 if is_study or not len(curves) else 0.05) * room
    )
    look = {"ncols": 2, "loc": "upper right"} if is_study else {"loc": "best", **SMALL}
    style.legend_of_grid(ax, architectures, markers, words, **look)
    ax.set_ylabel(f"{'final ' * is_study}validation {LOSS}")
    perplexity = ax.secondary_yaxis("right", functions=(np.exp, lambda value: np.log(np.maximum(value, 1e-9))))
    perplexity.set_ylabel("perplexity")
    perplexity.yaxis.set_major_locator(
        MaxNLocator(8, steps=(1, 2, 5, 10)) if highest - lowest < 2 else LogLocator(subs=(1, 3))
    )
    if not is_study:
        style.powers(ax)
    return (
        pd.concat(parts, ignore_index=True),
        list(dict.fromkeys(notes)),
        all(words.get(name) for name in architectures),
    )


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
    style.mark_adopted(ax, points, "C", "loss")


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


def _draw_along(ax: Axes, curve: pd.DataFrame, marker: str) -> tuple[str, pd.DataFrame]:
    """Draw the law along the curve of one run; return what is not identified and why, and what was drawn."""
    run, architecture = curve[["run", "architecture"]].iloc[0]
    colour = style.ARCHITECTURE[architecture]
    found = scaled.law_along(curve["C"].to_numpy(float), curve["L"].to_numpy(float))
    about = {"architecture": architecture, "run": run, "reason": found.note}
    note = f"{run}: {found.note}" if found.note else ""
    if found.fit is None:
        refused = pd.DataFrame([about | {"what": "exponent", "runs": len(curve)}])
        return note, refused.assign(**dict.fromkeys(("loss", "low", "high", "value"), np.nan))

    def at(flops: np.ndarray) -> tuple[np.ndarray, ...]:
        return found.fit.predict(flops), *found.band(flops)

    line, one, last = law(ax, colour, curve["C"], at), found.exponent, curve.iloc[-1]
    exponent = {"what": "exponent", "value": one.value, "low": one.low, "high": one.high, "runs": len(curve)}
    parts = [line.rename(columns={"at": "C", "value": "loss"}), pd.DataFrame([exponent])]
    budget = np.array([SMOLVLM2 * last["C"] / last["D"]])
    if last["C"] < budget[0] <= last["C"] * BEYOND:
        loss, low, high = (float(value[0]) for value in at(budget))
        ax.plot(budget, loss, "*", ms=10, color=colour, mec="black", mew=0.5, zorder=5)
        place = {"xytext": (0, -12), "textcoords": "offset points", "ha": "center", **SMALL}
        ax.annotate(f"{loss:.2f}", (budget[0], loss), **place)
        star = {"what": STAR, "C": budget[0], "D": SMOLVLM2, "loss": loss, "low": low, "high": high}
        parts.append(pd.DataFrame([star]))
    floor = f" + {found.fit.limit:.2f}" if found.fit.floor else ""
    ax.plot([], [], color=colour, marker=marker, label=f"{run}: C$^{{-{one.value:.3f}}}${floor}")
    return note, pd.concat(parts).assign(**about)
