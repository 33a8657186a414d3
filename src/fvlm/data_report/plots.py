"""The figures of the report, one function per name in `FIGURES`. Each sample kind has one colour in all of them.

Their argument is the tables of the report by their names in `TABLES`.
"""

import math

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, PercentFormatter

from fvlm.data.batches.order import KINDS
from fvlm.data_report.tables import ALL, EDGES
from fvlm.style import BLUE, CYCLE, GREEN, GREY, ORANGE, PURPLE, RED, SKY, WIDTH, NothingToDraw, counts, panels, plt

Tables = dict[str, pd.DataFrame]
KIND_COLOURS = dict(zip(KINDS, (BLUE, ORANGE, GREEN, PURPLE), strict=True))
TARGET = (0.40, 0.50)  # wanted share of video samples
ACROSS = 4  # panels side by side
MIB = 2**20


def _rows(names: list[str]) -> float:
    """Return the height of a panel with one bar per name, in inches."""
    return 0.9 + 0.22 * len(names)


def _names(ax: Axes, names: list[str]) -> None:
    """One name per bar, the first on top."""
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.grid(False, axis="y")


def _kinds_legend(figure: Figure, kinds: list[str]) -> None:
    handles = [plt.Rectangle((0, 0), 1, 1, color=KIND_COLOURS[kind]) for kind in kinds]
    figure.legend(handles, kinds, loc="outside upper right", ncols=len(kinds))


def inputs(tables: Tables) -> Figure:
    """Left: samples kept. Right: share of the inputs that were rejected, by reason."""
    sources, rejected = tables["sources"], tables["rejected"]
    own = sources[sources["source"] != ALL]
    names = own["source"].tolist()
    figure, (left, right) = panels(2, height=_rows(names), sharey=True)
    left.barh(names, own["samples"], color=own["kind"].map(KIND_COLOURS), height=0.7)
    for y, (kept, out) in enumerate(zip(own["samples"], own["rejected"], strict=True)):
        left.annotate(
            f"{kept:,}" + (f", {out:,} rejected" if out else ""), (kept, y), xytext=(3, 0),
            textcoords="offset points", va="center", fontsize=7, color=GREY,
        )  # fmt: skip
    left.set_xlim(0, 1.45 * max(1, own["samples"].max()))
    counts(left)
    _names(left, names)
    left.set_title("Samples kept")
    start = np.zeros(len(names))
    for colour, reason in zip((RED, SKY, *CYCLE[2:]) * 2, dict.fromkeys(rejected["reason"]), strict=False):
        share = rejected[rejected["reason"] == reason].set_index("source")["share_of_inputs"]
        share = share.reindex(names).fillna(0).to_numpy()
        right.barh(names, share, left=start, color=colour, height=0.7, label=reason)
        start += share
    right.axvline(0.1, color=GREY, ls=":", lw=1)
    right.set_xlim(0, max(0.12, 1.1 * start.max(initial=0)))
    right.xaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    right.set_title("Rejected inputs; dotted: 10 %")
    if len(rejected):
        right.legend(loc="lower right", fontsize=7, frameon=True, framealpha=0.9, edgecolor="none")
    _kinds_legend(figure, [kind for kind in KINDS if kind in set(own["kind"])])
    return figure


def mixture(tables: Tables) -> Figure:
    """Shares of the samples by kind; video should end between the dotted lines."""
    table = tables["mixture"]
    places = list(dict.fromkeys(table["where"]))
    kinds = [kind for kind in KINDS if table[(table["kind"] == kind)]["samples"].sum()]
    figure, (ax,) = panels(1, height=1.0 + 0.32 * len(places))
    start = np.zeros(len(places))
    for kind in kinds:
        chosen = table[(table["kind"] == kind) & (table["source"] == ALL)].set_index("where")["share"]
        share = chosen.reindex(places).fillna(0).to_numpy()
        ax.barh(places, share, left=start, color=KIND_COLOURS[kind], height=0.62)
        for y, (low, wide) in enumerate(zip(start, share, strict=True)):
            if wide > 0.04:
                ax.text(low + wide / 2, y, f"{100 * wide:.0f} %", ha="center", va="center", fontsize=7, color="white")
        start += share
    for edge in TARGET:
        ax.axvline(edge, color="#222222", ls=":", lw=1)
    ax.set_xlim(0, 1)
    ax.xaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    _names(ax, places)
    ax.set_xlabel("share of the samples; the share of video should end between the dotted lines")
    _kinds_legend(figure, kinds)
    return figure


def _grid(names: list[str]) -> tuple[Figure, dict[str, Axes]]:
    """Return a figure with a small panel per name."""
    across = min(ACROSS, len(names))
    down = math.ceil(len(names) / across)
    size = (max(WIDTH * across / ACROSS, 3.4), 0.35 + 1.35 * down)
    figure, axes = plt.subplots(down, across, figsize=size, squeeze=False, sharex=True)
    for ax in axes.flat[len(names) :]:
        ax.axis("off")
    for ax in axes[:-1].flat:
        ax.xaxis.set_tick_params(labelbottom=False)
    for ax in axes.flat[max(0, len(names) - across) : len(names)]:
        ax.xaxis.set_tick_params(labelbottom=True)
    for name, ax in zip(names, axes.flat, strict=False):
        ax.set_title(name if name != ALL else "all sources", fontsize=8)
        ax.set_yticks([])
        ax.spines["left"].set_visible(False)
    return figure, dict(zip(names, axes.flat, strict=False))


def _histogram(ax: Axes, table: pd.DataFrame, source: str, quantity: str, **options) -> None:
    """Draw bars of equal width, whatever they span: the axis counts edges."""
    edges = EDGES[quantity]
    own = table[(table["source"] == source) & (table["quantity"] == quantity)]
    heights = own.set_index("low")["count"].reindex(edges).fillna(0).to_numpy()
    ax.stairs(heights / max(1, heights.sum()), np.arange(len(edges) + 1), **options)


def _present(table: pd.DataFrame, quantity: str) -> list[str]:
    names = table[table["quantity"] == quantity]["source"].drop_duplicates().tolist()
    own = [name for name in names if name != ALL]
    if not own:
        raise NothingToDraw(f"no sample with {quantity} in these sources")
    return own if len(own) == 1 else [ALL, *own]


def _axis(axes: dict[str, Axes], table: pd.DataFrame, quantity: str, ticks: dict[int, str], least: int) -> None:
    """Label some edges (edge -> label), on an axis that ends with the last bar of any source, at `least` or later."""
    edges = EDGES[quantity]
    last = max(table[table["quantity"] == quantity]["low"].max(), least)
    for ax in axes.values():
        ax.set_xticks([edges.index(edge) for edge in ticks if edge <= last], [t for e, t in ticks.items() if e <= last])
        ax.set_xlim(-0.3, edges.index(last) + 1.3)


def _filled(histograms: pd.DataFrame, quantity: str, colour: str) -> tuple[Figure, dict[str, Axes]]:
    """Return a figure with a filled histogram per source, the heights as shares, and one of all sources in grey."""
    figure, axes = _grid(_present(histograms, quantity))
    for name, ax in axes.items():
        _histogram(ax, histograms, name, quantity, fill=True, color=GREY if name == ALL else colour)
    return figure, axes


def durations(tables: Tables) -> Figure:
    """Durations of the samples' videos by source; the bars widen to the right."""
    figure, axes = _filled(tables["histograms"], "duration_s", BLUE)
    for ax in axes.values():
        ax.axvline(EDGES["duration_s"].index(64), color=RED, ls=":", lw=1)
    ticks = {0: "0", 3: "3 s", 10: "10 s", 30: "30 s", 120: "2 m", 600: "10 m", 3600: "1 h"}
    _axis(axes, tables["histograms"], "duration_s", ticks, least=64)
    label = "duration of a sample's video; right of the dotted line (64 s) frames are more than 1 s apart"
    figure.supxlabel(label, fontsize=8)
    return figure


def frames(tables: Tables) -> Figure:
    """Frames per video sample by source."""
    figure, axes = _filled(tables["histograms"], "frames", BLUE)
    _axis(axes, tables["histograms"], "frames", {n: str(n) for n in (1, 8, 16, 32, 48, 64)}, least=16)
    figure.supxlabel("frames of a video sample, one per second, at most 64", fontsize=8)
    return figure


def tokens(tables: Tables) -> Figure:
    """Text tokens and answer tokens per sample, by source; dotted: where training cuts the text."""
    histograms, rows = tables["histograms"], tables["sources"].set_index("source")
    figure, axes = _filled(histograms, "text_tokens", SKY)
    edges = EDGES["text_tokens"]
    for name, ax in axes.items():
        _histogram(ax, histograms, name, "answer_tokens", fill=False, color="#222222", lw=0.9)
        if name == ALL or pd.isna(rows.loc[name, "max_text_tokens"]):
            continue
        limit, share = rows.loc[name, ["max_text_tokens", "texts_cut_share"]]
        ax.axvline(np.interp(limit, edges, range(len(edges))), color=RED, ls=":", lw=1)
        if share:
            ax.set_title(f"{100 * share:.0f} % cut", loc="right", fontsize=7, fontweight="normal", color=RED)
    limit = rows["max_text_tokens"].astype(float).max()
    least = max([edge for edge in edges if edge <= limit], default=0)
    _axis(axes, histograms, "text_tokens", {v: str(v) for v in (0, 8, 32, 128, 512, 2048)}, least)
    figure.supxlabel("text tokens; filled: of a sample, line: of its answers, dotted: limit of training", fontsize=8)
    return figure


def storage(tables: Tables) -> Figure:
    """Size and samples of each shard, and size of a stored frame."""
    sources, shards = tables["sources"], tables["shards"]
    own = sources[sources["source"] != ALL]
    names = own["source"].tolist()
    figure, (left, middle, right) = panels(3, height=_rows(names), sharey=True)
    for y, name in enumerate(names):
        chosen = shards[shards["source"] == name]
        for ax, values in ((left, chosen["bytes"] / MIB), (middle, chosen["samples"])):
            ax.plot(values, np.full(len(values), y), "o", ms=3.5, color=BLUE, alpha=0.5, mew=0)
    right.plot(own["jpeg_bytes_median"] / 1024, range(len(names)), "o", color=BLUE)
    right.hlines(range(len(names)), own["jpeg_bytes_median"] / 1024, own["jpeg_bytes_p95"] / 1024, color=BLUE, lw=1.4)
    left.set_xlabel("MiB per shard")
    middle.set_xlabel("samples per shard")
    right.set_xlabel("KiB per frame, median to 95 %")
    for ax in (left, middle, right):
        ax.set_xlim(left=0)
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        _names(ax, names)
    return figure


def near_duplicates(tables: Tables) -> Figure:
    """Share of each source's held-out samples that look like a training sample: of any source, and of each."""
    table = tables["near_duplicates"]
    rows = table[(table["held_out_source"] != ALL) & (table["compared"] > 0)]
    names = rows["held_out_source"].drop_duplicates().tolist()
    if not names:
        raise NothingToDraw("no held-out sample has an image")
    columns = [ALL, *(name for name in rows["training_source"].unique() if name != ALL)]
    shares = rows.pivot(index="held_out_source", columns="training_source", values="share")
    shares = shares.reindex(index=names, columns=columns).fillna(0)
    figure, (ax,) = panels(1, height=1.3 + 0.28 * len(names), width=min(WIDTH, 2.6 + 0.7 * len(columns)))
    ax.imshow(shares, cmap="Reds", vmin=0, vmax=1, aspect="auto")
    for y, x in np.ndindex(shares.shape):
        value = shares.iloc[y, x]
        ax.text(x, y, f"{100 * value:.1f} %" if value else "–", ha="center", va="center", fontsize=7,
                color="white" if value > 0.5 else "#333333")  # fmt: skip
    ax.set_xticks(range(len(columns)), ["any source", *columns[1:]], rotation=25, ha="right")
    ax.set_yticks(range(len(names)), names)
    ax.grid(False)
    ax.set_xlabel("trained on")
    ax.set_ylabel("held out")
    return figure
