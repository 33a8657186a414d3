"""The parameter-corrected gap, drawn where it is taken: on the curves of loss against parameters."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from fvlm import style
from fvlm.style import GREY, LOSS, NothingToDraw, counts, heading

SIDES = ("foveated", "baseline")
COLOURS = {"foveated": style.ARCHITECTURE["foveated"], "baseline": style.ARCHITECTURE["multi_token"]}
MOST = 4  # pairs shown closely at a budget: the smallest, the largest and those evenly between


def gap_arrows(gap: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """Loss against N of both architectures, a line per budget; below, close to each pair, the raw gap and the gap at
    equal parameters in both directions as arrows from the baseline's loss to the foveated one's."""
    known = gap[["raw_percent", "n_foveated", "n_baseline"]].notna().all(axis=1)
    grid = gap[(gap["family"] != "ablation") & known]
    measure = "evaluation" if (grid["measure"] == "evaluation").any() else "validation"
    table = grid[grid["measure"] == measure].reset_index(drop=True)
    if table.empty:
        raise NothingToDraw("no foveated run of the grid has a partner among the pooled-token runs")
    table["baseline_at_n_foveated"] = table["loss_foveated"] / (1 + table["at_foveated_percent"] / 100)
    table["foveated_at_n_baseline"] = table["loss_baseline"] * (1 + table["at_baseline_percent"] / 100)
    budgets, sizes = list(table["budget"].drop_duplicates()), _evenly(table)
    figure = style.plt.figure(figsize=(style.WIDTH, 3.1 + 1.35 * len(budgets)))
    cells = figure.add_gridspec(1 + len(budgets), len(sizes), height_ratios=[1.7, *[1] * len(budgets)])
    above = figure.add_subplot(cells[0, :])
    for i, budget in enumerate(budgets):
        own = table[table["budget"] == budget]
        _curves(above, own, 0.35 + 0.65 * (i + 1) / len(budgets))
        for j, size in enumerate(sizes):
            ax = figure.add_subplot(cells[1 + i, j])
            _close(ax, own, size)
            ax.set_title(f"{size} {budget}", fontsize=8.5)
    above.set_xscale("log")
    above.margins(x=0.08, y=0.1)
    counts(above)
    above.set_ylabel(f"{measure}\n{LOSS}")
    above.set_xlabel("parameters N" + "; darker: larger budget" * (len(budgets) > 1))
    _legend(figure)
    heading(figure, "Gap to pooled tokens on the curves that it is read from")
    return figure, table


def _evenly(table: pd.DataFrame) -> list[str]:
    sizes = list(table.sort_values("n_foveated")["size"].drop_duplicates())
    chosen = np.unique(np.linspace(0, len(sizes) - 1, min(MOST, len(sizes))).round().astype(int))
    return [sizes[i] for i in chosen]


def _curves(ax: Axes, table: pd.DataFrame, shade: float = 1.0, **look) -> None:
    for side in SIDES:
        own = table.sort_values(f"n_{side}")
        ax.plot(own[f"n_{side}"], own[f"loss_{side}"], "o-", color=COLOURS[side], ms=4, lw=1.2, alpha=shade, **look)


def _close(ax: Axes, table: pd.DataFrame, size: str) -> None:
    """One pair, and what passes of the two curves."""
    found = table[table["size"] == size]
    if found.empty:
        ax.axis("off")
        return
    row = found.iloc[0].to_dict()
    _curves(ax, table, zorder=2)
    ax.set_xscale("log")
    ends = [[row[f"n_{side}"], row[f"loss_{side}"]] for side in SIDES]
    read = [[row["n_foveated"], row["baseline_at_n_foveated"]], [row["n_baseline"], row["foveated_at_n_baseline"]]]
    _arrow(ax, ends[1], ends[0], GREY)
    for i, side in enumerate(SIDES):
        if np.isfinite(read[i]).all():
            beyond = bool(row[f"at_{side}_extrapolates"])
            start, end = (read[i], ends[i]) if side == "foveated" else (ends[i], read[i])
            _prolonged(ax, table, SIDES[1 - i], read[i], beyond)
            _arrow(ax, start, end, COLOURS[side])
    _zoom(ax, np.array([point for point in (*ends, *read) if np.isfinite(point).all()]))
    corrected = [row[f"at_{side}_percent"] for side in SIDES]
    words = _signed(row["raw_percent"])
    if np.isfinite(corrected).all():
        words += "; " + ", ".join(map(_signed, corrected))
    white = {"facecolor": "white", "edgecolor": "none", "pad": 1}
    ax.text(0.02, 0.99, f"{words} %", transform=ax.transAxes, fontsize=6.5, va="top", bbox=white, zorder=6)


def _signed(value: float) -> str:
    return f"{round(value, 1) + 0.0:+.1f}".replace("-", "−")


def _prolonged(ax: Axes, table: pd.DataFrame, side: str, at: list[float], beyond: bool) -> None:
    """The other curve's loss at one's own N: hollow and dashed where that curve is prolonged to it."""
    if beyond:
        own = table.sort_values(f"n_{side}")
        end = own.iloc[0] if at[0] < own[f"n_{side}"].iloc[0] else own.iloc[-1]
        ax.plot([end[f"n_{side}"], at[0]], [end[f"loss_{side}"], at[1]], "--", color=COLOURS[side], lw=1.2, zorder=2)
        ax.plot(*at, "o", color=COLOURS[side], mfc="white", ms=4, zorder=5)


def _zoom(ax: Axes, points: np.ndarray) -> None:
    """Limits around points (k, 2) of N and loss, with ticks at the two N."""
    (n_low, low), (n_high, high) = points.min(axis=0), points.max(axis=0)
    ratio = max(n_high / n_low, 1.001)
    height = max(high - low, 1e-3 * high)
    ax.set_xlim(n_low / ratio**0.6, n_high * ratio**0.6)
    ax.set_ylim(low - 0.15 * height, high + 0.4 * height)  # the words stand above
    ax.xaxis.set_major_locator(FixedLocator(sorted({n_low, n_high})))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(_short))
    ax.yaxis.set_major_locator(MaxNLocator(3))
    ax.tick_params(labelsize=7)


def _arrow(ax: Axes, start: list[float], end: list[float], colour: str) -> None:
    look = {"arrowstyle": "-|>", "color": colour, "lw": 1.6, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 9}
    ax.annotate("", end, start, arrowprops=look, zorder=4)


def _legend(figure: Figure) -> None:
    looks = {
        style.NAMES["foveated"]: {"color": COLOURS["foveated"], "marker": "o", "ms": 4, "lw": 1.2},
        style.NAMES["multi_token"]: {"color": COLOURS["baseline"], "marker": "o", "ms": 4, "lw": 1.2},
        "raw gap": {"color": GREY, "marker": ">"},
        "gap at the foveated model's N": {"color": COLOURS["foveated"], "marker": "^"},
        "gap at the baseline's N": {"color": COLOURS["baseline"], "marker": "^"},
        "curve prolonged": {"color": "black", "marker": "o", "mfc": "white", "ms": 4, "ls": "--", "lw": 1.2},
    }
    handles = [Line2D([], [], label=label, **look) for label, look in looks.items()]
    note = "in each panel: raw gap; at the foveated model's N, at the baseline's N (arrows, from the baseline's loss)"
    figure.legend(handles=handles, loc="outside lower center", ncols=3, title=note, title_fontsize=8)


def _short(value: float, _=None) -> str:
    """1.52e8 -> 152M"""
    scale, letter = next((pair for pair in ((1e9, "G"), (1e6, "M"), (1e3, "k")) if value >= pair[0]), (1, ""))
    return f"{value / scale:.3g}{letter}"
