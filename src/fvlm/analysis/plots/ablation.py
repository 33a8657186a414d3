"""Figures of the ablations: the ranking and the factorial."""

import textwrap

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter

from fvlm import style
from fvlm.analysis.compare.bootstrap import OVER_SEEDS, OVER_VIDEOS, bars_words
from fvlm.analysis.compare.factorial import EFFECTS
from fvlm.errors import UserError
from fvlm.style import BLUE, GREY, ORANGE, RED, NothingToDraw, dots, heading, legend_below, panels, seeded

EXPLAINED = {OVER_VIDEOS: "over evaluation videos, not seeds", OVER_SEEDS: "over seeds"}
SHAPES = {OVER_VIDEOS: "o", OVER_SEEDS: "s"}
SHAPE_WORDS = {"o": "circles:", "s": "squares:"}
MEASURES = {"best": "best validation loss", "final": "final validation loss", "evaluation": "evaluation loss"}


def ranking(ablations: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """Forest plot: each ablation's difference to the run it is compared with, group by group."""
    shown = ablations[ablations["difference"].notna()]
    if shown.empty:
        raise NothingToDraw("no ablation has a run to be compared with")
    groups = list(shown["group"].drop_duplicates())
    shown = shown.assign(order=shown["group"].map(groups.index)).sort_values(["order", "difference"], ignore_index=True)
    shown["y"] = np.arange(len(shown)) + shown.pop("order") * 0.9
    figure, (ax,) = panels(1, height=1.5 + 0.24 * len(shown) + 0.25 * len(groups))
    ax.axvline(0, color=GREY, lw=1)
    for row in shown.to_dict("records"):
        colour = GREY if not row["clear"] else (BLUE if row["difference"] < 0 else RED)
        dots(ax, row["difference"], row["y"], row["low"], row["high"], colour, SHAPES.get(row["interval"], "o"))
    for group, own in shown.groupby("group", sort=False):
        ax.text(
            0.005,
            own["y"].min() - 0.62,
            group,
            transform=ax.get_yaxis_transform(),
            fontsize=7.5,
            style="italic",
            color=GREY,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
        )
    ax.set_yticks(shown["y"], [_named(row) for row in shown.to_dict("records")])
    ax.set_ylim(shown["y"].max() + 0.7, shown["y"].min() - 1.2)
    _spread_scale(ax, shown)
    kinds = [kind for kind in EXPLAINED if (shown["interval"] == kind).any()]
    kinds = ", ".join((f"{SHAPE_WORDS[SHAPES[kind]]} " if len(kinds) > 1 else "") + EXPLAINED[kind] for kind in kinds)
    marked = "; † different data" if (shown["data_differs"] != "").any() else ""
    ax.set_xlabel(
        f"difference of loss (nats per token; left: better){marked}\n"
        f"bars: 95 %, {kinds or 'none available'}\ngrey: includes 0, or within the noise of one seed",
        x=1.0,
        ha="right",
    )
    heading(figure, f"Ablations: difference to the reference run ({seed_words(shown['n_seeds'])})")
    return figure, shown.drop(columns="y")


def seed_words(seeds: pd.Series) -> str:
    low, high = int(seeds.min()), int(seeds.max())
    if high == 1:
        return "one seed each"
    return f"{low} seeds each" if low == high else f"{low} to {high} seeds each"


def _named(row: dict) -> str:
    question = textwrap.shorten(row["question"], 44, placeholder=" ...")
    return f"{question}  {seeded(row['run'], row['n_seeds'])}{' †' if row['data_differs'] else ''}"


def _spread_scale(ax: Axes, shown: pd.DataFrame) -> None:
    """Frozen runs are ten times as far away as the rest; linear near zero, logarithmic beyond, keeps both
    readable."""
    sizes = shown["difference"].abs()
    typical = float(f"{2 * sizes.median():.1g}")
    farthest = float(np.nanmax(np.abs(shown[["low", "high", "difference"]].to_numpy(float))))
    if not farthest > 4 * typical > 0:
        return
    ax.set_xscale("symlog", linthresh=typical, linscale=2.0)
    decades = np.outer(10.0 ** np.arange(-6, 3), (1, 3)).ravel()
    ticks = [0, typical / 2, typical, *decades[(decades > 2.5 * typical) & (decades < 1.3 * farthest)]]
    ax.xaxis.set_major_locator(FixedLocator(sorted({sign * tick for tick in ticks for sign in (-1, 1)})))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.minorticks_off()
    lowest, highest = shown[["low", "difference"]].min().min(), shown[["high", "difference"]].max().max()
    room = 0.2 * typical
    ax.set_xlim(
        min(-room, lowest * 1.3 if lowest < -typical else lowest - room),
        max(room, highest * 1.3 if highest > typical else highest + room),
    )


def factorial(factorial: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """Interaction plot of the four cells, and the three effects with their intervals."""
    if factorial.empty:
        raise NothingToDraw("the four cells of query depth x fine pass are not all in this study")
    for column, known in (("measure", MEASURES), ("effect", EFFECTS)):
        if unknown := set(factorial[column].astype(str)) - set(known):
            raise UserError(
                f"table factorial: {column} is {min(unknown)!r}; expected one of {', '.join(known)}: make it again"
            )
    figure, (left, right) = panels(2, height=3.2, gridspec_kw={"width_ratios": [1, 1.2]})
    measure = "evaluation" if (factorial["measure"] == "evaluation").any() else "best"
    cells = factorial[factorial["measure"] == measure].iloc[0]
    for depth, colour, marker in (("deep", BLUE, "o"), ("shallow", ORANGE, "s")):
        both = [cells[f"{depth}_coarse"], cells[f"{depth}_fine"]]
        left.plot([0, 1], both, color=colour, marker=marker, label=f"{depth} query")
    left.set_xticks([0, 1], ["coarse only", "coarse + fine"])
    left.set_xlim(-0.25, 1.25)
    left.set_ylabel(f"{MEASURES[measure]} (nats per token)")
    left.set_title("Cells")
    left.legend()
    _effects(right, factorial)
    right.set_title(f"Effects ({seed_words(factorial['n_seeds'])})")
    legend_below(figure, right, bars_words(factorial["interval"]))
    return figure, factorial


def _effects(ax: Axes, table: pd.DataFrame) -> None:
    effects = list(table["effect"].drop_duplicates())
    looks = {"best": (ORANGE, "D"), "final": (GREY, "s"), "evaluation": (BLUE, "o")}
    looks = {name: (MEASURES[name], *looks[name]) for name in table["measure"].drop_duplicates()}
    columns, rows = [("estimate", "low", "high")], table["effect"].map(effects.index)
    style.forest([ax], table, "measure", looks, columns, rows, apart=0.22)
    ax.axvline(0, color=GREY, lw=1)
    ax.locator_params(axis="x", nbins=5)  # the numbers are long: more would run into each other
    ax.set_yticks(range(len(effects)), [_wrapped(effect) for effect in effects])
    ax.set_ylim(len(effects) - 0.5, -0.5)
    ax.set_xlabel("effect (nats per token; left: better)")


def _wrapped(effect: str) -> str:
    name, levels = effect.split(" (")
    return "\n".join([name, *textwrap.wrap(f"({levels.replace(' - ', ' − ')}", 22)])
