"""Figures of the evaluation: alternatives to foveated reading, the evaluation modes, tokens and compute."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fvlm.analysis import style
from fvlm.analysis.bootstrap import Replicates, interval
from fvlm.analysis.study import trained_mode
from fvlm.analysis.style import BLUE, GREEN, GREY, PURPLE, RED, SKY, NothingToDraw, dots, heading, panels

ALTERNATIVES = {  # run: name and colour
    "baseline": ("foveated (baseline)", BLUE),
    "A1": ("shallow query (A1)", SKY),
    "A6": ("static query (A6)", GREEN),
    "A7": ("shallow, static (A7)", PURPLE),
    "B1": ("pooled tokens (B1)", RED),
}


def alternatives(runs: pd.DataFrame, evaluation: pd.DataFrame, bootstrap: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """Evaluation loss of the default model and its alternatives by source, and the paired differences to
    the default."""
    chosen = runs[runs["run"].isin(ALTERNATIVES)]
    modes = {row["run"]: trained_mode(row) for _, row in chosen.iterrows()}
    own = evaluation[evaluation["run"].isin(modes) & (evaluation["frames"] == "own")]
    own = own[(own["mode"] == own["run"].map(modes)) & ((own["source"] != "all") | (own["kind"] == "all"))]
    present = [name for name in ALTERNATIVES if name in set(own["run"])]
    if not present:
        raise NothingToDraw("none of baseline, A1, A6, A7 and B1 has been evaluated")
    own = _with_differences(own, modes, Replicates(bootstrap))
    sources = ["all", *sorted(set(own["source"]) - {"all"})]
    figure, (left, right) = panels(2, height=1.5 + 0.45 * len(sources), sharey=True)
    for i, name in enumerate(present):
        part, (text, colour) = own[own["run"] == name], ALTERNATIVES[name]
        y = part["source"].map(sources.index) + 0.14 * (i - (len(present) - 1) / 2)
        dots(left, part["loss"], y, part["low"], part["high"], colour, style.MARKERS[i], label=text)
        if name != "baseline":
            dots(
                right,
                part["difference"],
                y,
                part["difference_low"],
                part["difference_high"],
                colour,
                style.MARKERS[i],
            )
    right.axvline(0, color=GREY, lw=1)
    left.set_yticks(range(len(sources)), ["all sources", *sources[1:]])
    left.set_ylim(len(sources) - 0.5, -0.5)
    for ax in (left, right):
        ax.grid(visible=False, axis="y")
        for line in np.arange(len(sources) - 1) + 0.5:
            ax.axhline(line, color="#cccccc", lw=0.6)
    left.set_xlabel(f"held-out {style.LOSS}")
    right.set_xlabel("difference to the baseline (nats per token)")
    heading(figure, "Foveated reading against its alternatives; bars: 95 % bootstrap over videos")
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure, own


def _with_differences(own: pd.DataFrame, modes: dict[str, str], replicates: Replicates) -> pd.DataFrame:
    """With the paired difference to the baseline on the same source."""
    baseline = own[own["run"] == "baseline"].set_index("source")["loss"]
    own = own.assign(difference=own["loss"] - own["source"].map(baseline))
    ends = []
    for run, kind, source in own[["run", "kind", "source"]].itertuples(index=False, name=None):
        one, two = (replicates.loss(name, modes.get(name, ""), "own", kind, source) for name in (run, "baseline"))
        ends.append(interval(None if one is None or two is None else one - two))
    own[["difference_low", "difference_high"]] = np.array(ends).reshape(-1, 2)
    return own


def token_efficiency(token_efficiency: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """Loss against visual tokens per frame, and against the training FLOPs of a sample."""
    table = token_efficiency
    if table.empty:
        raise NothingToDraw("no ablation differs in how a frame is read (baseline, A6, B1, B2)")
    figure, (left, right) = panels(2, height=3.4, sharey=True)
    for row in table.to_dict("records"):
        colour = SKY if row["run"].startswith("A6") else style.ARCHITECTURE[row["architecture"]]
        places = (
            (left, row["tokens_per_frame"] * (1.2 if row["run"].startswith("A6") else 1)),
            (right, row["flops_per_sample"]),
        )
        for ax, x in places:
            if np.isfinite(x):
                label = row["label"] if ax is left else None
                hollow = bool(row["data_differs"])
                dots(ax, row["loss"], x, row["low"], row["high"], colour, label=label, up=True, hollow=hollow)
    left.set_xscale("symlog", base=4, linthresh=1)
    ticks = sorted(set(table["tokens_per_frame"].dropna()))
    left.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    left.minorticks_off()
    left.set_xlim(-0.4, max(ticks) * 1.8)
    left.set_xlabel("visual tokens per frame")
    left.set_ylabel(f"{table['measure'].iloc[0]} (nats per token)")
    right.set_xscale("log")
    right.margins(x=0.15)
    style.counts(right)
    right.set_xlabel("training FLOPs per sample (two per multiply-add)")
    hollow = "; hollow: trained on other data" if (table["data_differs"] != "").any() else ""
    heading(figure, f"Loss against visual tokens and compute{hollow}")
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure, table


def three_modes(modes: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """Left: loss by mode, with another sample's frames, and blind. Right: gap to the trained mode."""
    if modes.empty:
        raise NothingToDraw("no stage or ablation has been evaluated")
    order = {"stage": 0, "ablation": 1}
    table = modes.assign(
        shown=np.where(modes["frames"] == "other", "other", modes["mode"]), order=modes["family"].map(order)
    ).sort_values("order", kind="stable", ignore_index=True)
    runs = list(table["run"].drop_duplicates())
    figure, (left, right) = panels(
        2, height=1.5 + 0.24 * len(runs), sharey=True, gridspec_kw={"width_ratios": [1.4, 1]}
    )
    for i, (name, text) in enumerate(style.MODE_NAMES.items()):
        own = table[table["shown"] == name]
        if own.empty:
            continue
        y, look = own["run"].map(runs.index), (style.MODES[name], style.MARKERS[i])
        dots(left, own["loss"], y, own["low"], own["high"], *look, label=text)
        if name not in ("other", "blind"):
            dots(right, own["gap_percent"], y, own["gap_low"], own["gap_high"], *look)
    right.axvline(0, color=GREY, lw=1)
    _separate_families(left, right, table.drop_duplicates("run")["order"].to_numpy())
    left.set_yticks(range(len(runs)), runs)
    left.set_ylim(len(runs) - 0.4, -0.6)
    left.set_xlabel(f"held-out {style.LOSS}")
    right.set_xlabel("above the mode trained in (%)")
    heading(figure, "Evaluation modes; bars: 95 % bootstrap over videos (right: paired)")
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure, table.drop(columns=["shown", "order"])


def _separate_families(left: Axes, right: Axes, order: np.ndarray) -> None:
    for row in np.flatnonzero(np.diff(order)):
        for ax in (left, right):
            ax.axhline(row + 0.5, color=GREY, lw=0.8)
