"""One look for all figures: colours of architectures, lines and markers.

Solid line: fitted, or measured. Dashed line: extrapolated. Hollow marker: excluded. Bars: 95 % intervals.
"""

import re
import textwrap
from collections.abc import Iterable, Sequence
from itertools import cycle

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fvlm.config.architectures import ARCHITECTURES

# Okabe and Ito's palette, which stays apart for colour-blind readers
BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY, YELLOW, GREY = "#CC79A7", "#56B4E9", "#B8A500", "#666666"
BROWN = "#8C510A"
ARCHITECTURE = dict(zip(ARCHITECTURES, cycle((BLUE, RED, GREEN, GREY, PURPLE, ORANGE, BROWN, YELLOW)), strict=False))
NAMES = {name: architecture.title for name, architecture in ARCHITECTURES.items()}
MODES = {
    "coarse_fine": BLUE, "autoregressive": PURPLE, "coarse_only": SKY, "direct": RED, "other": ORANGE, "blind": GREY
}  # fmt: skip
MODE_NAMES = {
    "coarse_fine": "coarse + fine", "autoregressive": "autoregressive", "coarse_only": "coarse only",
    "direct": "direct", "other": "another sample's frames", "blind": "no frames",
}  # fmt: skip
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
CYCLE = (BLUE, RED, GREEN, PURPLE, ORANGE, SKY, YELLOW, GREY)
WIDTH = 7.2  # inches, of a report column
LOSS = "loss (nats per token)"
MARK = "‡"  # of an adopted run beside runs that were trained here
BEYOND = 10.0  # how many times the largest value a fit is prolonged, dashed


class NothingToDraw(Exception):
    """The study lacks the runs of a figure; the message names them."""


def apply() -> None:
    """Set the look of all figures."""
    import seaborn as sns  # with scipy.stats, which takes most of a second

    sns.set_theme(
        context="paper",
        style="ticks",
        rc={
            "figure.dpi": 150,
            "figure.constrained_layout.use": True,
            "font.size": 9,
            "axes.titlesize": 9.5,
            "axes.labelsize": 9,
            "xtick.labelsize": 8,
            "ytick.labelsize": 8,
            "legend.fontsize": 8,
            "legend.frameon": False,
            "axes.grid": True,
            "grid.color": "#e4e4e4",
            "grid.linewidth": 0.6,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titlelocation": "left",
            "axes.titleweight": "bold",
            "lines.linewidth": 1.6,
            "lines.markersize": 5,
            "pdf.fonttype": 42,
            "svg.hashsalt": "fvlm",
        },
    )


def panels(count: int, height: float = 3.0, width: float = WIDTH, **options) -> tuple[Figure, list[Axes]]:
    """`count` panels side by side."""
    figure, axes = plt.subplots(1, count, figsize=(width, height), squeeze=False, **options)
    return figure, list(axes[0])


def plot_grid(count: int, height: float, most: int = 2, **options) -> tuple[Figure, list[Axes]]:
    """`count` panels of their own axes: one of full width and `height`, or smaller ones, `most` in a row."""
    columns = min(count, most)
    rows = -(-count // columns)
    tall = height if count == 1 else 0.75 * height * rows
    figure, axes = plt.subplots(rows, columns, figsize=(WIDTH, tall), squeeze=False, **options)
    for ax in axes.ravel()[count:]:
        ax.remove()
    return figure, list(axes.ravel()[:count])


def words(title: str, message: str) -> Figure:
    """Return a figure with the reason why there is nothing to draw."""
    figure, (ax,) = panels(1, height=1.6)
    ax.axis("off")
    ax.set_title(title)
    text = "\n".join(textwrap.wrap(message, 100))
    ax.text(0.5, 0.5, text, ha="center", va="center", transform=ax.transAxes, color=GREY)
    return figure


def heading(figure: Figure, text: str) -> None:
    """A title that starts at the left edge of the figure, however wide the labels are."""
    figure.suptitle(text, x=0.01, ha="left", fontsize=9.5, fontweight="bold")


LEFT_RIGHT = ", left over videos, right"  # levels beside differences


def legend_below(figure: Figure, ax: Axes, note: str, ncols: int = 3) -> None:
    """The legend of `ax` below all panels, under a line of explanation."""
    figure.legend(
        *ax.get_legend_handles_labels(), loc="outside lower center", ncols=ncols, title=note, title_fontsize=8
    )


def markers(sizes: Iterable[str]) -> dict[str, str]:
    """Size -> marker, in the order given."""
    return {size: MARKERS[i % len(MARKERS)] for i, size in enumerate(dict.fromkeys(sizes))}


def mark_adopted(ax: Axes, points, x: str, y: str) -> None:
    """Mark the points that have a column `adopted` above zero."""
    if "adopted" in points:
        for row in points[points["adopted"] > 0].to_dict("records"):
            look = {"color": ARCHITECTURE[row["architecture"]], "fontsize": 8, "zorder": 5}
            ax.annotate(MARK, (row[x], row[y]), xytext=(4, 2), textcoords="offset points", **look)


def mark_names(figure: Figure, names: Iterable[str]) -> None:
    """Add MARK to the names of runs in all words of a figure."""
    known = re.compile(rf"(?<![\w.-])({'|'.join(map(re.escape, names))})(?![\w.-])")

    def marked(text: str) -> str:
        return known.sub(rf"\1{MARK}", text)

    for ax in figure.axes:
        for axis in (ax.xaxis, ax.yaxis):
            labels = [label.get_text() for label in axis.get_ticklabels()]
            if any(map(known.search, labels)):
                axis.set_ticks(axis.get_ticklocs(), [marked(label) for label in labels])
    legends = [*figure.legends, *(ax.get_legend() for ax in figure.axes if ax.get_legend())]
    for text in (*(text for ax in figure.axes for text in ax.texts), *(t for one in legends for t in one.get_texts())):
        text.set_text(marked(text.get_text()))


def legend_of_grid(
    ax: Axes, architectures: Iterable[str], sizes: dict[str, str], fits: dict[str, str] | None = None, **options
) -> None:
    """Colours for architectures, with the words of their fits; markers for sizes."""
    for name in architectures:
        ax.plot([], [], color=ARCHITECTURE[name], lw=2, label=NAMES[name] + (fits or {}).get(name, ""))
    for size, marker in sizes.items():
        ax.plot([], [], color=GREY, marker=marker, ls="", label=size)
    if options:
        ax.legend(**options)


def seeded(name: str, n_seeds: int) -> str:
    """A run's name with its seeds where there are several: those that its interval is over."""
    return f"{name}, {n_seeds:.0f} seeds" if n_seeds > 1 else name


def dots(
    ax: Axes, value, where, low, high, colour: str, marker: str = "o", *,
    label: str | None = None, up: bool = False, hollow: bool = False,
) -> None:  # fmt: skip
    """Values with their intervals, along x (or y if `up`); hollow: excluded or extrapolated."""
    x, y = (where, value) if up else (value, where)
    look = {"ms": 4.5, "color": colour, "capsize": 2, "lw": 1.2, "mfc": "white" if hollow else colour}
    ax.errorbar(x, y, **{"yerr" if up else "xerr": bars(low, value, high)}, fmt=marker, label=label, **look)


def forest(
    axes: Sequence[Axes], table: pd.DataFrame, by: str, looks: dict[str, tuple[str, str, str]],
    columns: Sequence[tuple[str, str, str]], rows: pd.Series, apart: float = 0.0,
) -> None:  # fmt: skip
    """Values with their intervals, the groups of a table side by side in each row.

    by       column with the name of the group; looks: group -> label, colour, marker, in the order drawn
    columns  of each panel: value, low, high; all panels but the first are differences, with a line at zero
    rows     place of each line of the table from the top; apart: distance of neighbouring groups
    """
    present = [name for name in looks if (table[by] == name).any()]
    for i, name in enumerate(present):
        own, (label, *look) = table[table[by] == name], looks[name]
        y = rows[own.index] + apart * (i - (len(present) - 1) / 2)
        for ax, ends in zip(axes, columns, strict=True):
            value, low, high = (own[column] for column in ends)
            if value.notna().any():
                dots(ax, value, y, low, high, *look, label=label if ax is axes[0] else None)
    for ax in axes[1:]:
        ax.axvline(0, color=GREY, lw=1)


def bands(axes: Sequence[Axes], labels: Sequence[str]) -> None:
    """A labelled band for each group of horizontal bars, from the top down, on axes that share y."""
    axes[0].set_yticks(range(len(labels)), labels)
    axes[0].set_ylim(len(labels) - 0.5, -0.5)
    for ax in axes:
        ax.grid(visible=False, axis="y")
        for line in np.arange(len(labels) - 1) + 0.5:
            ax.axhline(line, color="#cccccc", lw=0.6)


def bars(low, value, high) -> np.ndarray:
    """Interval ends -> the (2, n) distances that errorbar wants; zero where there is no interval."""
    low, value, high = (np.atleast_1d(np.asarray(one, float)) for one in (low, value, high))
    return np.nan_to_num(np.vstack([value - low, high - value])).clip(0)


def label_ends(ax: Axes, ends: list[tuple[float, float, str, str]], gap: float = 0.045) -> None:
    """Names beside the right ends of lines, pushed apart until none overlap: (x, y, text, colour) each.

    gap  smallest distance of two names, as a share of the height of the axes
    """
    from scipy.optimize import isotonic_regression  # which takes longer to load than most figures to draw

    low, high = ax.get_ylim()
    to_axes = ax.transData + ax.transAxes.inverted()
    ordered = sorted(ends, key=lambda end: end[1])
    places = [float(np.clip(to_axes.transform((x, np.clip(y, low, high)))[1], 0, 1)) for x, y, *_ in ordered]
    steps = gap * np.arange(len(places))
    places = (
        np.clip(isotonic_regression(np.array(places) - steps).x, 0, max(0, 1 - steps[-1])) + steps if places else []
    )
    for (x, y, text, colour), place in zip(ordered, places, strict=True):
        line = {"arrowstyle": "-", "relpos": (0, 0.5), "lw": 0.4, "alpha": 0.6, "shrinkA": 0, "shrinkB": 1}
        ax.annotate(
            text, (x, y), xytext=(1.02, place), textcoords="axes fraction", va="center", fontsize=7, color=colour,
            annotation_clip=False, arrowprops={**line, "color": colour},
        )  # fmt: skip


def counts(ax: Axes, axis: str = "x") -> None:
    """Tick labels such as 100k, 2M, 1.5G on an axis that counts samples, parameters or FLOPs."""
    which = ax.xaxis if axis == "x" else ax.yaxis
    which.set_major_formatter(matplotlib.ticker.EngFormatter(sep=""))
    if (ax.get_xscale() if axis == "x" else ax.get_yscale()) == "log":
        low, high = ax.get_xlim() if axis == "x" else ax.get_ylim()
        named = (1, 2, 3, 5) if high / low < 8 else (1, 3) if high / low < 200 else (1,)
        which.set_major_locator(matplotlib.ticker.LogLocator(subs=named, numticks=9))
        which.set_minor_formatter(matplotlib.ticker.NullFormatter())
    else:
        which.set_major_locator(matplotlib.ticker.MaxNLocator(4))


def losses(ax: Axes) -> None:
    """Plain tick labels on a logarithmic y axis of losses."""
    low, high = ax.get_ylim()
    named = (1, 1.2, 1.5, 2, 3, 5, 7) if high / low < 5 else (1, 2, 5)
    ax.yaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=named, numticks=12))
    ax.yaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
    ax.yaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())


def powers(ax: Axes) -> None:
    """Few tick labels such as 3e18 on a logarithmic x axis of FLOPs, however short it is."""
    low, high = ax.get_xlim()
    if high / low < 100:
        ax.xaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 3), numticks=6))
        ax.xaxis.set_major_formatter(
            matplotlib.ticker.LogFormatterSciNotation(labelOnlyBase=False, minor_thresholds=(9, 9))
        )
    ax.xaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
