"""The figure of the benchmarks: a run's score with its own frames and in the controls, beside guessing."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fvlm import style
from fvlm.config.comparisons import Comparisons
from fvlm.style import BLUE, GREY, NothingToDraw

LOOKS = {  # frames: label, colour, marker
    "own": ("own frames", BLUE, "o"),
    "other": ("another video's frames", style.ORANGE, "s"),
    "none": ("no frames", style.PURPLE, "^"),
    "shuffled": ("shuffled frames", style.GREEN, "D"),
    "other_side": ("question on the other side", style.BROWN, "P"),
    "rotated": ("letters, options rotated", GREY, "v"),
}
PUBLISHED = "published"


def benchmarks(benchmarks: pd.DataFrame, comparisons: Comparisons) -> tuple[Figure, pd.DataFrame]:
    """One panel per benchmark, one band per run: its main score, the controls, and below what others published."""
    whole = benchmarks[benchmarks["group"] == "all"]
    mains = whole[whole["main"] & (whole["source"] == "")]
    if mains.empty:
        raise NothingToDraw("no run has answered a benchmark; name some in evaluation.benchmarks of the study")
    columns = ["benchmark", "run", "mode", "metric"]
    beside = whole.merge(mains[[*columns, "way"]], on=columns, suffixes=("", "_main"))
    table = beside[(beside["way"] == beside["way_main"]) | (beside["frames"] == "rotated")].drop(columns="way_main")
    table = pd.concat([table, whole[whole["source"] != ""]], ignore_index=True)
    names = list(mains["benchmark"].drop_duplicates())
    heights = [table.loc[table["benchmark"] == name, "run"].nunique() for name in names]
    figure = style.plt.figure(figsize=(style.WIDTH, 1.3 + 0.36 * sum(heights) + 0.45 * len(names)))
    axes = figure.subplots(len(names), 1, squeeze=False, height_ratios=heights)[:, 0]
    for ax, name in zip(axes, names, strict=True):
        _draw(ax, table[table["benchmark"] == name].reset_index(drop=True), comparisons)
    axes[-1].set_xlabel("score (%)")
    style.heading(figure, "Benchmarks, in the mode of inference; dotted: guessing")
    for frames, (label, colour, marker) in LOOKS.items():
        if (table["frames"] == frames).any():
            axes[0].plot([], [], color=colour, marker=marker, ls="", label=label)
    if (table["source"] != "").any():
        axes[0].plot([], [], color=GREY, marker="o", mfc="white", ls="", label=PUBLISHED)
    style.legend_below(figure, axes[0], "bars: 95 % over videos, one seed", ncols=3)
    kept = ["title", "run", "frames", "mode", "way", "metric", "score", "low", "high", "chance", "questions", "videos",
            "total", "missing", "unusable", "source"]  # fmt: skip
    return figure, table[kept]


def _draw(ax: Axes, table: pd.DataFrame, comparisons: Comparisons) -> None:
    runs = list(table["run"].drop_duplicates())
    rows = table["run"].map(runs.index)
    unnamed = {frames: ("", *look) for frames, (_, *look) in LOOKS.items()}  # the legend is of all panels
    style.forest((ax,), table, "frames", unnamed, [("score", "low", "high")], rows, apart=0.15)
    for place, row in table[table["source"] != ""].iterrows():
        style.dots(ax, row["score"], rows[place], row["low"], row["high"], GREY, hollow=True)
    words = comparisons.benchmarks.runs
    style.bands((ax,), [f"{words[run]} ({run})" if run in words else run for run in runs])
    own = table[table["frames"] == "own"].iloc[0]
    if pd.notna(own["chance"]):
        ax.axvline(own["chance"], color="black", lw=1, ls=":")
    ax.set_xlim(0, max(60.0, table["high"].max(), table["score"].max()) * 1.04)
    counted = f"{own['questions']:,.0f} of {own['total']:,.0f} questions"
    ax.set_title(f"{own['title']}: {own['metric']} by {own['way'].replace('_', ' ')}, {counted}")
